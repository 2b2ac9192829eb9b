"""The module: parameters by name, steps in order, and the way back into the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import onnx_ir as ir
import torch
from torch import Tensor

from whet.compress.graph import GraphModel
from whet.compress.mirror.build import Scope, Weights, build, check_opset, constant_of
from whet.compress.mirror.step import Step, execute
from whet.compress.mirror.tensors import to_numpy, to_torch
from whet.core.errors import Refused


class Mirror(torch.nn.Module):
    """A graph as a module: ``forward`` takes the graph's inputs in their order and gives its outputs in theirs.

    Floating point constants are parameters. Their names in ``state_dict`` are those of the graph with "/" for "."; ``constants``
    has the graph's own. Scalars, the statistics of batch norms and the scales of quantisers do not ask for gradients; say
    ``requires_grad_`` where they should. Bounds of Clip, exponents and the like are part of their steps and no parameters.
    """

    def __init__(self, model: GraphModel) -> None:
        super().__init__()
        self.inputs = tuple(spec.name for spec in model.inputs)
        self.outputs = tuple(spec.name for spec in model.outputs)
        self.steps, weights = _built(model)
        self._keys: dict[str, str] = {}
        ends = [name for name in self.outputs if name in weights.stored]
        for name in dict.fromkeys((*weights.read, *ends)):
            self._add(name, weights.stored[name], trained=name in weights.trained)

    def _add(self, name: str, stored: ir.TensorProtocol, *, trained: bool) -> None:
        key = wanted = name.replace(".", "/") or "_"
        number = 0
        while hasattr(self, key):  # of another constant, or of the module itself
            number += 1
            key = f"{wanted}_{number}"
        value = to_torch(stored, f"mirror the constant {name!r}")
        self.register_parameter(key, torch.nn.Parameter(value, requires_grad=trained and value.ndim > 0))
        self._keys[name] = key

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Raises Refused where the number of inputs is another one than the graph's."""
        if len(inputs) != len(self.inputs):
            raise Refused(f"run the mirror on {len(inputs)} inputs", found=f"the graph has {len(self.inputs)}: {', '.join(self.inputs)}")
        values = self.constants()
        values.update(zip(self.inputs, inputs, strict=True))
        execute(self.steps, values)
        return tuple([values[name] for name in self.outputs])

    def constants(self) -> dict[str, Tensor]:
        """The floating point constants that steps read, by their names in the graph."""
        parameters: dict[str, Any] = self._parameters
        return {name: parameters[key] for name, key in self._keys.items()}

    def written_back(self, model: GraphModel) -> GraphModel:
        """A copy of ``model`` with the parameters' values; what did not change stays the tensor that it was.

        Raises Refused where ``model`` lacks a constant, or has it in another shape.
        """
        copied = model.copied()
        places = _places(copied.ir.graph)
        for name, tensor in self.constants().items():
            if name not in places or tuple(places[name].tensor.shape.numpy()) != tuple(tensor.shape):
                raise Refused(f"write the weight {name!r} back", found="the graph has none of that name and shape",
                              do="give the model that was mirrored")
            old = places[name].tensor
            numbers = to_numpy(tensor, old.dtype)
            if numbers.tobytes() != old.tobytes():
                places[name].put(ir.tensor(numbers.copy(), dtype=old.dtype, name=name))
        return copied


class _Place(NamedTuple):
    """Where a constant lies: in an initializer, or in a Constant node."""

    tensor: ir.TensorProtocol
    holder: ir.Value | ir.Node

    def put(self, tensor: ir.TensorProtocol) -> None:
        if isinstance(self.holder, ir.Value):
            self.holder.const_value = tensor
        else:
            self.holder.attributes.clear()
            self.holder.attributes["value"] = ir.AttrTensor("value", tensor)


def _places(root: ir.Graph) -> dict[str, _Place]:
    found = {}
    for graph in (root, *root.subgraphs()):
        for name, value in graph.initializers.items():
            if value.const_value is not None:
                found[name] = _Place(value.const_value, value)
        for node in graph:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                found[node.outputs[0].name or ""] = _Place(constant_of(node), node)
    return found


def _built(model: GraphModel) -> tuple[tuple[Step, ...], Weights]:
    opset = model.ir.opset_imports.get("", 0)
    check_opset(opset)
    weights = Weights()
    return build(model.ir.graph, Scope(opset, weights)), weights


def unrolled(model: GraphModel) -> tuple[tuple[Step, ...], Mapping[str, ir.TensorProtocol]]:
    """The steps of a graph and its floating point constants by name, where nothing is to be trained: no constant is copied.

    Raises Unsupported as ``mirror``.
    """
    steps, weights = _built(model)
    return steps, weights.stored


def mirror(model: GraphModel) -> Mirror:
    """The trainable mirror of a graph.

    Raises Unsupported naming the node and its operator where the table has it not, or not with these attributes.
    """
    return Mirror(model)
