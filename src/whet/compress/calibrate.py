"""Calibration: the data streams through the model once, and a few kB are kept of each tensor."""

from __future__ import annotations

from collections.abc import Collection

from whet.compress.data.dataset import Dataset
from whet.compress.graph import GraphModel
from whet.compress.runtime import exposed, feed_batches, opened
from whet.compress.statistics import Statistics
from whet.core.errors import Refused
from whet.core.progress import task
from whet.device.session import run


def collect(model: GraphModel, tensors: Collection[str], data: Dataset, *, histogram: bool,
            threads: int | None = None) -> dict[str, Statistics]:
    """Statistics of the named tensors over all samples, by name. Memory: the tensors of one batch, however many samples.

    Raises Refused where the data is empty, or where it or a tensor holds NaN.
    """
    if len(data) == 0:
        raise Refused("calibrate", found="an empty data set", do="give at least one sample; 100 to 300 are usual")
    fed = [name for name in tensors if name in data.names]
    inner = [name for name in tensors if name not in data.names]
    makers = {value.name: node.name for node in model.ir.graph for value in node.outputs}
    # Names inside a folded graph are not those of the file, but its layers' names are.
    found = {name: Statistics(f"{name} of {makers[name]}" if name in makers else name, histogram) for name in tensors}
    with opened(exposed(model, inner), threads=threads) as session, task("calibrating", len(data)) as progress:
        for feeds, size in feed_batches(session, model, data, inner):
            for name in fed:
                found[name].update(feeds[name])
            for name, values in run(session, feeds, inner).items():
                found[name].update(values)
            progress.advance(size)
    return found
