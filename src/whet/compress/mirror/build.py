"""From a graph to steps: what is constant is computed now, the rest becomes functions of named tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from whet.compress.mirror.codes import floating_codes
from whet.compress.mirror.node import Function, Node
from whet.compress.mirror.step import Step
from whet.compress.mirror.tensors import Baked, to_torch, torch_type
from whet.core.errors import Unsupported

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_LEAST_OPSET = 7  # before it, operands were broadcast by attributes
_HERE = torch.device("cpu")


@dataclass
class Weights:
    """Floating point constants of a graph and all graphs in it.

    stored: by name. read: those that a step wants. trained: those that are more than numbers of the arithmetic around them.
    """

    stored: dict[str, ir.TensorProtocol] = field(default_factory=dict)
    read: dict[str, None] = field(default_factory=dict)
    trained: set[str] = field(default_factory=set)


class Scope:
    """What is known while the nodes of one graph become steps; inner graphs have scopes of their own, which see this one."""

    def __init__(self, opset: int, weights: Weights, baked: dict[str, Baked] | None = None) -> None:
        self.opset, self.weights = opset, weights
        self.baked: dict[str, Baked] = dict(baked or {})

    def inner(self) -> Scope:
        return Scope(self.opset, self.weights, self.baked)

    def add_constant(self, name: str, tensor: ir.TensorProtocol) -> None:
        """An initializer or the value of a Constant node."""
        if tensor.dtype in _FLOATS:
            known = self.weights.stored.setdefault(name, tensor)
            if known is not tensor:
                raise Unsupported("mirror the graph", found=f"two constants have the name {name!r}", do="read the model with whet.load")
        else:
            self.baked[name] = Baked(to_torch(tensor, f"mirror the constant {name!r}"), tensor.dtype)

    def known(self, value: ir.Value | None) -> Baked | ir.TensorProtocol | None:
        """The constant of a value: a baked one, or a weight as it is stored."""
        name = "" if value is None else value.name or ""
        return self.baked.get(name) or self.weights.stored.get(name)


def build(graph: ir.Graph, scope: Scope) -> tuple[Step, ...]:
    """The steps of a graph, in the order of execution; ``done`` is filled in."""
    steps = list(unfreed(graph, scope))
    ends = [value.name or "" for value in graph.outputs]
    steps += [Step(name, "Constant", (), (name,), _giver(scope.baked[name])) for name in dict.fromkeys(ends) if name in scope.baked]
    return freed(steps, ends, scope.weights)


def unfreed(graph: ir.Graph, scope: Scope) -> Iterator[Step]:
    """The steps without ``done``; the scope learns the constants of the graph."""
    for name, value in graph.initializers.items():
        if value.const_value is not None:  # also of one that is a graph input with a default, as in files of IR version 3
            scope.add_constant(name, value.const_value)
    for value in graph.inputs:
        asked = f"mirror the input {value.name!r}"
        if isinstance(value.type, ir.SequenceType | ir.OptionalType):
            raise Unsupported(asked, found=f"it is no tensor but a {value.type}")
        if value.dtype is not None:
            torch_type(value.dtype, asked)
    codes = floating_codes(graph)
    for node in graph:
        yield from _steps(node, scope, codes)


def freed(steps: Iterable[Step], ends: Iterable[str], weights: Weights) -> tuple[Step, ...]:
    """The steps with ``done``: what is read, or made, for the last time."""
    seen, found = {*ends, *weights.stored}, []
    for step in reversed(list(steps)):
        done = tuple(name for name in dict.fromkeys((*step.inputs, *step.outputs)) if name not in seen)
        seen.update(done)
        found.append(replace(step, done=done))
    return tuple(reversed(found))


def _steps(node: ir.Node, scope: Scope, codes: frozenset[str]) -> Iterator[Step]:
    """The steps of one node: none where its outputs are known now, several where a decided If gives way to its branch."""
    from whet.compress.mirror.control import CONTROL
    from whet.compress.mirror.table import builder_of

    if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
        scope.add_constant(node.outputs[0].name or "", constant_of(node))
        return
    if node.op_type in CONTROL and node.domain in ("", "ai.onnx"):
        yield from CONTROL[node.op_type](node, scope)
        return
    constants = {index: known for index, value in enumerate(node.inputs) if (known := scope.known(value)) is not None}
    seen = Node(node, scope.opset, constants)
    seen.floating_codes = node.outputs[0].name in codes
    function = builder_of(seen, node.domain)(seen)
    seen.check_attributes()
    step = bound(seen, function, scope)
    if step.inputs:
        yield step
        return
    with torch.no_grad():
        scope.baked.update({name: Baked(value) for name, value in zip(step.outputs, step.run(), strict=True)})


def bound(node: Node, function: Function, scope: Scope, around: tuple[str, ...] = ()) -> Step:
    """The function with its constants put in their places and its outputs as a tuple of those that have names.

    around: what it takes beside the inputs of the node, after all of them (also after those that are left out).
    """
    names: list[str] = []
    places: list[Baked | int | None] = []
    for index, value in enumerate(node.ir.inputs):
        if value is None or not value.name or index in node.taken:
            places.append(None)
        elif value.name in scope.baked:
            places.append(scope.baked[value.name])
        else:
            places.append(len(names))
            names.append(value.name)
            if value.name in scope.weights.stored:
                scope.weights.read[value.name] = None
                if index not in node.frozen:
                    scope.weights.trained.add(value.name)
    while places and places[-1] is None and not around:
        places.pop()
    places += range(len(names), len(names) + len(around))
    names += around
    wanted = tuple(index for index, value in enumerate(node.ir.outputs) if value.name)
    outputs = tuple(node.ir.outputs[index].name or "" for index in wanted)
    placed = function if places == list(range(len(names))) else _placed(function, tuple(places))
    return Step(node.name, node.op, tuple(names), outputs, _chosen(placed, wanted))


def _placed(function: Function, places: tuple[Baked | int | None, ...]) -> Function:
    def run(*live: Tensor) -> Any:
        device = live[0].device if live else _HERE
        return function(*[live[at] if isinstance(at, int) else at.on(device) if at is not None else None for at in places])

    return run


def _chosen(function: Function, wanted: tuple[int, ...]) -> Function:
    def run(*live: Tensor) -> tuple[Tensor, ...]:
        found = function(*live)
        return tuple([found[index] for index in wanted]) if isinstance(found, tuple) else (found,)

    return run


def _giver(constant: Baked) -> Function:
    return lambda: (constant.value,)


def constant_of(node: ir.Node) -> ir.TensorProtocol:
    """The tensor of a Constant node. Raises Unsupported for sparse ones and text."""
    for name, attribute in node.attributes.items():
        if name == "value":
            return attribute.as_tensor()
        if name in ("value_float", "value_floats"):
            return ir.tensor(attribute.value, dtype=ir.DataType.FLOAT)
        if name in ("value_int", "value_ints"):
            return ir.tensor(attribute.value, dtype=ir.DataType.INT64)
    raise Unsupported(f"mirror the node {node.name!r} (Constant)", found=f"its value is {next(iter(node.attributes), 'missing')}")


def check_opset(opset: int) -> None:
    if opset < _LEAST_OPSET:
        raise Unsupported("mirror the graph", found=f"opset {opset}; the table begins at {_LEAST_OPSET}", do="export it with a newer opset")
