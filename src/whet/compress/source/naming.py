"""Names for what has none, the same in every load of the same file: recipes and reports speak of layers by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import onnx_ir as ir

from whet.compress.source.operators import graphs_of


class _Names:
    """Names given out so far; ``unused`` finds "x", then "x_1", "x_2"... without trying the same number twice."""

    def __init__(self, used: Iterable[str]) -> None:
        self._used, self._next = set(used), Counter[str]()

    def unused(self, name: str) -> str:
        found = name
        while found in self._used:
            self._next[name] += 1
            found = f"{name}_{self._next[name]}"
        self._used.add(found)
        return found


def name_nodes(graph: ir.Graph) -> None:
    """Every node gets a name that is unique in its graph: the given one, else "<operator>_<number>".

    The number counts the nodes of that operator in graph order. Of nodes that share a name the first keeps it and the others get
    "_1", "_2"; a name made here gives way to a given one in the same manner. Inner graphs are named each for itself.
    """
    names = _Names(node.name for node in graph if node.name)
    kept: set[str] = set()
    seen: Counter[str] = Counter()
    for node in graph:
        if not node.name or node.name in kept:
            node.name = names.unused(node.name or f"{node.op_type}_{seen[node.op_type]}")
        kept.add(node.name)
        seen[node.op_type] += 1
        for _, inner in graphs_of(node):
            name_nodes(inner)


def name_values(model: ir.Model) -> None:
    """Every value gets a name that is unique in the whole model, inner graphs included; inputs and outputs keep theirs."""
    names = _Names(value.name for graph in _graphs(model) for value in _values(graph) if value.name)
    kept = {value.name: value for value in (*model.graph.inputs, *model.graph.outputs) if value.name}
    for graph in _graphs(model):
        for value in list(_values(graph)):
            if value.name == "" and not value.uses():
                continue  # an optional output that is left out
            if not value.name or kept.setdefault(value.name, value) is not value:
                value.name = names.unused(value.name or "value")
                kept[value.name] = value


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield model.graph
    yield from model.graph.subgraphs()


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs
