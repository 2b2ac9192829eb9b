"""The verdict in words: whatever the trials look like, a sentence that a reader can act on."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.compress.made_up_trials import measured, original, trials

from whet.compress.data import Dataset
from whet.compress.optimize import words
from whet.compress.optimize.choose import closest, winner
from whet.core.gate import judge
from whet.core.measurement import Measurement
from whet.core.outcome import GOALS, Trial
from whet.core.recipe import Recipe
from whet.device.targets import host, target

DATA = Dataset.of({"x": np.zeros((400, 2), np.float32)})
NO_NUMBER = re.compile(r"\b(None|nan|inf)\b|Measurement\(|\{|\}")


@given(trials(), st.sampled_from(sorted(GOALS)))
def test_there_is_always_a_whole_sentence(found: tuple[Trial, ...], goal: str) -> None:
    best = winner(found, goal, "original")
    line = words.headline(found, best, goal, DATA)
    assert not NO_NUMBER.search(line)
    assert line.startswith(f"{best}: " if best else "nothing is shipped: ")
    assert "  " not in line
    assert ", ," not in line
    assert not line.endswith((", ", ": ", "but "))
    if not best and closest(found, "original"):
        assert f"{closest(found, 'original')} came closest" in line


@given(trials())
def test_the_progress_of_any_trial_can_be_told(found: tuple[Trial, ...]) -> None:
    for trial in found:
        line = words.progress(trial)
        assert line.startswith(trial.name)
        assert not NO_NUMBER.search(line)


@given(trials(), st.booleans())
def test_the_notes_say_what_a_reader_must_know(found: tuple[Trial, ...], late: bool) -> None:
    notes = " ".join(words.notes(target("pi5"), found, "latency", late))
    assert "pi5 is not this machine" in notes
    assert ("time budget" in notes) == late
    assert ("could not be made" in notes) == any(trial.status == "failed" for trial in found)


def test_of_this_machine_there_is_nothing_to_note() -> None:
    assert words.notes(host(), (original(),), "latency", late=False) == ()


@given(trials())
def test_a_winner_chosen_by_its_drop_is_said_to_be_lucky(found: tuple[Trial, ...]) -> None:
    notes = " ".join(words.notes(host(), found, "drop", late=False))
    passed = sum(trial.passed for trial in found[1:])
    assert (f"the least drop of {passed} candidates" in notes) == (passed > 1)


def test_the_figures_of_the_winner() -> None:
    best = measured("int8", spread=0.004, drop=0.0025, latency_ratio=0.4, size_bytes=250.0)
    assert words.headline((original(), best), "int8", "latency", DATA) == \
        "int8: 2.50x faster, 4.00x smaller, drop +0.0025 (at most 0.0065) on 400 samples"


def test_a_gain_is_written_with_its_sign() -> None:
    best = measured("int8", drop=-0.0025, latency_ratio=1.25, size_bytes=250.0)
    assert words.headline((original(), best), "int8", "size", DATA) == "int8: 0.80x as fast, 4.00x smaller, drop -0.0025 on 400 samples"


def test_an_estimate_is_called_one() -> None:
    best = measured("int8", drop=0.0, latency_ratio=0.5, size_bytes=250.0)
    guessed = {**best.measurements, "latency_ratio": Measurement("latency_ratio", 0.5, source="estimated")}
    assert "2.00x faster (estimated)" in words.headline((original(), replace(best, measurements=guessed)), "int8", "latency", DATA)


@pytest.mark.parametrize(("goal", "name"), [("memory", "model_rss_bytes"), ("energy", "energy_mj")])
def test_what_was_minimised_is_told(goal: str, name: str) -> None:
    first, best = original(**{name: 30.0}), measured("int8", **{"drop": 0.0, "latency_ratio": 0.9, "size_bytes": 500.0, name: 10.0})
    assert f"3.00x less {goal}" in words.headline((first, best), "int8", goal, DATA)
    assert "less" not in words.headline((first, best), "int8", "latency", DATA)


def test_a_refusal_names_the_closest_and_every_gate_that_it_failed() -> None:
    near = measured("int8", spread=0.004, drop=0.012, latency_ratio=0.5, size_bytes=1200.0)
    far = measured("float16", drop=0.5, latency_ratio=1.5, size_bytes=500.0)
    line = words.refusal((original(), far, near))
    assert "int8 came closest" in line
    assert "drop at most 0.01 (the default): found 0.012" in line
    assert "size_bytes at most 1000 B (not larger than the original): found 1200 B" in line
    assert "latency" not in line


def test_a_number_that_is_missing_is_refused_with_its_reason() -> None:
    line = words.refusal((original(), measured("int8", drop=0.0, latency_ratio=None, size_bytes=500.0)))
    assert "latency_ratio at most 1 (not slower than the original): no number, the process was killed" in line


@pytest.mark.parametrize(("statuses", "message"), [
    ((), "no time"),
    ((("skipped", "no kernel for it"),), "no kernel for it"),
    ((("skipped", "no kernel for it"), ("failed", "there is an If")), "there is an If"),
])
def test_where_nothing_was_measured_it_says_why(statuses: tuple[tuple[Any, str], ...], message: str) -> None:
    found = [original(), *(Trial(f"trial {at}", Recipe(), status, note) for at, (status, note) in enumerate(statuses))]
    line = words.refusal(found)
    assert line.startswith("nothing is shipped: ")
    assert message in line


def test_numbers_that_are_none_do_not_reach_the_reader() -> None:
    found = {"drop": Measurement("drop", float("nan")), "latency_ratio": Measurement("latency_ratio", float("inf"))}
    broken = Trial("int8", Recipe(), measurements=found, verdict=judge((), found))
    assert "nan" not in words.progress(broken)
    assert "inf" not in words.progress(broken)
