"""Layers that follow each other with nothing between them but what lets a positive factor of a channel through."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from whet.compress.calibrate import collect
from whet.compress.edit import Editor
from whet.compress.fold import only_reader
from whet.compress.graph import GraphModel
from whet.compress.grid import Array
from whet.compress.put.floats import put_rows
from whet.compress.put.sites import pads_with_zero
from whet.compress.shapes import infer_shapes
from whet.compress.statistics import Statistics
from whet.compress.technique import LayerView
from whet.compress.views import Chain, Link, Rescaled
from whet.compress.walks import Work
from whet.compress.weights import array, constant, int_attribute, is_row, rows_first, slots
from whet.core.errors import Refused, Unsupported
from whet.core.progress import track

_ACTIVATIONS = frozenset({"Relu", "LeakyRelu", "PRelu"})
_PASSES = frozenset({"Identity", "Dropout"})
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})  # each channel of a map on its own
_ON_MAPS = frozenset({"Conv", "ConvTranspose"})  # their channels are axis 1; those of products are the last axis
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Joint:
    """What lies between a layer and the next one. rectified: whether there is a Relu and a constant added before it arrives as it is at
    every place of the next layer's input (no padding). columns: how many columns of the next layer's weight belong to a channel.
    """

    following: ir.Node
    rectified: bool = False
    columns: int = 1


def walk(model: GraphModel, work: Work) -> GraphModel:
    """Show the technique each chain, and put the new weights and biases in. Raises Unsupported where there is no chain."""
    check(model, work)
    joints = joints_of(model, work.layers)
    if not joints:
        raise Unsupported(f"apply {work.technique.name} to {', '.join(list(work.layers)[:5])}",
                          found="no two of these layers follow each other with only Relu, pooling or padding with 0 between them",
                          do="name neighbours, or leave the step out")
    channels = _observed(joints) if work.options.get("absorb", True) else {}
    statistics = collect(model, (), work.calibration, histogram=False, channels=channels) if channels else {}
    made = model.copied()
    nodes = {node.name or "": node for node in made.ir.graph}
    editor = Editor(made.ir.graph)
    chains = _chains(joints)
    for chain in track(chains, work.technique.name, len(chains)):
        _put(work.technique.apply(_view(chain, joints, statistics), work.target, **work.options), nodes, editor)
    editor.close()
    return made


def check(model: GraphModel, work: Work) -> None:
    """Raises Refused where a step before this one rounded weights or found ranges, which would no longer fit, or without samples."""
    if len(work.calibration) == 0:
        raise Refused(f"apply {work.technique.name}", found="an empty data set for calibration", do="give 100 to 300 samples")
    if model.pending or model.reference is not None or model.ranges:
        raise Refused(f"apply {work.technique.name} behind a step that rounds or finds ranges",
                      found="it changes weights and activations that those fit", do="put it before them")


def joints_of(model: GraphModel, names: Collection[str]) -> dict[ir.Node, Joint]:
    """By layer: the one that follows it, where both are among ``names`` and a factor may go from one to the other."""
    layers = {node for node in model.ir.graph if node.name in set(names) and _can_change(node)}
    shapes = {name: shape for name, (_, shape) in infer_shapes(model.ir).items()}
    found = {node: _joint(node, layers, shapes) for node in model.ir.graph if node in layers}
    return {node: joint for node, joint in found.items() if joint is not None}


def _can_change(node: ir.Node) -> bool:
    """Whether a layer's output channels have rows of their own in its weight, which no other layer shares, and in its bias."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or not slots(node) or constant(node, 0) is not None:
        return False
    slot = slots(node)[0]
    weight = node.inputs[slot.index]
    assert weight is not None
    if len(list(weight.uses())) > 1 or (node.op_type == "MatMul" and array(weight).ndim != 2) or int_attribute(node, "transA", 0):
        return False
    if node.op_type == "ConvTranspose" and int_attribute(node, "group", 1) > 1:
        return False
    given = slot.bias is not None and slot.bias < len(node.inputs) and node.inputs[slot.bias] is not None
    bias = constant(node, slot.bias)
    return not given or (bias is not None and array(bias).size == len(rows_first(array(weight), slot)))


def _joint(node: ir.Node, layers: Collection[ir.Node], shapes: Shapes) -> Joint | None:
    """The way from a layer to the next one, or None where something on it is more than a factor, or has other readers."""
    value, maps = _output(node), node.op_type in _ON_MAPS
    rectified, shifted, columns = False, True, 1
    while (reader := only_reader(value)) is not None and value is reader.inputs[0]:
        if reader in layers:
            fits = (reader.op_type in _ON_MAPS) == maps
            return Joint(reader, rectified and shifted and not _pads(reader), columns) if fits else None
        if reader.op_type == "Relu":
            rectified = True
        elif (flat := _flattened(reader, shapes)) and maps:
            maps, columns = False, flat
        elif not _passes(reader, maps, shapes):
            return None
        shifted = shifted and not (reader.op_type in ("LeakyRelu", "PRelu", "Pad") or (reader.op_type == "AveragePool" and _pads(reader)))
        value = reader.outputs[0]
    return None


def _output(node: ir.Node) -> ir.Value:
    """The layer's output, behind the Add that is its bias."""
    add = _bias_add(node)
    return node.outputs[0] if add is None else add.outputs[0]


def _bias_add(node: ir.Node) -> ir.Node | None:
    """MatMul + a row: the Add that has the bias of the product."""
    add = only_reader(node.outputs[0]) if node.op_type == "MatMul" else None
    if add is None or add.op_type != "Add":
        return None
    row = constant(add, 0) if constant(add, 1) is None else constant(add, 1)
    width = array(node.inputs[1]).shape[-1]  # type: ignore[arg-type]
    return add if row is not None and is_row(row) and array(row).size == width else None


