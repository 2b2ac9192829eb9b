"""Numbers as people write them: bytes as kB and MB, times as µs and ms, drops in percentage points, intervals as [a, b]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MINUS = "\u2212"
DIGITS = 3  # significant ones, where a kind does not say otherwise


@dataclass(frozen=True)
class Kind:
    """How numbers of one kind are written.

    units: (size of the unit in the base unit, its name), from small to large; the largest one that leaves at least 1 in front of the
    point is taken. base: what 1 is in the base unit (0.001 for ms, where the base unit is s). decimals: fixed, or None for
    ``DIGITS`` significant digits. signed: whether a plus is written. tight: no space in front of the unit.
    """

    units: tuple[tuple[float, str], ...] = ((1.0, ""),)
    base: float = 1.0
    decimals: int | None = None
    signed: bool = False
    tight: bool = False


_SECONDS = ((1e-9, "ns"), (1e-6, "µs"), (1e-3, "ms"), (1.0, "s"))
_JOULES = ((1e-9, "nJ"), (1e-6, "µJ"), (1e-3, "mJ"), (1.0, "J"))

BYTES = Kind(((1.0, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB")))
MILLISECONDS = Kind(_SECONDS, base=1e-3)
MICROSECONDS = Kind(_SECONDS, base=1e-6)
MILLIJOULES = Kind(_JOULES, base=1e-3)
PERCENT = Kind(((0.01, "%"),), decimals=2)
POINTS = Kind(((0.01, "pts"),), decimals=2, signed=True)
TIMES = Kind(((1.0, "×"),), tight=True)
DECIBELS = Kind(((1.0, "dB"),), decimals=1)
PER_SECOND = Kind(((1.0, "/s"),), tight=True)
COUNT = Kind(((1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")))
PLAIN = Kind()
DIFFERENCE = Kind(signed=True)


def number(value: float, kind: Kind = PLAIN, *, digits: int = DIGITS) -> str:
    """``value`` with its unit: 2538.0 of BYTES is "2.54 kB". ``value`` must be finite."""
    unit, name = _unit(value, kind, digits)
    scaled = value * kind.base / unit
    text = _fixed(scaled, _decimals(scaled, kind, digits), kind.signed)
    return text + _suffix(name, kind)


def interval(low: float, high: float, kind: Kind = PLAIN, *, like: float, digits: int = DIGITS) -> str:
    """[low, high] in the unit in which ``like`` would be written, without naming it; more decimals where both would look the same.

    A bound that is not finite is written as "no bound".
    """
    unit, _ = _unit(like, kind, digits)
    ends = [bound * kind.base / unit for bound in (low, high)]
    decimals = _decimals(like * kind.base / unit, kind, digits)
    if low < high and kind.decimals is None and all(map(math.isfinite, ends)):
        while decimals < 6 and round(ends[0], decimals) == round(ends[1], decimals):
            decimals += 1
    texts = [_fixed(end, decimals, kind.signed) if math.isfinite(end) else "no bound" for end in ends]
    return f"[{texts[0]}, {texts[1]}]"


def ticks(values: Sequence[float], kind: Kind) -> tuple[str, ...]:
    """The texts of an axis: each in the unit that suits it, with no more decimals than tell them apart."""
    largest = max(map(abs, values), default=0.0)
    spread = largest / min((abs(value) for value in values if value), default=1.0)
    units = [_unit(value if spread > 1000 and value else largest, kind, DIGITS) for value in values]
    scaled = [value * kind.base / unit for value, (unit, _) in zip(values, units, strict=True)]
    needed = [next((places for places in range(6) if math.isclose(round(each, places), each, abs_tol=1e-9)), 6) for each in scaled]
    alike = len(set(units)) == 1  # in one unit all ticks get equally many decimals
    return tuple(
        _fixed(each, max(needed) if alike and spread <= 1000 else own, kind.signed) + _suffix(name, kind)
        for each, own, (_, name) in zip(scaled, needed, units, strict=True)
    )


def duration(seconds: float) -> str:
    """Seconds as people say them: "8.4 s", "3 min 12 s", "1 h 05 min"."""
    if seconds < 59.95:
        return number(seconds, Kind(_SECONDS)) if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _unit(value: float, kind: Kind, digits: int) -> tuple[float, str]:
    """The largest unit of which there is at least one after rounding, so that 999 600 bytes are 1.00 MB and not 1000 kB."""
    size = abs(value) * kind.base
    if not size or not math.isfinite(size):
        return min(kind.units, key=lambda unit: abs(math.log10(unit[0] / kind.base)))
    rounded = float(f"{size:.{digits - 1}e}")
    fitting = [unit for unit in kind.units if rounded >= unit[0] * (1 - 1e-9)]
    return fitting[-1] if fitting else kind.units[0]


def _decimals(scaled: float, kind: Kind, digits: int) -> int:
    if kind.decimals is not None:
        return kind.decimals
    if not scaled:
        return 0
    leading = math.floor(math.log10(float(f"{abs(scaled):.{digits - 1}e}")))
    return max(0, digits - 1 - leading)


def _fixed(scaled: float, decimals: int, signed: bool) -> str:
    if scaled and (abs(scaled) < 1e-6 or abs(scaled) >= 1e15):
        text = f"{abs(scaled):.2e}"
        zero = False
    else:
        text = f"{abs(scaled):,.{decimals}f}".replace(",", "\u202f")
        zero = float(f"{abs(scaled):.{decimals}f}") == 0
    sign = "" if zero else MINUS if scaled < 0 else "+" if signed else ""
    return sign + text


def _suffix(name: str, kind: Kind) -> str:
    return name if kind.tight or not name else f"\u00a0{name}"
