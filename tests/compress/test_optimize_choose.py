"""The front and the winner, decided from measured trials."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.compress.made_up_trials import GATES, measured, original, trials

from whet.compress.optimize.choose import EQUAL, closest, winner, with_front
from whet.core.document import FrozenMap
from whet.core.front import beats
from whet.core.gate import Gate
from whet.core.measurement import Interval
from whet.core.outcome import GOALS, Trial
from whet.core.recipe import Recipe, Step

GOAL = st.sampled_from(sorted(GOALS))
Trials = tuple[Trial, ...]


def known(trial: Trial, name: str) -> float:
    value = trial.value(name)
    assert value is not None
    return value


@given(trials(), GOAL)
def test_the_winner_passed_and_is_not_the_original(found: Trials, goal: str) -> None:
    best = winner(found, goal, "original")
    acceptable = {trial.name for trial in found[1:] if trial.passed and trial.value(GOALS[goal]) is not None}
    assert best in acceptable if acceptable else best == ""


@given(trials(), GOAL)
def test_the_winner_is_as_good_as_the_best_then_as_small_then_as_accurate(found: Trials, goal: str) -> None:
    best = next((trial for trial in found if trial.name == winner(found, goal, "original")), None)
    if best is None:
        return
    rivals = [trial for trial in found[1:] if trial.passed and trial.value(GOALS[goal]) is not None]
    second = "size_bytes" if goal != "size" else "latency_ratio"
    for name in (GOALS[goal], second):
        least = min(known(trial, name) for trial in rivals)
        assert known(best, name) <= least * (1 + EQUAL)
        rivals = [trial for trial in rivals if known(trial, name) <= least * (1 + EQUAL)]
    assert known(best, "drop") == min(known(trial, "drop") for trial in rivals)


@given(trials(), GOAL, st.randoms(use_true_random=False))
def test_the_order_of_the_trials_decides_only_between_those_that_lose_as_much(found: Trials, goal: str, shuffle: Random) -> None:
    others = [*found[1:]]
    shuffle.shuffle(others)
    drops = [trial.value("drop") for order in (found, others) for trial in order if trial.name == winner(order, goal, "original")]
    assert len(drops) in (0, 2)
    assert len(set(drops)) <= 1


@pytest.mark.parametrize(("goal", "wanted"), [("latency", "fast"), ("size", "small"), ("memory", "lean"), ("energy", "frugal"),
                                             ("drop", "exact")])
def test_each_goal_has_its_own_winner(goal: str, wanted: str) -> None:
    values = {"drop": 0.0, "latency_ratio": 0.9, "size_bytes": 900.0, "model_rss_bytes": 90.0, "energy_mj": 9.0}
    found = (original(), measured("fast", **{**values, "latency_ratio": 0.2}), measured("small", **{**values, "size_bytes": 200.0}),
             measured("lean", **{**values, "model_rss_bytes": 20.0}), measured("frugal", **{**values, "energy_mj": 2.0}),
             measured("exact", **{**values, "drop": -0.01}))
    assert winner(found, goal, "original") == wanted


def test_a_little_slower_and_much_smaller_wins() -> None:
    found = (original(), measured("fast", drop=0.0, latency_ratio=0.300, size_bytes=900.0),
             measured("small", drop=0.0, latency_ratio=0.308, size_bytes=250.0))
    assert winner(found, "latency", "original") == "small"
    slower = (*found[:2], measured("small", drop=0.0, latency_ratio=0.31, size_bytes=250.0))
    assert winner(slower, "latency", "original") == "fast"


def test_of_equal_drops_the_outputs_decide_and_then_the_time() -> None:
    found = (original(), measured("far", drop=-0.002, kl=0.02, latency_ratio=0.2, size_bytes=250.0),
             measured("near", drop=-0.002, kl=0.01, latency_ratio=0.4, size_bytes=250.0),
             measured("fast", drop=-0.002, kl=0.01, latency_ratio=0.3, size_bytes=250.0),
             measured("lossy", drop=0.001, kl=0.001, latency_ratio=0.1, size_bytes=50.0))
    assert winner(found, "drop", "original") == "fast"


def test_among_equals_the_more_accurate_wins() -> None:
    found = (original(), measured("lossy", drop=0.005, latency_ratio=0.3, size_bytes=250.0),
             measured("exact", drop=0.0, latency_ratio=0.305, size_bytes=252.0))
    assert winner(found, "latency", "original") == "exact"


def test_a_few_per_cent_between_files_of_one_size_are_chance_where_the_intervals_overlap() -> None:
    def timed(name: str, ratio: float, spread: float, *, drop: float, size: float) -> Trial:
        trial = measured(name, drop=drop, latency_ratio=ratio, size_bytes=size)
        time = replace(trial.measurements["latency_ratio"], interval=Interval(ratio - spread, ratio + spread, 0.95))
        return replace(trial, measurements={**trial.measurements, "latency_ratio": time})

    fast = timed("fast", 0.50, 0.02, drop=0.005, size=600.0)
    for ratio, spread, size, wanted in ((0.53, 0.02, 601.0, "exact"), (0.55, 0.02, 601.0, "fast"), (0.53, 0.02, 590.0, "fast"),
                                        (0.53, 0.0, 601.0, "fast")):
        found = (original(), fast, timed("exact", ratio, spread, drop=0.0, size=size))
        assert winner(found, "latency", "original") == wanted, (ratio, spread, size)


PERCENTILE = Step("static", options=FrozenMap({"ranges": "percentile"}))


@pytest.mark.parametrize(("steps", "same"), [
    ((PERCENTILE,), True),
    ((Step("equalize"), Step("clip"), Step("static"), Step("bias_correct")), True),
    ((Step("gptq", options=FrozenMap({"bits": 8})), PERCENTILE), True),
    ((Step("static", exclude=("first",)),), False),
    ((Step("static", options=FrozenMap({"activation_bits": 16})),), False),
    ((Step("smoothquant"), Step("static")), False),
    ((Step("weight_only"),), False),
])
def test_models_of_the_same_kernels_are_as_fast_whatever_the_clock_says(steps: tuple[Step, ...], same: bool) -> None:
    plain = replace(measured("plain", drop=0.005, latency_ratio=0.5, size_bytes=600.0), recipe=Recipe((Step("static"),)))
    other = replace(measured("other", drop=0.0, latency_ratio=0.7, size_bytes=601.0), recipe=Recipe(steps))
    assert winner((original(), plain, other), "latency", "original") == ("other" if same else "plain")
    larger = replace(measured("other", drop=0.0, latency_ratio=0.7, size_bytes=700.0), recipe=Recipe(steps))
    assert winner((original(), plain, larger), "latency", "original") == "plain"


def test_what_failed_its_gates_never_wins_however_fast() -> None:
    found = (original(), measured("fast", drop=0.5, latency_ratio=0.01, size_bytes=1.0), measured("good", drop=0.0, latency_ratio=0.9,
                                                                                                 size_bytes=900.0))
    assert winner(found, "latency", "original") == "good"


def test_nothing_wins_where_there_is_nothing() -> None:
    assert winner((original(),), "latency", "original") == ""
    assert winner((), "latency", "original") == ""
    assert closest((), "original") == ""
    assert closest((original(),), "original") == ""
    assert with_front(()) == ()


@given(trials())
def test_the_closest_was_measured_and_has_the_least_excess(found: Trials) -> None:
    name = closest(found, "original")
    judged = [trial for trial in found[1:] if trial.status == "measured"]
    if not judged:
        assert name == ""
        return
    (trial,) = (trial for trial in found if trial.name == name)
    assert trial.status == "measured"
    assert trial.verdict is not None
    assert trial.verdict.excess == min(other.verdict.excess for other in judged if other.verdict)


def test_a_number_that_is_missing_is_farther_away_than_one_that_is_bad() -> None:
    found = (original(), measured("unknown", drop=0.0, latency_ratio=None, size_bytes=500.0),
             measured("slow", drop=0.0, latency_ratio=50.0, size_bytes=500.0))
    assert closest(found, "original") == "slow"


def test_the_worst_of_several_gates_counts() -> None:
    found = (original(), measured("one bad", drop=0.0, latency_ratio=3.0, size_bytes=500.0),
             measured("two a little", drop=0.012, latency_ratio=1.1, size_bytes=1100.0))
    assert closest(found, "original") == "two a little"


@given(trials())
def test_the_front_holds_all_that_nothing_beats_and_nothing_else(found: Trials) -> None:
    marked = with_front(found)
    assert [trial.name for trial in marked] == [trial.name for trial in found]
    rest = [trial for trial in marked if trial.status == "measured"]
    axes = [name for name in ("drop", "latency_ratio", "size_bytes", "model_rss_bytes") if all(t.value(name) is not None for t in rest)]
    points = {trial.name: [known(trial, name) for name in axes] for trial in rest}
    for trial in marked:
        if trial.status != "measured" or not axes:
            assert not trial.on_front
        else:
            assert trial.on_front != any(beats(point, points[trial.name]) for point in points.values())


def test_a_value_that_one_trial_lacks_is_left_out_for_all() -> None:
    found = with_front((original(model_rss_bytes=10.0),
                        measured("unknown", drop=0.005, latency_ratio=0.9, size_bytes=900.0, model_rss_bytes=None),
                        measured("best", drop=0.0, latency_ratio=0.5, size_bytes=500.0, model_rss_bytes=20.0)))
    assert [trial.on_front for trial in found] == [False, False, True]  # better in everything that all have


def test_a_skipped_trial_changes_nothing() -> None:
    found = (original(), measured("a", drop=0.0, latency_ratio=0.5, size_bytes=500.0))
    more = (*found, Trial("b", Recipe((Step("static"),)), "skipped", "no kernel"))
    assert with_front(more)[:2] == with_front(found)
    assert winner(more, "latency", "original") == winner(found, "latency", "original")


def test_an_old_mark_is_taken_away() -> None:
    beaten = measured("a", drop=0.005, latency_ratio=0.9, size_bytes=900.0)
    before = with_front((original(), beaten))
    assert before[1].on_front
    after = with_front((*before, measured("b", drop=0.0, latency_ratio=0.5, size_bytes=500.0)))
    assert [trial.on_front for trial in after] == [False, False, True]


def test_a_gate_that_is_not_met_by_a_hair_refuses() -> None:
    gates = (*GATES, Gate("model_rss_bytes", 100.0, proven=False))
    trial = measured("a", gates=gates, drop=0.0, latency_ratio=0.5, size_bytes=500.0, model_rss_bytes=100.01)
    assert winner((original(), trial), "latency", "original") == ""
