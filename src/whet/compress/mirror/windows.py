"""Padding of sliding windows: explicit, as much as "SAME" needs, or none (attributes ``pads`` and ``auto_pad``)."""

from __future__ import annotations

from collections.abc import Sequence

from whet.compress.mirror.node import Node

Pads = tuple[tuple[int, int], ...]


def same_pads(sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], upper: bool) -> Pads:
    """So many zeros before and after that ceil(size / stride) windows fit; the odd one goes to the end where ``upper``."""
    pads = []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        pads.append((total // 2, total - total // 2) if upper else (total - total // 2, total // 2))
    return tuple(pads)


def paired(pads: Sequence[int]) -> Pads:
    """ONNX's pads, all begins and then all ends, as (begin, end) for each axis."""
    half = len(pads) // 2
    return tuple(zip(pads[:half], pads[half:], strict=True))


def fixed_pads(node: Node, rank: int) -> Pads | None:
    """What the node says, or None where it depends on the size of the input (``auto_pad`` is SAME_UPPER or SAME_LOWER)."""
    mode, pads = node.text("auto_pad", "NOTSET"), node.integers("pads")
    if mode == "VALID":
        return ((0, 0),) * rank
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        return None
    return ((0, 0),) * rank if pads is None else paired(pads)


def is_upper(node: Node) -> bool:
    return node.text("auto_pad", "NOTSET") == "SAME_UPPER"


def sides(pads: Pads) -> list[int]:
    """In the order of ``torch.nn.functional.pad``: the last axis first."""
    return [side for pair in reversed(pads) for side in pair]


def symmetric(pads: Pads) -> list[int] | None:
    """As many before as after: what torch's own convolutions and pools take."""
    return [before for before, _ in pads] if all(before == after for before, after in pads) else None
