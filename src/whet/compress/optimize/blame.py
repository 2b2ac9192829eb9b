"""Which layers do the harm: each one quantised alone, the rest in float, and the model's output compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from whet.compress.apply import changes_for, observed
from whet.compress.calibrate import collect
from whet.compress.data.dataset import Array, Dataset
from whet.compress.graph import GraphModel
from whet.compress.ranges import NEEDS_HISTOGRAM
from whet.compress.runtime import outputs_of
from whet.compress.technique import technique
from whet.core.progress import track
from whet.core.recipe import Step
from whet.core.target import Target

SAMPLES = 64


def damage(model: GraphModel, step: Step, target: Target, calibration: Dataset, *, samples: int = SAMPLES) -> dict[str, float]:
    """For each weighted layer that the step (a static one) would quantise: the relative error energy of the model's float outputs
    when that layer alone is quantised, sum |y' - y|^2 / sum |y|^2, on up to ``samples`` calibration samples.
    """
    used = technique(step.technique)
    options = used.checked(step.options)
    folded = model.folded()
    whole = folded.copied().integer_sites([node.name for node in folded.nodes if step.selects(node)], target)
    weighted = [name for name, site in whole.items() if site.node.op_type in ("Conv", "Gemm", "MatMul")]
    some = calibration.take(range(min(samples, len(calibration))))
    statistics = collect(folded, observed(whole), some, histogram=options.get("ranges") in NEEDS_HISTOGRAM)
    reference = outputs_of(folded, some)
    return {name: _alone(folded, name, statistics, options, target, some, reference, step)
            for name in track(weighted, "finding the layers that do harm", len(weighted))}


def _alone(folded: GraphModel, name: str, statistics: Mapping[str, Any], options: Mapping[str, Any], target: Target, data: Dataset,
           reference: Mapping[str, Array], step: Step) -> float:
    working = folded.copied()
    found = working.integer_sites([name], target)
    missing = [tensor for tensor in observed(found) if tensor not in statistics]
    known = dict(statistics)
    if missing:  # alone, a product ends in float where it did not among its neighbours, or the other way round
        known |= collect(folded, missing, data, histogram=options.get("ranges") in NEEDS_HISTOGRAM)
    changes = changes_for(working, found, known, technique(step.technique), options, target)
    return relative_error(reference, outputs_of(working.with_integers(found, changes, target), data))


def relative_error(reference: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """The largest of sum |y' - y|^2 / sum |y|^2 over the float outputs; 0 where an output is all zeros and stays so."""
    errors = [0.0]
    for name, values in reference.items():
        if np.issubdtype(values.dtype, np.floating):
            wide = values.astype(np.float64)
            power = float((wide**2).sum())
            error = float(((found[name].astype(np.float64) - wide) ** 2).sum())
            errors.append(error / power if power else float(error > 0))
    return max(errors)


def sentences(found: Mapping[str, float], ops: Mapping[str, str], most: int = 5) -> tuple[str, ...]:
    """The worst layers in words, worst first."""
    total = sum(found.values()) or 1.0
    worst: Sequence[str] = sorted(found, key=lambda name: -found[name])[:most]
    return tuple(f"{name} ({ops.get(name, '?')}): quantised alone it changes the output by {10 * np.log10(max(found[name], 1e-12)):.1f} dB "
                 f"relative to the output itself, {found[name] / total:.0%} of the damage of all layers" for name in worst)
