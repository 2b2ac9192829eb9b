"""Where Whet is behind, from the figures alone, so that no one has to own up to it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from judging import Row

from whet.compress.evaluate import compare_outputs

# Two sessions over one and the same file differ by up to this much (whet.device.latency.SESSION_SPREAD): less is not called slower.
SPEED_NOISE = 0.01
# The targets: half of the time of the fastest peer that calibrates, and no more than the forward passes' memory + this many bytes.
TIME_TARGET, MEMORY_TARGET = 0.5, 200e6


def behind(rows: list[Row], labels: np.ndarray[Any, Any], ours: list[str], floor: str) -> list[str]:
    """One sentence for each measure on which one of ``ours`` is behind a peer or a target."""
    peers = [row for row in rows if not row.way.startswith("whet") and row.way != floor and row.quality]
    found = []
    for row in (row for row in rows if row.way in ours):
        if row.quality is None:
            found.append(f"{row.way} gives no model: {row.why}")
            continue
        found += [f"{row.way}: {text}" for text in (_accuracy(row, peers, labels), _speed(row, peers), _size(row, peers)) if text]
    return found + behind_in_cost(rows, ours, floor)


def behind_in_cost(rows: list[Row], ours: list[str], floor: str) -> list[str]:
    """The same for the time and the memory of quantising alone."""
    peers = [row for row in rows if not row.way.startswith("whet") and row.made.way.calibrates and not row.why]
    forward = next(row.made for row in rows if row.way == floor)
    mine = [row for row in rows if row.way in ours and not row.why]
    if not peers:
        return ["not known: no peer that calibrates ran"]
    found = [f"{row.way}: {text}" for row in mine for text in (_time(row, peers), _memory(row, peers)) if text]
    for row in mine:
        if not forward.failure and row.made.added_bytes > forward.added_bytes + MEMORY_TARGET:
            found.append(f"{row.way}: memory over the target, {row.made.added_bytes / 1e6:.0f} MB beside the forward passes' "
                         f"{forward.added_bytes / 1e6:.0f} MB + {MEMORY_TARGET / 1e6:.0f} MB")
    return found


def speed(row: Row) -> float:
    """Time of the float model / time of this one."""
    return 1 / row.ratio.value if row.ratio and row.ratio.value else math.nan


def _accuracy(row: Row, peers: list[Row], labels: np.ndarray[Any, Any]) -> str:
    best = max(peers, key=_right, default=None)
    if best is None or _right(best) <= _right(row):
        return ""
    assert best.outputs is not None
    assert row.outputs is not None
    drop = compare_outputs(best.outputs, row.outputs, labels, "accuracy").drop
    assert drop.interval is not None
    assert drop.value is not None
    sure = "beyond chance" if drop.interval.low > 0 else "within chance"
    return (f"accuracy {_right(row):.4f}, {best.way} {_right(best):.4f} (at {speed(best):.2f}x): {100 * drop.value:.2f} points behind "
            f"[{100 * drop.interval.low:+.2f}, {100 * drop.interval.high:+.2f}], {sure}")


def _right(row: Row) -> float:
    assert row.quality is not None
    assert row.quality.candidate.value is not None
    return row.quality.candidate.value


def _speed(row: Row, peers: list[Row]) -> str:
    there = [peer for peer in peers if peer.ratio and peer.made.way.environment != "litert"]  # another runtime's is against another float
    best = max(there, key=speed, default=None)
    if best is None or speed(row) * (1 + SPEED_NOISE) >= speed(best):
        return ""
    return f"speed {speed(row):.2f}x, {best.way} {speed(best):.2f}x (accuracy {_right(best):.4f})"


def _size(row: Row, peers: list[Row]) -> str:
    best = min((peer for peer in peers if peer.made.size_bytes), key=lambda peer: peer.made.size_bytes, default=None)
    if best is None or row.made.size_bytes <= best.made.size_bytes:
        return ""
    return f"size {row.made.size_bytes / 1e3:.1f} kB, {best.way} {best.made.size_bytes / 1e3:.1f} kB"


def _time(row: Row, peers: list[Row]) -> str:
    best = min(peers, key=lambda peer: peer.made.seconds, default=None)
    if best is None or row.made.seconds <= TIME_TARGET * best.made.seconds:
        return ""
    share = row.made.seconds / best.made.seconds
    return (f"quantising time {row.made.seconds:.2f} s, {best.way} {best.made.seconds:.2f} s: {share:.2f} of it, where the target is "
            f"{TIME_TARGET:g}")


def _memory(row: Row, peers: list[Row]) -> str:
    best = min(peers, key=lambda peer: peer.made.added_bytes, default=None)
    if best is None or row.made.added_bytes <= best.made.added_bytes:
        return ""
    return f"memory added {row.made.added_bytes / 1e6:.0f} MB, {best.way} {best.made.added_bytes / 1e6:.0f} MB"
