"""Empirical bias correction with whole models: Nagel et al. 2019, section 4.2 and appendix D, one layer at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from whet.compress.graph import GraphModel
from whet.compress.runtime import exposed, opened
from whet.device.session import run

Array = np.ndarray[Any, Any]


def corrected(quantised: GraphModel, exact: GraphModel, layers: Sequence[tuple[str, int]], feeds: Mapping[str, Array],
              biases: Mapping[str, Array]) -> dict[str, Array]:
    """The new bias of each layer (name, axis of its channels), in the order given. Both models run as a whole for each of them, and each
    correction is put into the quantised model before the next layer is looked at. biases: as they are now."""
    found: dict[str, Array] = {}
    for name, axis in layers:
        now, before = (_output(model, name, feeds) for model in (quantised, exact))
        channels = now.shape[axis]
        error = np.array([np.take(now, channel, axis).mean(dtype=np.float64) - np.take(before, channel, axis).mean(dtype=np.float64)
                          for channel in range(channels)])
        found[name] = (biases[name] - error).astype(np.float32)
        quantised = quantised.with_floats({}, {name: found[name]})
    return found


def _output(model: GraphModel, name: str, feeds: Mapping[str, Array]) -> Array:
    (node,) = (node for node in model.ir.graph if node.name == name)
    tensor = node.outputs[0].name or ""
    with opened(exposed(model, [tensor]), threads=1) as session:
        return run(session, feeds, [tensor])[tensor]
