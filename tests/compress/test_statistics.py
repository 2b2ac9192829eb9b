"""What is kept of a tensor while data streams through: the same, however the data is cut into batches."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.slow_papers import calibration

from whet.compress.statistics import BINS, MOMENTUM, Statistics
from whet.core.errors import Refused

Array = np.ndarray[Any, Any]
SHAPES = ("normal", "relu", "negative", "shifted", "far", "tiny", "growing", "zeros first", "constant")


def drawn(kind: str, batches: int = 6, size: int = 500) -> list[Array]:
    """Batches of a distribution that is hard on a histogram in one way or another."""
    random = np.random.default_rng(SHAPES.index(kind))
    made = [random.standard_normal((size // 10, 10)).astype(np.float32) for _ in range(batches)]
    if kind == "relu":
        made = [np.maximum(batch, 0) for batch in made]
    elif kind == "negative":
        made = [-np.abs(batch) for batch in made]
    elif kind == "shifted":
        made = [batch + 40 for batch in made]
    elif kind == "far":
        made = [batch * 1e20 for batch in made]
    elif kind == "tiny":
        made = [batch * 1e-20 for batch in made]
    elif kind == "growing":
        made = [batch * 10**at * (-1) ** at for at, batch in enumerate(made)]
    elif kind == "zeros first":
        made[0] = np.zeros_like(made[0])
    elif kind == "constant":
        made = [np.full_like(batch, 3.5) for batch in made]
    return made


def seen(batches: list[Array]) -> Statistics:
    found = Statistics("t", with_histogram=True)
    for batch in batches:
        found.update(batch)
    return found


@pytest.mark.parametrize("kind", SHAPES)
def test_range_count_and_moving_average_are_those_of_the_raw_numbers(kind: str) -> None:
    batches = drawn(kind)
    found, everything = seen(batches), np.concatenate(batches)
    assert (found.low, found.high) == (float(everything.min()), float(everything.max()))
    assert found.count == everything.size
    assert (found.mean_low, found.mean_high) == pytest.approx(calibration.moving_average(batches, MOMENTUM))


@pytest.mark.parametrize("kind", SHAPES)
def test_every_number_is_in_the_bin_that_holds_it(kind: str) -> None:
    batches = drawn(kind)
    found = seen(batches)
    edges = found.edges
    assert found.counts.sum() == found.count
    assert edges[0] <= found.low
    assert found.high <= edges[-1]
    # A number on an edge may fall on either side, by a rounding of float64; the sums up to each edge may differ by those alone.
    ordered = np.sort(np.concatenate(batches).ravel().astype(np.float64))
    slack = 1e-9 * max(abs(edges[0]), abs(edges[-1]))
    below = np.searchsorted(ordered, edges - slack, side="left")
    above = np.searchsorted(ordered, edges + slack, side="right")
    cumulative = np.concatenate([[0], np.cumsum(found.counts)])
    assert np.all(below <= cumulative)
    assert np.all(cumulative <= above)


@pytest.mark.parametrize("kind", [kind for kind in SHAPES if kind not in ("growing", "zeros first", "constant")])
def test_the_data_fills_a_good_part_of_the_bins(kind: str) -> None:
    found = seen(drawn(kind))
    used = (max(found.high, 0.0) - min(found.low, 0.0)) / (BINS * found.width)
    assert used > 0.24


@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), min_size=1, max_size=6))
def test_nothing_is_lost_when_the_histogram_grows(batches: list[list[float]]) -> None:
    arrays = [np.array(batch, np.float32) for batch in batches]
    found = seen(arrays)
    everything = np.concatenate(arrays)
    assert found.counts.sum() == everything.size
    assert found.edges[0] <= everything.min()
    assert everything.max() <= found.edges[-1]


def test_memory_does_not_grow_with_the_data() -> None:
    few, many = seen(drawn("normal", batches=1)), seen(drawn("normal", batches=200, size=100))
    assert few.counts.nbytes == many.counts.nbytes
    assert many.counts.nbytes + sys.getsizeof(many) < 20_000


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused_with_the_tensors_name(bad: float) -> None:
    with pytest.raises(Refused, match="'hidden'"):
        Statistics("hidden").update(np.array([1.0, bad], np.float32))


def test_an_empty_batch_changes_nothing() -> None:
    found = Statistics("t", with_histogram=True)
    found.update(np.zeros((0, 3), np.float32))
    assert (found.count, found.batches) == (0, 0)
