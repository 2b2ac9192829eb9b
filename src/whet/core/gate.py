"""Gate and verdict: what is acceptable, and whether it was. A gate speaks of the interval, never of the mean alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from whet.core.document import Document
from whet.core.errors import Refused
from whet.core.measurement import Measurement

_WORST = 1e9  # the excess of what has no number


@dataclass(frozen=True)
class Gate(Document):
    """``measurement`` must be at most ``limit``; every number that Whet gates on is better when it is lower.

    proven: the whole interval must lie below the limit (what is asked of quality and of latency ratios), else the value alone.
    reason: where the limit comes from ("--max-drop 0.01", "not slower than its parent").
    """

    measurement: str
    limit: float
    unit: str = ""
    proven: bool = True
    reason: str = ""


LOSSES = {"kl": "kl", "nats": "drop", "drop": "drop"}
"""What people call what a model may lose that answers, and the measurement of it."""
STATE_LOSSES = {"cosine": "drop", "sentence": "sentence_drop", "drop": "drop"}
"""The same of an encoder, whose states may move: the cosine similarity of tokens, and of means over sentences."""


def loss_gate(asked: float | str, *, encoder: bool | None = None) -> Gate:
    """The gate of "kl<0.02", "nats<0.02" or a number, which is a drop of the metric; of an encoder "cosine<0.01" (1 - cosine of the states
    of tokens), "sentence<0.01" or a number, which is the first. encoder: None where the model is not known yet. Raises Refused.
    """
    if not isinstance(asked, str):
        return Gate("drop", asked, reason="asked with --max-drop")
    name, _, number = (part.strip() for part in asked.partition("<"))
    known = {None: {**LOSSES, **STATE_LOSSES}, True: STATE_LOSSES, False: LOSSES}[encoder]
    try:
        limit, found = float(number), "a limit below zero or without end"
    except ValueError:
        limit, found = math.nan, "no such limit"
    if name not in known:
        kind = "an encoder, which predicts no next token" if encoder else "no encoder, whose states are looked at"
        found = kind if name in {**LOSSES, **STATE_LOSSES} else "no such limit"
    if name not in known or not 0 <= limit < math.inf:
        raise Refused(f"lose no more than {asked!r}", found=found, do=f"write {_examples(encoder)}")
    return Gate(known[name], limit, reason=f'asked with --max-drop "{asked}"')


def _examples(encoder: bool | None) -> str:
    if encoder is None:
        return "kl<0.02, nats<0.02 or a number; of an encoder cosine<0.01 or sentence<0.01"
    return "cosine<0.01, sentence<0.01 or a number" if encoder else "kl<0.02, nats<0.02 or a number"


@dataclass(frozen=True)
class Reason(Document):
    """What one gate said of one artifact."""

    measurement: str
    passed: bool
    text: str
    excess: float = 0.0


@dataclass(frozen=True)
class Verdict(Document):
    """Pass, or refuse with the reasons. ``excess`` orders refusals: 0 where all passed, else the worst relative excess."""

    passed: bool
    reasons: tuple[Reason, ...]

    @property
    def excess(self) -> float:
        return max((reason.excess for reason in self.reasons), default=0.0)

    @property
    def refusals(self) -> tuple[str, ...]:
        return tuple(reason.text for reason in self.reasons if not reason.passed)


def judge(gates: tuple[Gate, ...], measurements: Mapping[str, Measurement]) -> Verdict:
    """Every gate against its measurement. A number that is missing was not shown to be acceptable, so it does not pass."""
    reasons = tuple(_judge_one(gate, measurements.get(gate.measurement)) for gate in gates)
    return Verdict(all(reason.passed for reason in reasons), reasons)


def _judge_one(gate: Gate, found: Measurement | None) -> Reason:
    asked = f"{gate.measurement} at most {_number(gate.limit)}{gate.unit}" + (f" ({gate.reason})" if gate.reason else "")
    if found is None or found.value is None:
        why = (found and found.why) or "it was not measured"
        return Reason(gate.measurement, False, f"{asked}: no number, {why}", excess=_WORST)
    # An interval need not hold the value itself (a bootstrap's may not); neither may then lie above the limit.
    shown = (found.value, found.interval.high) if gate.proven and found.interval else (found.value,)
    if not math.isfinite(found.value) or any(map(math.isnan, shown)):
        return Reason(gate.measurement, False, f"{asked}: no number, {' to '.join(map(_number, shown))} came out", excess=_WORST)
    bound = max(shown)
    passed = bound <= gate.limit
    text = f"{asked}: {'is' if passed else 'found'} {_number(found.value)}{gate.unit}"
    if gate.proven and found.interval:
        text += f", {found.interval.confidence:.0%} interval {_number(found.interval.low)}..{_number(found.interval.high)}"
    if not passed and found.value <= gate.limit:
        text += f"; the value is within the limit but {found.n} {_counted(gate.measurement)} do not prove it"
    scale = abs(gate.limit) or 1.0
    return Reason(gate.measurement, passed, text, excess=0.0 if passed else min((bound - gate.limit) / scale, _WORST))


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def _counted(measurement: str) -> str:
    return "rounds of timing" if measurement.startswith(("latency", "throughput")) else "samples"
