"""Explanation: what a recipe does to each layer and tensor of a model, why, and what would mend it at which price.

It is what ``whet explain --json`` writes and the page of ``--report`` shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from whet.core.document import Document, FrozenMap
from whet.core.measurement import Measurement
from whet.core.recipe import Recipe


@dataclass(frozen=True)
class Cause(Document):
    """Why a layer or tensor is hurt. kind: one word of a table ("weight_channel"); text: a sentence with its numbers; numbers: the same
    for machines. part: "weights" or "activations", whichever it speaks of."""

    kind: str
    part: str
    text: str
    numbers: Mapping[str, float] = field(default_factory=FrozenMap)


@dataclass(frozen=True)
class LayerBlame(Document):
    """A layer and the share of the damage that it does. Its parts are its weights and the grids of what it gives; the grid of an
    activation belongs to the layer that makes it, and that of an input of the model to an entry of its own (op "input").

    damage: relative error energy at the model's output, sum |y' - y|^2 / sum |y|^2 of its worst output, when this layer alone is
    rounded and the rest is float; weights_damage, activations_damage: when only that part is. None: not measured, or the layer has no
    such part. share: of the sum of the damages of all layers measured. kl: nats, when it alone is rounded; None where the output holds
    no class scores. without: relative error energy when everything is rounded but this layer.
    sqnr_db: of the layer's output with the errors of the layers before it; own_sqnr_db: with its own rounding alone.
    drop_without: the metric's drop when everything is rounded but this layer; None where it was not measured.
    """

    name: str
    op: str
    damage: float | None = None
    share: float | None = None
    weights_damage: float | None = None
    activations_damage: float | None = None
    without: float | None = None
    kl: float | None = None
    sqnr_db: float | None = None
    own_sqnr_db: float | None = None
    drop_without: float | None = None
    tensors: tuple[str, ...] = ()
    causes: tuple[Cause, ...] = ()


@dataclass(frozen=True)
class Counted(Document):
    """A histogram for the report. start, width: of its bins; low, high: the range of the grid; step: of the grid, at its coarsest.

    part: "weights" or "activations" of ``layer``; name: of the tensor.
    """

    layer: str
    name: str
    part: str
    start: float
    width: float
    counts: tuple[int, ...]
    low: float
    high: float
    step: float


@dataclass(frozen=True)
class Remedy(Document):
    """A change of the recipe that was tried. price: what is gained and paid, in words.

    status: "measured", or "failed" (``note`` is the error). damage: relative error energy at the output with it. drop: of the metric
    against the float model, None where there is none. gain: of the metric, positive = better (the drop without the remedy less the
    drop with it). size_bytes, size_share: by how much the file grows, of the quantised one. latency_ms: by how much an inference takes
    longer, 0 where no difference was shown; None where it was not timed (only the best ones are).
    """

    name: str
    layer: str
    price: str = ""
    recipe: Recipe = field(default_factory=Recipe)
    status: str = "measured"
    note: str = ""
    damage: float | None = None
    drop: float | None = None
    gain: float | None = None
    size_bytes: int | None = None
    size_share: float | None = None
    latency_ms: float | None = None


@dataclass(frozen=True)
class Explanation(Document):
    """All that was found. layers: the most harmful first; those that were not measured last. executed: their names in the order of
    execution.

    damage: relative error energy at the output of the quantised model, as it ships. quality: of the quantised model against the float
    one, by name (metric, drop, flips, kl, sqnr_db). size_bytes, original_bytes: of the two files. how: "simulated" (grids and rounded
    weights switched on one by one in one graph) or "remade" (the recipe done again for each layer). agreement: damage in the simulation
    over damage of the model that ships; None where it was remade. measured: how many layers were. samples: for damages; judged: for the
    metric.
    """

    model: str
    target: str
    recipe: Recipe
    headline: str
    metric: str
    damage: float
    quality: Mapping[str, Measurement] = field(default_factory=FrozenMap)
    layers: tuple[LayerBlame, ...] = ()
    executed: tuple[str, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    histograms: tuple[Counted, ...] = ()
    measured: int = 0
    samples: int = 0
    judged: int = 0
    how: str = "simulated"
    agreement: float | None = None
    original_bytes: int = 0
    size_bytes: int = 0
    data: Mapping[str, Any] = field(default_factory=FrozenMap)
    machine: Mapping[str, Any] = field(default_factory=FrozenMap)
    tools: Mapping[str, str] = field(default_factory=FrozenMap)
    command: str = ""
    notes: tuple[str, ...] = ()
    began: str = ""
    seconds: float = 0.0

    @property
    def useful(self) -> tuple[Remedy, ...]:
        """The remedies that take away a tenth of the damage or more."""
        return tuple(each for each in self.remedies if each.damage is not None and each.damage < 0.9 * self.damage)
