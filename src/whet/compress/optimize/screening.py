"""A first look at a candidate: how far its outputs are from the original's on calibration samples. No labels, no timing, no file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from whet.compress.apply import apply_recipe
from whet.compress.data import Dataset
from whet.compress.graph import GraphModel
from whet.compress.grid import Array
from whet.compress.mixed.measured import divergence
from whet.compress.mixed.roundings import SAMPLES
from whet.compress.runtime import outputs_of
from whet.core.errors import WhetError
from whet.core.recipe import Recipe
from whet.core.target import Target


class Screen:
    """The original with some of the calibration samples."""

    def __init__(self, original: GraphModel, target: Target, calibration: Dataset) -> None:
        self.original, self.target, self.calibration = original, target, calibration
        self.some = calibration.first(SAMPLES)
        self._seen: dict[str, float] = {}

    @cached_property
    def expected(self) -> Mapping[str, Array]:
        return outputs_of(self.original, self.some)

    def divergence(self, recipe: Recipe) -> float:
        """Nats of KL divergence, or error energy over output energy; infinity where the recipe cannot be done to this model."""
        key = str(recipe.to_plain().get("step"))
        if key not in self._seen:
            try:
                made = apply_recipe(self.original, recipe, self.target, calibration=self.calibration)
                self._seen[key] = divergence(self.expected, outputs_of(made, self.some))
            except WhetError:
                self._seen[key] = float("inf")
        return self._seen[key]
