"""Latency of several models in one run, interleaved, so that whatever disturbs the machine disturbs all of them alike.

In every round each session is timed once, in an order shuffled anew; a round's ratio is candidate time / parent time, and the
median of those ratios cancels the drift (heat, clock, neighbours) that two separate runs would have taken for a difference.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from whet.device.session import SPINNING_STOP, Array, run, spins_after_run
from whet.device.timing_intervals import bootstrap_interval, median_interval

# One timing lasts at least this long: a shorter one is mostly the clock and the first wake-up of the threads.
TIMING_NS = 1_000_000
# Untimed inferences before each timing: the session's weights and code come back into the caches, its threads awake.
SETTLE_NS = 1_000_000
# Above this an inference outlasts that by far, and settling would only double the cost.
LONG_NS = 50_000_000
# Two sessions over one and the same file differ by this much, because their memory lies differently (measured here: standard
# deviation 0.2 to 0.45 %, largest of 150 pairs 1.5 %). No number of rounds shows it, so every interval is widened by it.
SESSION_SPREAD = 0.01
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
    _check(sessions, feeds, parent, min_rounds, max_rounds)
    for name, session in sessions.items():
        run(session, feeds[name])  # the one checked run: a model that fails does so here, with its reason
    inferences = {name: _inference(session, feeds[name]) for name, session in sessions.items()}
    with collector_off(), task("measure latency") as progress:  # ends by time, so how much there is to do is not known
        timings = time_rounds(inferences, seconds, min_rounds, max_rounds, warmup, progress)
    where = stamp(at)
    how = f"interleaved in shuffled order with {len(sessions) - 1} other sessions" if len(sessions) > 1 else "alone"
    reference = {name: None if name == parent else timings[parent] for name in timings}
    return {name: _latency(own, reference[name], confidence, where, how) for name, own in timings.items()}


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


def _check(
    sessions: Mapping[str, onnxruntime.InferenceSession], feeds: Mapping[str, object], parent: str, min_rounds: int, max_rounds: int
) -> None:
    if parent not in sessions:
        raise Refused(f"compare latency with {parent!r}", found=f"the sessions are {list(sessions)}", do="name one of them as parent")
    absent = [name for name in sessions if name not in feeds]
    if absent:
        raise Refused("measure latency", found=f"no inputs for {absent[0]!r}", do="give feeds for every session")
    if min_rounds < 1 or max_rounds < min_rounds:
        raise Refused("measure latency", found=f"min_rounds {min_rounds} and max_rounds {max_rounds}", do="take 1 <= min <= max")
    spinning = [name for name, session in sessions.items() if len(sessions) > 1 and spins_after_run(session)]
    if spinning:
        found = f"the threads of {spinning[0]!r} spin on after a run and would slow the others down"
        raise Refused("measure latency side by side", found=found, do=f"open it with the session option {SPINNING_STOP} = 1")


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
    own: list[NDArray[np.float64]], parents: list[NDArray[np.float64]] | None, confidence: float, where: Stamp, how: str
) -> Latency:
    """The four measurements from one session's timings and the parent's; ``parents`` None for the parent itself."""
    typical = np.array([np.median(timing) for timing in own])  # [rounds], ms
    single = np.concatenate(own)
    mean = bootstrap_interval(own, None, confidence)
    rate = Interval(1000 / mean.high, 1000 / mean.low, mean.confidence) if mean else None
    tail = bootstrap_interval(own, 0.95, confidence)
    how = f"{len(own)} rounds of {len(own[0])} inferences, {how}"

    def measured(name: str, value: float, interval: Interval | None, n: int, method: str, unit: str = " ms") -> Measurement:
        wide, method = _widened(interval), f"{method}; {how}"
        return Measurement(name, value, unit=unit, interval=wide, n=n, device=where.device, at=where.at, method=method)

    throughput = measured("throughput_per_s", 1000 / float(single.mean()), rate, len(single), "inferences / their total time", " /s")
    return Latency(
        median=measured("latency_ms", float(np.median(typical)), median_interval(typical, confidence), len(own), "median"),
        p95=measured("latency_p95_ms", float(np.quantile(single, 0.95)), tail, len(single), "95th percentile of single inferences"),
        throughput=replace(throughput, direction="higher"),
        ratio=_ratio(typical, parents, confidence, measured),
    )


def _ratio(
    typical: NDArray[np.float64], parents: list[NDArray[np.float64]] | None, confidence: float, measured: Callable[..., Measurement]
) -> Measurement:
    if parents is None:
        return measured("latency_ratio", 1.0, None, len(typical), "the parent itself", unit="")
    ratios = typical / np.array([np.median(timing) for timing in parents])
    interval = median_interval(ratios, confidence)
    return measured("latency_ratio", float(np.median(ratios)), interval, len(ratios), "median of paired time / parent's time", unit="")


def _widened(interval: Interval | None) -> Interval | None:
    """``interval`` with the spread between sessions, which one run cannot show, on both sides."""
    if interval is None:
        return None
    return Interval(interval.low / (1 + SESSION_SPREAD), interval.high * (1 + SESSION_SPREAD), interval.confidence)
