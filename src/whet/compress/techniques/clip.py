"""Ranges of activations, each found in the way that hurts its layer least."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from whet.compress.grid import Grid, fake_quantise, from_range
from whet.compress.ranges import METHODS, find_range
from whet.compress.technique import Foresight, Search
from whet.compress.techniques import static
from whet.compress.views import Range, TensorView
from whet.core.inventory import Layer
from whet.core.target import Target

PERCENTILES = (99.9, 99.99, 99.999)


def clip(view: TensorView, target: Target, *,
         bits: Annotated[int, Search(8, 4, 5, 6, 7, help="bits of the activations that the ranges are for")] = 8,
         samples: Annotated[int, Search(64, 16, help="how many calibration samples the layers' errors are measured on", only=False,
                                        least=1, most=100_000)] = 64) -> Range:
    """Find the range of each activation by trying all methods and keeping the one with the least error at the layers that read it.

    Paper: Nagel et al. 2021, "A White Paper on Neural Network Quantization", section 3.1 (ranges by local error, equations 9 and 10);
    Sakr et al. 2022, "Optimal Clipping and Magnitude-aware Differentiation for Improved Quantization-aware Training" (OCTAV), and
    the methods of ``static``.
    Needs: calibration.
    Cost: one pass with histograms, one over ``samples`` samples, and a product of its layers for each candidate; memory of 4 million
    numbers of one tensor and of what its layers make of them; as many of every other tensor wait in temporary files.
    Limits: before a step that uses the ranges (``static``); alone it changes nothing.

    Candidates (low, high): min-max, percentiles 99.9 to 99.999, squared error, entropy, OCTAV. Taken: the least mean of
    (f(x') - f(x))^2, where x' = x on the grid of the candidate and f the layers that read x.
    """
    candidates = [find_range(view.statistics, method, codes=1 << bits, percentile=percentile)
                  for method in METHODS for percentile in (PERCENTILES if method == "percentile" else PERCENTILES[-1:])]
    different = list(dict.fromkeys(candidates))
    errors = [view.error(fake_quantise(view.values, _grid(found, bits, target))) for found in different]
    # Errors that differ by the rounding of their sums only are equal, and of equals the first is taken, whatever the order of the samples.
    return different[int(np.argmax(np.array(errors) <= min(errors) * (1 + 1e-6)))]


def foresee(layer: Layer, target: Target, *, bits: int = 8, samples: int = 64) -> Foresight:
    """Whatever ``static`` would quantise."""
    found = static.foresee(layer, target)
    return Foresight(found.applies, layer.weight_dtype or "float32", note=found.note or "its ranges are found for a later step",
                     adjusts=True)


def _grid(found: Range, bits: int, target: Target) -> Grid:
    signed = target.activation_dtype.startswith("int")
    scale, zero = from_range(*found, bits=bits, signed=signed, symmetric=target.symmetric_activations)
    return Grid(bits, signed, scale, zero)
