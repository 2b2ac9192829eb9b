"""Outliers of activations moved into the weights, where they hurt less."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from whet.compress.grid import Array, Floats
from whet.compress.technique import LANGUAGE_OPS, Foresight, Search
from whet.compress.views import Scales, SharedInput
from whet.core.inventory import Layer
from whet.core.target import Target

OPS = frozenset({"Conv", "Gemm", "MatMul", "Linear"})
FLOOR = 1e-5  # least share of the strongest weight that a channel counts with, as in the authors' code (clamp of the weight scales)


def smoothquant(view: SharedInput, target: Target, *,
                alpha: Annotated[float, Search(0.5, 0.35, 0.65, 0.8, 0.95, only=False, least=0.0, most=1.0,
                                               help="how much of the range goes from the activations to the weights")] = 0.5,
                insert: Annotated[bool, Search(False, True, help="also where the factors need a Mul of their own")] = False) -> Scales:
    """Divide the channels of an input by factors that even their ranges out, and multiply the weights of the layers that read it.

    Paper: Xiao et al. 2023, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", section 4,
    equations 3 and 4.
    Needs: calibration.
    Cost: one pass of the calibration data; then one over the weights.
    Limits: before the step that rounds. Convolutions of one group and matrix products with constant weights. Factors go into what makes the
    input (LayerNormalization, batch norm, Mul, Add, another layer, through Relu); where something else makes it, or others read it
    too, it is left alone but with ``insert``, which puts a Mul there. In language models the norm or the layer in front takes
    them, and nothing is inserted.

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), over the samples and over all layers that read the input;
    Y = (X diag(s)^-1) (diag(s) W) = X W. A channel that was 0 on all samples gets the largest s that
    leaves its weights no wider than the others', and no larger one than the others have: it is magnified as little as can be.
    """
    strongest = np.max([np.abs(layer.weight).max(axis=_all_but(1, layer.weight.ndim)) for layer in view.layers
                        if layer.weight is not None], axis=0)
    return smoothing(view.peaks, strongest, alpha)


def smoothing(peaks: Array, strongest: Array, alpha: float) -> Floats:
    """[in] s. peaks: [in] max|X_j|; strongest: [in] max|W_j|. All 1 where either is 0 everywhere."""
    live, widest = peaks > 0, float(strongest.max(initial=0))
    if not live.any() or widest == 0:
        return np.ones(len(peaks), np.float32)
    weights = np.maximum(strongest.astype(np.float64), FLOOR * widest)
    scales = np.where(live, peaks, 1.0).astype(np.float64) ** alpha / weights ** (1 - alpha)
    unseen = np.minimum(scales[live].max(), (weights * scales)[live].max() / weights)
    return np.where(live, scales, unseen).astype(np.float32)


def foresee(layer: Layer, target: Target, *, alpha: float = 0.5, insert: bool = False) -> Foresight:
    """Layers that sum over channels of one input; nothing of their types or sizes changes."""
    if insert and layer.op in LANGUAGE_OPS:
        return Foresight(False, note="a language model's modules have no place for a Mul of its own: leave insert out")
    if layer.op not in OPS or not layer.weight_shape:
        return Foresight(False, note="it does not sum over channels with constant weights")
    return Foresight(True, layer.weight_dtype or "float32", note="its input's channels get more equal ranges", adjusts=True)


def _all_but(axis: int, rank: int) -> tuple[int, ...]:
    return tuple(i for i in range(rank) if i != axis)
