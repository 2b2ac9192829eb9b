"""Latency of several models in one run, interleaved, so that whatever disturbs the machine disturbs all of them alike.

In every round each session is timed once, in an order shuffled anew; a round's ratio is candidate time / parent time, and the
median of those ratios cancels the drift (heat, clock, neighbours) that two separate runs would have taken for a difference.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from time import perf_counter_ns

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from whet.core.document import Document
from whet.core.errors import Refused
from whet.core.measurement import Interval, Measurement
from whet.core.progress import Task, task
from whet.device.machine import Stamp, stamp
from whet.device.session import Array, run
from whet.device.timing_intervals import bootstrap_interval, median_interval

# One timing lasts at least this long: a shorter one is mostly the clock and the first wake-up of the threads.
TIMING_NS = 1_000_000
# Untimed inferences before each timing. onnxruntime's threads spin for a while after a run and would take the cores from the
# session that comes next, and that session's weights have to come back into the cache: both end within this time.
SETTLE_NS = 1_000_000
# Above this an inference outlasts both effects by far, and settling would only double the cost.
LONG_NS = 50_000_000
PROGRESS_ROUNDS = 20  # between two reports: a display that redraws in every round would be measured too

Inference = Callable[[], object]


@dataclass(frozen=True)
class Latency(Document):
    """The speed of one session. One inference is one call with the feeds given, whatever their batch.

    median: "latency_ms", the median over the rounds. p95: "latency_p95_ms", over all single inferences. throughput: "throughput_per_s",
    inferences one after the other. ratio: "latency_ratio", this time / the parent's; below 1 is faster; exactly 1 for the parent.
    """

    median: Measurement
    p95: Measurement
    throughput: Measurement
    ratio: Measurement

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        return (self.median, self.p95, self.throughput, self.ratio)


def interleave(
    sessions: Mapping[str, onnxruntime.InferenceSession],
    feeds: Mapping[str, Mapping[str, Array]],
    *,
    parent: str,
    seconds: float = 2.0,
    min_rounds: int = 40,
    max_rounds: int = 5000,
    warmup: int = 5,
    confidence: float = 0.95,
    at: str | None = None,
) -> dict[str, Latency]:
    """Time all sessions in one run. feeds: for each session its inputs, by name.

    seconds: for the rounds of all sessions together; ``min_rounds`` are done even where that takes longer. warmup: untimed inferences
    of each session at the beginning. The garbage collector is off meanwhile. Raises Refused where ``parent`` or a session's feeds are
    missing or a feed does not fit, Unsupported where a model fails while running.
    """
    if parent not in sessions:
        raise Refused(f"compare latency with {parent!r}", found=f"the sessions are {list(sessions)}", do="name one of them as parent")
    absent = [name for name in sessions if name not in feeds]
    if absent:
        raise Refused("measure latency", found=f"no inputs for {absent[0]!r}", do="give feeds for every session")
    if min_rounds < 1 or max_rounds < min_rounds:
        raise Refused("measure latency", found=f"min_rounds {min_rounds} and max_rounds {max_rounds}", do="take 1 <= min <= max")
    for name, session in sessions.items():
        run(session, feeds[name])  # the one checked run: a model that fails does so here, with its reason
    inferences = {name: _inference(session, feeds[name]) for name, session in sessions.items()}
    with collector_off(), task("measure latency", max_rounds) as progress:
        timings = time_rounds(inferences, seconds, min_rounds, max_rounds, warmup, progress)
    where = stamp(at)
    return {name: _latency(own, timings[parent], name == parent, confidence, where) for name, own in timings.items()}


def time_rounds(
    inferences: Mapping[str, Inference], seconds: float, min_rounds: int, max_rounds: int, warmup: int, progress: Task
) -> dict[str, list[NDArray[np.float64]]]:
    """For every name its timings: one array a round, holding the ms of each inference timed in that round."""
    plans = {name: _Plan.of(inference, warmup) for name, inference in inferences.items()}
    timings: dict[str, list[NDArray[np.float64]]] = {name: [] for name in inferences}
    order, shuffle = list(inferences), Random(0).shuffle
    end = perf_counter_ns() + int(seconds * 1e9)
    for done in range(max_rounds):
        if done >= min_rounds and perf_counter_ns() > end:
            break
        shuffle(order)
        for name in order:
            timings[name].append(_time_once(inferences[name], plans[name]))
        if done % PROGRESS_ROUNDS == PROGRESS_ROUNDS - 1:
            progress.advance(PROGRESS_ROUNDS)
    return timings


@contextmanager
def collector_off() -> Iterator[None]:
    """No garbage collection inside: it would strike one of the models at random."""
    before = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@dataclass(frozen=True)
class _Plan:
    """How one session is timed in a round: ``settle`` untimed inferences, then ``repeats`` timed ones."""

    settle: int
    repeats: int

    @classmethod
    def of(cls, inference: Inference, warmup: int) -> _Plan:
        """After ``warmup`` untimed inferences (at least one), by the fastest of a few more."""
        for _ in range(max(1, warmup)):
            inference()
        fastest = float(_time_once(inference, cls(0, 3)).min() * 1e6)  # ns
        if fastest > LONG_NS:
            return cls(0, 1)
        return cls(settle=-int(-SETTLE_NS // fastest), repeats=-int(-TIMING_NS // fastest))


def _time_once(inference: Inference, plan: _Plan) -> NDArray[np.float64]:
    """ms of each of the plan's repeats [repeats]."""
    for _ in range(plan.settle):
        inference()
    marks = [perf_counter_ns()]
    for _ in range(plan.repeats):
        inference()
        marks.append(perf_counter_ns())
    return np.diff(marks) / 1e6


