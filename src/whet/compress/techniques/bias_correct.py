"""Biases that take back the mean error of quantisation."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from whet.compress.technique import Change, Foresight, Search
from whet.compress.views import ErrorView
from whet.core.inventory import Layer
from whet.core.target import Target

OPS = frozenset({"Conv", "Gemm", "ConvTranspose"})


def bias_correct(view: ErrorView, target: Target, *,
                 share: Annotated[float, Search(1.0, 0.5, help="how much of the mean error is taken back", only=False, least=0.0,
                                                most=1.0)] = 1.0,
                 samples: Annotated[int, Search(128, 32, help="how many calibration samples the error is measured on", only=False, least=1,
                                                most=100_000)] = 128) -> Change:
    """Take the mean error of each output channel out of the bias, layer after layer.

    Paper: Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias Correction", section 4.2 (equations 14
    to 16) in its empirical form, appendix D: the error is measured on data, and the layers before are corrected already.
    Needs: calibration.
    Cost: two forward passes over ``samples`` samples, in torch; memory of a few samples, and 32 MB of the tensors that wait for the next
    layer; the rest of those waits in temporary files.
    Limits: after a step that quantised something. Layers that have a bias, or can get one: convolutions and Gemm; a matrix product
    of three dimensions whose bias is an Add of its own is left alone.

    b'_c = b_c - share * mean(y'_c - y_c), over samples and positions; y' as the quantised model computes it, y in float.
    """
    bias = np.zeros(view.error.shape, np.float32) if view.layer.bias is None else view.layer.bias
    return Change(bias=(bias - share * view.error).astype(np.float32))


def foresee(layer: Layer, target: Target, *, share: float = 1.0, samples: int = 128) -> Foresight:
    """Convolutions and Gemm; nothing of their types or sizes changes."""
    if layer.op not in OPS:
        return Foresight(False, note="it has no bias of its own")
    return Foresight(True, layer.weight_dtype or "float32", runs_as="", note="its bias takes the mean error back", adjusts=True)
