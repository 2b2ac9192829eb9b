"""Adding to an ONNX graph: constants that are stored once, nodes with short names, tensors that change their readers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from whet.compress.grid import Array, Grid

_NARROW = {"int4": ml_dtypes.int4, "uint4": ml_dtypes.uint4, "int2": ml_dtypes.int2, "uint2": ml_dtypes.uint2}
_COMPARED_BYTES = 256  # by which constants are found; those that begin alike are compared whole
_Alike = tuple[str, str, tuple[int, ...], bytes]


class Editor:
    """Edits one graph. Names are short, since on a small model they weigh as much as the weights; equal constants are one.

    ``close`` sorts the graph and must be the last call. ``within`` gives the editor of a graph inside this one (the body of an If).
    """

    def __init__(self, graph: ir.Graph, *, outer: Editor | None = None) -> None:
        self.graph = graph
        self.root: Editor = outer.root if outer else self
        self._constants: dict[_Alike, list[tuple[Array, ir.Value]]] = {}
        self._asked: dict[Hashable, ir.Value] = {}
        self._inner: dict[ir.Graph, Editor] = {}
        self._number = 0

    @cached_property
    def _taken(self) -> set[str]:
        """The names that are given away in the whole scope."""
        return _names(self.graph) if self.root is self else self.root._taken

    def within(self, graph: ir.Graph | ir.Function | None) -> Editor:
        """The editor of a graph inside, at whatever depth; this one for its own."""
        if graph is self.graph:
            return self
        assert isinstance(graph, ir.Graph)
        return self.root._inner.setdefault(graph, Editor(graph, outer=self.root))

    def constant(self, numbers: Any, dtype: str = "") -> ir.Value:
        """An initializer; ``dtype`` (an ONNX name such as "int4") where numpy's own says it not exactly."""
        numbers = np.asarray(numbers, order="C")  # ascontiguousarray would make a scalar a vector
        dtype = dtype or numbers.dtype.name
        stored = numbers.astype(_NARROW.get(dtype, dtype), copy=False)
        content = stored.reshape(-1).view(np.uint8)  # bytes, of which NaN equals NaN and -0 is not 0
        alike = self._constants.setdefault((dtype, numbers.dtype.name, numbers.shape, content[:_COMPARED_BYTES].tobytes()), [])
        for other, value in alike:
            if np.array_equal(content, other):
                return value
        name = self._name("c")
        value = ir.val(name, const_value=ir.Tensor(stored, dtype=ir.DataType[_ir_name(dtype)], name=name))
        self.graph.register_initializer(value)
        alike.append((content, value))
        return value

    def made_when_asked(self, key: Hashable, make: Callable[[], ir.TensorProtocol], dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
        """An initializer whose numbers ``make`` makes each time that somebody looks at them; one for each key."""
        if key not in self._asked:
            name = self._name("c")
            tensor = ir.LazyTensor(make, dtype, ir.Shape(shape), name=name)
            self._asked[key] = ir.val(name, const_value=tensor)
            self.graph.register_initializer(self._asked[key])
        return self._asked[key]

    def node(self, op: str, inputs: Sequence[ir.Value | None], *, domain: str = "", name: str = "",
             attributes: Mapping[str, Any] | None = None, like: ir.Value | None = None, dtype: ir.DataType | None = None) -> ir.Value:
        """A new node with one output; the output has the shape of ``like`` and the type ``dtype`` where they are given."""
        made = ir.node(op, list(inputs), dict(attributes or {}), domain=domain, name=name or self._name("n"))
        out = made.outputs[0]
        out.name = self._name("t")
        if like is not None:
            out.shape = like.shape
        if dtype is not None:
            out.dtype = dtype
        self.graph.append(made)
        return out

    def imports(self, domain: str) -> None:
        """Note that the model uses operators of another domain."""
        self.root.graph.opset_imports.setdefault(domain, 1)

    def quantise(self, value: ir.Value, grid: Grid) -> ir.Value:
        """value -> QuantizeLinear, one grid for the whole tensor."""
        return self.node("QuantizeLinear", self._with_grid(value, grid), like=value, dtype=ir.DataType[grid.dtype.upper()])

    def dequantise(self, codes: ir.Value, grid: Grid) -> ir.Value:
        """codes -> DequantizeLinear -> float32; per tensor or per channel."""
        attributes: dict[str, Any] = {}
        if grid.axis is not None:
            attributes["axis"] = grid.axis
        return self.node("DequantizeLinear", self._with_grid(codes, grid), attributes=attributes, like=codes, dtype=ir.DataType.FLOAT)

    def redirect(self, value: ir.Value, replacement: ir.Value, readers: Iterable[ir.Node] | None = None) -> None:
        """Let the readers of ``value`` (all, or those given) read ``replacement`` instead."""
        chosen = None if readers is None else set(readers)
        for node, index in list(value.uses()):
            if node is not replacement.producer() and (chosen is None or node in chosen):
                node.replace_input_with(index, replacement)

    def take_output(self, value: ir.Value, replacement: ir.Value) -> None:
        """Where ``value`` is an output of the graph, let ``replacement`` be it, under the same name."""
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                name, shape, kind = value.name, value.shape, value.type
                value.name = self._name("t")
                replacement.name, replacement.shape, replacement.type = name, shape, kind
                self.graph.outputs[index] = replacement

    def remove(self, node: ir.Node) -> None:
        """Take away a node whose output nobody reads any more."""
        self.graph.remove(node, safe=True)

    def close(self) -> None:
        """Sort the nodes and drop what nobody reads."""
        for inner in self._inner.values():
            inner.close()
        self.graph.sort()
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del self.graph.initializers[name]

    def _with_grid(self, value: ir.Value, grid: Grid) -> list[ir.Value]:
        zero = np.asarray(grid.zero_point, np.int32)
        return [value, self.constant(np.asarray(grid.scale, np.float32)), self.constant(zero, grid.dtype)]

    def _name(self, prefix: str) -> str:
        while (name := f"{prefix}{self._number}") in self._taken:
            self._number += 1
        self._number += 1
        self._taken.add(name)
        return name


def _names(graph: ir.Graph) -> set[str]:
    """The names of all nodes and values; those of subgraphs too, for they share the scope."""
    graphs = (graph, *graph.subgraphs())
    every = list(graph.all_nodes())
    nodes = {node.name for node in every}
    made = {value.name for node in every for value in node.outputs}
    given = {value.name for each in graphs for value in (*each.inputs, *each.initializers.values())}
    return {name for name in nodes | made | given if name}


def _ir_name(dtype: str) -> str:
    return {"float32": "FLOAT", "float64": "DOUBLE"}.get(dtype, dtype.upper())
