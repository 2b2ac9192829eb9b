"""Which layers do the harm: each one quantised alone, the rest in float, and the model's output compared; and which became slower."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from whet.compress.data.dataset import Dataset
from whet.compress.evaluate.output_error import relative_error
from whet.compress.graph import GraphModel
from whet.compress.runtime import outputs_of
from whet.compress.technique import technique
from whet.compress.walks import Work
from whet.compress.walks.sites import walk
from whet.core.outcome import LayerReport
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
    some = calibration.first(samples)
    reference = outputs_of(folded, some)
    return {name: relative_error(reference, outputs_of(walk(folded, Work(used, {name: options}, target, some)), some))
            for name in track(weighted, "finding the layers that do harm", len(weighted))}


def sentences(found: Mapping[str, float], ops: Mapping[str, str], most: int = 5) -> tuple[str, ...]:
    """The worst layers in words, worst first; layers that do no harm at all are left out."""
    total = sum(found.values())
    worst: Sequence[str] = sorted((name for name in found if found[name] > 0), key=lambda name: -found[name])[:most]
    return tuple(f"{name} ({ops.get(name, '?')}): {_in_words(found[name], total)}" for name in worst)


def slower(layers: Iterable[LayerReport], most: int = 5) -> tuple[str, ...]:
    """The layers that take longer than in the original, in words, the greatest loss first."""
    losses = {layer: layer.time_after_us - layer.time_before_us for layer in layers
              if layer.time_after_us is not None and layer.time_before_us is not None}
    worst = sorted((layer for layer, loss in losses.items() if loss > 0), key=lambda layer: -losses[layer])[:most]
    return tuple(f"{layer.name} ({layer.op}): takes {layer.time_after_us:.1f} us, and {layer.time_before_us:.1f} us in the original"
                 for layer in worst)


def _in_words(error: float, total: float) -> str:
    if not np.isfinite(error):
        return "quantised alone it makes the output overflow"
    share = f", {error / total:.0%} of the damage of all layers" if np.isfinite(total) else ""
    return f"quantised alone it changes the output by {10 * np.log10(error):.1f} dB relative to the output itself{share}"
