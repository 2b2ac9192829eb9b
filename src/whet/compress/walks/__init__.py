"""Ways through a model: one file for each kind of view that techniques are shown. A walk builds the views, lets the technique work on
each, and gives back a new model with what came of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from whet.compress.data import Dataset
from whet.compress.graph import GraphModel
from whet.compress.journal import Journal
from whet.compress.technique import Technique
from whet.core.errors import Refused
from whet.core.target import Target

Options = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Work:
    """A step, resolved: the technique, its options for each layer that it is to be done to (in order of execution), target and data.

    last: whether no step comes after it, so that nothing need stay as later steps want it. journal: of what takes long to learn.
    """

    technique: Technique
    layers: Mapping[str, Options]
    target: Target
    data: Dataset | None
    last: bool = True
    journal: Journal = field(default_factory=Journal)

    @property
    def options(self) -> Options:
        """The options of the step, where they are the same for all its layers."""
        return next(iter(self.layers.values()))

    @property
    def calibration(self) -> Dataset:
        """The calibration samples. Raises Refused where there are none."""
        if self.data is None:
            raise Refused(f"apply {self.technique.name} without calibration data",
                          do="give some with --calibration; 100 to 300 samples are usual")
        return self.data

    @property
    def samples(self) -> Dataset:
        """As many of the calibration samples as the option ``samples`` says. Raises Refused where there are none."""
        if len(self.calibration) == 0:
            raise Refused("calibrate", found="an empty data set", do="give at least one sample; 100 to 300 are usual")
        return self.calibration.first(int(self.options["samples"]))


Walk = Callable[[GraphModel, Work], GraphModel]

# The view of a technique -> the file here whose function ``walk`` shows it.
_FILES = {"LayerView": "layers", "GramView": "grams", "SampleView": "samples", "ErrorView": "errors", "Chain": "chains",
          "SharedInput": "shared_inputs", "TensorView": "tensors", "Block": "blocks"}


def walk_of(used: Technique) -> Walk:
    """The way through the model for what the technique must see."""
    name = "sites" if used.in_sites else _FILES[used.view.__name__]
    found: Walk = importlib.import_module(f"whet.compress.walks.{name}").walk
    return found
