"""Quantisers, bit by bit as ONNX defines them, with gradients that go straight through the rounding.

Codes that only go to a DequantizeLinear (perhaps through operators that move them) stay floating point numbers, so that gradients
can pass (``codes.py`` says which); all others have the integer type of the graph, and no gradient.
Backwards, x gets the gradient of the clipped identity, and the scale that of LSQ (Esser et al. 2020, equation 3).
"""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor

from whet.compress.mirror.node import Builder, Function, Node
from whet.compress.mirror.tensors import code_range, torch_type

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def _rounded(values: Tensor) -> Tensor:
    """Half to even, as QuantizeLinear defines it; the gradient is that of the identity."""
    return values + (torch.round(values) - values).detach() if values.requires_grad else torch.round(values)


def _quantize(node: Node) -> Function:
    axis, block = node.integer("axis", 1), node.integer("block_size")
    node.ignore("saturate")
    precision = node.integer("precision")
    kind = node.kind(2) if node.has(2) else ir.DataType(node.integer("output_dtype") or ir.DataType.UINT8.value)
    node.ignore("output_dtype")
    if kind is None or kind in _FLOATS:
        node.refuse("the element type of its codes is not known")
    stored = torch_type(kind, node.asked)
    low, high = code_range(kind)
    node.freeze(1)

    def run(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        if precision == ir.DataType.FLOAT.value:
            x, scale = x.float(), scale.float()
        exact = x / _spread(scale, x, axis, block)
        codes = _rounded(exact)
        if zero is not None:
            codes = codes + _spread(zero, x, axis, block).to(codes.dtype)
        codes = codes.clamp(low, high)
        return codes if node.floating_codes else codes.to(torch.int32).to(stored)

    return run


def _dequantize(node: Node) -> Function:
    axis, block, kind = node.integer("axis", 1), node.integer("block_size"), node.integer("output_dtype")
    torch_type(node.kind(0) or ir.DataType.UINT8, node.asked)  # refuses eight-bit floats
    wanted = torch_type(ir.DataType(kind), node.asked) if kind else None
    node.freeze(1)

    def run(codes: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        exact = codes.to(torch.float32 if scale.dtype is not torch.float64 else torch.float64)
        if zero is not None:
            exact = exact - _spread(zero, codes, axis, block).to(exact.dtype)
        found = exact * _spread(scale, codes, axis, block)
        return found.to(wanted or scale.dtype)

    return run


def _spread(values: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """Scales or zero points in a shape that is broadcast over ``x``: one, one for each place along the axis, or one a block."""
    if values.ndim == 0 or values.numel() == 1:
        return values.reshape(())
    if block:
        return values.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    shape = [1] * x.ndim
    shape[axis] = -1
    return values.reshape(shape)


def _dynamic_quantize(node: Node) -> Function:
    """uint8 codes over the range of x, widened to zero, with scale and zero point as outputs."""

    def run(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low, high = x.min().clamp_max(0), x.max().clamp_min(0)
        scale = (high - low) / 255
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        zero = torch.round((-low / scale).clamp(0, 255)).to(torch.uint8)
        codes = (_rounded(x / scale) + zero).clamp(0, 255)
        return codes if node.floating_codes else codes.to(torch.uint8), scale, zero

    return run


def _integer_product(node: Node) -> Function:
    """MatMulInteger, in float64, which holds sums of 2^37 products of bytes exactly. No gradient goes through integers."""

    def run(a: Tensor, b: Tensor, zero_a: Tensor | None = None, zero_b: Tensor | None = None) -> Tensor:
        left, right = a.double(), b.double()
        if zero_a is not None:
            left = left - (zero_a.unsqueeze(-1) if zero_a.ndim == 1 and zero_a.numel() > 1 else zero_a).double()
        if zero_b is not None:
            right = right - zero_b.double()
        return (left @ right).to(torch.int32)

    return run


TABLE: dict[str, Builder] = {
    "QuantizeLinear": _quantize, "DequantizeLinear": _dequantize, "DynamicQuantizeLinear": _dynamic_quantize,
    "MatMulInteger": _integer_product,
}
