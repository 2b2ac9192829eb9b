"""Weights stored small and computed in float: half precision, integers with their scales, and packed matrix products."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from whet.compress.edit import Editor
from whet.compress.grid import Array, Grid, Quantised, block_count
from whet.compress.technique import Change
from whet.compress.weights import Slot, array, as_stored, int_attribute
from whet.core.target import Target

# MatMulNBits: onnxruntime 1.31 fails with 3, 5, 6 and 7 bits (tests/device/test_bits.py).
PACKED_BITS = (4, 8)


def put_float16(node: ir.Node, slot: Slot, weight: Array, editor: Editor) -> None:
    """W -> float16 constant -> Cast to float32 -> node. onnxruntime folds the Cast at load."""
    old = node.inputs[slot.index]
    assert old is not None
    editor = editor.within(old.graph)  # the body of an If may read a weight of the graph around it
    stored = editor.constant(as_stored(weight, tuple(array(old).shape), slot))
    cast = editor.node("Cast", [stored], attributes={"to": ir.DataType.FLOAT.value}, like=stored, dtype=ir.DataType.FLOAT)
    node.replace_input_with(slot.index, cast)


def put_weight(node: ir.Node, slot: Slot, change: Change, target: Target, editor: Editor) -> None:
    """Integer weights in the layer: packed where the target has a kernel for that, else with the arithmetic that gives them back."""
    weight = change.weight
    assert isinstance(weight, Quantised)
    if weight.grid.block and weight.grid.bits in PACKED_BITS and "MatMul" in target.nbits_ops and _can_pack(node):
        _put_packed(node, weight, change.kernel.get("accuracy_level", 4), editor.within(node.graph))
    else:
        put_folded(node, slot, weight, editor)


def put_folded(node: ir.Node, slot: Slot, weight: Quantised, editor: Editor) -> None:
    """Integer weights on disk that the runtime turns into floats once, at load."""
    old = node.inputs[slot.index]
    assert old is not None
    editor = editor.within(old.graph)  # the body of an If may read a weight of the graph around it
    shape, kind = tuple(array(old).shape), _dtype(old)
    if weight.grid.block and len(shape) > 2:
        value = _unflattened(_rescaled(weight.codes, weight.grid, editor), shape, slot, editor)
    else:
        value = _rescaled(*stored_codes(weight, shape, slot), editor)
    if kind != ir.DataType.FLOAT:  # a model that computes in float16 goes on doing so
        value = editor.node("Cast", [value], attributes={"to": kind.value}, dtype=kind)
    node.replace_input_with(slot.index, value)


def _rescaled(codes: Array, grid: Grid, editor: Editor) -> ir.Value:
    """codes -> Cast -> (- zero point) -> (* scale): what DequantizeLinear computes, in operators that every runtime folds at load.

    onnxruntime keeps DequantizeLinear for its integer kernels: it would dequantise at every run (slower than float), or put
    MatMulNBits with int8 activations in its place without a word (docs/decisions/0006).
    """
    shape, axis = codes.shape, grid.axis
    scale, zero = grid.scale, grid.zero_point.astype(np.float32)
    if grid.block:  # [.., blocks * block, ..] -> [.., blocks, block, ..]; a ragged end is filled up, and cut off again below
        assert axis is not None
        codes, scale, zero = _in_blocks(codes, axis, grid.block), np.expand_dims(scale, axis + 1), np.expand_dims(zero, axis + 1)
    elif axis is not None:
        scale, zero = (part.reshape([-1 if i == axis else 1 for i in range(len(shape))]) for part in (scale, zero))
    value = editor.node("Cast", [editor.constant(codes, grid.dtype)], attributes={"to": ir.DataType.FLOAT.value}, dtype=ir.DataType.FLOAT)
    if zero.any():
        value = editor.node("Sub", [value, editor.constant(zero)], dtype=ir.DataType.FLOAT)
    value = editor.node("Mul", [value, editor.constant(scale)], dtype=ir.DataType.FLOAT)
    return _out_of_blocks(value, shape, axis, grid.block, editor) if grid.block and axis is not None else value


def _unflattened(rows: ir.Value, shape: tuple[int, ...], slot: Slot, editor: Editor) -> ir.Value:
    """[out, in] as the stored ``shape``: blocks run over all of an output channel's weights, whatever their dimensions."""
    axis = slot.axis % len(shape)
    moved = np.array([shape[axis], *shape[:axis], *shape[axis + 1 :]], np.int64)
    value = editor.node("Reshape", [rows, editor.constant(moved)], dtype=ir.DataType.FLOAT)
    if axis == 0:
        return value
    order = [*range(1, axis + 1), 0, *range(axis + 1, len(shape))]
    return editor.node("Transpose", [value], attributes={"perm": order}, dtype=ir.DataType.FLOAT)


