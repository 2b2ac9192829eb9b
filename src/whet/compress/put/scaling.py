"""A tensor divided channel by channel, and the weights of the layers that read it multiplied: the same function on other ranges."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir

from whet.compress.edit import Editor
from whet.compress.fold import only_reader
from whet.compress.grid import Array
from whet.compress.weights import array, constant, float_attribute, int_attribute, slots

# A positive factor of a channel passes through them unchanged, and they have one input that is data.
_PASSES = frozenset({"Relu", "LeakyRelu", "Identity", "Dropout"})
_Part = tuple[ir.Node, int, tuple[int, ...]]  # a node, the index of its constant, and the shape that factors have there


def channel_axis(node: ir.Node) -> int | None:
    """The axis of the operator's input that its weight sums over (1 of maps, the last one of rows), or None where the channels of its
    input have no weights of their own.
    """
    if not slots(node) or constant(node, 0) is not None or len(list(weight_of(node).uses())) > 1:
        return None  # a weight that another layer shares would have to be stored twice
    if node.op_type == "Conv":
        return 1 if int_attribute(node, "group", 1) == 1 else None
    if node.op_type == "Gemm":
        return None if int_attribute(node, "transA", 0) else -1
    return -1 if node.op_type == "MatMul" and array(weight_of(node)).ndim == 2 else None


def by_input(node: ir.Node) -> Array:
    """[in, ...] the weight of a layer that has a ``channel_axis``, its input channels first."""
    return np.moveaxis(array(weight_of(node)), _summed_axis(node), 0)


def can_take(value: ir.Value, layers: Collection[ir.Node]) -> bool:
    """Whether what makes the tensor can give it divided at no cost: only ``layers`` read it, and its last operator has factors."""
    return _parts(value, layers) is not None


def divide(value: ir.Value, layers: Sequence[ir.Node], scales: Array, editor: Editor) -> ir.Value:
    """Let the layers read value / scales, and multiply their weights; the tensor that they read now.

    scales: [C] for the channels of the layers' common ``channel_axis``. Where nobody else reads the tensor and its maker has constants
    that can take the factors, they do, and the tensor keeps its name; else a Mul stands in front of the layers.
    """
    parts = _parts(value, layers)
    multiply_inputs(layers, scales, editor)
    if parts is not None:
        for node, index, shape in parts:
            _replace(node, index, array(node.inputs[index]).astype(np.float64) / scales.reshape(shape), editor)  # type: ignore[arg-type]
        return value
    kind = weight_of(layers[0]).const_value.dtype  # type: ignore[union-attr]
    trailing = (1,) * (array(weight_of(layers[0])).ndim - 2) if channel_axis(layers[0]) == 1 else ()
    inverse = (1.0 / scales.astype(np.float64)).reshape(-1, *trailing).astype(kind.numpy())
    scaled = editor.node("Mul", [value, editor.constant(inverse, kind.numpy().name)], like=value, dtype=value.dtype)
    editor.redirect(value, scaled, layers)
    return scaled


def is_divisible(value: ir.Value, reader: ir.Node, axis: int | None) -> bool:
    """Whether a tensor that ``reader`` alone reads can be had divided at no cost. axis: of its channels (1 of maps, -1 of rows)."""
    return only_reader(value) is reader and _parts_of(value, axis, 0) is not None


def divide_alone(value: ir.Value, axis: int | None, factor: float, editor: Editor) -> None:
    """Let what makes the tensor give it divided by one factor for all channels."""
    for node, index, _ in _parts_of(value, axis, 0) or []:
        _replace(node, index, array(node.inputs[index]).astype(np.float64) / factor, editor)  # type: ignore[arg-type]


def multiply_inputs(layers: Sequence[ir.Node], scales: Array, editor: Editor) -> None:
    """Multiply the weights of layers by a factor [C] for each channel of their common input."""
    for layer in layers:
        _replace(layer, 1, array(weight_of(layer)) * _along(scales, _summed_axis(layer), array(weight_of(layer)).ndim), editor)


def weight_of(node: ir.Node) -> ir.Value:
    """The constant that holds the operator's first weight."""
    value = node.inputs[slots(node)[0].index]
    assert value is not None
    return value


