"""Plan: a recipe resolved against an inventory and a target. What would happen to each layer and what it would cost."""

from __future__ import annotations

from dataclasses import dataclass

from whet.core.document import Document
from whet.core.measurement import Measurement
from whet.core.recipe import Recipe


@dataclass(frozen=True)
class PlannedLayer(Document):
    """What happens to one layer.

    technique: "" where the layer stays as it is. weights, activations: the dtype each will have ("int8", "uint8", "float32").
    runs_as: the kernel that the target's runtime will really execute ("QLinearConv", "float32 Conv").
    note: why it stays, or what to know.
    """

    name: str
    op: str
    technique: str
    weights: str
    activations: str
    runs_as: str
    bytes_before: int
    bytes_after: int
    note: str = ""


@dataclass(frozen=True)
class Plan(Document):
    """The layers, the costs (all estimates, each with its method) and the warnings that should be read before any work."""

    model: str
    recipe: Recipe
    target: str
    layers: tuple[PlannedLayer, ...]
    costs: tuple[Measurement, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def bytes_before(self) -> int:
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        return sum(layer.bytes_after for layer in self.layers)
