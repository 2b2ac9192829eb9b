"""What a recipe changed, told from the two graphs: constants that became others, and tensors that were put on a grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from whet.compress.data import Dataset
from whet.compress.graph import GraphModel
from whet.compress.grid import Array, Grid
from whet.compress.put.sites import source
from whet.compress.runtime import exposed, one_inference, opened
from whet.compress.weights import array, constant, first_slot
from whet.core.document import FrozenMap
from whet.core.target import Target
from whet.device.session import run

_WITH_BIAS = frozenset({"Conv", "ConvTranspose", "Gemm"})
INPUT = "input"
"""The operator of what stands for an input of the model."""


@dataclass(frozen=True, eq=False)
class Placed:
    """A tensor of the float graph that lies on a grid. readers: the nodes that read it so; is_output: the graph gives it so."""

    tensor: str
    grid: Grid
    owner: str
    readers: frozenset[str]
    is_output: bool


@dataclass(frozen=True, eq=False)
class BiasCodes:
    """A bias on the grid of its layer's sums. codes: [out] int32. shared: whether all channels have one step."""

    codes: Array
    shared: bool


@dataclass(frozen=True, eq=False)
class Differences:
    """reference: the float model. constants: for each layer the stored arrays that took another's place, by the index of the input.
    placed: tensors on grids. owners: of everything, in the order of execution, with their operators ("input" for those of the model).
    biases: by layer, where it computes in integers.
    """

    reference: GraphModel
    constants: Mapping[str, Mapping[int, Array]]
    placed: Mapping[str, Placed]
    owners: Mapping[str, str]
    biases: Mapping[str, BiasCodes] = field(default_factory=FrozenMap)

    def tensors_of(self, owner: str) -> tuple[str, ...]:
        """The tensors on grids that the layer makes."""
        return tuple(name for name, each in self.placed.items() if each.owner == owner)


def differences(reference: GraphModel, made: GraphModel, target: Target, data: Dataset) -> Differences:
    """What distinguishes ``made`` from ``reference``, whose nodes and tensors have the same names.

    Weights are had as numbers from the runtime, whatever they are stored as; one sample of ``data`` runs through ``made`` for that.
    An operator that another one replaced is not seen: whoever simulates with this compares with what really ships.
    """
    constants = _constants(reference, made, data)
    placed = _placed(reference, made, target)
    ops = {value.name or "": INPUT for value in reference.ir.graph.inputs} | {node.name or "": node.op_type for node in reference.ir.graph}
    touched = {*constants, *(each.owner for each in placed.values())}
    return Differences(reference, constants, placed, {name: op for name, op in ops.items() if name in touched}, _biases(made))


def _biases(made: GraphModel) -> dict[str, BiasCodes]:
    """Those that are int32 codes behind a DequantizeLinear."""
    found: dict[str, BiasCodes] = {}
    for node in made.ir.graph:
        place = first_slot(node).bias if node.op_type in _WITH_BIAS else None
        value = node.inputs[place] if place is not None and place < len(node.inputs) else None
        grid = value.producer() if value is not None else None
        codes, step = (None, None) if grid is None else (constant(grid, 0), constant(grid, 1))
        if codes is not None and step is not None and array(codes).dtype == np.int32:
            found[node.name or ""] = BiasCodes(array(codes).ravel(), array(step).size == 1)
    return found


def _constants(reference: GraphModel, made: GraphModel, data: Dataset) -> dict[str, dict[int, Array]]:
    theirs = {node.name: node for node in made.ir.graph}
    pairs: dict[tuple[str, int], tuple[ir.Value, ir.Value]] = {}
    for node in reference.ir.graph:
        other = theirs.get(node.name)
        if other is None or other.op_type != node.op_type:
            continue
        for index in range(min(len(node.inputs), len(other.inputs))):
            mine, changed = constant(node, index), other.inputs[index]
            if mine is not None and changed is not None and array(mine).dtype == np.float32:
                pairs[node.name or "", index] = mine, changed
    numbers = _numbers(made, [changed for _, changed in pairs.values()], data)
    found: dict[str, dict[int, Array]] = {}
    for (name, index), (mine, changed) in pairs.items():
        new = numbers.get(changed.name or "")
        if new is not None and new.shape == array(mine).shape and not np.array_equal(new, array(mine)):
            found.setdefault(name, {})[index] = new.astype(np.float32)
    return found


