"""Mixed precision in a search: the table, the front, and the few points of it that are made and measured."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from whet.compress.apply import worked
from whet.compress.artifacts import load
from whet.compress.mixed.allotted import recipe_of, told
from whet.compress.mixed.costs import Profile, times_of
from whet.compress.mixed.descent import bisection, evaluations, reverting, worth_trying
from whet.compress.mixed.problem import Choice, all_integers, cost_of
from whet.compress.mixed.program import Point, front, solve
from whet.compress.mixed.table import Table, table
from whet.compress.optimize.choose import EQUAL
from whet.compress.optimize.kernels import kernels_of, layer_times
from whet.compress.optimize.search import INTEGER, Idea, Start
from whet.core.outcome import resource_of
from whet.core.recipe import Recipe

if TYPE_CHECKING:
    from whet.compress.optimize.searching import Search

_T = TypeVar("_T")
# Borders are counted and not measured: the choice is made again for the case that they cost twice as much.
_DOUBT = 2.0


class Mixing:
    """The allotment of one search. cheapest_lossy: the cheapest choice that was made and lost too much."""

    def __init__(self, search: Search, found: Table) -> None:
        self.search, self.table, self.problem = search, found, found.problem
        self.points: tuple[Point, ...] = ()
        self.left = evaluations(search.workshop.bench.inventory.macs)
        self.lossy: list[Point] = []
        self.good: list[Point] = []

    @classmethod
    def of(cls, search: Search) -> Mixing:
        """Raises what ``table`` and the steps before ``static`` raise."""
        workshop, base = search.workshop, search.start.base
        bench = workshop.bench
        folded = worked(bench.original, Recipe(base.before), bench.target, calibration=workshop.calibration, more=True) if (
            base.before) else bench.original.folded()
        goal = resource_of(search.goal)
        return cls(search, table(folded, base.options, bench.target, goal, workshop.calibration, profile=_profile(search)))

    @property
    def cheapest_lossy(self) -> Point | None:
        return min(self.lossy, key=lambda point: point.cost, default=None)

    @property
    def least_lossy(self) -> Point | None:
        """The choice of least drop among those that passed."""
        made = [(self.search.known(self.idea(point.choice, self.search.start)), point) for point in self.good]
        passed = [(trial.value("drop") or 0.0, point) for trial, point in made if trial is not None and trial.passed]
        return min(passed, key=lambda each: each[0])[1] if passed else None

    def integers(self, choice: Choice) -> tuple[str, ...]:
        """The layers with weights that compute in integers."""
        return tuple(layer for unit in self.problem.units if not unit.follows and unit.offer(choice[unit.name]).way.integers
                     for layer in unit.layers)

    def run(self) -> str:
        """Try the cheapest choice; where it loses too much, halve towards the gentler ones, and then give back layer by layer."""
        whole = all_integers(self.problem)
        trial = self.search.known(self.search.start.idea) or self.search.known(INTEGER)
        kept = trial is not None and self.search.within(trial)
        limit = cost_of(self.problem, whole) * (1 - EQUAL) if kept else float("inf")
        cheapest = solve(self.problem)  # by costs alone
        cheaper = self._front(limit) if cheapest is not None and cheapest.cost < limit else ()
        if not cheaper:
            return "no mixture is expected to take less than all layers in integers"
        self._drive(bisection(len(cheaper)), lambda index: cheaper[index], limit)
        best = min(self.good, key=lambda point: point.cost, default=None)
        if self.lossy and (best is None or best.cost > (1 + EQUAL) * max(point.cost for point in self.lossy)):
            self._drive(reverting(self.problem, max(self.lossy, key=lambda point: point.cost)), lambda point: point,
                        limit if best is None else best.cost)
        elif best is not None and resource_of(self.search.goal) in ("latency", "energy"):
            self._doubted(limit)
        expected = f"{cheaper[0].cost / cost_of(self.problem, whole):.0%} of the cost of int8" if cost_of(self.problem, whole) else ""
        return f"the cheapest of {len(self.points)} choices on the front was expected to take {expected}" if expected else ""

    def _front(self, limit: float) -> tuple[Point, ...]:
        """The points of the front that change anything and cost less."""
        self.problem = self.table.harmed(self.search.workshop.calibration).problem
        self.points = worth_trying(front(self.problem), self.problem)
        return tuple(point for point in self.points if point.cost < limit)

    def idea(self, choice: Choice, start: Start) -> Idea:
        return start.named(told(self.problem, choice), recipe_of(start.base, self.problem, choice))

    def _drive(self, asked: Generator[_T, bool, None], point_of: Callable[[_T], Point], limit: float) -> None:
        """Answer what the generator asks, with a full evaluation each; ends when it does, when time or evaluations do, or at a choice
        that takes as much as ``limit`` or changes nothing.
        """
        wanted = next(asked, None)
        while wanted is not None and self.left > 0:
            point = point_of(wanted)
            if point.cost >= limit or not worth_trying([point], self.problem):
                return
            good = self._tried(point)
            if good is None:
                return
            try:
                wanted = asked.send(good)
            except StopIteration:
                return

    def _tried(self, point: Point) -> bool | None:
        """Whether the choice keeps the drop; None where it could not be made, or there was no time."""
        idea = self.idea(point.choice, self.search.start)
        self.left -= self.search.known(idea) is None
        made = self.search.tried((idea,))
        if not made or made[0].status != "measured":
            return None
        good = self.search.within(made[0])
        (self.good if good else self.lossy).append(point)
        return good

    def _doubted(self, limit: float) -> None:
        borders = tuple(replace(border, to_integers=_DOUBT * border.to_integers, to_float=_DOUBT * border.to_float)
                        for border in self.problem.borders)
        found = solve(replace(self.problem, borders=borders), max(point.harm for point in self.good))
        if found is not None and self.left > 0 and worth_trying([found], self.problem):
            point = replace(found, cost=cost_of(self.problem, found.choice))
            if point.cost < limit:
                self._tried(point)


def _profile(search: Search) -> Profile | None:
    """Times of all layers in float and in integers, where the target is here and time is what counts."""
    bench, trial = search.workshop.bench, search.known(INTEGER)
    if not bench.target.here or resource_of(search.goal) not in ("latency", "energy") or trial is None or trial.status != "measured":
        return None
    made = load(search.workshop.model_of(trial).parent)
    folded = bench.original.folded()
    found = [kernels_of(model, bench.feeds, bench.target.threads) for model in (folded, made)]
    if not all(found):  # the runtime does not tell: the target's table does
        return None
    latency_ms, ratio = trial.value("latency_ms"), trial.value("latency_ratio")
    if not latency_ms or not ratio:
        return None
    kernels = times_of(found[0], latency_ms * 1e3 / ratio), times_of(found[1], latency_ms * 1e3)
    return Profile(layer_times(folded, kernels[0]), layer_times(made, kernels[1]))
