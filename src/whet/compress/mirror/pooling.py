"""Pools. torch's own where they do the same; windows that ONNX pads in another way are padded first."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from whet.compress.mirror.node import Builder, Function, Node
from whet.compress.mirror.windows import Pads, fixed_pads, is_upper, same_pads, sides, symmetric

_MAX: dict[int, Function] = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_MAX_WITH_INDICES: dict[int, Function] = {
    1: functional.max_pool1d_with_indices, 2: functional.max_pool2d_with_indices, 3: functional.max_pool3d_with_indices}
_CONVOLVE: dict[int, Function] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_AVERAGE: dict[int, Function] = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


class _Window:
    """The attributes that all pools share."""

    def __init__(self, node: Node) -> None:
        self.kernel = node.integers("kernel_shape") or ()
        rank = len(self.kernel)
        if rank not in _MAX:
            node.refuse(f"it has {rank} spatial dimensions")
        self.strides, self.dilations = node.integers("strides") or (1,) * rank, node.integers("dilations") or (1,) * rank
        self.fixed, self.upper, self.ceil = fixed_pads(node, rank), is_upper(node), bool(node.integer("ceil_mode"))
        if self.fixed is None and not set(self.dilations) <= {1}:
            node.refuse("it has dilations and padding by size (auto_pad), which onnxruntime does not compute as ONNX says")

    def pads(self, x: Tensor) -> Pads:
        """Zeros before and after, and with ``ceil_mode`` what the last, partial window lacks."""
        if self.fixed is None:
            return same_pads(x.shape[2:], self.kernel, self.strides, self.dilations, self.upper)
        return self.fixed

    def filled(self, x: Tensor, pads: Pads) -> Pads:
        """``pads`` with as much more at the ends as ``ceil_mode`` needs; a window that would begin in the end's padding is dropped."""
        found = []
        for size, width, by, far, (before, after) in zip(x.shape[2:], self.kernel, self.strides, self.dilations, pads, strict=True):
            reach = (width - 1) * far + 1
            windows = -(-(size + before + after - reach) // by) + 1
            if (windows - 1) * by >= size + before:
                windows -= 1
            found.append((before, max((windows - 1) * by + reach - size - before, after)))
        return tuple(found)

    def total(self, x: Tensor) -> Tensor:
        """The sum over each window of an ``x`` that is padded already: a depthwise convolution with ones."""
        ones = x.new_ones((x.shape[1], 1, *self.kernel))
        return _CONVOLVE[len(self.kernel)](x, ones, None, self.strides, 0, self.dilations, x.shape[1])


def _max_pool(node: Node) -> Function:
    window, by_column = _Window(node), node.integer("storage_order")
    if node.wants(1):
        return _max_pool_with_indices(window, by_column)
    pool = _MAX[len(window.kernel)]
    even = None if window.fixed is None else symmetric(window.fixed)
    usual = even is not None and all(2 * pad <= width for pad, width in zip(even, window.kernel, strict=True))

    def run(x: Tensor) -> Tensor:
        if not x.is_floating_point():  # codes: their maxima are exact in float32, and -inf is below them all
            return run(x.to(torch.float32)).to(x.dtype)
        if usual:
            return pool(x, window.kernel, window.strides, even, window.dilations, window.ceil)
        pads = window.filled(x, window.pads(x)) if window.ceil else window.pads(x)
        return pool(functional.pad(x, sides(pads), value=-torch.inf), window.kernel, window.strides, 0, window.dilations)

    return run


def _max_pool_with_indices(window: _Window, by_column: int) -> Function:
    """The second output: where each maximum lies in the flattened input; along columns first where ``storage_order`` is 1."""
    rank = len(window.kernel)
    pool = _MAX_WITH_INDICES[rank]

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        pads = window.filled(x, window.pads(x)) if window.ceil else window.pads(x)
        y, at = pool(functional.pad(x, sides(pads), value=-torch.inf), window.kernel, window.strides, 0, window.dilations)
        padded = [size + before + after for size, (before, after) in zip(x.shape[2:], pads, strict=True)]
        places = [where - before for where, (before, _) in zip(torch.unravel_index(at, padded), pads, strict=True)]
        flat = torch.zeros_like(at)
        pairs = list(zip(places, x.shape[2:], strict=True))
        for place, size in reversed(pairs) if by_column else pairs:
            flat = flat * size + place
        planes = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(x.shape[0], x.shape[1], *[1] * rank)
        return y, flat + planes * x[0, 0].numel()

    return run


def _average_pool(node: Node) -> Function:
    window, count_pad = _Window(node), bool(node.integer("count_include_pad"))
    pool, simple = _AVERAGE[len(window.kernel)], set(window.dilations) <= {1} and not window.ceil
    even = None if window.fixed is None else symmetric(window.fixed)
    if simple and even is not None and all(2 * pad <= width for pad, width in zip(even, window.kernel, strict=True)):
        return lambda x: pool(x, window.kernel, window.strides, even, False, count_pad)

    def run(x: Tensor) -> Tensor:
        pads = window.pads(x)
        more = window.filled(x, pads) if window.ceil else pads
        # Divide by how many of the window's places count: the real ones, and with count_include_pad the given padding too.
        counted = functional.pad(torch.ones_like(x[:1, :1]), sides(pads), value=float(count_pad))
        rest = tuple((0, full - after) for (_, full), (_, after) in zip(more, pads, strict=True))
        return window.total(functional.pad(x, sides(more))) / window.total(functional.pad(counted, sides(rest)))

    return run


def _lp_pool(node: Node) -> Function:
    window, order = _Window(node), node.integer("p", 2)

    def run(x: Tensor) -> Tensor:
        pads = window.filled(x, window.pads(x)) if window.ceil else window.pads(x)
        return window.total(functional.pad(x.abs().pow(order), sides(pads))).pow(1 / order)

    return run


def _over_space(function: Function) -> Builder:
    return lambda node: lambda x: function(x, tuple(range(2, x.ndim)))


def _average(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return x.mean(axes, keepdim=True)


def _greatest(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return x.amax(axes, keepdim=True)


def _global_lp(node: Node) -> Function:
    order = node.integer("p", 2)
    return lambda x: x.abs().pow(order).sum(tuple(range(2, x.ndim)), keepdim=True).pow(1 / order)


TABLE: dict[str, Builder] = {
    "MaxPool": _max_pool, "AveragePool": _average_pool, "GlobalAveragePool": _over_space(_average),
    "GlobalMaxPool": _over_space(_greatest), "LpPool": _lp_pool, "GlobalLpPool": _global_lp,
}
