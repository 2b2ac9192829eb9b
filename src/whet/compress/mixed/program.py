"""The integer program: the choice of least cost whose harm is within a budget, and the whole front of such choices.

    min  sum_uw cost_uw x_uw + sum_t (to_integers_t q_t + to_float_t d_t)      sum_w x_uw = 1,   z_u = sum_{w in integers} x_uw
    s.t. sum_uw harm_uw x_uw + sum_t harm_t y_t <= budget
         q_t >= z_reader - z_maker,  d_t >= z_maker - z_reader,  y_t >= z_reader,  y_t >= z_maker
         z_u <= sum z_makers before u,  z_u <= sum z_readers behind u           for units u without weights

q, d and y are greatest values of 0/1 numbers, so they need not be declared whole. Solved by HiGHS through ``scipy.optimize.milp``.
(The form of Hubara et al. 2021, "Accurate post training quantization with small calibration sets", section 3.4, with borders added.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from whet.compress.mixed.problem import Border, Choice, Problem, cost_of, harm_of, possible
from whet.core.progress import task

FINENESS = 0.8  # each point of the front does at most this share of the harm of the one before it
MOST_POINTS = 60
SECONDS = 5.0  # for one solution; what is best by then is taken
_TIE = 1e-6  # of the whole cost: what all the harm of a budget weighs, so that of equal costs the gentler choice wins


@dataclass(frozen=True)
class Point:
    """A choice with what it costs and harms."""

    choice: Choice
    cost: float
    harm: float


def solve(problem: Problem, budget: float = np.inf, *, fixed: Mapping[str, str] | None = None) -> Point | None:
    """The cheapest possible choice whose harm is within ``budget``; None where there is none.

    fixed: ways of some units that are chosen already.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    rows = _Rows(problem)
    rows.structure()
    rows.budget(budget)
    if not rows.allowed(fixed or {}, budget):
        return None
    matrix, low, high = rows.matrix()
    found = milp(rows.objective(budget), integrality=rows.whole, bounds=Bounds(rows.low, rows.high),
                 constraints=LinearConstraint(matrix, low, high) if matrix.shape[0] else None,
                 options={"mip_rel_gap": 0.0, "time_limit": SECONDS})
    if found.x is None:
        return None
    choice = rows.choice(found.x)
    point = Point(choice, cost_of(problem, choice), harm_of(problem, choice))
    return point if point.harm <= budget * (1 + 1e-6) and possible(problem, choice) else None


def front(problem: Problem, *, fineness: float = FINENESS, most: int = MOST_POINTS, budget: float = np.inf) -> tuple[Point, ...]:
    """Choices from the cheapest one on, each of them the cheapest of those that do at most ``fineness`` of the harm of the one before,
    down to the gentlest. ``fineness`` just below 1 gives every choice that no other one beats.
    """
    points: list[Point] = []
    with task("allotting precision", None) as progress:
        while len(points) < most and (point := solve(problem, budget)) is not None:
            points.append(point)
            progress.advance()
            if point.harm <= 0:
                break
            budget = fineness * point.harm
    return tuple(points)


