"""The few largest or lowest numbers of a tensor that streams by: what an extreme percentile needs, in one pass of comparisons.

Only numbers beyond 0 count, for every grid holds 0. Blocks' own extremes tell how far out it is worth looking at all: so many numbers
are at least as far out as the k-th farthest of them. What is found is the same however the data is cut and whoever looks first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet.compress.grid import Array

_BLOCKS = 4  # for each number that is wanted
_SHORTEST = 32  # numbers in a block; shorter ones take longer to go through than they save

Numbers = NDArray[np.float64]


def nothing() -> Numbers:
    """No numbers yet."""
    return np.zeros(0)


def farthest(flat: Array, count: int, known: Numbers, *, lowest: bool) -> tuple[float, Numbers]:
    """(the extreme, the ``count`` numbers of ``flat`` [n] that are farthest below 0, or above it, the farthest first).

    known: what was found before, as ``joined`` gives it; numbers that are no farther out than all ``count`` of them are left out.
    A NaN anywhere makes the extreme NaN, and the numbers are of no use then.
    """
    extremes = _by_block(flat, count, lowest)
    extreme = float(extremes.min() if lowest else extremes.max())
    if not np.isfinite(extreme) or (extreme >= 0 if lowest else extreme <= 0):
        return extreme, nothing()
    own = _reached(extremes, count, lowest)
    known_end = float(known[-1]) if len(known) == count else 0.0
    nearest = min(own, known_end) if lowest else max(own, known_end)
    beyond = flat[flat < nearest if lowest else flat > nearest].astype(np.float64)
    if own == nearest != known_end:  # what a Clip cuts off is many times the same number, and is not gone through
        beyond = np.append(beyond, np.full(max(count - len(beyond), 0), own))
    return extreme, _first(beyond, count, lowest)


def joined(one: Numbers, other: Numbers, count: int, *, lowest: bool) -> Numbers:
    """The ``count`` farthest of both."""
    return _first(np.concatenate([one, other]), count, lowest)


def at(kept: Numbers, count: int, position: float) -> float:
    """The number that lies ``position`` places from the far end, linear between two; 0 behind the last number beyond 0.

    kept: the farthest first, all that there are where they are fewer than ``count``.
    """
    place = int(position)
    if len(kept) == count and place + 1 >= count:
        return float(kept[-1])
    nearer, next_one = (float(kept[index]) if index < len(kept) else 0.0 for index in (place, place + 1))
    return nearer + (position - place) * (next_one - nearer)


def _by_block(flat: Array, count: int, lowest: bool) -> Array:
    """[blocks] the extreme of each of some blocks; the last holds what is left over."""
    which: Any = np.min if lowest else np.max
    length = flat.size // (_BLOCKS * count)
    if length < _SHORTEST:
        return np.asarray(which(flat, keepdims=True))
    whole = _BLOCKS * count * length
    found = which(flat[:whole].reshape(-1, length), axis=1)
    return found if whole == flat.size else np.append(found, which(flat[whole:]))


def _reached(extremes: Array, count: int, lowest: bool) -> float:
    """What ``count`` numbers reach at least, as blocks tell; 0 where they do not."""
    if len(extremes) < count:
        return 0.0
    place = count - 1 if lowest else len(extremes) - count
    found = float(np.partition(extremes, place)[place])
    return min(found, 0.0) if lowest else max(found, 0.0)


def _first(numbers: Numbers, count: int, lowest: bool) -> Numbers:
    ordered = np.sort(numbers)
    return ordered[:count] if lowest else ordered[::-1][:count]
