"""Gates: what is proven, what is only a value, and what is not a number at all."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.words import FINITE

from whet.core.gate import Gate, Reason, Verdict, judge
from whet.core.measurement import Interval, Measurement

DROP = Gate("accuracy_drop", 0.01, reason="--max-drop 0.01")


def drop(value: float | None, low: float = 0.0, high: float | None = None, **more: str) -> Measurement:
    interval = Interval(low, high, 0.95) if high is not None else None
    return Measurement("accuracy_drop", value, interval=interval, n=500, **more)  # type: ignore[arg-type]


def verdict(gate: Gate, found: Measurement | None) -> Verdict:
    return judge((gate,), {found.name: found} if found else {})


@pytest.mark.parametrize(("found", "passed"), [
    (drop(0.005, high=0.009), True),
    (drop(0.005, high=0.01), True),  # the limit itself is allowed
    (drop(0.005, high=math.nextafter(0.01, 1)), False),
    (drop(0.005, high=0.02), False),  # good on average, not proven
    (drop(0.02, high=0.03), False),
    (drop(0.02, high=0.005), False),  # an interval that does not hold its own value proves nothing
    (drop(-0.5, low=-0.6, high=-0.4), True),
    (drop(0.01), True),
    (drop(math.nextafter(0.01, 1)), False),
    (drop(None), False),
    (drop(math.nan), False),
    (drop(-math.inf), False),
    (drop(0.005, high=math.nan), False),
    (drop(0.005, high=math.inf), False),
    (None, False),
])
def test_a_proven_gate_asks_for_the_whole_interval(found: Measurement | None, passed: bool) -> None:
    result = verdict(DROP, found)
    assert result.passed is passed
    assert (result.excess == 0) is passed
    assert math.isfinite(result.excess)
    assert len(result.refusals) == (not passed)
    result.to_json()  # whatever was found, the verdict can be written


@pytest.mark.parametrize(("value", "passed"), [(0.01, True), (0.0100001, False), (-1.0, True)])
def test_a_gate_on_the_value_does_not_look_at_the_interval(value: float, passed: bool) -> None:
    assert verdict(Gate("accuracy_drop", 0.01, proven=False), drop(value, high=5.0)).passed is passed


def test_a_missing_number_says_why_and_comes_last() -> None:
    missing = verdict(DROP, drop(None, why="the model has no labels"))
    assert "the model has no labels" in missing.refusals[0]
    assert "it was not measured" in verdict(DROP, None).refusals[0]
    assert "it was not measured" in verdict(DROP, drop(None)).refusals[0]
    assert missing.excess > verdict(DROP, drop(1e6)).excess


def test_the_text_tells_the_whole_story() -> None:
    refused = verdict(DROP, drop(0.005, high=0.02)).refusals[0]
    assert refused == (
        "accuracy_drop at most 0.01 (--max-drop 0.01): found 0.005, 95% interval 0..0.02; "
        "the value is within the limit but 500 samples do not prove it"
    )
    assert verdict(DROP, drop(0.02, high=0.03)).refusals[0].endswith("found 0.02, 95% interval 0..0.03")
    assert verdict(DROP, drop(0.001, high=0.002)).reasons[0].text.endswith("is 0.001, 95% interval 0..0.002")
    size = verdict(Gate("size_bytes", 250_000, unit=" B"), Measurement("size_bytes", 1_234_567))
    assert size.refusals == ("size_bytes at most 250,000 B: found 1,234,567 B",)


def test_excess_is_relative_and_the_worst_one_counts() -> None:
    gates = (Gate("a", 2.0), Gate("b", 0.0), Gate("c", -4.0))
    found = {name: Measurement(name, value) for name, value in {"a": 3.0, "b": 0.25, "c": -1.0}.items()}
    result = judge(gates, found)
    assert [reason.excess for reason in result.reasons] == [0.5, 0.25, 0.75]
    assert result.excess == 0.75
    assert math.isfinite(verdict(Gate("a", 5e-324), Measurement("a", 1e308)).excess)


def test_no_gates_pass() -> None:
    assert judge((), {}) == Verdict(True, ())
    assert Verdict(True, ()).excess == 0


def test_one_refusal_refuses_all() -> None:
    found = {"a": Measurement("a", 1), "b": Measurement("b", 1)}
    result = judge((Gate("a", 1), Gate("b", 0.5), Gate("a", 2)), found)
    assert not result.passed
    assert [reason.passed for reason in result.reasons] == [True, False, True]
    assert len(result.refusals) == 1


@given(FINITE, FINITE, FINITE, st.booleans())
def test_a_verdict_agrees_with_arithmetic(limit: float, value: float, width: float, proven: bool) -> None:
    high = max(value, value + abs(width))
    found = Measurement("m", value, interval=Interval(value, high, 0.95))
    result = judge((Gate("m", limit, proven=proven),), {"m": found})
    assert result.passed == ((high if proven else value) <= limit)
    assert (result.excess == 0) == result.passed
    assert 0 <= result.excess < math.inf


@given(FINITE, FINITE, FINITE)
def test_a_looser_limit_never_refuses_more(value: float, limit: float, other: float) -> None:
    tight, loose = sorted((limit, other))
    found = {"m": Measurement("m", value)}
    assert judge((Gate("m", loose),), found).passed >= judge((Gate("m", tight),), found).passed


def test_refusals_are_the_texts_of_what_failed() -> None:
    reasons = (Reason("a", True, "fine"), Reason("b", False, "bad", 0.1), Reason("c", False, "worse", 3.0))
    assert Verdict(False, reasons).refusals == ("bad", "worse")
