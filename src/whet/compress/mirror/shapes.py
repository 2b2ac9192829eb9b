"""Operators that move values or make them from a shape."""

from __future__ import annotations

import math

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from whet.compress.mirror.node import Builder, Function, Node, integers
from whet.compress.mirror.tensors import to_torch, torch_type


def _reshape(node: Node) -> Function:
    known, keep_zero = node.take_ints(1), node.integer("allowzero")

    def run(x: Tensor, shape: Tensor | None = None) -> Tensor:
        wanted = known if shape is None else integers(shape)
        assert wanted is not None
        if not keep_zero and 0 in wanted:  # 0: as it was
            wanted = tuple([x.shape[at] if size == 0 else size for at, size in enumerate(wanted)])
        return x.reshape(wanted)

    return run


def _flatten(node: Node) -> Function:
    axis = node.integer("axis", 1)
    if axis == 1:
        return lambda x: x.reshape(x.shape[0] if x.ndim else 1, math.prod(x.shape[1:]))

    def run(x: Tensor) -> Tensor:
        at = axis + x.ndim if axis < 0 else axis
        return x.reshape(math.prod(x.shape[:at]), math.prod(x.shape[at:]))

    return run


def _transpose(node: Node) -> Function:
    order = node.integers("perm")
    return lambda x: x.permute(order or tuple(reversed(range(x.ndim))))


def _concat(node: Node) -> Function:
    axis = node.integer("axis")
    return lambda *tensors: torch.cat(tensors, axis)


