"""Two models compared: signs, intervals, what is noted, and that the gates can trust it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.compress.evaluate import DEFAULT_FIDELITY, Comparison, compare_outputs, find_metric
from whet.compress.evaluate.intervals import proportion_interval, tango_interval
from whet.core.errors import Refused
from whet.core.gate import Gate, judge
from whet.core.measurement import Measurement

N = 400
RANDOM = np.random.default_rng(7)
LABELS = np.arange(N) % 4
PARENT = RANDOM.normal(size=(N, 4)) + 2 * np.eye(4)[LABELS]
CANDIDATE = PARENT + RANDOM.normal(size=PARENT.shape) * 0.8
METRICS = ["accuracy", "top2", "f1", "auc", "fidelity", "flips", "kl", "sqnr_db"]


def compared(metric: Any = "accuracy", parent: np.ndarray = PARENT, candidate: np.ndarray = CANDIDATE, **more: Any) -> Comparison:
    return compare_outputs({"y": parent}, {"y": candidate}, more.pop("labels", LABELS), metric, **more)


def bounds(measurement: Measurement) -> tuple[float, float]:
    assert measurement.interval is not None
    return measurement.interval.low, measurement.interval.high


@pytest.mark.parametrize("metric", METRICS)
def test_every_interval_holds_its_value_and_is_two_sided_at_90(metric: str) -> None:
    found = compared(metric)
    for each in (found.parent, found.candidate, found.drop, found.flips, found.kl, found.sqnr_db):
        if each.value is not None:
            low, high = bounds(each)
            assert low <= each.value <= high
            assert low < high
            assert each.interval is not None
            assert each.interval.confidence == 0.9
            assert each.method
        assert each.n == N


@pytest.mark.parametrize("metric", METRICS)
def test_a_worse_candidate_has_a_positive_drop(metric: str) -> None:
    found = compared(metric, candidate=RANDOM.normal(size=PARENT.shape))
    assert found.drop.value is not None
    assert found.drop.value > 0.1
    assert found.drop.direction == "lower"
    assert bounds(found.drop)[0] > 0


@pytest.mark.parametrize("metric", ["accuracy", "top2", "f1", "auc"])
def test_parent_and_candidate_exchanged_turn_the_drop_round(metric: str) -> None:
    one, other = compared(metric), compared(metric, parent=CANDIDATE, candidate=PARENT)
    assert one.drop.value == pytest.approx(-other.drop.value)  # type: ignore[operator]
    assert bounds(one.drop) == pytest.approx([-end for end in reversed(bounds(other.drop))], abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_the_same_call_gives_the_same_document(metric: str) -> None:
    once, again = compared(metric), compared(metric)
    assert again.to_json() == once.to_json()
    assert Comparison.from_json(once.to_json()) == again


def test_accuracy_has_tangos_interval_and_mcnemars_test() -> None:
    found = compared("accuracy")
    before, after = PARENT.argmax(1) == LABELS, CANDIDATE.argmax(1) == LABELS
    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
    assert (found.lost, found.gained, found.share) == (lost, gained, True)
    assert found.drop.interval == tango_interval(lost, gained, N, 0.9)
    assert found.mcnemar_p.value == pytest.approx(compared("top1").mcnemar_p.value)
    assert found.mcnemar_p.value is not None
    assert found.flips.interval == proportion_interval(int((PARENT.argmax(1) != CANDIDATE.argmax(1)).sum()), N, 0.9)


@pytest.mark.parametrize("metric", ["f1", "auc", "kl", "fidelity"])
def test_mcnemar_says_why_it_is_missing(metric: str) -> None:
    found = compared(metric)
    assert found.mcnemar_p.value is None
    assert "right or wrong" in found.mcnemar_p.why
    assert (found.lost, found.gained) == (None, None)


@pytest.mark.parametrize(("metric", "wide"), [
    ("accuracy", True), ("top2", True), ("f1", True), ("flips", True), ("fidelity", True), ("auc", False),
])
def test_an_equal_candidate_is_not_proven_equal(metric: str, wide: bool) -> None:
    """A bootstrap of differences that are all 0 has no width; for answers the interval must still have the rule of three's."""
    found = compared(metric, candidate=PARENT)
    assert found.drop.value == 0
    assert (bounds(found.drop)[1] > 2 / N) == wide
    assert found.sqnr_db.value is None
    assert "identical" in found.sqnr_db.why


def test_binary_f1_of_an_equal_candidate_is_wider_for_a_rare_class() -> None:
    highs = []
    for rare in (0.5, 0.05):
        labels = (np.arange(N) < rare * N).astype(int)
        scores = np.where(labels == 1, 1.0, -1.0)
        highs.append(bounds(compared("f1", parent=scores, candidate=scores, labels=labels).drop)[1])
    assert 2 / N < highs[0] < highs[1]


@pytest.mark.slow
def test_the_f1_interval_covers() -> None:
    """Few flips, drawn many times: the true drop lies above the upper end in about 5 % of the draws."""
    random, missed = np.random.default_rng(0), 0
    labels = np.arange(200) % 2
    true_drop = 1 - 2 * 0.985 / (2 * 0.985 + 0.03)  # 1.5 % of both classes flipped: precision = recall = 0.985
    for _ in range(200):
        answers = np.where(random.random(200) < 0.015, 1 - labels, labels)
        found = compare_outputs({"y": labels}, {"y": answers}, labels, "f1")
        missed += bounds(found.drop)[1] < true_drop
    assert missed <= 200 * 0.1


