"""Taking values out by index and putting them in."""

from __future__ import annotations

import torch
from torch import Tensor

from whet.compress.mirror.node import Builder, Function, Node, integers

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}  # ONNX's words, and torch's


def _positive(at: Tensor, size: int) -> Tensor:
    """Indices counted from the end become indices from the begin."""
    at = at.long()
    return torch.where(at < 0, at + size, at)


def _gather(node: Node) -> Function:
    axis, known = node.integer("axis"), node.take(1)
    if known is not None and known.ndim == 0:  # one place: no copy
        at = int(known)
        return lambda x, _=None: x.select(axis, at)
    node.taken.discard(1)  # here the tensor itself is wanted
    negative = known is None or bool((known < 0).any())

    def run(x: Tensor, at: Tensor) -> Tensor:
        where = _positive(at, x.shape[axis]) if negative else at
        place = axis % x.ndim
        return x.index_select(axis, where.reshape(-1)).reshape(*x.shape[:place], *where.shape, *x.shape[place + 1:])

    return run


def _gather_elements(node: Node) -> Function:
    axis = node.integer("axis")
    return lambda x, at: x.gather(axis, _positive(at, x.shape[axis]))


def _gather_nd(node: Node) -> Function:
    """The last dimension of ``at`` holds a place in ``x``, after the batch dimensions that both have."""
    batch = node.integer("batch_dims")

    def run(x: Tensor, at: Tensor) -> Tensor:
        places = [_positive(part, x.shape[batch + axis]) for axis, part in enumerate(at.unbind(-1))]
        outer = [torch.arange(size, device=x.device).reshape(-1, *[1] * (at.ndim - 2 - axis)) for axis, size in enumerate(x.shape[:batch])]
        return x[(*outer, *places)]

    return run


def _scatter_elements(node: Node) -> Function:
    axis, reduction = node.integer("axis"), node.text("reduction", "none")

    def run(x: Tensor, at: Tensor, updates: Tensor) -> Tensor:
        where = _positive(at, x.shape[axis])
        if reduction == "none":
            return x.scatter(axis, where, updates)
        return x.scatter_reduce(axis, where, updates, _REDUCTIONS[reduction])

    return run


def _scatter_nd(node: Node) -> Function:
    reduction = node.text("reduction", "none")

    def run(x: Tensor, at: Tensor, updates: Tensor) -> Tensor:
        depth = at.shape[-1]
        flat = torch.zeros(at.shape[:-1], dtype=torch.int64, device=x.device)
        for axis, part in enumerate(at.unbind(-1)):
            flat = flat * x.shape[axis] + _positive(part, x.shape[axis])
        rows, values = x.reshape(-1, *x.shape[depth:]), updates.reshape(-1, *x.shape[depth:])
        where = flat.reshape(-1)
        if reduction == "none":
            return rows.index_put((where,), values).reshape(x.shape)
        every = where.reshape(-1, *[1] * (values.ndim - 1)).expand(values.shape)
        return rows.scatter_reduce(0, every, values, _REDUCTIONS[reduction]).reshape(x.shape)

    return run


def _top_k(node: Node) -> Function:
    axis, largest = node.integer("axis", -1), bool(node.integer("largest", 1))
    node.ignore("sorted")  # sorted is one of the orders that "not sorted" allows
    known = node.take_ints(1, "k")

    def run(x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
        count = int(k) if k is not None else known[0] if known else 0
        # A stable sort: of equal values the first comes first, which torch.topk does not promise.
        values, places = torch.sort(x, dim=axis, descending=largest, stable=True)
        return values.narrow(axis, 0, count), places.narrow(axis, 0, count)

    return run


def _one_hot(node: Node) -> Function:
    axis = node.integer("axis", -1)

    def run(at: Tensor, depth: Tensor, values: Tensor) -> Tensor:
        size, off, on = int(depth), *values.unbind()
        where = _positive(at, size).unsqueeze(axis)
        rest = [1] * where.ndim
        rest[axis] = size
        return torch.where(where == torch.arange(size, device=at.device).reshape(rest), on, off)

    return run


def _compress(node: Node) -> Function:
    axis = None if "axis" not in node.ir.attributes else node.integer("axis")

    def run(x: Tensor, condition: Tensor) -> Tensor:
        kept = condition.nonzero().reshape(-1)
        return x.reshape(-1).index_select(0, kept) if axis is None else x.index_select(axis, kept)

    return run


def _reverse_sequence(node: Node) -> Function:
    batch, time = node.integer("batch_axis", 1), node.integer("time_axis", 0)

    def run(x: Tensor, lengths: Tensor) -> Tensor:
        steps = torch.arange(x.shape[time], device=x.device).unsqueeze(0)  # [1, time]
        sizes = lengths.unsqueeze(1)  # [batch, 1]
        order = torch.where(steps < sizes, sizes - 1 - steps, steps)
        shape = [1] * x.ndim
        shape[batch], shape[time] = x.shape[batch], x.shape[time]
        return x.gather(time, (order if batch < time else order.T).reshape(shape).expand(x.shape))

    return run


def _non_zero(x: Tensor) -> Tensor:
    return x.nonzero().T


def _unique(node: Node) -> Function:
    axis = None if "axis" not in node.ir.attributes else node.integer("axis")
    if not node.integer("sorted", 1) or any(node.wants(index) for index in (1, 2, 3)):
        node.refuse("only its sorted values are covered, not where they lie")
    return lambda x: torch.unique(x, sorted=True, dim=axis)


def _split_range(node: Node) -> Function:
    """CenterCropPad: the middle of each axis, or zeros around it, so that the sizes are those that are asked for."""
    axes, known = node.integers("axes"), node.take_ints(1)

    def run(x: Tensor, shape: Tensor | None = None) -> Tensor:
        sizes = known if shape is None else integers(shape)
        assert sizes is not None
        for axis, size in zip(range(x.ndim) if axes is None else axes, sizes, strict=True):
            have = x.shape[axis]
            if have >= size:
                x = x.narrow(axis, (have - size) // 2, size)
                continue
            rest = list(x.shape)
            rest[axis] = (size - have) // 2
            after = [*rest]
            after[axis] = size - have - rest[axis]
            x = torch.cat([x.new_zeros(rest), x, x.new_zeros(after)], axis)
        return x

    return run


TABLE: dict[str, Builder] = {
    "Gather": _gather, "GatherElements": _gather_elements, "GatherND": _gather_nd, "ScatterElements": _scatter_elements,
    "Scatter": _scatter_elements, "ScatterND": _scatter_nd, "TopK": _top_k, "OneHot": _one_hot, "Compress": _compress,
    "ReverseSequence": _reverse_sequence, "NonZero": lambda node: _non_zero, "Unique": _unique, "CenterCropPad": _split_range,
}