def _split(node: Node) -> Function:
    axis, count = node.integer("axis"), node.integer("num_outputs", len(node.ir.outputs))
    known = node.take_ints(1, "split")

    def run(x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        wanted = known if sizes is None else integers(sizes)
        # Without sizes: equal parts, of which the last may be smaller.
        return torch.split(x, -(-x.shape[axis] // count) if wanted is None else list(wanted), axis)

    return run


def _squeeze(node: Node) -> Function:
    known = node.take_ints(1, "axes")

    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        wanted = known if axes is None else integers(axes)
        return x.squeeze() if wanted is None else x.squeeze(wanted)

    return run


def _unsqueeze(node: Node) -> Function:
    known = node.take_ints(1, "axes")
    if known is not None and len(known) == 1:
        axis = known[0]
        return lambda x, *_: x.unsqueeze(axis)

    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        wanted = known if axes is None else integers(axes)
        assert wanted is not None
        for axis in sorted(at % (x.ndim + len(wanted)) for at in wanted):
            x = x.unsqueeze(axis)
        return x

    return run


def _shape(node: Node) -> Function:
    start, end = node.integer("start"), node.integer("end", 2**31)
    return lambda x: torch.tensor(x.shape[start:end], dtype=torch.int64)


def _size(x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


def _expand(node: Node) -> Function:
    known = node.take_ints(1)

    def run(x: Tensor, shape: Tensor | None = None) -> Tensor:
        wanted = known if shape is None else integers(shape)
        return x.expand(torch.broadcast_shapes(x.shape, wanted))

    return run


def _tile(node: Node) -> Function:
    known = node.take_ints(1)
    return lambda x, counts=None: x.tile(known if counts is None else integers(counts))


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _pad(node: Node) -> Function:
    mode = node.text("mode", "constant")
    if mode not in _PAD_MODES:
        node.refuse(f"its mode is {mode!r}")
    known, axes_known, number = node.take_ints(1, "pads"), node.take_ints(3), node.take_number(2, "value")

    def run(x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
        wanted = known if pads is None else integers(pads)
        assert wanted is not None
        places = axes_known if axes is None else integers(axes)
        sides = _sides(wanted, range(x.ndim) if places is None else places, x.ndim)
        fill = (number or 0) if value is None else value.item()
        return functional.pad(x, sides, value=fill) if mode == "constant" else _pad_by_copy(x, sides, mode)

    return run


def _sides(pads: tuple[int, ...], axes: range | tuple[int, ...], rank: int) -> list[int]:
    """ONNX's pads (all begins, then all ends) in torch's order (begin and end of the last axis first), without leading zeros."""
    sides = [0] * (2 * rank)
    for at, axis in enumerate(axes):
        place = 2 * (rank - 1 - axis % rank)
        sides[place], sides[place + 1] = pads[at], pads[at + len(pads) // 2]
    while len(sides) > 2 and not sides[-1] and not sides[-2]:
        sides = sides[:-2]
    return sides


def _pad_by_copy(x: Tensor, sides: list[int], mode: str) -> Tensor:
    """Axis by axis, by index: torch's own has these modes for some numbers of dimensions only."""
    for at in range(0, len(sides), 2):
        axis = x.ndim - 1 - at // 2
        size, where = x.shape[axis], torch.arange(-sides[at], x.shape[axis] + sides[at + 1])
        if mode == "edge":
            where = where.clamp(0, size - 1)
        elif mode == "wrap":
            where = where % size
        else:  # reflect: without the edge itself, there and back
            period = max(2 * (size - 1), 1)
            where = (size - 1) - ((where % period) - (size - 1)).abs() if size > 1 else where * 0
        if any(sides[at:at + 2]):
            x = x.index_select(axis, where.to(x.device))
    return x


def _slice(node: Node) -> Function:
    starts, ends = node.take_ints(1, "starts"), node.take_ints(2, "ends")
    axes, steps = node.take_ints(3, "axes"), node.take_ints(4)

    def run(x: Tensor, *live: Tensor | None) -> Tensor:
        # What came at run time replaces what was known.
        first, last, where, by = (known if at >= len(live) or (one := live[at]) is None else integers(one)
                                  for at, known in enumerate((starts, ends, axes, steps)))
        assert first is not None
        assert last is not None
        for at, axis in enumerate(where if where is not None else range(len(first))):
            x = _cut(x, axis, first[at], last[at], 1 if by is None else by[at])
        return x

    return run


def _cut(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    """numpy's x[start:end:step] along one axis; torch has no negative steps."""
    begin, stop, by = slice(start, max(end, -x.shape[axis] - 1) if step < 0 else end, step).indices(x.shape[axis])
    if by > 0:
        index: list[slice] = [slice(None)] * (axis % x.ndim)
        return x[(*index, slice(begin, max(stop, begin), by))]
    return x.index_select(axis, torch.arange(begin, min(stop, begin), by, device=x.device))


def _constant_of_shape(node: Node) -> Function:
    value = node.tensor("value")
    fill = 0.0 if value is None else to_torch(value, node.asked).reshape(()).item()
    kind = torch.float32 if value is None else torch_type(value.dtype, node.asked)
    return lambda shape: torch.full(integers(shape), fill, dtype=kind)


def _range(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    count = max(math.ceil((limit.item() - start.item()) / delta.item()), 0)
    return start + torch.arange(count, device=start.device, dtype=start.dtype) * delta


def _eye_like(node: Node) -> Function:
    diagonal, kind = node.integer("k"), node.integer("dtype", -1)
    wanted = None if kind < 0 else torch_type(ir.DataType(kind), node.asked)

    def run(x: Tensor) -> Tensor:
        ones = torch.ones(x.shape, dtype=wanted or x.dtype, device=x.device)
        return ones.tril(diagonal).triu(diagonal)

    return run


def _trilu(node: Node) -> Function:
    keep, known = torch.triu if node.integer("upper", 1) else torch.tril, node.take_ints(1)
    return lambda x, k=None: keep(x, int(k) if k is not None else known[0] if known else 0)


def _depth_to_space(node: Node) -> Function:
    size, mode = node.integer("blocksize"), node.text("mode", "DCR")

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if mode == "CRD":
            return functional.pixel_shuffle(x, size)
        parts = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return parts.reshape(n, c // size**2, h * size, w * size)

    return run


def _space_to_depth(node: Node) -> Function:
    size = node.integer("blocksize")

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4).reshape(n, c * size**2, h // size, w // size)

    return run


TABLE: dict[str, Builder] = {
    "Reshape": _reshape, "Flatten": _flatten, "Transpose": _transpose, "Concat": _concat, "Split": _split, "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze, "Shape": _shape, "Size": lambda node: _size, "Expand": _expand, "Tile": _tile, "Pad": _pad, "Slice": _slice,
    "ConstantOfShape": _constant_of_shape, "Range": lambda node: _range, "EyeLike": _eye_like, "Trilu": _trilu,
    "DepthToSpace": _depth_to_space, "SpaceToDepth": _space_to_depth,
}