def _passes(node: ir.Node, maps: bool, shapes: Shapes) -> bool:
    """Whether f(s x) = s f(x) for a positive factor s of each channel."""
    if node.op_type in _PASSES or node.op_type in _ACTIVATIONS:
        return all(constant(node, index) is not None for index in range(1, len(node.inputs)) if node.inputs[index] is not None)
    if node.op_type in _POOLS:
        return maps and not any(value.uses() for value in node.outputs[1:])
    if node.op_type == "ReduceMean":
        return maps and bool(int_attribute(node, "keepdims", 1)) and min(_axes(node, shapes)) > 1
    return node.op_type == "Pad" and maps and pads_with_zero(node) and _leaves_channels(node)


def _axes(node: ir.Node, shapes: Shapes) -> tuple[int, ...]:
    """The axes of a reduction of maps; (0,) where they are not known."""
    given, shape = constant(node, 1), shapes.get(node.inputs[0].name or "")  # type: ignore[union-attr]
    axes = tuple(map(int, array(given).ravel())) if given is not None else tuple(node.attributes.get_ints("axes", []))
    return tuple(axis % len(shape) for axis in axes) if axes and shape else (0,)


def _leaves_channels(pad: ir.Node) -> bool:
    """Whether a Pad adds nothing to samples and channels."""
    given = constant(pad, 1)
    pads = list(array(given).ravel()) if given is not None else list(pad.attributes.get_ints("pads", []))
    rank = len(pads) // 2
    return rank > 2 and len(pad.inputs) < 4 and not any(pads[:2]) and not any(pads[rank : rank + 2])


def _flattened(node: ir.Node, shapes: Shapes) -> int:
    """[n, C, ...] -> [n, C * columns]: the columns of each channel; 0 where the node does something else."""
    if node.op_type not in ("Flatten", "Reshape", "Squeeze", "ReduceMean") or node.inputs[0] is None:
        return 0
    before, after = (shapes.get(value.name or "") for value in (node.inputs[0], node.outputs[0]))
    if before is None or after is None or len(after) != 2 or len(before) < 3 or before[0] != after[0]:
        return 0
    if node.op_type == "ReduceMean":
        return int(after[1] == before[1] and min(_axes(node, shapes)) > 1)
    return math.prod(before[2:]) if after[1] == math.prod(before[1:]) else 0


def _pads(node: ir.Node) -> bool:
    """Whether zeros come into a window beside the input, so that a constant added to the input does not arrive everywhere."""
    if node.op_type == "ConvTranspose":
        return True  # fewer windows reach its borders
    if node.op_type == "AveragePool" and not int_attribute(node, "count_include_pad", 0):
        return False
    automatic = node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return automatic or any(node.attributes.get_ints("pads", []))


def _observed(joints: Mapping[ir.Node, Joint]) -> dict[str, int]:
    """The tensors before a Relu whose constant part could be moved, with the axis of their channels."""
    return {_output(node).name or "": 1 if node.op_type in _ON_MAPS else -1 for node, joint in joints.items() if joint.rectified}


def _chains(joints: Mapping[ir.Node, Joint]) -> list[list[ir.Node]]:
    """The layers from each one that follows none to the end."""
    followers = {joint.following for joint in joints.values()}
    found = []
    for node in (node for node in joints if node not in followers):
        chain = [node]
        while chain[-1] in joints:
            chain.append(joints[chain[-1]].following)
        found.append(chain)
    return found


def _view(chain: list[ir.Node], joints: Mapping[ir.Node, Joint], statistics: Mapping[str, Statistics]) -> Chain:
    columns = [1, *(joints[node].columns for node in chain[:-1])]
    links = tuple(_link(node, count, statistics) for node, count in zip(chain, columns, strict=True))
    return Chain(links, tuple(node in joints and joints[node].rectified for node in chain))


def _link(node: ir.Node, columns: int, statistics: Mapping[str, Statistics]) -> Link:
    """The weight [out, in, columns] of a product that reads flattened maps has its channels on axis 1, as every other."""
    slot = slots(node)[0]
    rows = rows_first(array(node.inputs[slot.index]), slot)  # type: ignore[arg-type]
    rows = rows.reshape(len(rows), -1, columns) if columns > 1 else rows
    value = _bias_value(node)
    bias = None if value is None else array(value[0].inputs[value[1]]).ravel()  # type: ignore[arg-type]
    return Link(LayerView(node.name or "", node.op_type, rows, bias), int_attribute(node, "group", 1),
                statistics.get(_output(node).name or ""))


def _bias_value(node: ir.Node) -> tuple[ir.Node, int] | None:
    """Where the bias stands: a node, and the index of its input."""
    add, slot = _bias_add(node), slots(node)[0]
    if add is not None:
        return add, 1 if constant(add, 1) is not None else 0
    return (node, slot.bias) if slot.bias is not None and constant(node, slot.bias) is not None else None


def _put(found: Rescaled, nodes: Mapping[str, ir.Node], editor: Editor) -> None:
    for name, bias in found.biases.items():
        place = _bias_value(nodes[name])
        assert place is not None
        _replace(*place, bias, editor)
    for name, rows in found.weights.items():
        put_rows(nodes[name], slots(nodes[name])[0], rows, editor)


def _replace(node: ir.Node, index: int, numbers: Array, editor: Editor) -> None:
    old = array(node.inputs[index])  # type: ignore[arg-type]
    kind = node.inputs[index].const_value.dtype  # type: ignore[union-attr]
    node.replace_input_with(index, editor.constant(numbers.reshape(old.shape).astype(kind.numpy()), kind.numpy().name))
