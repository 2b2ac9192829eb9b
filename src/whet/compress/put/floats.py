"""New numbers in the place of a layer's weight or bias; the operator stays as it is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from whet.compress.edit import Editor
from whet.compress.grid import Array, Quantised, quantise_bias
from whet.compress.weights import Slot, array, as_stored, constant


def put_rows(node: ir.Node, slot: Slot, rows: Array, editor: Editor) -> None:
    """A float weight [out, ...] in the stored layout, and in the type that the layer computes in."""
    old = node.inputs[slot.index]
    assert old is not None
    assert old.const_value is not None
    kind = old.const_value.dtype
    stored = as_stored(rows, tuple(array(old).shape), slot)
    node.replace_input_with(slot.index, editor.constant(stored.astype(kind.numpy()), kind.numpy().name))


def put_rounded(node: ir.Node, slot: Slot, rounded: Quantised, editor: Editor) -> None:
    """A weight on a grid in the place of a float one, as ``put_rows``. It is held as codes, and its numbers are made whenever they are
    asked for: a model that is rounded and not yet stored takes a quarter more memory, and not as much again."""
    old = node.inputs[slot.index]
    assert old is not None
    assert old.const_value is not None
    kind, shape = old.const_value.dtype, tuple(map(int, old.const_value.shape.numpy()))

    def made() -> ir.TensorProtocol:
        return ir.Tensor(as_stored(rounded.values, shape, slot).astype(kind.numpy(), copy=False), dtype=kind)

    node.replace_input_with(slot.index, editor.made_when_asked((id(rounded), shape, slot), made, kind, shape))


def float_bias(node: ir.Node, slot: Slot) -> Array | None:
    """[out] the layer's bias: a constant, or what codes on the accumulator's grid stand for; None where there is none."""
    value = node.inputs[slot.bias] if slot.bias is not None and slot.bias < len(node.inputs) else None
    if value is None:
        return None
    if value.const_value is not None:
        return array(value).ravel()
    codes, scale = _codes_and_scale(value)
    return (array(codes).astype(np.float64) * array(scale)).astype(np.float32)


def put_bias(node: ir.Node, slot: Slot, bias: Array, editor: Editor) -> bool:
    """A bias [out]; one that lies on the accumulator's grid stays on it. Whether the layer has a place for it: a matrix product without
    one has none, and an integer layer without a bias gets none, for its output would no longer be the accumulator's.
    """
    if slot.bias is None:
        return False
    present = node.inputs[slot.bias] if slot.bias < len(node.inputs) else None
    if present is None and constant(node, slot.index) is None:
        return _put_new_integers(node, slot.bias, bias, editor)
    if present is None or present.const_value is not None:
        if slot.bias >= len(node.inputs):
            node.resize_inputs(slot.bias + 1)
        kind = np.float32 if present is None else array(present).dtype
        node.replace_input_with(slot.bias, editor.constant(bias.astype(kind)))
        return True
    _, scale = _codes_and_scale(present)
    dequantise = present.producer()
    assert dequantise is not None
    dequantise.replace_input_with(0, editor.constant(quantise_bias(bias, array(scale))))
    return True


def _put_new_integers(node: ir.Node, index: int, bias: Array, editor: Editor) -> bool:
    """A bias for an integer layer that had none: on the grid of its accumulator, scale of the input * scales of the weight."""
    pairs = [value.producer() for value in node.inputs[:2] if value is not None]
    if any(made is None or made.op_type != "DequantizeLinear" for made in pairs):
        return False
    input_scale, weight_scale = (constant(made, 1) for made in pairs if made is not None)
    if input_scale is None or weight_scale is None:
        return False
    scale = (array(input_scale) * array(weight_scale)).astype(np.float32)
    attributes = {"axis": 0} if scale.ndim else {}
    numbers = [editor.constant(quantise_bias(bias, scale)), editor.constant(scale)]
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, editor.node("DequantizeLinear", numbers, attributes=attributes, dtype=ir.DataType.FLOAT))
    return True


def _codes_and_scale(value: ir.Value) -> tuple[ir.Value, ir.Value]:
    made = value.producer()
    codes, scale = (constant(made, 0), constant(made, 1)) if made is not None and made.op_type == "DequantizeLinear" else (None, None)
    assert codes is not None
    assert scale is not None
    return codes, scale
