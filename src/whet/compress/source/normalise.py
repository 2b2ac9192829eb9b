"""The same function with less to look at: constants computed once, identities and what nobody reads left out.

Exporters leave chains of shape arithmetic with constant results (ConstantOfShape, Concat, Cast before a Pad) which hide from a
technique that an operand is constant. onnxscript's folder computes them. It is kept on a short lead: it would also compute
``Expand`` of a scalar to gigabytes, or a float32 copy of float16 weights.
"""

from __future__ import annotations

import logging
import math

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript import optimizer

from whet.compress.source.naming import name_nodes, name_values

MAX_FOLDED_ELEMENTS = 16_384
_MAX_OPERAND_ELEMENTS = 65_536
_KEPT = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_logger = logging.getLogger(__name__)


def normalise(model: ir.Model) -> ir.Model:
    """A new model that computes the same; ``model`` stays as it is and the two share their weights.

    Constant nodes become initializers; operators with constant operands are computed where the result is small (16,384 elements) or
    no larger than the constants it replaces; identities, unread nodes and unread weights go. Inputs and outputs keep their names and
    order, layers that stay keep theirs. A model that the folder cannot take is returned without folding.
    """
    try:
        return _normalised(model, fold=True)
    except Exception as error:  # the folder runs onnx's reference operators; a gap in those must not cost the user the model
        _logger.warning("constants were not folded: %s", " ".join(str(error).split())[:300])
        return _normalised(model, fold=False)


def _normalised(model: ir.Model, *, fold: bool) -> ir.Model:
    new = model.clone()
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(new)
    if fold:
        foldable = _Foldable(new)
        optimizer.fold_constants(new, input_size_limit=_MAX_OPERAND_ELEMENTS, output_size_limit=MAX_FOLDED_ELEMENTS,
                                 should_fold=foldable)
    for graph in (new.graph, *new.graph.subgraphs()):
        _drop_identities(graph)
    passes.RemoveUnusedNodesPass()(new)
    for graph in new.graph.subgraphs():
        _drop_unread_weights(graph)
    for node in new.graph.all_nodes():
        node.metadata_props.pop(optimizer.FOLDED_FROM_KEY, None)
    name_nodes(new.graph)
    name_values(new)
    _check_interface(model, new)
    return new


class _Foldable:
    """Whether a node may be computed now: False forbids, True demands, as ``fold_constants`` understands them."""

    def __init__(self, model: ir.Model) -> None:
        self._versions = dict(model.opset_imports)

    def __call__(self, node: ir.Node) -> bool | None:
        if node.op_type in _KEPT:
            return False
        tensors = [None if value is None else value.const_value for value in node.inputs]
        held = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        if any(tensor is not None and tensor.size > _MAX_OPERAND_ELEMENTS for tensor in tensors):
            # A transposed weight takes the place of the weight; anything else would keep two large tensors.
            return None if node.op_type == "Transpose" else False
        elements = self._result_elements(node, tensors)
        if elements is None:
            return False
        small = elements <= MAX_FOLDED_ELEMENTS and elements * 8 <= max(4096, 2 * held)
        return True if small or elements <= 64 else False

    def _result_elements(self, node: ir.Node, tensors: list[ir.TensorProtocol | None]) -> int | None:
        """How many elements the outputs have, by onnx's shape inference on the real operands; None where it cannot tell."""
        values = {value.name: tensor for value, tensor in zip(node.inputs, tensors, strict=True) if value is not None}
        if any(tensor is None for tensor in values.values()) or node.domain not in self._versions:
            return None
        protos = {str(name): ir.to_proto(tensor) for name, tensor in values.items() if tensor is not None}
        types = {name: onnx.helper.make_tensor_type_proto(proto.data_type, list(proto.dims)) for name, proto in protos.items()}
        try:
            schema = onnx.defs.get_schema(node.op_type, self._versions[node.domain], node.domain)
            inferred = onnx.shape_inference.infer_node_outputs(schema, ir.to_proto(node), types, protos)
        except Exception:  # an operator without inference, or operands that do not fit
            return None
        shapes = [inferred[value.name].tensor_type.shape.dim for value in node.outputs if value.name in inferred]
        if len(shapes) != len(node.outputs) or any(not size.HasField("dim_value") for shape in shapes for size in shape):
            return None
        return sum(math.prod(size.dim_value for size in shape) for shape in shapes)


def _drop_identities(graph: ir.Graph) -> None:
    """Readers of an Identity read its input instead. One that makes an output of the graph stays: its name is the interface."""
    for node in list(graph):
        if node.op_type != "Identity" or node.domain != "" or node.inputs[0] is None or node.outputs[0].is_graph_output():
            continue
        ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
        graph.remove(node, safe=True)


def _drop_unread_weights(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and value not in graph.inputs:
            graph.initializers.pop(name)


def _check_interface(old: ir.Model, new: ir.Model) -> None:
    for before, after in ((old.graph.inputs, new.graph.inputs), (old.graph.outputs, new.graph.outputs)):
        if [value.name for value in before] != [value.name for value in after]:
            raise ValueError("folding renamed an input or output")
