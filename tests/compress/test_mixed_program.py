"""The integer program finds what trying everything finds."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.slow_papers import allotment

from whet.compress.mixed.problem import FLOAT, Border, Offer, Problem, Unit, Way, cost_of, harm_of, integers, possible
from whet.compress.mixed.program import front, solve

INT8, INT4, STORED = Way("int8", "static", integers=True), Way("W4A8", "static", {"bits": 4}, True), Way("stored", "weight_only")


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """A chain of three to five units with a residual over some of them; costs and harms over several orders of magnitude."""
    costs, harms = st.integers(0, 40).map(float), st.sampled_from([0.0, 1e-6, 1e-3, 0.01, 0.5, 2.0, 7.0])
    units = []
    for number in range(draw(st.integers(3, 5))):
        follows = draw(st.integers(0, 3)) == 0
        ways = (FLOAT, INT8) if follows else draw(st.sampled_from([(FLOAT, INT8), (FLOAT, INT8, INT4), (FLOAT, STORED), (INT8, INT4)]))
        offers = tuple(Offer(way, draw(costs), 0.0 if way is FLOAT or follows else draw(harms)) for way in ways)
        units.append(Unit(f"u{number}", (f"u{number}",), offers, follows))
    borders = []
    for number in range(len(units) + 1):
        maker = units[number - 1].name if number else ""
        next_one = (units[number].name,) if number < len(units) else ()
        skip = tuple(unit.name for unit in units[number + 1 :] if draw(st.integers(0, 4)) == 0)
        borders.append(Border(f"t{number}", maker, (*next_one, *skip), not next_one or draw(st.booleans()),
                              bool(maker) and draw(st.booleans()), draw(costs), draw(costs), draw(harms)))
    return Problem(tuple(units), tuple(borders))


@settings(max_examples=25, deadline=None)
@given(problems(), st.sampled_from([0.0, 1e-6, 0.011, 0.5, 3.0, np.inf]))
def test_the_solution_is_the_cheapest_that_trying_everything_finds(problem: Problem, budget: float) -> None:
    expected, found = allotment.cheapest(problem, budget), solve(problem, budget)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert found.cost == pytest.approx(expected, abs=1e-3)
        assert found.harm <= budget * (1 + 1e-6)
        assert possible(problem, found.choice)


@settings(max_examples=8, deadline=None)
@given(problems())
def test_the_whole_front_is_found(problem: Problem) -> None:
    """Harms within a factor of 1e-5 of the greatest, as they are told apart (the tolerance of the solver)."""
    expected = allotment.unbeaten(problem)
    points = front(problem, fineness=1 - 1e-4, most=500)
    assert [point.cost for point in points] == sorted(point.cost for point in points)
    harms = [point.harm for point in points]
    assert all(later < earlier for earlier, later in pairwise(harms))
    for cost, harm in expected:  # nothing that is found is beaten, and nothing that is not beaten is missed, but for 1e-4 of harm
        near = [point for point in points if point.cost <= cost + 1e-3 and point.harm <= harm * (1 + 2e-4) + 1e-12]
        assert near, (cost, harm, points)
    for point in points:
        assert not any(cost < point.cost - 1e-3 and harm <= point.harm for cost, harm in expected)


@given(problems())
@settings(max_examples=20, deadline=None)
def test_costs_and_harms_are_those_of_the_slow_paper(problem: Problem) -> None:
    for choice, cost, harm in allotment.everything(problem):
        assert possible(problem, choice)
        assert cost_of(problem, choice) == pytest.approx(cost)
        assert harm_of(problem, choice) == pytest.approx(harm)


def chain(count: int, **border: float) -> Problem:
    """A chain of units that are each 5 cheaper in integers, between borders."""
    units = tuple(Unit(f"u{n}", (f"u{n}",), (Offer(FLOAT, 10.0), Offer(INT8, 5.0, 1.0))) for n in range(count))
    borders = tuple(Border(f"t{n}", f"u{n - 1}" if n else "", (f"u{n}",) if n < count else (), n == count, **border)
                    for n in range(count + 1))
    return Problem(units, borders)


def test_a_conversion_that_costs_more_than_it_brings_is_not_made() -> None:
    dear, cheap = chain(1, to_integers=3.0, to_float=3.0), chain(1, to_integers=2.0, to_float=2.0)
    assert solve(dear).choice == {"u0": "float32"}  # type: ignore[union-attr]
    assert solve(cheap).choice == {"u0": "int8"}  # type: ignore[union-attr]
    both = solve(chain(2, to_integers=3.0, to_float=3.0))
    assert both is not None
    assert both.choice == {"u0": "int8", "u1": "int8"}  # the border between the two is free
    assert both.cost == 16.0


def test_a_tensor_is_converted_once_however_many_read_it() -> None:
    units = tuple(Unit(name, (name,), (Offer(FLOAT, 10.0), Offer(INT8, 5.0))) for name in "abc")
    shared = Problem(units, (Border("x", "", ("a", "b", "c"), to_integers=12.0),))
    assert integers(shared, solve(shared).choice) == {"a", "b", "c"}  # type: ignore[union-attr]
    apart = Problem(units, tuple(Border(f"x{name}", "", (name,), to_integers=12.0) for name in "abc"))
    assert not integers(apart, solve(apart).choice)  # type: ignore[union-attr]


def test_a_tensor_on_a_grid_harms_once() -> None:
    problem = chain(3, harm=10.0)
    point = solve(problem)
    assert point is not None
    assert point.harm == 3 * 1.0 + 4 * 10.0
    gentle = solve(problem, 25.0)
    assert gentle is not None
    assert len(integers(problem, gentle.choice)) == 1  # one unit lies between two grids
    assert not integers(problem, solve(problem, 5.0).choice)  # type: ignore[union-attr]


def test_what_was_fixed_stays() -> None:
    assert solve(chain(3), fixed={"u1": "float32"}).choice["u1"] == "float32"  # type: ignore[union-attr]
    assert solve(chain(1), 0.0, fixed={"u0": "int8"}) is None


def test_an_infinite_harm_is_never_chosen() -> None:
    problem = Problem((Unit("a", ("a",), (Offer(FLOAT, 10.0), Offer(INT8, 1.0, np.inf))),))
    assert solve(problem).choice == {"a": "float32"}  # type: ignore[union-attr]
    assert solve(Problem((Unit("a", ("a",), (Offer(INT8, 1.0, np.inf),)),))) is None


def test_of_equal_costs_the_gentler_way_is_taken() -> None:
    problem = Problem((Unit("a", ("a",), (Offer(INT4, 1.0, 5.0), Offer(INT8, 1.0, 1e-3))),))
    assert solve(problem).choice == {"a": "int8"}  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_large_network_has_its_front_in_seconds() -> None:
    random = np.random.default_rng(0)
    units = tuple(Unit(f"u{n}", (f"u{n}",), tuple(
        Offer(way, float(cost), harm) for way, cost, harm in zip((FLOAT, INT8, INT4), sorted(random.integers(1, 1000, 3))[::-1],
                                                                 (0.0, random.exponential(0.01), random.exponential(1.0)), strict=True)))
                  for n in range(60))
    borders = tuple(Border(f"t{n}", f"u{n - 1}" if n else "", (f"u{n}",) if n < 60 else (), n == 60, to_integers=20.0, to_float=10.0,
                           harm=float(random.exponential(0.005))) for n in range(61))
    points = front(Problem(units, borders))
    assert 10 < len(points) <= 60
    assert points[-1].harm < 1e-3 * points[0].harm
