"""What is remembered of a tensor while calibration data streams through: a few kB, however many samples there are.

Range: the lowest and highest value, and an exponential moving average of the lowest and highest of each ``GROUP`` samples (Jacob et
al. 2018, section 3.1.1: "aggregates these ranges via exponential moving averages"), however they are cut into batches.
Histogram: ``BINS`` equal bins over a range that doubles when a value falls outside it, pairs of bins being merged (the way of
TensorRT's and torch.ao's streaming histograms, but with powers of two, so that a merge loses nothing).
Tails: the few lowest and highest numbers, for percentiles near 100 (``tails.py``).
Channels, where an axis is named: lowest, highest, mean and standard deviation along every other axis, batches put together as in
Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances", equation 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from whet.compress.grid import Array
from whet.compress.tails import Numbers, farthest, joined, nothing
from whet.core.errors import Refused

BINS = 2048
ROOM = 1.25  # how much farther than the first batch the bins reach
MOMENTUM = 0.9
GROUP = 32
_BLOCK = 1 << 16  # numbers that are counted at a time: what is made of them stays in the cache


@dataclass(frozen=True, eq=False)
class Channels:
    """Of the channels [C] of one batch; count: numbers of each; squares: sum of (x - mean)^2."""

    low: Array
    high: Array
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]
    count: int


@dataclass(frozen=True, eq=False)
class Seen:
    """Of one batch of a tensor, all but its histogram."""

    low: float
    high: float
    count: int
    channels: Channels | None = None
    lowest: Numbers = field(default_factory=nothing)
    highest: Numbers = field(default_factory=nothing)


@dataclass
class Statistics:
    """One tensor's, updated batch by batch. ``name`` is the tensor's; ``count`` how many numbers were seen.

    channel_axis: the axis [C] of the tensor that the channel statistics are asked for, or None. channel_low, channel_high (float32,
    as seen), channel_mean and channel_std (float64, the population's): [C] each, None where not asked for or nothing was seen.
    tails: of the numbers of one sample, the share that is kept of either end (a share of all numbers, times the samples to come); 0
    keeps none. lowest, highest: those below and above 0, at most ``kept`` each, the farthest first.
    """

    name: str
    with_histogram: bool = False
    channel_axis: int | None = None
    tails: float = 0.0
    low: float = np.inf
    high: float = -np.inf
    lowest: Numbers = field(default_factory=nothing)
    highest: Numbers = field(default_factory=nothing)
    kept: int = 0
    mean_low: float = 0.0
    mean_high: float = 0.0
    count: int = 0
    batches: int = 0
    # bins cover [start, start + BINS * width); width 0 until the first batch
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    start: float = 0.0
    width: float = 0.0
    _closed: tuple[float, float] | None = None  # the moving averages before the open group
    _open: tuple[float, float, int] = (np.inf, -np.inf, 0)  # its lowest, highest and samples
    channel_low: Array | None = None
    channel_high: Array | None = None
    channel_mean: NDArray[np.float64] | None = None
    _channel_count: int = 0  # numbers of each channel
    _squares: NDArray[np.float64] | float = 0.0  # [C] sum of (x - mean)^2

    @property
    def channel_std(self) -> NDArray[np.float64] | None:
        """[C] standard deviation of each channel over all that was seen."""
        return None if self.channel_mean is None else np.sqrt(self._squares / self._channel_count)

    def update(self, values: Array) -> None:
        """Add a batch of any shape, which is a group of its own. Raises Refused where it holds NaN or infinity."""
        seen = self.look(values)
        if seen is None:
            return
        self.join(seen)
        if self.with_histogram:
            self.counts += tally(values, self.start, self.width)

    def look(self, values: Array, samples: int = GROUP) -> Seen | None:
        """What a batch of so many samples, of any shape, will add, None where it is empty; changes nothing. Raises Refused where it holds
        NaN or infinity."""
        if values.size == 0:
            return None
        if self.tails:
            count, flat = _most(self.tails, values.size, samples), values.ravel()
            low, lowest = farthest(flat, count, self.lowest, lowest=True)
            high, highest = farthest(flat, count, self.highest, lowest=False)
        else:
            low, high, lowest, highest = float(values.min()), float(values.max()), nothing(), nothing()
        self._check_finite(low, high)
        channels = None
        if self.channel_axis is not None:
            if not -values.ndim <= self.channel_axis < values.ndim:
                raise Refused(f"calibrate the channels of {self.name!r} on axis {self.channel_axis}", found=f"{values.ndim} dimensions")
            channels = _channels(values, self.channel_axis % values.ndim)
        return Seen(low, high, values.size, channels, lowest, highest)

    def checked(self, seen: Seen) -> Seen:
        """``seen``, of a batch that somebody else looked at. Raises Refused where it holds NaN or infinity."""
        self._check_finite(seen.low, seen.high)
        return seen

    def join(self, seen: Seen, samples: int = GROUP) -> None:
        """Add what ``look`` saw of a batch of so many samples. Where there is a histogram, what ``tally`` counts on the bins as they
        then are (``start``, ``width``) is to be added to ``counts`` before the next batch."""
        low, high = seen.low, seen.high
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.tails:
            self.kept = self.kept or _most(self.tails, seen.count, samples)
            self.lowest = joined(self.lowest, seen.lowest, self.kept, lowest=True)
            self.highest = joined(self.highest, seen.highest, self.kept, lowest=False)
        self._average(low, high, samples)
        self.batches += 1
        self.count += seen.count
        if self.with_histogram:
            self._make_room(low, high)
        if seen.channels is not None:
            self._join_channels(seen.channels)

    def _check_finite(self, low: float, high: float) -> None:
        if not (np.isfinite(low) and np.isfinite(high)):
            raise self.refusal()

    def refusal(self) -> Refused:
        """That a batch holds what no grid can."""
        return Refused(f"calibrate the tensor {self.name!r}", found="NaN or infinity in its activations",
                       do="look for NaN in the calibration data, or for an overflow in the model")

    @property
    def edges(self) -> NDArray[np.float64]:
        """The ``BINS`` + 1 edges of the histogram."""
        return self.start + self.width * np.arange(BINS + 1, dtype=np.float64)

    def _average(self, low: float, high: float, samples: int) -> None:
        """The open group counts like a whole one, for the data may end with it."""
        low, high, samples = min(self._open[0], low), max(self._open[1], high), self._open[2] + samples
        before = self._closed
        self.mean_low = low if before is None else MOMENTUM * before[0] + (1 - MOMENTUM) * low
        self.mean_high = high if before is None else MOMENTUM * before[1] + (1 - MOMENTUM) * high
        if samples < GROUP:
            self._open = low, high, samples
        else:
            self._closed, self._open = (self.mean_low, self.mean_high), (np.inf, -np.inf, 0)

    def _join_channels(self, new: Channels) -> None:
        if self.channel_low is None or self.channel_high is None or self.channel_mean is None:
            self.channel_low, self.channel_high, self.channel_mean, self._squares = new.low, new.high, new.mean, new.squares
        elif len(new.mean) != len(self.channel_mean):
            found = f"{len(new.mean)} channels on axis {self.channel_axis} after {len(self.channel_mean)}"
            raise Refused(f"calibrate the channels of {self.name!r}", found=found, do="name an axis of fixed size")
        else:
            self.channel_low, self.channel_high = np.minimum(self.channel_low, new.low), np.maximum(self.channel_high, new.high)
            apart, both = new.mean - self.channel_mean, self._channel_count + new.count
            self.channel_mean = self.channel_mean + apart * (new.count / both)
            self._squares = self._squares + new.squares + apart**2 * (self._channel_count * new.count / both)
        self._channel_count += new.count

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


def tally(values: Array, start: float, width: float) -> NDArray[np.int64]:
    """How many of the values (any shape) lie in each of ``BINS`` bins [start, start + BINS * width); a few hundred kB besides."""
    flat, counts = values.ravel(), np.zeros(BINS, np.int64)
    for at in range(0, flat.size, _BLOCK):
        index = ((flat[at : at + _BLOCK].astype(np.float64) - start) / width).astype(np.int32)
        np.clip(index, 0, BINS - 1, out=index)
        counts += np.bincount(index, minlength=BINS)
    return counts


def _most(tails: float, numbers: int, samples: int) -> int:
    """How many numbers of an end a percentile may need: those beyond it, and the two beside it."""
    return int(tails * numbers / samples) + 2


def _channels(values: Array, axis: int) -> Channels:
    others = tuple(at for at in range(values.ndim) if at != axis)
    if values.dtype != np.float64:
        values = values.astype(np.float32, copy=False)  # squares overflow in float16
    mean = values.mean(axis=others, dtype=np.float64, keepdims=True)
    apart = values - mean.astype(values.dtype)
    squares = np.square(apart, out=apart).sum(axis=others, dtype=np.float64)
    return Channels(values.min(axis=others), values.max(axis=others), mean.ravel(), squares, values.size // mean.size)
