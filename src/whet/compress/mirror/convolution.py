"""Convolutions of one, two and three dimensions, with groups, dilations and every kind of padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from torch import Tensor
from torch.nn import functional

from whet.compress.mirror.node import Builder, Function, Node
from whet.compress.mirror.windows import Pads, fixed_pads, is_upper, same_pads, sides, symmetric

_FORWARD = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def _of_known_rank(build: Callable[[Node, int], Function]) -> Builder:
    """Builds for the number of spatial dimensions that the node, its weight or its input has; else for what comes at run time."""

    def built(node: Node) -> Function:
        kernel = node.integers("kernel_shape")
        rank = len(kernel) if kernel else (node.rank(1) or node.rank(0) or 2) - 2
        if rank:
            return build(node, rank)
        each = cache(lambda rank: build(node, rank))
        each(2)  # asks for the attributes, so that what is not covered is refused now
        return lambda x, w, b=None: each(w.ndim - 2)(x, w, b)

    return built


def _conv(node: Node, rank: int) -> Function:
    if rank not in _FORWARD:
        node.refuse(f"it has {rank} spatial dimensions")
    strides, dilations = node.integers("strides") or (1,) * rank, node.integers("dilations") or (1,) * rank
    pads, upper, groups = fixed_pads(node, rank), is_upper(node), node.integer("group", 1)
    convolve, even = _FORWARD[rank], None if pads is None else symmetric(pads)
    if even is not None:
        return lambda x, w, b=None: convolve(x, w, b, strides, even, dilations, groups)

    def run(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        found = pads or same_pads(x.shape[2:], w.shape[2:], strides, dilations, upper)
        equal = symmetric(found)
        if equal is not None:
            return convolve(x, w, b, strides, equal, dilations, groups)
        return convolve(functional.pad(x, sides(found)), w, b, strides, 0, dilations, groups)

    return run


def _conv_transpose(node: Node, rank: int) -> Function:
    """Pads are cut off the full result; ``output_padding`` adds to its end; ``output_shape`` and SAME choose the pads by the size."""
    if rank not in _TRANSPOSED:
        node.refuse(f"it has {rank} spatial dimensions")
    strides, dilations = node.integers("strides") or (1,) * rank, node.integers("dilations") or (1,) * rank
    extra, wanted = node.integers("output_padding") or (0,) * rank, node.integers("output_shape")
    pads, upper, groups = fixed_pads(node, rank), is_upper(node), node.integer("group", 1)
    convolve = _TRANSPOSED[rank]
    even = None if pads is None or wanted is not None else symmetric(pads)
    if even is not None and all(more < max(by, far) for more, by, far in zip(extra, strides, dilations, strict=True)):
        return lambda x, w, b=None: convolve(x, w, b, strides, even, extra, groups, dilations)

    def run(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        full = convolve(x, w, None, strides, 0, 0, groups, dilations)
        found = pads
        if wanted is not None:
            found = _pads_for(wanted[-rank:], full.shape[2:], extra, upper)
        elif found is None:  # SAME: as large as the input times the stride, or less where the kernel is narrower than the stride
            sizes = [min(size * by, most) for size, by, most in zip(x.shape[2:], strides, full.shape[2:], strict=True)]
            found = _pads_for(sizes, full.shape[2:], extra, upper)
        ends = tuple((-before, more - after) for (before, after), more in zip(found, extra, strict=True))  # negative padding cuts
        cut = functional.pad(full, sides(ends))
        return cut if b is None else cut + b.reshape(-1, *[1] * rank)

    return run


def _pads_for(sizes: Sequence[int], full: Sequence[int], extra: tuple[int, ...], upper: bool) -> Pads:
    """The pads that leave ``sizes`` (ONNX ConvTranspose): the odd one goes to the end where ``upper``, to the begin otherwise."""
    totals = [have + more - size for have, more, size in zip(full, extra, sizes, strict=True)]
    return tuple((total // 2, total - total // 2) if upper else (total - total // 2, total // 2) for total in totals)


TABLE: dict[str, Builder] = {"Conv": _of_known_rank(_conv), "ConvTranspose": _of_known_rank(_conv_transpose)}
