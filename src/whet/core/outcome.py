"""Outcome: all that ``optimize`` tried, measured and decided. It is what ``report.json`` holds and ``report.html`` shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from whet.core.artifact import Artifact
from whet.core.document import Document, FrozenMap
from whet.core.gate import Gate, Verdict
from whet.core.measurement import Measurement
from whet.core.recipe import Recipe

ORIGINAL = "original"
"""The name of the trial that is the model as it came."""

GOALS = {"latency": "latency_ratio", "size": "size_bytes", "memory": "model_rss_bytes", "energy": "energy_mj", "drop": "drop"}
"""What can be minimised, and the measurement that says how much there is of it."""


def resource_of(goal: str) -> str:
    """What a model may not take more of than the original, and a cheaper one takes less of: the goal, or time where that is the drop."""
    return "latency" if goal == "drop" else goal


@dataclass(frozen=True)
class Trial(Document):
    """One candidate. The original is a trial too (``name`` "original", an empty recipe).

    status: "measured"; "skipped" (known beforehand to be of no use: ``note`` says why); "failed" (``note`` is the error).
    measurements: by name: parent's and own quality, drop, size_bytes, latency_ms, latency_p95_ms, latency_ratio, ...
    on_front: no other trial is better in everything. seconds: what making it took.
    path: of its model, relative to the output folder; "" where there is none.
    """

    name: str
    recipe: Recipe
    status: Literal["measured", "skipped", "failed"] = "measured"
    note: str = ""
    artifact: Artifact | None = None
    path: str = ""
    measurements: Mapping[str, Measurement] = field(default_factory=FrozenMap)
    verdict: Verdict | None = None
    on_front: bool = False
    seconds: float = 0.0

    def value(self, name: str) -> float | None:
        """The value of a measurement, None where it is missing or has none."""
        found = self.measurements.get(name)
        return None if found is None else found.value

    @property
    def passed(self) -> bool:
        return self.status == "measured" and self.verdict is not None and self.verdict.passed


@dataclass(frozen=True)
class LayerReport(Document):
    """One layer of the original beside the same layer of the winner (or of the trial that came closest).

    sqnr_db: signal to quantisation noise of its output on real samples, error of the layers before it included; higher is better.
    time_before_us, time_after_us: in the runtime, with the operators fused into it; None where the runtime does not tell.
    damage: relative error of the model's output when this layer alone is changed; only computed where the blame was asked for.
    """

    name: str
    op: str
    bytes_before: int
    bytes_after: int
    dtype_before: str = "float32"
    dtype_after: str = "float32"
    macs: int | None = None
    sqnr_db: float | None = None
    time_before_us: float | None = None
    time_after_us: float | None = None
    damage: float | None = None


@dataclass(frozen=True)
class OperatorReport(Document):
    """All nodes of one operator, as the runtime executes them, in the original and in the winner (or the closest trial).

    op: the executed kernel's name ("QLinearConv" where Q, Conv and DQ were fused). calls_before, calls_after: executed nodes, 0
    where there is none. time_before_us, time_after_us: of one inference, over all of them; None where the runtime does not tell.
    """

    op: str
    calls_before: int = 0
    calls_after: int = 0
    time_before_us: float | None = None
    time_after_us: float | None = None


@dataclass(frozen=True)
class Stage(Document):
    """One stage of the search. trials: the candidates that it made, by name. best: the best of all that were made by then and passed,
    else the one that came closest; "" where there was none. passed: whether ``best`` passed. note: why nothing was made, or what
    decided what was. seconds: of the whole stage.
    """

    name: str
    trials: tuple[str, ...] = ()
    best: str = ""
    passed: bool = False
    note: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Outcome(Document):
    """The verdict first: ``winner`` is the name of a trial, or "" where none passed; then ``closest`` came nearest.

    headline: the verdict in one sentence. blame: the layers that do most harm, worst first, as sentences. layers: of the
    winner, else of the closest. data: sources, hashes and counts of evaluation and calibration. machine: what it ran on.
    command: how to do it again. notes: what a reader must know (data split off, an estimate instead of a measurement).
    operators: what the runtime executes, before and after; () where it was not profiled. stages: of the search, in their order.
    """

    model: str
    target: str
    goal: str
    metric: str
    gates: tuple[Gate, ...]
    trials: tuple[Trial, ...]
    winner: str
    headline: str
    closest: str = ""
    blame: tuple[str, ...] = ()
    layers: tuple[LayerReport, ...] = ()
    data: Mapping[str, Any] = field(default_factory=FrozenMap)
    machine: Mapping[str, Any] = field(default_factory=FrozenMap)
    tools: Mapping[str, str] = field(default_factory=FrozenMap)
    command: str = ""
    notes: tuple[str, ...] = ()
    began: str = ""
    seconds: float = 0.0
    original: str = ORIGINAL
    operators: tuple[OperatorReport, ...] = ()
    stages: tuple[Stage, ...] = ()

    def trial(self, name: str) -> Trial | None:
        """The trial of that name, None where there is none."""
        return next((trial for trial in self.trials if trial.name == name), None)