def _in_blocks(codes: Array, axis: int, block: int) -> Array:
    blocks = block_count(codes.shape[axis], block)
    missing = [(0, blocks * block - codes.shape[axis] if i == axis else 0) for i in range(codes.ndim)]
    return np.pad(codes, missing).reshape(*codes.shape[:axis], blocks, block, *codes.shape[axis + 1 :])


def _out_of_blocks(value: ir.Value, shape: tuple[int, ...], axis: int, block: int, editor: Editor) -> ir.Value:
    full = [*shape[:axis], block_count(shape[axis], block) * block, *shape[axis + 1 :]]
    value = editor.node("Reshape", [value, editor.constant(np.array(full, np.int64))], dtype=ir.DataType.FLOAT)
    if full[axis] == shape[axis]:
        return value
    bounds = [editor.constant(np.array([number], np.int64)) for number in (0, shape[axis], axis)]
    return editor.node("Slice", [value, *bounds], dtype=ir.DataType.FLOAT)


def stored_codes(weight: Quantised, shape: tuple[int, ...], slot: Slot) -> tuple[Array, Grid]:
    """Codes [out, in] and their grid, in the stored layout of ``shape``."""
    grid = weight.grid
    axis = slot.axis % len(shape)
    codes = as_stored(weight.codes, shape, slot)
    if grid.block:  # blocks run along the other axis of a matrix
        scale, zero = (grid.scale, grid.zero_point) if axis == 0 else (grid.scale.T, grid.zero_point.T)
        return codes, Grid(grid.bits, grid.signed, scale, zero, 1 - axis, grid.block)
    return codes, Grid(grid.bits, grid.signed, grid.scale, grid.zero_point, None if grid.axis is None else axis)


def pack_rows(weight: Quantised) -> tuple[Array, Array, Array]:
    """Codes, scales and zero points as MatMulNBits wants them (onnxruntime's ContribOperators.md).

    B: uint8 [out, blocks, block * bits / 8], the first code in the low bits; scales: float32 [out * blocks];
    zero points: uint8, packed like B along the blocks of a row. Signed codes move up by 2**(bits - 1).
    """
    grid = weight.grid
    rows, columns = weight.codes.shape
    blocks, shift = block_count(columns, grid.block), (1 << (grid.bits - 1)) if grid.signed else 0
    zero = (grid.zero_point + shift).astype(np.uint8)  # [out, blocks]
    padded = np.repeat(zero, grid.block, axis=1)  # the ragged end is filled with zero points, which stand for 0
    padded[:, :columns] = weight.codes.astype(np.int16) + shift
    return (_pack(padded.reshape(rows, blocks, grid.block), grid.bits), grid.scale.astype(np.float32).ravel(),
            _pack(zero, grid.bits).ravel())


def _pack(codes: Array, bits: int) -> Array:
    if bits == 8:
        return codes.astype(np.uint8)
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    return (codes[..., 0::2] | (codes[..., 1::2] << 4)).astype(np.uint8)


def _can_pack(node: ir.Node) -> bool:
    weight = node.inputs[1]
    if weight is None or weight.const_value is None or _dtype(weight) != ir.DataType.FLOAT:
        return False
    return array(weight).ndim == 2 and not int_attribute(node, "transA", 0)


def _dtype(value: ir.Value) -> ir.DataType:
    assert value.const_value is not None
    return value.const_value.dtype


def _put_packed(node: ir.Node, weight: Quantised, accuracy_level: int, editor: Editor) -> None:
    store = editor.within(node.inputs[1].graph)  # type: ignore[union-attr]
    codes, scales, zeros = (store.constant(part) for part in pack_rows(weight))
    rows, columns = weight.codes.shape
    attributes = {"K": columns, "N": rows, "bits": weight.grid.bits, "block_size": weight.grid.block, "accuracy_level": accuracy_level}
    inputs = [node.inputs[0], codes, scales, zeros]
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    old = node.outputs[0]
    name, node.name = node.name or "", f"{node.name}_replaced"
    out = editor.node("MatMulNBits", inputs, domain="com.microsoft", name=name, attributes=attributes, like=old, dtype=old.dtype)
    if bias is not None:
        out = editor.node("Add", [out, bias], like=old, dtype=old.dtype)
    editor.take_output(old, out)
    editor.redirect(old, out)
    editor.remove(node)
    editor.imports("com.microsoft")
