"""Where the weights of an operator lie: a table, and the two ways across it.

A technique sees every weight as [out, ...] (output channels first). This file turns the stored layout into that view and the
result back into the stored layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from whet.compress.grid import Array

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """A weight of an operator: which input, along which axis its output channels lie, and where its bias is (or None)."""

    index: int
    axis: int
    bias: int | None = None


_SLOTS: dict[str, tuple[Slot, ...]] = {
    "Conv": (Slot(1, 0, 2),),  # W [out, in / groups, kernel...], B [out]
    "ConvTranspose": (Slot(1, 1, 2),),  # W [in, out / groups, kernel...], B [out]
    "Gemm": (Slot(1, 1, 2),),  # B [in, out], or [out, in] with transB = 1; C [out]
    "MatMul": (Slot(1, -1),),  # B [..., in, out]
    "Gather": (Slot(0, 0),),  # data [rows, ...]: each row is an output of its own
    "LSTM": (Slot(1, 1), Slot(2, 1)),  # W [directions, 4 * hidden, in], R [directions, 4 * hidden, hidden]
    "GRU": (Slot(1, 1), Slot(2, 1)),
}


def slots(node: ir.Node) -> tuple[Slot, ...]:
    """The weights of a node that are constants of two dimensions or more in floating point."""
    if node.domain not in ("", "ai.onnx"):
        return ()
    found = _SLOTS.get(node.op_type, ())
    if node.op_type == "Gemm" and int_attribute(node, "transB", 0):
        found = (Slot(1, 0, 2),)
    return tuple(slot for slot in found if _is_weight(node, slot.index))


def first_slot(node: ir.Node) -> Slot:
    """The place of the operator's first weight, whether it is a floating point constant or codes behind a DequantizeLinear."""
    found = _SLOTS[node.op_type][0]
    return Slot(1, 0, 2) if node.op_type == "Gemm" and int_attribute(node, "transB", 0) else found


def constant(node: ir.Node, index: int | None) -> ir.Value | None:
    """The input of that index where it is a constant, else None."""
    if index is None or index >= len(node.inputs):
        return None
    value = node.inputs[index]
    # An initializer that is also a graph input can be overridden at run time, so it is no constant.
    return value if value is not None and value.const_value is not None and not value.is_graph_input() else None


def array(value: ir.Value) -> Array:
    """The constant's numbers; float16 and bfloat16 come as float32."""
    assert value.const_value is not None
    numbers = value.const_value.numpy()
    return numbers.astype(np.float32) if value.const_value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) else numbers


def is_row(value: ir.Value | None) -> bool:
    """Whether the value is a constant that holds one number for all columns of a matrix, or one for each: a bias of a product."""
    return value is not None and value.const_value is not None and all(size == 1 for size in tuple(value.const_value.shape)[:-1])


def rows_first(weight: Array, slot: Slot) -> Array:
    """Stored layout -> [out, ...]."""
    return np.ascontiguousarray(np.moveaxis(weight, slot.axis, 0))


def as_stored(rows: Array, shape: tuple[int, ...], slot: Slot) -> Array:
    """[out, ...] (or flattened to [out, in]) -> the stored layout of ``shape``."""
    moved = np.moveaxis(np.empty(shape, np.bool_), slot.axis, 0).shape
    return np.ascontiguousarray(np.moveaxis(rows.reshape(moved), 0, slot.axis))


def stored_rows(rows: Tensor, shape: tuple[int, ...], slot: Slot) -> Tensor:
    """``as_stored`` for a torch tensor, with gradients: [out, ...] -> the stored layout of ``shape``."""
    moved = np.moveaxis(np.empty(shape, np.bool_), slot.axis, 0).shape
    return rows.reshape(moved).movedim(0, slot.axis)


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute, or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def float_attribute(node: ir.Node, name: str, default: float) -> float:
    """A floating point attribute, or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def _is_weight(node: ir.Node, index: int) -> bool:
    value = constant(node, index)
    if value is None or value.const_value is None:
        return False
    floating = value.const_value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    return floating and len(value.const_value.shape) >= 2 and value.const_value.size > 0
