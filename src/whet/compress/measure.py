"""``measure``: how a model does on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from whet.compress.artifacts import MODEL_NAME, files_of, load, source_file
from whet.compress.data import load_data
from whet.compress.graph import GraphModel
from whet.compress.inspect import inventory
from whet.compress.runtime import one_inference
from whet.core.inventory import Inventory
from whet.device.machine_limits import machine_limits
from whet.device.profile import Profile, profile


def measure(model: Any, *, data: Any = None, threads: int | None = None, seconds: float = 2.0, example_inputs: Any = None) -> Profile:
    """Latency, throughput, memory, energy and operators of a model on this machine, against the machine's own limits.

    model: whatever ``whet.load`` takes. data: samples, of which the first is fed; without them the inputs are made up.
    threads: within an operator; None is every physical core. seconds: of timing.
    """
    graph = load(model, example_inputs=example_inputs)
    feeds = None if data is None else one_inference(graph, load_data(data, graph.inputs))
    shapes = {name: values.shape for name, values in feeds.items()} if feeds else None
    found = inventory(graph.ir, input_shapes=shapes)
    with opened_files(graph, source_file(model)) as (path, *beside):
        return profile(path, feeds=feeds, threads=threads, options=graph.session_options, limits=machine_limits(threads=threads),
                       seconds=seconds, macs=macs_by_dtype(found), weight_bytes=found.weight_bytes, files=beside)


def macs_by_dtype(found: Inventory) -> dict[str, int]:
    """Multiply-accumulates by the dtype of the weights that they read."""
    macs: dict[str, int] = {}
    for layer in found.layers:
        if layer.macs:
            dtype = layer.weight_dtype or "float32"
            macs[dtype] = macs.get(dtype, 0) + layer.macs
    return macs


@contextmanager
def opened_files(graph: GraphModel, file: Path | None) -> Iterator[list[Path]]:
    """The files of the model, the one to open first: its own, or else temporary ones."""
    if file is not None:
        yield [file, *(each for each in files_of(graph, file) if each != file)]
        return
    with tempfile.TemporaryDirectory(prefix="whet-") as folder:
        path = Path(folder) / MODEL_NAME
        graph.save(path)
        yield [path, *(each for each in Path(folder).iterdir() if each != path)]