def _inference(session: onnxruntime.InferenceSession, feeds: Mapping[str, Array]) -> Inference:
    given = dict(feeds)
    return lambda: session.run(None, given)


def _latency(
    own: list[NDArray[np.float64]], parents: list[NDArray[np.float64]], is_parent: bool, confidence: float, where: Stamp
) -> Latency:
    typical = np.array([np.median(timing) for timing in own])  # [rounds], ms
    single = np.concatenate(own)
    ratios = typical / np.array([np.median(timing) for timing in parents])
    mean = bootstrap_interval(own, None, confidence)
    rate = Interval(1000 / mean.high, 1000 / mean.low, mean.confidence) if mean else None
    how = f"{len(own)} rounds of {len(own[0])} inferences, interleaved with the parent's in shuffled order"
    ratio = _measurement("latency_ratio", float(np.median(ratios)), median_interval(ratios, confidence), len(own), where,
                         f"median of paired ratios; {how}")  # fmt: skip
    if is_parent:
        ratio = _measurement("latency_ratio", 1.0, Interval(1.0, 1.0, confidence), len(own), where, "the parent itself")
    return Latency(
        median=_measurement("latency_ms", float(np.median(typical)), median_interval(typical, confidence), len(own), where,
                            f"median; {how}", " ms"),
        p95=_measurement("latency_p95_ms", float(np.quantile(single, 0.95)), bootstrap_interval(own, 0.95, confidence), len(single), where,
                         f"95th percentile of single inferences; {how}", " ms"),
        throughput=_measurement("throughput_per_s", 1000 / float(single.mean()), rate, len(single), where,
                                f"inferences / their total time; {how}", " /s"),
        ratio=ratio,
    )  # fmt: skip


def _measurement(name: str, value: float, interval: Interval | None, n: int, where: Stamp, method: str, unit: str = "") -> Measurement:
    direction = "higher" if name == "throughput_per_s" else "lower"
    return Measurement(name, value, unit=unit, interval=interval, direction=direction, n=n, method=method, device=where.device, at=where.at)
