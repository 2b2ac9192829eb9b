"""Measurement: one number, with everything that is needed to believe it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from whet.core.document import Document


@dataclass(frozen=True)
class Interval(Document):
    """``low`` to ``high`` holds the true value with probability ``confidence``."""

    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class Measurement(Document):
    """One number on one artifact.

    name: what, with its unit at the end where it has one ("latency_ms", "accuracy", "latency_ratio").
    value: None where it could not be measured; then ``why`` says the reason and a report shows a dash.
    direction: whether more is better, which is what turns a difference into a drop.
    n: how many samples or repetitions. data: hash of what it was measured on. device: where.
    method: how, in one line. source: "estimated" is anything that was not measured on the device it speaks of.
    at: when, ISO 8601 in UTC.
    """

    name: str
    value: float | None
    unit: str = ""
    interval: Interval | None = None
    direction: Literal["lower", "higher"] = "lower"
    n: int = 0
    artifact: str = ""
    data: str = ""
    device: str = ""
    method: str = ""
    source: Literal["measured", "estimated"] = "measured"
    at: str = ""
    why: str = ""