class _Rows:
    """Columns and rows of the program, as they are added. Columns: x of all offers, then q, d, y of each border."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        pairs = [(unit.name, offer) for unit in problem.units for offer in unit.offers]
        self.columns = {(name, offer.way.name): at for at, (name, offer) in enumerate(pairs)}
        self.offers = [offer for _, offer in pairs]
        self.z = {unit.name: [self.columns[unit.name, offer.way.name] for offer in unit.offers if offer.way.integers]
                  for unit in problem.units}
        self.size = len(pairs) + 3 * len(problem.borders)
        self.whole = np.array([1] * len(pairs) + [0] * (self.size - len(pairs)))
        self.low, self.high = np.zeros(self.size), np.ones(self.size)
        self._entries: list[dict[int, float]] = []
        self._bounds: list[tuple[float, float]] = []

    def structure(self) -> None:
        """Everything but the budget."""
        for unit in self.problem.units:
            self._add({self.columns[unit.name, offer.way.name]: 1.0 for offer in unit.offers}, 1.0, 1.0)
            if unit.follows:
                self._follow(unit.name)
        for at, border in enumerate(self.problem.borders):
            self._border(border, *self._of_border(at))

    def budget(self, budget: float) -> None:
        """Scaled so that the budget is 1: harms may lie many orders of magnitude apart. Twice the budget is as impossible as more."""
        if np.isfinite(budget):
            scale = max(budget, 1e-300)
            entries = {at: min(offer.harm / scale, 2.0) for at, offer in enumerate(self.offers)}
            entries |= {self._of_border(at)[2]: min(border.harm / scale, 2.0) for at, border in enumerate(self.problem.borders)}
            self._add({at: value for at, value in entries.items() if value > 0}, -np.inf, 1.0)

    def allowed(self, fixed: Mapping[str, str], budget: float) -> bool:
        """Bounds for what is chosen already, and for what no budget allows. Whether each unit has a way left."""
        for at, offer in enumerate(self.offers):
            if not np.isfinite(offer.harm) or not np.isfinite(offer.cost) or offer.harm > budget:
                self.high[at] = 0.0
        for name, way in fixed.items():
            for offer in self.problem.unit(name).offers:
                if offer.way.name != way:
                    self.high[self.columns[name, offer.way.name]] = 0.0
        return all(any(self.high[self.columns[unit.name, offer.way.name]] for offer in unit.offers) for unit in self.problem.units)

    def objective(self, budget: float) -> np.ndarray:
        """Costs, scaled to about 1, and a trace of harm."""
        costs, harms = np.zeros(self.size), np.zeros(self.size)
        for at, offer in enumerate(self.offers):
            costs[at], harms[at] = offer.cost, offer.harm
        for at, border in enumerate(self.problem.borders):
            q, d, y = self._of_border(at)
            costs[q], costs[d], harms[y] = border.to_integers, border.to_float, border.harm
        costs, harms = (np.where(np.isfinite(values), values, 0.0) for values in (costs, harms))
        worst = budget if np.isfinite(budget) and budget > 0 else harms.sum()
        scaled: np.ndarray = costs / (np.abs(costs).max() or 1.0) + _TIE * np.minimum(harms / (worst or 1.0), 1.0)
        return scaled

    def matrix(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(rows [m, n], lower bounds [m], upper bounds [m])."""
        from scipy.sparse import csr_array

        indices = [(row, column) for row, entries in enumerate(self._entries) for column in entries]
        values = [value for entries in self._entries for value in entries.values()]
        where = tuple(zip(*indices, strict=True)) if indices else ((), ())
        bounds = np.array(self._bounds).reshape(-1, 2)
        return csr_array((values, where), shape=(len(self._entries), self.size)), bounds[:, 0], bounds[:, 1]

    def choice(self, solution: np.ndarray) -> Choice:
        """The way with the greatest x of each unit."""
        return {unit.name: max((offer.way.name for offer in unit.offers), key=lambda way: solution[self.columns[unit.name, way]])
                for unit in self.problem.units}

    def _border(self, border: Border, q: int, d: int, y: int) -> None:
        maker = self.z.get(border.maker, [])
        for reader in border.readers:
            reading = self.z[reader]
            self._at_least(q, reading, maker)
            self._at_least(y, reading, [])
            self._left_in_float(border, maker, reading, d, y)
        if border.in_float:
            self._left_in_float(border, maker, [], d, y)
        if not border.ends_float:
            self._at_least(y, maker, [])

    def _left_in_float(self, border: Border, maker: Iterable[int], reading: Iterable[int], d: int, y: int) -> None:
        """d >= z_maker - z_reader; where the maker may end in float, only if the tensor lies on a grid: ... - 1 + y."""
        if border.ends_float:
            self._add({d: 1.0, y: -1.0} | dict.fromkeys(maker, -1.0) | dict.fromkeys(reading, 1.0), -1.0, np.inf)
        else:
            self._at_least(d, maker, reading)

    def _follow(self, name: str) -> None:
        """Integers only with company on both sides."""
        before = [at for border in self.problem.borders if name in border.readers for at in self.z.get(border.maker, ())]
        behind = [at for border in self.problem.borders if border.maker == name for reader in border.readers for at in self.z[reader]]
        for company in (before, behind):
            self._add(dict.fromkeys(self.z[name], -1.0) | dict.fromkeys(company, 1.0), 0.0, np.inf)

    def _at_least(self, column: int, plus: Iterable[int], minus: Iterable[int]) -> None:
        """column >= sum plus - sum minus."""
        self._add({column: 1.0} | dict.fromkeys(plus, -1.0) | dict.fromkeys(minus, 1.0), 0.0, np.inf)

    def _of_border(self, at: int) -> tuple[int, int, int]:
        first = len(self.offers) + 3 * at
        return first, first + 1, first + 2

    def _add(self, entries: Mapping[int, float], low: float, high: float) -> None:
        self._entries.append(dict(entries))
        self._bounds.append((low, high))
