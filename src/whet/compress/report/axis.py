"""An axis: from values to places on the page, with round ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from whet.compress.report.numbers import Kind, ticks

LOG_FROM = 8.0  # largest / smallest value from which on a linear axis would press the small ones together
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_MANTISSAS = ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,))


@dataclass(frozen=True)
class Tick:
    """A tick at ``place``, in the units of the viewBox."""

    place: float
    text: str


@dataclass(frozen=True)
class Axis:
    """``low`` lies at ``start`` and ``high`` at ``end`` (units of the viewBox); logarithmic where ``log``."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: tuple[Tick, ...] = ()

    def at(self, value: float) -> float:
        """The place of ``value``; what lies outside is brought to the edge."""
        if self.log:
            share = 0.0 if value <= 0 else math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


def sizes(values: Sequence[float], kind: Kind, start: float, end: float) -> Axis:
    """An axis for what is never below zero: from zero, or logarithmic where the values are far apart. Values must be finite."""
    known = [value for value in values if value > 0] or [1.0]
    small, large = min(known), max(known)
    if large / small > LOG_FROM and len(known) == len(values):
        return _with_ticks(Axis(small / 1.25, large * 1.25, start, end, True), kind)
    return _with_ticks(Axis(0.0, large * 1.12, start, end, False), kind)


def span(low: float, high: float, kind: Kind, start: float, end: float) -> Axis:
    """A linear axis from ``low`` to ``high`` with a little air on both sides."""
    width = high - low
    if not width > abs(high) * 1e-12:
        width = abs(high) or 1.0
        low, high = low - width / 2, high + width / 2
    return _with_ticks(Axis(low - 0.05 * width, high + 0.05 * width, start, end, False), kind)


def _with_ticks(axis: Axis, kind: Kind) -> Axis:
    most = max(2, int(abs(axis.end - axis.start) // 62))
    values = _log_values(axis, most) if axis.log else _linear_values(axis, most, kind)
    texts = ticks(values, kind)
    found = tuple(Tick(round(axis.at(value), 1), text) for value, text in zip(values, texts, strict=True))
    return Axis(axis.low, axis.high, axis.start, axis.end, axis.log, found)


def _linear_values(axis: Axis, most: int, kind: Kind) -> list[float]:
    """Round in the unit that is shown: a step of 0.0025 is a quarter of a point."""
    raw = (axis.high - axis.low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in _STEPS if power * factor >= raw * (1 - 1e-9))
    first, last = math.ceil(axis.low / step - 1e-9), math.floor(axis.high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _log_values(axis: Axis, most: int) -> list[float]:
    """1, 2, 5 of each power of ten; fewer where that is too many."""
    powers = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
    for mantissas in _MANTISSAS:
        values = [mantissa * 10.0**power for power in powers for mantissa in mantissas if axis.holds(mantissa * 10.0**power)]
        if len(values) <= most:
            return values
    return values[:: math.ceil(len(values) / most)]
