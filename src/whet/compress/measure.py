"""``measure``: how a model does on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from whet.compress.artifacts import MODEL_NAME, load, source_file
from whet.compress.data import load_data
from whet.compress.graph import GraphModel
from whet.compress.inspect import inventory
from whet.core.inventory import Inventory
from whet.device.machine_limits import machine_limits
from whet.device.profile import Profile, profile


def measure(model: Any, *, data: Any = None, threads: int | None = None, seconds: float = 2.0, example_inputs: Any = None) -> Profile:
    """Latency, throughput, memory, energy and operators of a model on this machine, against the machine's own limits.

    model: whatever ``whet.load`` takes. data: samples, of which the first is fed; without them the inputs are made up.
    threads: within an operator; None is every physical core. seconds: of timing.
    """
    graph = load(model, example_inputs=example_inputs)
    feeds = None if data is None else first_feeds(graph, data)
    shapes = {name: values.shape for name, values in feeds.items()} if feeds else None
    found = inventory(graph.ir, input_shapes=shapes)
    with opened_file(graph, source_file(model)) as path:
        return profile(path, feeds=feeds, threads=threads, options=graph.session_options, limits=machine_limits(threads=threads),
                       seconds=seconds, macs=macs_by_dtype(found), weight_bytes=found.weight_bytes)


def first_feeds(graph: GraphModel, data: Any) -> Mapping[str, Any]:
    """The inputs of one inference: the first sample, or the first batch of a graph whose batch is fixed."""
    return next(iter(load_data(data, graph.inputs).batches(graph.fixed_batch or 1)))


def macs_by_dtype(found: Inventory) -> dict[str, int]:
    """Multiply-accumulates by the dtype of the weights that they read."""
    macs: dict[str, int] = {}
    for layer in found.layers:
        if layer.macs:
            dtype = layer.weight_dtype or "float32"
            macs[dtype] = macs.get(dtype, 0) + layer.macs
    return macs


def opened_file(graph: GraphModel, file: Path | None) -> AbstractContextManager[Path]:
    """The model as a file: its own, or a temporary one."""
    return nullcontext(file) if file else _Temporary(graph)


class _Temporary(tempfile.TemporaryDirectory):  # type: ignore[type-arg]
    """A model written to a temporary folder."""

    def __init__(self, graph: GraphModel) -> None:
        super().__init__(prefix="whet-")
        self._graph = graph

    def __enter__(self) -> Path:
        path = Path(super().__enter__()) / MODEL_NAME
        self._graph.save(path)
        return path
