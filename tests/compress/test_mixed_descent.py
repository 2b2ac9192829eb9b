"""Few full evaluations find the right place on the front, and a layer that nobody suspected is given back."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.compress.mixed.allotted import Outline, in_float, recipe_of, told
from whet.compress.mixed.descent import bisection, evaluations, most_harmful, reverting, worth_trying
from whet.compress.mixed.problem import FLOAT, Border, Offer, Problem, Unit, Way, all_integers, cost_of, harm_of, possible
from whet.compress.mixed.program import Point, front, solve
from whet.core.document import FrozenMap
from whet.core.recipe import Step, matched

INT8 = Way("int8", "static", FrozenMap(), integers=True)
INT4 = Way("W4A8", "static", FrozenMap({"bits": 4}), integers=True)
STORED = Way("4-bit weights", "weight_only", FrozenMap({"bits": 4}))


def driven(asked: Generator[Any, bool, None], good: Callable[[Any], bool]) -> list[Any]:
    """What the generator asks for, answered."""
    tried = []
    wanted = next(asked, None)
    while wanted is not None:
        tried.append(wanted)
        try:
            wanted = asked.send(good(wanted))
        except StopIteration:
            break
    return tried


@given(st.integers(0, 70), st.integers(0, 71))
def test_bisection_finds_the_first_good_one_in_few_steps(count: int, first: int) -> None:
    tried = driven(bisection(count), lambda index: index >= first)
    assert len(set(tried)) == len(tried) <= max(count, 1).bit_length() + 1
    assert all(0 <= index < count for index in tried)
    assert tried[:1] == ([0] if count else [])
    if first < count:
        assert first in tried
    if first == 0:
        assert tried == ([0] if count else [])


@pytest.mark.parametrize(("macs", "most"), [(10**6, 50), (5 * 10**7, 50), (10**8, 20), (10**9, 20), (4 * 10**9, 8)])
def test_large_models_are_evaluated_less_often(macs: int, most: int) -> None:
    assert evaluations(macs) == most


def chain(harms: dict[str, float], *, grid: float = 0.0) -> Problem:
    units = tuple(Unit(name, (name,), (Offer(FLOAT, 40.0), Offer(INT8, 20.0, harm / 10), Offer(INT4, 10.0, harm))) for name, harm in
                  harms.items())
    names = list(harms)
    borders = tuple(Border(f"t{at}", names[at - 1] if at else "", (name,), harm=grid) for at, name in enumerate(names))
    return Problem(units, borders)


def test_the_layer_that_does_most_harm_goes_back_first_and_stays_back() -> None:
    problem = chain({"a": 1.0, "b": 5.0, "c": 3.0})
    start = solve(problem)
    assert start is not None
    tried = driven(reverting(problem, start, most=3), lambda _: False)
    assert [(point.choice["a"], point.choice["b"], point.choice["c"]) for point in tried] == [
        ("W4A8", "int8", "W4A8"), ("W4A8", "int8", "int8"), ("int8", "int8", "int8")]
    assert [point.harm for point in tried] == sorted((point.harm for point in tried), reverse=True)


def test_reverting_ends_when_it_is_good_enough_or_nothing_is_left() -> None:
    problem = chain({"a": 1.0, "b": 5.0})
    start = solve(problem)
    assert start is not None
    assert len(driven(reverting(problem, start), lambda _: True)) == 1
    everything = driven(reverting(problem, start, most=50), lambda _: False)
    assert 0 < len(everything) <= 2
    harmless = chain({"a": 0.0, "b": 0.0})
    assert not driven(reverting(harmless, solve(harmless)), lambda _: False)  # type: ignore[arg-type]


def test_a_tensor_that_hurts_sends_its_layers_back_to_float() -> None:
    units = tuple(Unit(name, (name,), (Offer(FLOAT, 9.0), Offer(INT8, 1.0, harm))) for name, harm in (("a", 0.1), ("b", 0.2)))
    problem = Problem(units,
                      (Border("x", "", ("a",), harm=8.0), Border("y", "a", ("b",), harm=0.0)))
    start = solve(problem)
    assert start is not None
    assert most_harmful(problem, start.choice).name == "a"  # type: ignore[union-attr]
    (first, *_) = driven(reverting(problem, start), lambda _: False)
    assert first.choice == {"a": "float32", "b": "int8"}


def test_the_point_that_changes_nothing_is_not_tried() -> None:
    problem = chain({"a": 1.0, "b": 2.0})
    points = front(problem)
    assert points[-1].harm == 0.0
    assert len(worth_trying(points, problem)) == len(points) - 1


# -- recipes ------------------------------------------------------------------------------------------------------------------------


class Named:
    def __init__(self, name: str) -> None:
        self.name, self.op = name, "Conv"


NODES = [Named(name) for name in ("a", "b", "c", "sum")]


def steps(choice: dict[str, str], base: Outline = Outline()) -> tuple[Problem, tuple[Step, ...]]:  # noqa: B008  frozen
    units = tuple(Unit(name, (name,), (Offer(FLOAT), Offer(INT8), Offer(INT4), Offer(STORED))) for name in "abc")
    follower = Unit("sum", ("sum",), (Offer(FLOAT), Offer(INT8)), follows=True)
    problem = Problem((*units, follower), (Border("t", "a", ("sum",)), Border("s", "b", ("sum",)), Border("u", "sum", ("c",))))
    return problem, recipe_of(base, problem, choice).steps


def options_of(made: tuple[Step, ...], name: str) -> dict[str, object] | None:
    """What the recipe does to a layer: later steps of ``static`` overrule earlier ones; None: nothing."""
    found = None
    for step in made:
        if name in matched(step, NODES):
            found = {"technique": step.technique, **step.options}
    return found


def test_a_recipe_says_what_the_choice_says() -> None:
    choice = {"a": "W4A8", "b": "W4A8", "c": "int8", "sum": "int8"}
    _, made = steps(choice)
    assert len(made) == 2
    assert options_of(made, "a") == {"technique": "static", "bits": 4} == options_of(made, "b")
    assert options_of(made, "c") == {"technique": "static"}
    assert options_of(made, "sum") is not None


def test_layers_in_float_are_left_out_and_stored_ones_come_before() -> None:
    _, made = steps({"a": "float32", "b": "4-bit weights", "c": "int8", "sum": "float32"})
    assert [step.technique for step in made] == ["weight_only", "static"]
    assert options_of(made, "a") is None
    assert options_of(made, "b") == {"technique": "weight_only", "bits": 4}
    assert set(made[1].exclude) == {"a", "b"}  # the sum has no company anyway


def test_a_follower_that_is_to_stay_in_float_between_integers_is_named() -> None:
    _, made = steps({"a": "int8", "b": "int8", "c": "int8", "sum": "float32"})
    assert made[0].exclude == ("sum",)


def test_what_comes_before_and_after_stays_there() -> None:
    base = Outline((Step("equalize"),), FrozenMap({"ranges": "mse"}), (Step("bias_correct"),))
    _, made = steps({"a": "int8", "b": "int8", "c": "int8", "sum": "int8"}, base)
    assert [step.technique for step in made] == ["equalize", "static", "bias_correct"]
    _, nothing = steps({"a": "4-bit weights", "b": "float32", "c": "float32", "sum": "float32"}, base)
    assert [step.technique for step in nothing] == ["equalize", "weight_only"]
    assert base.recipe.steps == (Step("equalize"), Step("static", options=FrozenMap({"ranges": "mse"})), Step("bias_correct"))


def test_all_in_integers_is_possible_and_a_lonely_follower_stays_in_float() -> None:
    problem, _ = steps({"a": "int8", "b": "int8", "c": "int8", "sum": "int8"})
    assert set(all_integers(problem).values()) == {"int8"}
    lonely = Problem((Unit("a", ("a",), (Offer(FLOAT),)), Unit("s", ("s",), (Offer(FLOAT), Offer(INT8)), follows=True),
                      Unit("t", ("t",), (Offer(FLOAT), Offer(INT8)), follows=True)),
                     (Border("x", "a", ("s",)), Border("y", "s", ("t",))))
    assert all_integers(lonely) == {"a": "float32", "s": "float32", "t": "float32"}
    assert possible(lonely, all_integers(lonely))


def test_a_choice_in_words() -> None:
    problem, _ = steps({"a": "int8", "b": "int8", "c": "int8", "sum": "int8"})
    assert told(problem, {"a": "int8", "b": "int8", "c": "int8", "sum": "int8"}) == "int8"
    assert told(problem, {"a": "float32", "b": "int8", "c": "int8", "sum": "int8"}) == "int8, a in float"
    assert told(problem, {"a": "W4A8", "b": "int8", "c": "W4A8", "sum": "int8"}) == "2 x W4A8, 1 x int8"
    assert in_float(problem, {"a": "float32", "b": "float32", "c": "int8", "sum": "float32"}) == ("a", "b")


def test_points_hold_their_own_cost() -> None:
    problem = chain({"a": 1.0, "b": 2.0}, grid=0.5)
    for point in front(problem):
        assert isinstance(point, Point)
        assert point.cost == cost_of(problem, point.choice)
        assert point.harm == harm_of(problem, point.choice)
