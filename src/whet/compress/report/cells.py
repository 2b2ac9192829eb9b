"""A cell: one fact of one trial as it is shown, with its interval, and with the reason where there is no number."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from whet.compress.report import numbers
from whet.compress.report.numbers import Kind
from whet.compress.report.quantities import kind_of, quality_name
from whet.core.measurement import Interval, Measurement
from whet.core.outcome import Outcome, Trial

DASH = "–"
ESTIMATE = "≈"


@dataclass(frozen=True)
class Cell:
    """text: what is read. detail: the interval. title: how it was found, or why there is nothing. sort: what columns are sorted by."""

    text: str
    detail: str = ""
    title: str = ""
    sort: float | None = None
    missing: bool = False
    estimated: bool = False

    @property
    def line(self) -> str:
        """Text and interval on one line, for a terminal."""
        return f"{self.text} {self.detail}".strip()


def missing(why: str) -> Cell:
    """A dash, with the reason."""
    return Cell(DASH, title=why or "not measured", missing=True)


def cell(found: Measurement | None, kind: Kind, *, why: str = "not measured", digits: int = numbers.DIGITS) -> Cell:
    """A measurement as a cell. What is no finite number is a dash."""
    if found is None or found.value is None:
        return missing((found and found.why) or why)
    if not math.isfinite(found.value):
        return missing("what came out is not a finite number")
    estimated = found.source == "estimated"
    text = numbers.number(found.value, kind, digits=digits)
    if kind.units == (((1.0, "")),) and found.unit.strip():
        text += f"\u00a0{found.unit.strip()}"
    detail, certainty = "", ""
    if found.interval is not None and _has_numbers(found.interval):
        detail = numbers.interval(found.interval.low, found.interval.high, kind, like=found.value, digits=digits)
        certainty = f"{found.interval.confidence:.0%} interval"
    notes = ["estimated, not measured" if estimated else "", found.method, f"n = {found.n}" if found.n else "", certainty]
    return Cell(f"{ESTIMATE}\u00a0{text}" if estimated else text, detail, "; ".join(filter(None, notes)), found.value, estimated=estimated)


def measured(outcome: Outcome, trial: Trial, name: str, *, digits: int = numbers.DIGITS) -> Cell:
    """The measurement ``name`` of a trial."""
    return cell(trial.measurements.get(name), kind_of(name, outcome.metric), why=why_nothing(trial), digits=digits)


def quality(outcome: Outcome, trial: Trial) -> Cell:
    """The metric itself."""
    return measured(outcome, trial, quality_name(outcome), digits=4)


def speedup(trial: Trial) -> Cell:
    """How many times faster than the original: 1 / latency_ratio, and so the interval of the ratio turned round."""
    found = trial.measurements.get("latency_ratio")
    if found is None or found.value is None or not math.isfinite(found.value) or found.value <= 0:
        return replace(cell(found, numbers.TIMES, why=why_nothing(trial)), text=DASH, detail="", missing=True)
    span = found.interval
    turned = None
    if span is not None and _has_numbers(span) and span.high > 0:
        turned = Interval(1 / span.high, 1 / span.low if span.low > 0 else math.inf, span.confidence)
    return cell(replace(found, value=1 / found.value, interval=turned), numbers.TIMES)


def shrinkage(outcome: Outcome, trial: Trial, name: str = "size_bytes") -> Cell:
    """How many times less than the original."""
    original = outcome.trial(outcome.original)
    before = original.measurements.get(name) if original else None
    after = trial.measurements.get(name)
    if after is None or after.value is None or not math.isfinite(after.value) or after.value <= 0:
        return missing((after and after.why) or why_nothing(trial))
    if before is None or before.value is None or not math.isfinite(before.value) or before.value <= 0:
        return missing((before and before.why) or "the original has no number")
    source = before.source if before.source == "estimated" else after.source
    method = f"{numbers.number(before.value, kind_of(name, ''))} before, {numbers.number(after.value, kind_of(name, ''))} after"
    return cell(replace(after, value=before.value / after.value, interval=None, unit="", method=method, source=source), numbers.TIMES)


def why_nothing(trial: Trial) -> str:
    """Why a trial lacks a measurement that nothing else explains."""
    if trial.status == "measured":
        return "not measured"
    return f"{trial.status}: {trial.note}" if trial.note else trial.status


def _has_numbers(span: Interval) -> bool:
    """Whether the interval says anything; one open side does."""
    return not (math.isnan(span.low) or math.isnan(span.high)) and (math.isfinite(span.low) or math.isfinite(span.high))
