"""The bench: one original, one data set, one target, and every measurement of a candidate made against them in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from whet.compress import estimate
from whet.compress.artifacts import files_of
from whet.compress.data.dataset import Array, Dataset
from whet.compress.estimate import Planned
from whet.compress.evaluate import Comparison, Metric, compare_outputs
from whet.compress.graph import GraphModel
from whet.compress.inspect import inspect
from whet.compress.measure import macs_by_dtype
from whet.compress.runtime import outputs_of
from whet.core.inventory import Inventory
from whet.core.measurement import Measurement
from whet.core.target import Target
from whet.device.energy import energy
from whet.device.latency import interleave
from whet.device.memory import disk_size, memory_use
from whet.device.session import SPINNING_STOP, open_session


@dataclass(frozen=True, eq=False)
class Bench:
    """What every candidate is held against.

    outputs: the original's, on all samples of ``data``. feeds: one inference's inputs, for time and memory. path: the original's
    file. seconds: of timing, original and candidate together.
    """

    original: GraphModel
    path: Path
    inventory: Inventory
    data: Dataset
    metric: Metric
    target: Target
    outputs: Mapping[str, Array]
    feeds: Mapping[str, Array]
    confidence: float = 0.95
    seconds: float = 2.0

    def measure(self, model: GraphModel, path: Path, changes: Mapping[str, Planned]) -> dict[str, Measurement]:
        """All measurements of the candidate at ``path``, by name. changes: what was done to each layer, for estimates."""
        found = dict(self.quality(model).measurements)
        size = disk_size(files_of(model, path))
        own = inspect(model)
        costs = self._measured(model, path, own) if self.target.here else self.estimated(changes)
        return {**found, size.name: size, **costs}

    def quality(self, model: GraphModel) -> Comparison:
        """The candidate's outputs against the original's, paired."""
        found = self.outputs if model is self.original else outputs_of(model, self.data, threads=self.threads)
        return compare_outputs(self.outputs, found, self.data.labels, self.metric, confidence=self.confidence, data=self.data.content_hash)

    @property
    def threads(self) -> int | None:
        """Threads of the target here; elsewhere as many as this machine has, for only quality is measured."""
        return self.target.threads if self.target.here else None

    def _measured(self, model: GraphModel, path: Path, own: Inventory) -> dict[str, Measurement]:
        asked = {SPINNING_STOP: "1"}  # threads that spin on after a run would slow the other model down
        candidate = open_session(path, threads=self.threads, options={**model.session_options, **asked})
        original = open_session(self.path, threads=self.threads, options={**self.original.session_options, **asked})
        sessions = {"original": original} if path == self.path else {"original": original, "candidate": candidate}
        times = interleave(sessions, dict.fromkeys(sessions, self.feeds), parent="original", seconds=self.seconds)
        found = times.get("candidate", times["original"])
        memory = memory_use(path, feeds=self.feeds, threads=self.threads, options=model.session_options)
        spent = energy(candidate, self.feeds, macs=macs_by_dtype(own), bytes_moved=own.weight_bytes, seconds=min(self.seconds, 1.2))
        return estimate.by_name([*found.measurements, *memory, spent])

    def estimated(self, changes: Mapping[str, Planned]) -> dict[str, Measurement]:
        """Latency and memory on a target that is not here, by its table."""
        return estimate.by_name([
            estimate.latency_measurement(self.inventory, changes, self.target), estimate.latency_ms(self.inventory, changes, self.target),
            estimate.memory_measurement(self.inventory, changes, self.target),
        ])
