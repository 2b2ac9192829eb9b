"""What an optimised model must satisfy: what the user asked, what the target allows, and never worse than the original."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from whet.core.errors import Refused
from whet.core.gate import Gate
from whet.core.outcome import GOALS, resource_of
from whet.core.target import Target


@dataclass(frozen=True)
class Limits:
    """What the user asked. max_drop: None takes the default of the metric. The others: None asks nothing."""

    max_drop: float | None = None
    max_latency_ms: float | None = None
    max_size_bytes: float | None = None
    max_memory_bytes: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_drop", "max_latency_ms", "max_size_bytes", "max_memory_bytes"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise Refused(f"optimise with {name} = {value}", found="a limit below zero or not a number", do="give a limit of 0 or more")


def measured_by(goal: str) -> str:
    """The measurement that says how much there is of the goal. Raises Refused where the goal is none that can be minimised."""
    if goal not in GOALS:
        raise Refused(f"minimise {goal!r}", found="it cannot be minimised", do=f"choose one of: {', '.join(GOALS)}")
    return GOALS[goal]


def gates_for(goal: str, limits: Limits, target: Target, original: Mapping[str, float], default_drop: float) -> tuple[Gate, ...]:
    """The gates, the most important first. ``original``: values of the original model by measurement.

    Raises Refused where the goal cannot be minimised, or where nobody can tell how much of it the original takes.
    """
    if measured_by(goal) not in original:
        raise Refused(f"minimise the {goal} on {target.name}", found=f"the original has no {measured_by(goal)} to hold a candidate against",
                      do="minimise something else: size is always known")
    asked = "asked with --max-drop" if limits.max_drop is not None else "the default"
    drop = limits.max_drop if limits.max_drop is not None else default_drop
    found = [Gate("drop", drop, reason=asked), _not_worse(resource_of(goal), original)]
    if goal != "size":
        found.append(_not_worse("size", original))
    found += [Gate(name, limit, _unit(name), proven=proven, reason=reason) for name, limit, proven, reason in (
        ("latency_ms", limits.max_latency_ms, True, "asked with --max-latency"),
        ("size_bytes", limits.max_size_bytes, False, "asked with --max-size"),
        ("model_rss_bytes", limits.max_memory_bytes, False, "asked with --max-memory"),
        ("size_bytes", target.storage_bytes, False, f"storage of {target.name}"),
        ("model_rss_bytes", target.memory_bytes, False, f"memory of {target.name}"),
    ) if limit is not None]
    known = {(gate.measurement, gate.limit) for gate in found}  # a table may say the same as a limit and as its storage
    found += [Gate(name, limit, _unit(name), reason=f"limit of {target.name}") for name, limit in target.limits.items()
              if (name, limit) not in known]
    return tuple(found)


def _not_worse(goal: str, original: Mapping[str, float]) -> Gate:
    name = GOALS[goal]
    if goal == "latency":
        return Gate(name, 1.0, reason="not slower than the original")
    words = {"size": "not larger than the original", "memory": "no more memory than the original",
             "energy": "no more energy than the original"}
    return Gate(name, original[name], _unit(name), proven=False, reason=words[goal])


def _unit(measurement: str) -> str:
    """The unit that the name of a measurement ends in; a ratio or a share has none."""
    return {"bytes": " B", "ms": " ms", "mj": " mJ"}.get(measurement.rpartition("_")[2], "")