@settings(max_examples=6)
@given(st.floats(0.6, 0.99), st.floats(0.6, 0.99))
def test_more_confidence_is_a_wider_interval(one: float, other: float) -> None:
    low, high = sorted((one, other))
    inner, outer = compared(confidence=low), compared(confidence=high)
    assert bounds(outer.drop)[0] <= bounds(inner.drop)[0]
    assert bounds(inner.drop)[1] <= bounds(outer.drop)[1]
    assert outer.drop.interval is not None
    assert outer.drop.interval.confidence == pytest.approx(2 * high - 1)


def test_a_paired_interval_is_narrower_than_an_unpaired_one() -> None:
    close = PARENT + RANDOM.normal(size=PARENT.shape) * 0.05
    for metric in ("accuracy", "f1", "auc"):
        found = compared(metric, candidate=close)
        spread = [high - low for low, high in (bounds(found.parent), bounds(found.drop))]
        assert spread[1] < spread[0] / 2


def test_continuous_drops_are_paired_and_cover() -> None:
    labels = RANDOM.normal(size=300)
    parent = labels + RANDOM.normal(size=300)
    candidate = labels + (parent - labels) * 1.1
    for metric in ("mae", "rmse"):
        found = compare_outputs({"y": parent}, {"y": candidate}, labels, metric)
        assert found.parent.value is not None
        assert found.drop.value == pytest.approx(found.parent.value * 0.1)
        low, high = bounds(found.drop)
        assert 0 < low < high < found.parent.value * 0.15
        assert not found.share


def test_fidelity_brings_its_default_limit() -> None:
    assert compared("fidelity").limit == DEFAULT_FIDELITY["flips"] == 0.02
    found = compared("fidelity", parent=PARENT[:, :1], candidate=CANDIDATE[:, :1])
    assert found.limit == DEFAULT_FIDELITY["error_energy"] == 0.01
    assert found.sqnr_db.value == pytest.approx(-10 * np.log10(found.drop.value))  # type: ignore[arg-type]
    assert found.parent.value is None
    assert compared("accuracy").limit is None


def test_fidelity_needs_no_labels() -> None:
    assert compared("fidelity", labels=None).drop == compared("fidelity").drop


def test_the_gate_reads_the_drop() -> None:
    found = compared("accuracy")
    high = bounds(found.drop)[1]
    assert judge((Gate("drop", high + 1e-9),), found.measurements).passed
    refused = judge((Gate("drop", (high + found.drop.value) / 2),), found.measurements)  # type: ignore[operator]
    assert not refused.passed
    assert f"{N} samples do not prove it" in refused.refusals[0]


def test_needed_samples_grow_as_the_limit_nears_the_drop() -> None:
    found = compared("accuracy")
    assert found.drop.value is not None
    numbers = [found.needed(found.drop.value + room) for room in (0.1, 0.05, 0.01)]
    assert all(number is not None for number in numbers)
    assert numbers == sorted(numbers)  # type: ignore[type-var]
    assert found.needed(bounds(found.drop)[1]) == pytest.approx(N, rel=0.05)
    assert found.needed(found.drop.value) is None


def test_a_metric_that_was_found_before_is_taken_as_it_is() -> None:
    assert compared(find_metric("top2")) == compared("top2")


def test_data_and_artifact_are_noted() -> None:
    found = compared("accuracy", data="d" * 64, artifact="a" * 64)
    assert {each.data for each in (*found.measurements.values(), found.parent)} == {"d" * 64}
    assert {each.artifact for each in found.measurements.values()} == {"a" * 64}
    assert found.parent.artifact == ""


def test_the_metric_is_about_the_first_output_or_the_named_one() -> None:
    parents, candidates = {"a": PARENT, "b": PARENT}, {"b": CANDIDATE, "a": PARENT}
    assert compare_outputs(parents, candidates, LABELS, "accuracy").drop.value == 0
    assert compare_outputs(parents, candidates, LABELS, "accuracy", output="b").drop == compared("accuracy").drop


@pytest.mark.parametrize(("parent", "candidate", "output", "message"), [
    ({}, {}, None, "no outputs"),
    ({"y": PARENT}, {}, None, "candidate has none"),
    ({"y": PARENT}, {"z": PARENT}, None, "'y': the candidate has z"),
    ({"y": PARENT}, {"y": PARENT}, "z", "'z': the parent has y"),
    ({"y": PARENT}, {"y": PARENT[:5]}, None, r"\[400, 4\] of the parent and \[5, 4\]"),
    ({"y": PARENT[:0]}, {"y": PARENT[:0]}, None, "no samples"),
])
def test_outputs_that_cannot_be_compared_are_refused(parent: Any, candidate: Any, output: str | None, message: str) -> None:
    with pytest.raises(Refused, match=message):
        compare_outputs(parent, candidate, LABELS, "accuracy", output=output)


def test_one_sample_is_compared_without_a_crash() -> None:
    for metric in ("accuracy", "f1", "fidelity", "kl", "sqnr_db"):
        found = compared(metric, parent=PARENT[:1], candidate=CANDIDATE[:1], labels=LABELS[:1])
        assert found.n == 1


@pytest.mark.timing
def test_auc_of_2000_samples_takes_less_than_3_seconds() -> None:
    labels = np.arange(2000) % 2
    scores = RANDOM.normal(size=2000) + labels
    start = time.perf_counter()
    compare_outputs({"y": scores}, {"y": scores + RANDOM.normal(size=2000) * 0.1}, labels, "auc")
    assert time.perf_counter() - start < 3
