"""The whole table for one model: units, ways, costs and harms, ready for the integer program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from whet.compress.data import Dataset
from whet.compress.graph import GraphModel
from whet.compress.mixed.costs import Profile, priced, with_harms
from whet.compress.mixed.problem import Problem
from whet.compress.mixed.roundings import SAMPLES, Harms, Prepared, prepare, roundings
from whet.compress.mixed.structure import structure
from whet.compress.mixed.ways import ways_for
from whet.core.errors import Unsupported
from whet.core.target import Target


@dataclass(frozen=True, eq=False)
class Table:
    """problem: with costs, and with harms once they were asked for. ready: the float model that it is about."""

    problem: Problem
    ready: Prepared
    target: Target

    def harmed(self, calibration: Dataset, samples: int = SAMPLES) -> Table:
        """The same with the harms, which are dear, found on some of the samples."""
        some = calibration.first(samples)
        return replace(self, problem=with_harms(self.problem, harms(self.ready, self.problem, self.target, some)))


def table(folded: GraphModel, options: Mapping[str, Any], target: Target, goal: str, calibration: Dataset, *,
          profile: Profile | None = None) -> Table:
    """Every way of every layer with what it costs.

    folded: the float model with everything done to it that comes before ``static``. options: of ``static``. goal: what is minimised.
    profile: times measured on the target; without them costs are estimated from its table.
    Raises Unsupported where nothing in the model computes in integers on the target.
    """
    ready = prepare(folded, options, target, calibration)
    problem = structure(ready.model, ready.found, target)
    follows = {name: unit.follows for unit in problem.units for name in unit.layers}
    ways = {layer.name: ways_for(layer, follows[layer.name], target, goal, options, site=layer.name in ready.found)
            for layer in ready.model.plain_layers() if layer.name in follows}
    return Table(priced(problem, ready.model, ways, target, goal, profile), ready, target)


def harms(ready: Prepared, problem: Problem, target: Target, data: Dataset) -> Harms:
    """By one backward pass where the mirror knows all operators, else by a run of the model for each rounding."""
    found = roundings(ready, problem, target)
    try:
        from whet.compress.mixed.fisher import fisher

        return fisher(ready.model, found, data)
    except Unsupported:
        from whet.compress.mixed.measured import measured

        return measured(ready.model, found, data)
