"""From scores to measurements: the metric of parent and candidate, and the drop, each with its interval."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from whet.compress.evaluate.intervals import (
    mean_interval,
    percentile_interval,
    proportion_interval,
    replicated,
    resamples_for,
    tango_interval,
)
from whet.compress.evaluate.metrics import Metric, Scored
from whet.core.measurement import Interval, Measurement

Array = np.ndarray[Any, Any]
Three = tuple[Measurement, Measurement, Measurement]

FEW_CHANGES = 5  # up to so many changed answers, too many bootstrap samples hold none of them


def measured(metric: Metric, scored: Scored, n: int, level: float, seed: int) -> Three:
    """(parent, candidate, drop) of ``n`` samples; the intervals are two-sided of confidence ``level``."""
    parent, candidate, drop = (_of_whole if scored.whole else _of_samples)(metric, scored, n, level, seed)
    return parent, decibels(candidate) if metric.name == "sqnr_db" else candidate, drop


def discordant(metric: Metric, scored: Scored) -> tuple[int | None, int | None]:
    """(lost, gained): how many samples only the parent has right, and only the candidate; (None, None) for other metrics."""
    parent, candidate = scored.parent, scored.candidate
    if parent is None or candidate is None or parent.dtype != bool:
        return None, None
    only_parent, only_candidate = int((parent & ~candidate).sum()), int((candidate & ~parent).sum())
    return (only_parent, only_candidate) if metric.direction == "higher" else (only_candidate, only_parent)


def _of_samples(metric: Metric, scored: Scored, n: int, level: float, seed: int) -> Three:
    """Of a metric that is the mean of a value for each sample."""
    assert scored.candidate is not None
    candidate = _mean(metric, scored.candidate, scored.method, level, seed)
    if scored.parent is None:
        return _no_parent(metric), candidate, replace(candidate, name="drop", direction="lower")
    parent = _mean(metric, scored.parent, scored.method, level, seed)
    lost, gained = discordant(metric, scored)
    if lost is not None and gained is not None:
        value, interval, how = (lost - gained) / n, tango_interval(lost, gained, n, level), "Tango's score interval of paired shares"
    else:
        difference = _sign(metric) * (scored.parent - scored.candidate)
        value = float(difference.mean())
        interval, how = mean_interval(difference, level, seed)
    drop = Measurement("drop", value, interval=interval, method=f"{metric.name}, paired over samples: {scored.method}; {how}")
    return parent, candidate, drop


def _of_whole(metric: Metric, scored: Scored, n: int, level: float, seed: int) -> Three:
    """Of a metric that only a whole sample has."""
    assert scored.whole is not None
    assert scored.values is not None
    resamples = min(resamples_for(n), scored.resamples or resamples_for(n))
    draws = replicated(scored.whole, n, seed, resamples)
    method = f"{scored.method}; percentile bootstrap of {resamples} over samples"
    before, after = scored.values
    interval = percentile_interval(draws[:, -1], level)
    candidate = Measurement(metric.name, after, interval=interval, direction=metric.direction, method=method)
    if before is None:
        return _no_parent(metric), candidate, replace(candidate, name="drop", direction="lower")
    parent = replace(candidate, value=before, interval=percentile_interval(draws[:, 0], level))
    value, interval = _sign(metric) * (before - after), percentile_interval(_sign(metric) * (draws[:, 0] - draws[:, 1]), level)
    if interval and scored.changed is not None and scored.changed <= FEW_CHANGES:
        interval, method = _with_unseen(metric, scored, n, interval), f"{method}, widened for changes too rare to be seen"
    return parent, candidate, Measurement("drop", value, interval=interval, method=f"{metric.name}, paired: {method}")


def _with_unseen(metric: Metric, scored: Scored, n: int, interval: Interval) -> Interval:
    """A bootstrap of answers of which none differs has no width, though 3 in n may. So the upper end is at least the drop there would
    be if as many more right answers were lost as Clopper-Pearson's upper end allows."""
    assert scored.unseen is not None
    assert scored.changed is not None
    assert scored.values is not None
    assert scored.values[0] is not None
    allowed = math.ceil(n * proportion_interval(scored.changed, n, interval.confidence).high) - scored.changed
    worst = _sign(metric) * (scored.values[0] - scored.unseen(allowed))
    return replace(interval, high=max(interval.high, worst))


def _mean(metric: Metric, values: Array, method: str, level: float, seed: int) -> Measurement:
    if values.dtype == bool:
        interval, how = proportion_interval(int(values.sum()), len(values), level), "Clopper-Pearson interval"
    else:
        interval, how = mean_interval(values, level, seed)
    return Measurement(metric.name, float(values.mean()), interval=interval, direction=metric.direction, method=f"{method}; {how}")


def _sign(metric: Metric) -> int:
    return 1 if metric.direction == "higher" else -1


def _no_parent(metric: Metric) -> Measurement:
    return Measurement(metric.name, None, direction=metric.direction, why="it compares the candidate with this parent")


def decibels(energy: Measurement) -> Measurement:
    """SQNR = -10 log10(error energy / signal energy), with the ends of the interval exchanged."""
    value, interval = energy.value, energy.interval
    if not value:
        return replace(energy, value=None, unit="dB", interval=None, why="the outputs are identical, so the SQNR is infinite")
    if interval:
        ends = (-10 * math.log10(end) if end > 0 else None for end in (interval.high, interval.low))
        low, high = ends
        interval = Interval(low, high, interval.confidence) if low is not None and high is not None else None
    return replace(energy, value=-10 * math.log10(value), unit="dB", interval=interval)
