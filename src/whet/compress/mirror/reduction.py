"""Reductions, and what runs along an axis."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from whet.compress.mirror.node import Builder, Function, Node, integers

# of the values, the axes, and whether these stay as ones
_Reduction = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _reduce(function: _Reduction) -> Builder:
    """Axes are an attribute or an input; without any, all of them, or none with ``noop_with_empty_axes``."""

    def build(node: Node) -> Function:
        known, keep, still = node.take_ints(1, "axes"), bool(node.integer("keepdims", 1)), bool(node.integer("noop_with_empty_axes"))
        if known:
            return lambda x, _=None: function(x, known, keep)

        def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
            wanted = known if axes is None else integers(axes)
            if wanted:
                return function(x, wanted, keep)
            return function(x.unsqueeze(-1), (-1,), False) if still else function(x, tuple(range(x.ndim)), keep)

        return run

    return build


def _sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.sum(axes, keep, dtype=x.dtype) if axes else x


def _mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.mean(axes, keep) if axes else x


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keep, dtype=x.dtype)
    return x


def _extreme(function: Function, empty: float) -> _Reduction:
    def reduce(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
        if x.numel() or not axes:
            return function(x, axes, keep) if axes else x
        # Of nothing: the identity of the operation.
        shape = x.new_empty(x.shape, dtype=torch.float32).sum(axes, keep).shape
        return torch.full(shape, _limit(x.dtype, empty), dtype=x.dtype, device=x.device)

    return reduce


def _limit(kind: torch.dtype, infinite: float) -> float | bool:
    """Infinity, or the nearest to it that the type has."""
    if kind is torch.bool:
        return infinite > 0
    if kind.is_floating_point:
        return infinite
    return torch.iinfo(kind).min if infinite < 0 else torch.iinfo(kind).max


def _log_sum_exp(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return torch.logsumexp(x, axes, keep) if axes else x


def _arg(function: Function) -> Builder:
    def build(node: Node) -> Function:
        axis, keep, last = node.integer("axis"), bool(node.integer("keepdims", 1)), bool(node.integer("select_last_index"))
        if not last:
            return lambda x: function(x, axis, keep)
        return lambda x: x.shape[axis] - 1 - function(x.flip(axis), axis, keep)

    return build


def _cumulative(function: Function, neutral: float) -> Builder:
    def build(node: Node) -> Function:
        known, exclusive, reverse = node.take_ints(1), bool(node.integer("exclusive")), bool(node.integer("reverse"))

        def run(x: Tensor, axis: Tensor | None = None) -> Tensor:
            at = int(axis) if axis is not None else known[0] if known else 0
            y = x.flip(at) if reverse else x
            y = function(y, at, dtype=x.dtype)
            if exclusive:
                first = torch.full_like(y.narrow(at, 0, 1), neutral)
                y = torch.cat([first, y.narrow(at, 0, y.shape[at] - 1)], at)
            return y.flip(at) if reverse else y

        return run

    return build


TABLE: dict[str, Builder] = {
    "ReduceSum": _reduce(_sum), "ReduceMean": _reduce(_mean), "ReduceProd": _reduce(_product),
    "ReduceMax": _reduce(_extreme(torch.amax, -torch.inf)), "ReduceMin": _reduce(_extreme(torch.amin, torch.inf)),
    "ReduceL1": _reduce(lambda x, axes, keep: _sum(x.abs(), axes, keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: _sum(x.square(), axes, keep).sqrt()),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: _sum(x.square(), axes, keep)),
    "ReduceLogSum": _reduce(lambda x, axes, keep: _sum(x, axes, keep).log()), "ReduceLogSumExp": _reduce(_log_sum_exp),
    "ArgMax": _arg(torch.argmax), "ArgMin": _arg(torch.argmin), "CumSum": _cumulative(torch.cumsum, 0.0),
    "CumProd": _cumulative(torch.cumprod, 1.0),
}