def _numbers(made: GraphModel, values: list[ir.Value], data: Dataset) -> dict[str, Array]:
    """What the values hold: those that are stored, and those that constants are computed to (DequantizeLinear, Cast and Mul)."""
    found = {value.name or "": array(value) for value in values if value.const_value is not None}
    computed = sorted({value.name or "" for value in values if value.const_value is None and _constant_behind(value)})
    if computed:
        with opened(exposed(made, computed)) as session:
            found |= run(session, one_inference(made, data), computed)
    return found


def _constant_behind(value: ir.Value) -> bool:
    made = value.producer()
    return value.const_value is not None or (made is not None and all(each is None or _constant_behind(each) for each in made.inputs))


def _placed(reference: GraphModel, made: GraphModel, target: Target) -> dict[str, Placed]:
    """The tensors behind the QuantizeLinear nodes of ``made``."""
    graph = reference.ir.graph
    tensors = {value.name: value for value in (*graph.inputs, *(value for node in graph for value in node.outputs))}
    nodes = {node.name: node for node in graph}
    found: dict[str, Placed] = {}
    for quantise in made.ir.graph:
        value = quantise.inputs[0] if quantise.op_type == "QuantizeLinear" else None
        grid = _grid(quantise) if value is not None else None
        tensor = _same(value, tensors, nodes) if value is not None else None
        if tensor is None or grid is None or _constant_behind(tensor):
            continue
        readers, is_output = _readers(quantise)
        known = frozenset(readers & {node.name or "" for node in tensor.consumers()})
        maker = source(tensor, target)
        owner = maker.name if maker is not None else _origin(tensor, target)
        found[tensor.name or ""] = Placed(tensor.name or "", grid, owner or "", known, is_output and tensor.is_graph_output())
    return found


def _origin(value: ir.Value, target: Target) -> str:
    """The input of the model that the tensor is, seen through what only moves data."""
    while (made := value.producer()) is not None and made.inputs and made.inputs[0] is not None:
        value = made.inputs[0]
    return value.name or ""


def _same(value: ir.Value, tensors: Mapping[str | None, ir.Value], nodes: Mapping[str | None, ir.Node]) -> ir.Value | None:
    """The tensor of the float graph: by its name, else what the node of the same name gives there (a pool that changed places with a
    Relu, an output of the graph whose name went to its DequantizeLinear)."""
    producer = value.producer()
    if producer is not None and producer.name in nodes and len(nodes[producer.name].outputs) == 1:
        return nodes[producer.name].outputs[0]
    return tensors.get(value.name)


def _grid(quantise: ir.Node) -> Grid | None:
    scale, zero = constant(quantise, 1), constant(quantise, 2)
    if scale is None or zero is None or array(scale).ndim:
        return None
    codes = array(zero)
    bits = codes.dtype.itemsize * 8
    grid = Grid(bits, codes.dtype.kind == "i", array(scale).astype(np.float32), codes.astype(np.int32))
    return _narrowed(quantise, grid)


def _narrowed(quantise: ir.Node, grid: Grid) -> Grid:
    """Codes that a Clip keeps to fewer bits than their type has."""
    for node, _ in quantise.outputs[0].uses():
        if node.op_type == "Clip" and (high := constant(node, 2)) is not None:
            span = int(array(high)) - grid.lowest if not grid.signed else int(array(high))
            bits = int(span).bit_length() + (1 if grid.signed else 0)
            return Grid(max(bits, 2), grid.signed, grid.scale, grid.zero_point)
    return grid


def _readers(quantise: ir.Node) -> tuple[set[str], bool]:
    """The nodes that read the tensor from its codes, and whether the graph gives it out."""
    names, output, waiting = set(), False, [quantise.outputs[0]]
    while waiting:
        value = waiting.pop()
        output |= value.is_graph_output()
        for node, _ in value.uses():
            if node.op_type in ("DequantizeLinear", "Clip", "Max") or (node.op_type == "Cast" and value is not quantise.outputs[0]):
                waiting.append(node.outputs[0])
            else:
                names.add(node.name or "")
    return names, output
