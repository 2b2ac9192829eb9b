"""What is remembered of a tensor while calibration data streams through: a few kB, however many samples there are.

Range: the lowest and highest value, and an exponential moving average of the lowest and highest of each batch (Jacob et al.
2018, section 3.1.1: "aggregates these ranges via exponential moving averages").
Histogram: ``BINS`` equal bins over a range that doubles when a value falls outside it, pairs of bins being merged (the way of
TensorRT's and torch.ao's streaming histograms, but with powers of two, so that a merge loses nothing).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from whet.compress.grid import Array
from whet.core.errors import Refused

BINS = 2048
ROOM = 1.25  # how much farther than the first batch the bins reach
MOMENTUM = 0.9


@dataclass
class Statistics:
    """One tensor's, updated batch by batch. ``name`` is the tensor's; ``count`` how many numbers were seen."""

    name: str
    with_histogram: bool = False
    low: float = np.inf
    high: float = -np.inf
    mean_low: float = 0.0
    mean_high: float = 0.0
    count: int = 0
    batches: int = 0
    # bins cover [start, start + BINS * width); width 0 until the first batch
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    start: float = 0.0
    width: float = 0.0

    def update(self, values: Array) -> None:
        """Add a batch of any shape. Raises Refused where it holds NaN or infinity."""
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise Refused(f"calibrate the tensor {self.name!r}", found="NaN or infinity in its activations",
                          do="look for NaN in the calibration data, or for an overflow in the model")
        self.low, self.high = min(self.low, low), max(self.high, high)
        first = self.batches == 0
        self.mean_low = low if first else MOMENTUM * self.mean_low + (1 - MOMENTUM) * low
        self.mean_high = high if first else MOMENTUM * self.mean_high + (1 - MOMENTUM) * high
        self.batches += 1
        self.count += values.size
        if self.with_histogram:
            self._count(values.astype(np.float32, copy=False).ravel(), low, high)

    @property
    def edges(self) -> NDArray[np.float64]:
        """The ``BINS`` + 1 edges of the histogram."""
        return self.start + self.width * np.arange(BINS + 1, dtype=np.float64)

    def _count(self, values: NDArray[np.float32], low: float, high: float) -> None:
        self._make_room(low, high)
        index = ((values.astype(np.float64) - self.start) / self.width).astype(np.int32)
        np.clip(index, 0, BINS - 1, out=index)
        self.counts += np.bincount(index, minlength=BINS)

    def _make_room(self, low: float, high: float) -> None:
        if self.width == 0.0:
            # One-sided data (after Relu) gets all bins on its side. With room for what later batches bring, for each doubling
            # leaves half of the bins empty.
            self.start = ROOM * min(low, 0.0)
            self.width = max(ROOM * max(high, 0.0) - self.start, 1e-30) / BINS
        while high >= self.start + BINS * self.width:
            self._merge(first=0)
        while low < self.start:
            self.start -= BINS * self.width
            self._merge(first=BINS // 2)

    def _merge(self, *, first: int) -> None:
        """Halve the resolution; the old bins fill one half from ``first`` on."""
        merged = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = np.zeros(BINS, np.int64)
        self.counts[first : first + BINS // 2] = merged
        self.width *= 2