def _summed_axis(node: ir.Node) -> int:
    """The axis of the stored weight that belongs to the input's channels."""
    if node.op_type == "Gemm":
        return 1 if int_attribute(node, "transB", 0) else 0
    return 1 if node.op_type == "Conv" else 0


def _parts(value: ir.Value, layers: Collection[ir.Node]) -> list[_Part] | None:
    """The constants that can take the factors, or None."""
    if value.is_graph_output() or any(node not in layers for node in value.consumers()):
        return None
    axes = {(channel_axis(layer), array(weight_of(layer)).ndim - 2 if channel_axis(layer) == 1 else 0) for layer in layers}
    return _parts_of(value, *axes.pop()) if len(axes) == 1 else None


def _parts_of(value: ir.Value, axis: int | None, trailing: int) -> list[_Part] | None:
    """trailing: how many axes follow that of the channels."""
    made = value.producer()
    if made is not None and made.op_type == "SkipLayerNormalization" and value is made.outputs[0] and axis == -1:
        return _constants(made, (2, 3), (-1,))  # onnxruntime's Add and LayerNormalization in one; its other outputs know no gain
    if made is None or len(made.outputs) > 1 or made.domain not in ("", "ai.onnx"):
        return None
    shape = (-1, *[1] * trailing)
    if made.op_type in _PASSES and _alone(made):
        return _parts_of(made.inputs[0], axis, trailing)  # type: ignore[arg-type]
    if made.op_type == "LayerNormalization" and axis == -1 and int_attribute(made, "axis", -1) == -1:
        return _constants(made, (1, 2), (-1,))
    if made.op_type == "BatchNormalization" and axis == 1 and not int_attribute(made, "training_mode", 0):
        return _constants(made, (1, 2), (-1,))
    if made.op_type in ("Mul", "Add"):
        return _parts_of_arithmetic(made, axis, trailing, shape)
    return _parts_of_layer(made, axis)


def _parts_of_arithmetic(made: ir.Node, axis: int | None, trailing: int, shape: tuple[int, ...]) -> list[_Part] | None:
    """A Mul by a constant takes the factors; an Add takes them where what it adds to does."""
    index = next((index for index in (0, 1) if constant(made, index) is not None), None)
    if index is None:
        return None
    own: list[_Part] = [(made, index, shape)]
    if made.op_type == "Mul":
        return own
    before = made.inputs[1 - index]
    rest = _parts_of(before, axis, trailing) if before is not None and only_reader(before) is made else None
    return None if rest is None else [*own, *rest]


def _parts_of_layer(made: ir.Node, axis: int | None) -> list[_Part] | None:
    """A layer takes them in the rows of its weight, and in its bias."""
    if made.op_type not in ("Conv", "Gemm", "MatMul") or not slots(made) or (made.op_type == "Conv") != (axis == 1):
        return None
    if made.op_type == "Gemm" and {float_attribute(made, name, 1.0) for name in ("alpha", "beta")} != {1.0}:
        return None
    slot = slots(made)[0]
    weight = array(weight_of(made))
    if len(list(weight_of(made).uses())) > 1:
        return None
    rows = [1] * weight.ndim
    rows[slot.axis] = -1
    bias = [] if slot.bias is None else _constants(made, (slot.bias,), (-1,))
    return None if bias is None else [(made, slot.index, tuple(rows)), *bias]


def _constants(node: ir.Node, indices: Sequence[int], shape: tuple[int, ...]) -> list[_Part] | None:
    """The inputs of those indices, where the ones that are given are constants."""
    given = [index for index in indices if index < len(node.inputs) and node.inputs[index] is not None]
    return [(node, index, shape) for index in given] if all(constant(node, index) is not None for index in given) else None


def _alone(node: ir.Node) -> bool:
    return node.inputs[0] is not None and only_reader(node.inputs[0]) is node


def _along(scales: Array, axis: int, rank: int) -> Array:
    return scales.reshape([-1 if i == axis else 1 for i in range(rank)])


def _replace(node: ir.Node, index: int, numbers: Array, editor: Editor) -> None:
    """A constant in the type that it had."""
    kind = node.inputs[index].const_value.dtype  # type: ignore[union-attr]
    node.replace_input_with(index, editor.constant(numbers.astype(kind.numpy()), kind.numpy().name))
