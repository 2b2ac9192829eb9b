"""Between ONNX's tensors and torch's: element types, bit by bit, and constants that follow the data to its device."""

from __future__ import annotations

import warnings

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from whet.compress.grid import Array
from whet.core.errors import Unsupported

_TYPES = {
    ir.DataType.FLOAT: torch.float32, ir.DataType.DOUBLE: torch.float64, ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16, ir.DataType.INT8: torch.int8, ir.DataType.INT16: torch.int16, ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64, ir.DataType.UINT8: torch.uint8, ir.DataType.UINT16: torch.uint16, ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64, ir.DataType.BOOL: torch.bool,
}
# torch has no four-bit types: such codes are held as bytes. Their ends are those of the codes.
_NARROW = {
    ir.DataType.INT4: (torch.int8, -8, 7), ir.DataType.UINT4: (torch.uint8, 0, 15),
    ir.DataType.INT2: (torch.int8, -2, 1), ir.DataType.UINT2: (torch.uint8, 0, 3),
}


class Baked:
    """A constant that is part of a step, with a copy on every device where it was wanted.

    kind: its element type in the graph; four-bit codes are bytes here.
    """

    def __init__(self, value: Tensor, kind: ir.DataType | None = None) -> None:
        self.value, self.kind = value, kind
        self._copies = {value.device: value}

    def on(self, device: torch.device) -> Tensor:
        if device not in self._copies:
            self._copies[device] = self.value.to(device)
        return self._copies[device]


def torch_type(kind: ir.DataType, asked: str) -> torch.dtype:
    """The torch type that holds the element type. Raises Unsupported where there is none (text, complex, eight-bit floats)."""
    if kind in _TYPES:
        return _TYPES[kind]
    if kind in _NARROW:
        return _NARROW[kind][0]
    raise Unsupported(asked, found=f"the element type {kind.name} is not covered")


def is_narrow(kind: ir.DataType) -> bool:
    """Whether bytes hold what the graph has in less."""
    return kind in _NARROW


def code_range(kind: ir.DataType) -> tuple[int, int]:
    """Lowest and highest code of an integer type."""
    if kind in _NARROW:
        return _NARROW[kind][1:]
    limits = torch.iinfo(_TYPES[kind])
    return limits.min, limits.max


def to_torch(tensor: ir.TensorProtocol, asked: str) -> Tensor:
    """A copy with the same bits; four-bit codes become bytes."""
    wanted = torch_type(tensor.dtype, asked)
    numbers = tensor.numpy()
    if wanted is torch.bfloat16:
        return torch.from_numpy(numbers.view(np.int16).copy()).view(torch.bfloat16)
    if tensor.dtype in _NARROW:
        numbers = numbers.astype(np.int8 if wanted is torch.int8 else np.uint8)
    return torch.from_numpy(np.array(numbers, order="C"))  # always a copy, and [] stays []


def seen(tensor: ir.TensorProtocol, asked: str) -> Tensor:
    """The tensor in the memory where it lies, if it is float32 there, else a copy. It is not to be written to."""
    numbers = tensor.numpy()
    if tensor.dtype != ir.DataType.FLOAT or not numbers.flags.c_contiguous or numbers.dtype != np.float32:
        return to_torch(tensor, asked)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that memory mapped from a file, or of bytes, cannot be written to
        return torch.from_numpy(numbers)


def to_numpy(tensor: Tensor, kind: ir.DataType) -> Array:
    """The way back, with the same bits."""
    held = tensor.detach().to("cpu", _TYPES[kind]).contiguous()
    if kind == ir.DataType.BFLOAT16:
        return held.view(torch.int16).numpy().view(kind.numpy())
    return held.numpy()
