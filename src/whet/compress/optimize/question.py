"""What can be refused of a question, as early as it can be known, and the limits that it leaves open."""

from __future__ import annotations

import math

from whet.compress.data import Dataset
from whet.compress.evaluate import DEFAULT_FIDELITY, Metric, fidelity_quantity
from whet.compress.optimize.bench import Bench
from whet.compress.optimize.gates import measured_by
from whet.compress.optimize.search import INTEGER
from whet.compress.plan import changes_of
from whet.core.errors import Refused
from whet.core.gate import Gate
from whet.core.outcome import GOALS, Trial, resource_of

# Where no limit of the drop is given; fidelity has its own (docs/metrics.md).
DEFAULT_DROP = 0.01
SHARES = frozenset({"accuracy", "f1", "auc", "flips"})  # metrics from 0 to 1, beside the top-k ones


def check_question(goal: str, seconds: float, budget_s: float | None) -> None:
    """All that can be refused before the model is read."""
    measured_by(goal)
    for name, value in (("seconds", seconds), ("time_budget_s", budget_s)):
        if value is not None and not 0 <= value < math.inf:
            raise Refused(f"optimise with {name} = {value}", found="no length of time", do="give seconds, 0 or more")


def check_provable(gate: Gate, original: Trial, data: Dataset) -> None:
    """Refused where not even the original beside itself would be shown to be good enough: no candidate ever could."""
    drop = original.measurements[gate.measurement]
    if drop.interval is None or drop.interval.high <= gate.limit:
        return
    needed = math.ceil(len(data) * drop.interval.high / gate.limit * 1.05) if gate.limit else None
    do = f"evaluate on about {needed} samples, or ask for less: a larger --max-drop, or a lower --confidence"
    raise Refused(f"prove a drop of at most {gate.limit:g} with {len(data)} samples",
                  found=f"even a model that gives the same answers would only be shown to lose less than {drop.interval.high:.2g}",
                  do=do if needed else "give a --max-drop above 0; a share of 0 cannot be proven with any number of samples")


def check_known(goal: str, bench: Bench) -> None:
    """Refused where the goal can be neither measured nor estimated on the target: no candidate could be shown to be better."""
    if bench.target.here or goal == "size":
        return
    found = bench.estimated(changes_of(bench.original, INTEGER.recipe, bench.target)).get(GOALS[resource_of(goal)])
    if found is None or found.value is None:
        why = found.why if found else "there is no model of it for another machine"
        raise Refused(f"minimise {goal} on {bench.target.name}", found=why,
                      do="use --minimize size, or a target table of your own with [macs_per_s] or [[speeds]] (docs/targets.md)")


def default_drop(metric: Metric, bench: Bench, original: Trial) -> float:
    """The limit of the drop where none was given: one point of a share, 1 % of any other metric's value, and fidelity's own."""
    if metric.name == "fidelity":
        return DEFAULT_FIDELITY[fidelity_quantity(bench.outputs)]
    if metric.name in SHARES or metric.name.startswith("top"):
        return DEFAULT_DROP
    found = original.measurements.get(metric.name)
    if found is None or not found.value:
        raise Refused(f"take a default limit for the drop of {metric.name}", found="the original's value is 0 or not known",
                      do="give --max-drop")
    return DEFAULT_DROP * abs(found.value)
