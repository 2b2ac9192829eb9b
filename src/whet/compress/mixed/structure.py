"""From a graph and a target to units and borders: which layers can choose, which must choose together, and what lies between them.

Layers that read one weight choose together, for the runtime would store it twice. The members of a residual sum or a concatenation
need not: onnxruntime's integer Add and Concat take inputs of different grids, and a float one among them costs one QuantizeLinear,
which is a border's cost and no rule. (Tied, the sums of a residual stage would join all its blocks into one unit.)
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from whet.compress.fold import only_reader
from whet.compress.graph import GraphModel
from whet.compress.mixed.problem import Border, Problem, Unit
from whet.compress.put.sites import PRODUCTS, WEIGHTED, Site, is_mover, vanishes
from whet.compress.weights import slots
from whet.core.target import Target


def structure(folded: GraphModel, found: Mapping[str, Site], target: Target) -> Problem:
    """The units and borders of a folded graph, with no offers and no costs yet.

    found: the sites of the graph itself that could compute in integers. Other layers with weights are units too: theirs can be stored
    smaller.
    """
    graph = folded.ir.graph
    groups = _groups(graph, found)
    names = {name: group[0] for group in groups for name in group}
    units = tuple(Unit(group[0], group, follows=all(name in found and found[name].node.op_type not in WEIGHTED for name in group))
                  for group in groups)
    return Problem(units, _borders(graph, found, names, target))


def _groups(graph: ir.Graph, found: Mapping[str, Site]) -> list[tuple[str, ...]]:
    """Layers by the weight that they share, each in the group of its first weight, in the order of execution."""
    groups: dict[object, list[str]] = {}
    for node in graph:
        own = slots(node)
        if own or node.name in found:
            key = node.inputs[own[0].index] if own else node
            groups.setdefault(key, []).append(node.name or "")
    return [tuple(group) for group in groups.values()]


def _borders(graph: ir.Graph, found: Mapping[str, Site], names: Mapping[str, str], target: Target) -> tuple[Border, ...]:
    makers = {_made(site.node): name for name, site in found.items()}
    readers: dict[ir.Value, list[str]] = {}
    read: dict[ir.Value, str] = {}
    for name, site in found.items():
        for value in site.tensors:
            made = _before_movers(value, target)
            readers.setdefault(made, []).append(names[name])
            read.setdefault(made, _maker(value))
    borders = []
    for value in dict.fromkeys((*makers, *readers)):
        maker = makers.get(value, "")
        ends_float = bool(maker) and found[maker].node.op_type in PRODUCTS
        borders.append(Border(value.name or "", names.get(maker, ""), tuple(dict.fromkeys(readers.get(value, ()))),
                              _read_in_float(value, found, target), ends_float, read.get(value, _maker(value))))
    return tuple(borders)


def _maker(value: ir.Value) -> str:
    node = value.producer()
    return "" if node is None else node.name or ""


def _made(node: ir.Node) -> ir.Value:
    """What the operator gives, behind the Relu that vanishes in its grid."""
    reader = only_reader(node.outputs[0])
    return reader.outputs[0] if reader is not None and vanishes(reader) else node.outputs[0]


def _before_movers(value: ir.Value, target: Target) -> ir.Value:
    """The tensor as it was before it was only moved about."""
    node = value.producer()
    while node is not None and is_mover(node, target) and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _read_in_float(value: ir.Value, found: Mapping[str, Site], target: Target) -> bool:
    """Whether an operator that never computes in integers reads the tensor, or it is an output of the model."""
    if value.is_graph_output():
        return True
    return any(_read_in_float(node.outputs[0], found, target) if index == 0 and is_mover(node, target) else node.name not in found
               for node, index in value.uses() if node.op_type not in ("Shape", "Size"))

