"""The candidates as rows, and numbers as people write them."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.compress.outcomes import sample

from whet.compress.report import summary_rows
from whet.compress.report.numbers import (
    BYTES,
    DIFFERENCE,
    MICROSECONDS,
    MILLIJOULES,
    MILLISECONDS,
    PERCENT,
    PLAIN,
    POINTS,
    TIMES,
    Kind,
    duration,
    interval,
    number,
    ticks,
)
from whet.compress.report.quantities import drop_kind, kind_of, quality_name
from whet.compress.report.rows import in_words, rows
from whet.core.measurement import Interval, Measurement
from whet.core.outcome import Outcome
from whet.core.recipe import Recipe, Step


@pytest.fixture(scope="module", params=[{}, {"wins": False}, {"candidates": 40}])
def outcome(request: pytest.FixtureRequest) -> Outcome:
    return sample(**request.param)


@pytest.mark.parametrize(("value", "kind", "text"), [
    (0.0, BYTES, "0 B"), (999.0, BYTES, "999 B"), (999.6, BYTES, "1.00 kB"), (2538.0, BYTES, "2.54 kB"), (999_600.0, BYTES, "1.00 MB"),
    (354_000.0, BYTES, "354 kB"), (2.5e9, BYTES, "2.50 GB"), (0.97, MILLISECONDS, "970 µs"), (2.9137, MILLISECONDS, "2.91 ms"),
    (12_345.0, MILLISECONDS, "12.3 s"), (0.5, MICROSECONDS, "500 ns"), (0.633, MILLIJOULES, "633 µJ"), (0.0025, POINTS, "+0.25 pts"),
    (-0.00126, POINTS, "−0.13 pts"), (0.000_001, POINTS, "0.00 pts"), (-0.000_001, POINTS, "0.00 pts"), (0.913, PERCENT, "91.30 %"),
    (2.614, TIMES, "2.61×"), (0.0123, DIFFERENCE, "+0.0123"), (-1234.7, PLAIN, "−1 235"), (3.2e-9, PLAIN, "3.20e-09"),
])  # fmt: skip
def test_numbers_as_people_write_them(value: float, kind: Kind, text: str) -> None:
    assert number(value, kind).replace("\u00a0", " ").replace("\u202f", " ") == text


def test_intervals_share_the_unit_of_their_value_and_never_collapse() -> None:
    assert interval(0.96, 1.04, MILLISECONDS, like=0.97) == "[960, 1\u202f040]"
    assert interval(-0.001, 0.0061, POINTS, like=0.0025) == "[−0.10, +0.61]"
    assert interval(2.6101, 2.6133, TIMES, like=2.61) == "[2.610, 2.613]"
    assert interval(1.5, math.inf, TIMES, like=2.0) == "[1.50, no bound]"
    assert interval(1.0, 1.0, TIMES, like=1.0) == "[1.00, 1.00]"


@given(st.floats(-1e12, 1e12), st.sampled_from([BYTES, MILLISECONDS, POINTS, PERCENT, TIMES, PLAIN, DIFFERENCE]))
def test_a_written_number_reads_back_within_its_last_digit(value: float, kind: Kind) -> None:
    found = re.fullmatch(r"([−+]?)([\d.\u202f]+(?:e[-+]\d+)?)\u00a0?(\D*)", number(value, kind))
    assert found
    unit = {name: size for size, name in kind.units}[found[3]]
    back = float(found[2].replace("\u202f", "")) * unit / kind.base * (-1 if found[1] == "−" else 1)
    assert math.isclose(back, value, rel_tol=6e-3, abs_tol=0.006 * unit)


def test_ticks_of_an_axis_differ_and_share_their_decimals() -> None:
    assert ticks([-0.0025, 0.0, 0.0025, 0.005], POINTS) == ("−0.25\u00a0pts", "0.00\u00a0pts", "+0.25\u00a0pts", "+0.50\u00a0pts")
    assert ticks([1e3, 1e4, 1e6, 1e8], BYTES) == ("1\u00a0kB", "10\u00a0kB", "1\u00a0MB", "100\u00a0MB")


def test_durations() -> None:
    found = [duration(each) for each in (0.25, 8.44, 59.97, 192.4, 3905)]
    assert found == ["250\u00a0ms", "8.4 s", "1 min 00 s", "3 min 12 s", "1 h 05 min"]


def test_a_drop_is_in_points_only_where_it_is_a_difference_of_shares() -> None:
    assert all(drop_kind(metric) == POINTS for metric in ("accuracy", "top5", "top-5", "f1", "AUC"))
    assert all(drop_kind(metric) == PERCENT for metric in ("fidelity", "flips", "sqnr_db"))
    assert all(drop_kind(metric) == DIFFERENCE for metric in ("mae", "rmse", "kl", "mine:accuracy_of"))
    assert kind_of("drop", "mae") == DIFFERENCE
    assert kind_of("model_rss_bytes", "mae") == BYTES


def test_the_metric_is_found_however_it_was_spelt() -> None:
    outcome = sample()
    renamed = tuple(replace(trial, measurements={"top5": trial.measurements["accuracy"]}) for trial in outcome.trials[:3])
    assert quality_name(replace(outcome, metric="Top-5", trials=renamed)) == "top5"
    assert quality_name(outcome) == "accuracy"


def test_times_faster_turns_the_ratio_and_its_interval_round() -> None:
    outcome = sample()
    ratio = Measurement("latency_ratio", 0.4, interval=Interval(0.32, 0.5, 0.95))
    trial = replace(outcome.trials[1], measurements={"latency_ratio": ratio})
    row = next(row for row in rows(replace(outcome, trials=(outcome.trials[0], trial))) if row.trial.name == trial.name)
    assert (row.cells["faster"].text, row.cells["faster"].detail) == ("2.50×", "[2.00, 3.12]")
    assert row.cells["size"].missing
    open_ended = replace(trial, measurements={"latency_ratio": replace(ratio, interval=Interval(0.0, 0.5, 0.95))})
    row = next(row for row in rows(replace(outcome, trials=(outcome.trials[0], open_ended))) if row.trial.name == trial.name)
    assert row.cells["faster"].detail == "[2.00, no bound]"


def test_rows_run_from_good_to_bad(outcome: Outcome) -> None:
    found = rows(outcome)
    assert [row.number for row in found] == list(range(1, len(outcome.trials) + 1))
    places = ["original", "winner", "passed", "closest", "refused", "skipped", "failed"]
    order = [places.index(row.standing) for row in found]
    assert order == sorted(order)
    if outcome.winner:
        assert found[1].trial.name == outcome.winner
    speeds = [row.trial.value("latency_ratio") or 0 for row in found if row.standing == "passed"]
    assert speeds == sorted(speeds)


def test_refused_rows_say_what_was_asked_and_what_was_found() -> None:
    outcome = sample(candidates=40)
    for row in rows(outcome):
        assert bool(row.reasons) == (row.standing in ("refused", "skipped", "failed"))
    half = next(row for row in rows(outcome) if row.trial.name == "float16")
    assert re.fullmatch(r"Time against the original 1\.\d+× \[.*\], asked at most 1\.000×", half.reasons[0])
    close = [row.reasons[0] for row in rows(outcome) if row.standing == "refused" and (row.trial.value("drop") or 1) < 0.005]
    assert any(text.endswith("within it, but the interval is not") for text in close)


def test_summary_rows_hold_every_key_as_text(outcome: Outcome) -> None:
    keys = ["number", "name", "quality", "drop", "faster", "latency", "p95", "size", "smaller", "memory", "energy", "verdict", "why"]
    found = summary_rows(outcome)
    assert [row["name"] for row in found] == [row.trial.name for row in rows(outcome)]
    assert all(list(row) == keys and all(isinstance(value, str) for value in row.values()) for row in found)
    best = next((row for row in found if row["verdict"].startswith("★")), None)
    assert (best is not None) == bool(outcome.winner)
    if best:
        assert "[" in best["faster"]
        assert "[" not in best["latency"]


def test_a_recipe_reads_as_a_sentence() -> None:
    first = Step("static", exclude=("conv1", "op:Softmax"), options={"ranges": "mse", "per_channel": True, "percentile": 99.9})
    assert in_words(Recipe((first, Step("float16", ("a", "b"))))) == (
        "static on all layers but conv1, op:Softmax, with ranges = mse, per_channel = yes, percentile = 99.9; then float16 on a, b"
    )
    assert in_words(Recipe()) == "left as it is"


def test_an_original_that_wins_is_still_the_first_row() -> None:
    first, *others = rows(replace(sample(candidates=6), winner="original"))
    assert (first.trial.name, first.standing) == ("original", "winner")
    assert "winner" not in [row.standing for row in others]
