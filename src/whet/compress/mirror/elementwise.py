"""Elementwise arithmetic, comparison and logic, all of it broadcast as numpy does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from whet.compress.mirror.node import Builder, Function, Node
from whet.compress.mirror.tensors import is_narrow, torch_type

_WIDE = (ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64)


def _plain(function: Function) -> Builder:
    """An operator that is one function of torch, without attributes."""
    return lambda node: function


def _arithmetic(builder: Builder) -> Builder:
    """Raises Unsupported for the wider unsigned integers, with which torch does not compute."""

    def build(node: Node) -> Function:
        if node.kind(0) in _WIDE:
            node.refuse("torch does not compute with unsigned integers of more than 8 bits")
        return builder(node)

    return build


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Builder:
    """An operator of any number of inputs."""
    return _plain(lambda *tensors: functools.reduce(function, tensors))


def _divide(node: Node) -> Function:
    if node.kind(0) in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return torch.div

    def run(a: Tensor, b: Tensor) -> Tensor:  # of integers: towards zero, as C does
        return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")

    return run


def _power(node: Node) -> Function:
    """A constant exponent is a number of the function: its own gradient would be the logarithm of what may be negative."""
    known = node.take(1)
    if known is None or known.numel() != 1:
        node.taken.discard(1)
        return lambda x, y: torch.pow(x, y).to(x.dtype)
    exponent, least = known.item(), (1,) * known.ndim
    exponent = int(exponent) if exponent == int(exponent) else exponent
    return lambda x, _=None: torch.pow(x if x.ndim >= len(least) else x.reshape(least), exponent).to(x.dtype)


def _modulo(node: Node) -> Function:
    return torch.fmod if node.integer("fmod") else torch.remainder  # the sign of the dividend, or of the divisor


def _clip(node: Node) -> Function:
    low, high = (node.take_number(index, name) for index, name in ((1, "min"), (2, "max")))
    if low == 0 and high is None and not node.has(2):
        return lambda x, *_: torch.relu(x)

    def run(x: Tensor, least: Tensor | None = None, most: Tensor | None = None) -> Tensor:
        if least is None and most is None:
            return torch.clamp(x, low, high) if low is not None or high is not None else x
        if low is not None:
            least = torch.as_tensor(low, dtype=x.dtype, device=x.device)
        if high is not None:
            most = torch.as_tensor(high, dtype=x.dtype, device=x.device)
        return torch.clamp(x, least, most)

    return run


def _shift(node: Node) -> Function:
    return torch.bitwise_left_shift if node.text("direction", "") == "LEFT" else torch.bitwise_right_shift


def _cast(node: Node) -> Function:
    node.ignore("saturate", "round_mode")  # for eight-bit floats only, which element_type refuses
    _refuse_narrow(node, ir.DataType(node.integer("to")))
    wanted = node.element_type("to", ir.DataType.FLOAT)
    return lambda x: x.to(wanted)


def _cast_like(node: Node) -> Function:
    node.ignore("saturate", "round_mode")
    _refuse_narrow(node, node.kind(1))
    return lambda x, like: x.to(like.dtype)


def _refuse_narrow(node: Node, kind: ir.DataType | None) -> None:
    if kind is not None:
        torch_type(kind, node.asked)
        if is_narrow(kind):
            node.refuse(f"it makes numbers of the type {kind.name}, which torch has not")


def _is_inf(node: Node) -> Function:
    below, above = node.integer("detect_negative", 1), node.integer("detect_positive", 1)
    if below and above:
        return torch.isinf
    return torch.isposinf if above else torch.isneginf if below else lambda x: torch.zeros_like(x, dtype=torch.bool)


def _mean(*tensors: Tensor) -> Tensor:
    return functools.reduce(torch.add, tensors) / len(tensors)


def _where(condition: Tensor, a: Tensor, b: Tensor) -> Any:
    return torch.where(condition, a, b)


_COMPUTED: dict[str, Builder] = {
    "Add": _plain(torch.add), "Sub": _plain(torch.sub), "Mul": _plain(torch.mul), "Div": _divide, "Pow": _power, "Mod": _modulo,
    "Sum": _folded(torch.add), "Min": _folded(torch.minimum), "Max": _folded(torch.maximum), "Mean": _plain(_mean),
    "Neg": _plain(torch.neg), "Abs": _plain(torch.abs), "Sign": _plain(torch.sign), "Reciprocal": _plain(torch.reciprocal),
    "Floor": _plain(torch.floor), "Ceil": _plain(torch.ceil), "Round": _plain(torch.round),  # halves to even
    "Sqrt": _plain(torch.sqrt), "Exp": _plain(torch.exp), "Log": _plain(torch.log), "Erf": _plain(torch.erf),
    "Sin": _plain(torch.sin), "Cos": _plain(torch.cos), "Tan": _plain(torch.tan), "Asin": _plain(torch.asin),
    "Acos": _plain(torch.acos), "Atan": _plain(torch.atan), "Sinh": _plain(torch.sinh), "Cosh": _plain(torch.cosh),
    "Asinh": _plain(torch.asinh), "Acosh": _plain(torch.acosh), "Atanh": _plain(torch.atanh),
    "Clip": _clip,
    "Equal": _plain(torch.eq), "Greater": _plain(torch.gt), "GreaterOrEqual": _plain(torch.ge), "Less": _plain(torch.lt),
    "LessOrEqual": _plain(torch.le), "And": _plain(torch.logical_and), "Or": _plain(torch.logical_or), "Xor": _plain(torch.logical_xor),
    "Not": _plain(torch.logical_not), "BitwiseAnd": _plain(torch.bitwise_and), "BitwiseOr": _plain(torch.bitwise_or),
    "BitwiseXor": _plain(torch.bitwise_xor), "BitwiseNot": _plain(torch.bitwise_not), "BitShift": _shift,
    "IsNaN": _plain(torch.isnan), "IsInf": _is_inf,
}
TABLE: dict[str, Builder] = {
    **{op: _arithmetic(builder) for op, builder in _COMPUTED.items()},
    "Cast": _cast, "CastLike": _cast_like, "Where": _plain(_where), "Identity": _plain(lambda x: x),
}
