"""Calibration: the data streams through the model once, and a few kB are kept of each tensor.

Batches are small, and as many as there are cores go at the same time, each on one: they need not wait for each other as the threads
within an operator do, and while one is in numpy another one computes. What they found is put together in the order of the data, so
the result does not depend on the threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import numpy as np
from onnxruntime import InferenceSession

from whet.compress.data.dataset import Dataset
from whet.compress.extremes import Pools, pooled
from whet.compress.graph import GraphModel
from whet.compress.grid import Array
from whet.compress.runtime import batches_of, exposed, fitting, inference_bytes, one_inference, stored, with_outputs
from whet.compress.shapes import estimate_shapes
from whet.compress.statistics import Seen, Statistics, tally
from whet.core.errors import Refused
from whet.core.progress import task
from whet.device.machine import usable_cores
from whet.device.session import open_session, run

BATCH_BYTES = 2 << 20  # inputs and observed tensors of one batch: more samples at a time gain little, and small models stay small
POOLED_BYTES = 8 << 20  # where tensors are not given out, more samples still gain something
AT_ONCE_BYTES = 160 << 20  # of all batches that are under way
Result = TypeVar("Result")
_NO_CHANNELS: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class _Batch:
    """What came of a batch: what was seen of its tensors, and the tensors themselves where their histograms wait for that."""

    values: Mapping[str, Array]
    looks: Mapping[str, Seen]
    samples: int


def collect(model: GraphModel, tensors: Collection[str], data: Dataset, *, histogram: bool, tails: float = 0.0,
            threads: int | None = None, channels: Mapping[str, int] = _NO_CHANNELS) -> dict[str, Statistics]:
    """Statistics of the named tensors over all samples, by name, in one pass.

    tails: the share of all numbers that is kept of either end, for percentiles near 100.
    channels: tensors of which statistics of each channel are wanted too, and the axis that their channels lie on; a tensor named
    there need not be named in ``tensors``.
    Memory: the model in its session, and the observed tensors of the batches that are under way: ``AT_ONCE_BYTES``, or those of
    one inference where they are more; however many samples there are.
    Raises Refused where the data is empty, or where it or a tensor holds NaN or infinity.
    """
    if len(data) == 0:
        raise Refused("calibrate", found="an empty data set", do="give at least one sample; 100 to 300 are usual")
    names = dict.fromkeys((*tensors, *channels))
    inner = [name for name in names if name not in data.names]
    only_range = [] if histogram or tails else [name for name in inner if name not in channels]
    makers = {value.name: node.name for node in model.ir.graph for value in node.outputs}
    # Names inside a folded graph are not those of the file, but its layers' names are.
    found = {name: Statistics(f"{name} of {makers[name]}" if name in makers else name, histogram, channels.get(name), tails * len(data))
             for name in names}
    cores = threads or usable_cores()
    watched, pools = _watched(model, inner, only_range, data)
    whole = [name for name in inner if name not in pools.places]
    with _opened(watched, data, whole, pools, cores) as (session, size, at_once), ThreadPoolExecutor(cores) as pool, \
            task("calibrating", len(data)) as progress:
        def inference(feeds: Mapping[str, Array], samples: int) -> _Batch:
            values = {**feeds, **run(session, feeds, [*whole, *pools.starts])}
            if pools.places:
                _check_finite(feeds)
            seen = pools.seen(values)
            looks = {name: look for name, each in found.items()
                     if (look := each.checked(seen[name]) if name in seen else each.look(values[name], samples)) is not None}
            return _Batch({name: values[name] for name in looks if histogram}, looks, samples)

        ahead = 0 if histogram or at_once < cores else 2  # what nothing is kept of may wait, so that no core does
        for batch in _in_order(pool, inference, batches_of(session, model, data, size), at_once + ahead):
            _add(pool, cores, found, batch)
            progress.advance(batch.samples)
            del batch  # before the next one is there
    return found


def _watched(model: GraphModel, inner: list[str], only_range: list[str], data: Dataset) -> tuple[GraphModel, Pools]:
    """A copy of the model that gives the tensors out, and those of which it gives no more than their ranges."""
    if not only_range:
        return exposed(model, inner), Pools()
    sizes = {name: values.shape for name, values in one_inference(model, data).items()}
    shapes = estimate_shapes(model.ir, input_shapes=sizes, wanted=()).known
    copied = model.copied()
    pools = pooled(copied.ir.graph, only_range, shapes)
    return with_outputs(copied, [name for name in inner if name not in pools.places]), pools


def _check_finite(feeds: Mapping[str, Array]) -> None:
    """Refused where an input holds NaN or infinity: what a maximum is taken of may hide it."""
    for name, values in feeds.items():
        if values.dtype.kind == "f" and values.size and not (np.isfinite(values.min()) and np.isfinite(values.max())):
            raise Statistics(name).refusal()


@contextmanager
def _opened(model: GraphModel, data: Dataset, outputs: list[str], pools: Pools,
            cores: int) -> Iterator[tuple[InferenceSession, int, int]]:
    """(session, size of a batch, batches at once). The cores go to the batches, and what is left of them into the operators."""
    with stored(model) as source:
        session = open_session(source, threads=1, options=model.session_options, plan_memory=False)
        one = inference_bytes(session, model, data, outputs) + pools.bytes
        fits = fitting(one, len(data), at_most=POOLED_BYTES if pools.places else BATCH_BYTES)
        size = model.fixed_batch or 1 << (fits.bit_length() - 1)  # a power of 2, so that groups of moving averages are whole batches
        batch_bytes = one if model.fixed_batch else one * size
        at_once = max(min(cores, AT_ONCE_BYTES // max(batch_bytes, 1), -(-len(data) // size)), 1)
        if cores // at_once > 1:
            del session  # before there is another one
            session = open_session(source, threads=cores // at_once, options=model.session_options, plan_memory=False)
        yield session, size, at_once


def _in_order(pool: ThreadPoolExecutor, inference: Callable[[Mapping[str, Array], int], _Batch],
              batches: Iterator[tuple[Mapping[str, Array], int]], at_once: int) -> Iterator[_Batch]:
    """What came of each batch, in order; ``at_once`` of them in memory, the one given out included."""
    running: deque[Future[_Batch]] = deque()
    for feeds, samples in batches:
        running.append(pool.submit(inference, feeds, samples))
        if len(running) == at_once:
            yield running.popleft().result()  # in no variable, which would keep it in memory
    while running:
        yield running.popleft().result()


def _add(pool: ThreadPoolExecutor, cores: int, found: Mapping[str, Statistics], batch: _Batch) -> None:
    """One batch into the statistics of all tensors. They change here alone, in order."""
    for name, look in batch.looks.items():
        found[name].join(look, batch.samples)
    counts = _spread(pool, cores, lambda name: tally(batch.values[name], found[name].start, found[name].width), list(batch.values))
    for name, each in counts.items():
        found[name].counts += each


def _spread(pool: ThreadPoolExecutor, cores: int, work: Callable[[str], Result], names: list[str]) -> dict[str, Result]:
    """``work`` on each name: every core takes each ``cores``-th, as a task for each would take longer than most tensors do."""
    shares = pool.map(lambda share: [(name, work(name)) for name in share], [names[at::cores] for at in range(min(cores, len(names)))])
    done = dict(pair for share in shares for pair in share)
    return {name: done[name] for name in names}
