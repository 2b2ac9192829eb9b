"""From a graph in memory to a running session, whatever its size."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnxruntime import InferenceSession

from whet.compress.data.dataset import Dataset
from whet.compress.evaluate.predict import predict
from whet.compress.graph import GraphModel
from whet.compress.grid import Array
from whet.core.errors import Refused, Unsupported, WhetError
from whet.device.session import open_session, run, specs

# Tensors of one batch that are held at a time, and the most samples of a batch: more gains no speed on a small machine.
BATCH_BYTES = 64 << 20
LARGEST_BATCH = 32
# From so many bytes of weights on, a session reads them from a file of their own. Bytes of a whole model would lie in memory three
# times while it is opened (ours, protobuf's, the session's): 480 MB for a ResNet-50 of 100 MB, and 315 MB from a file, in less time.
FILE_BYTES = 16 << 20


@contextmanager
def opened(model: GraphModel, *, threads: int | None = None, plan_memory: bool = True) -> Iterator[InferenceSession]:
    """A session over the model, with the options that it ships with; ``plan_memory`` as in ``open_session``."""
    with stored(model) as source:
        yield open_session(source, threads=threads, options=model.session_options, plan_memory=plan_memory)


@contextmanager
def stored(model: GraphModel) -> Iterator[bytes | Path]:
    """The model as onnxruntime takes it: its bytes, or a file in a temporary folder where it is large."""
    if _weight_bytes(model) < FILE_BYTES:
        yield model.content
        return
    with tempfile.TemporaryDirectory(prefix="whet-") as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model.ir, path, external_data="model.onnx.data")
        yield path


def exposed(model: GraphModel, tensors: Collection[str]) -> GraphModel:
    """A copy of which the named inner tensors are outputs too. Raises Refused on a name that the graph does not have."""
    return with_outputs(model.copied(), tensors)


def with_outputs(model: GraphModel, tensors: Collection[str]) -> GraphModel:
    """The same model, of which the named inner tensors become outputs too. Raises as ``exposed``."""
    graph = model.ir.graph
    values = {value.name: value for node in graph for value in node.outputs}
    for name in tensors:
        if name not in values:
            raise Refused(f"observe the tensor {name!r}", found="the graph has none of that name")
        value = values[name]
        if not value.is_graph_output():
            graph.outputs.append(value)
    return model


def feed_batches(session: InferenceSession, model: GraphModel, data: Dataset,
                 outputs: list[str]) -> Iterator[tuple[Mapping[str, Array], int]]:
    """Batches that the model takes, as large as memory and the model allow, and how many samples of each are real."""
    size = model.fixed_batch or fitting(inference_bytes(session, model, data, outputs), len(data))
    yield from batches_of(session, model, data, size)


def batches_of(session: InferenceSession, model: GraphModel, data: Dataset, size: int) -> Iterator[tuple[Mapping[str, Array], int]]:
    """Batches of ``size``, or of what the model takes, and how many samples of each are real.

    A graph whose batch is fixed gets its last batch filled up with samples that it has had already. One that says to take any batch
    and does not (an exporter wrote a 1 into a Reshape, a state has its batch elsewhere) gets its samples one by one.
    """
    batch = model.fixed_batch or size
    if batch > 1 and not model.fixed_batch and not takes_batch(session, model, next(data.batches(batch))):
        batch = 1
    for feeds in data.batches(batch):
        size = len(feeds[data.names[0]])
        yield (_filled(feeds, data.names, batch) if model.fixed_batch else feeds), size


def fitting(sample_bytes: int, samples: int, *, at_most: int | None = None) -> int:
    """The size of a batch whose tensors take ``at_most`` bytes (``BATCH_BYTES``)."""
    return int(np.clip((BATCH_BYTES if at_most is None else at_most) // max(sample_bytes, 1), 1, max(min(LARGEST_BATCH, samples), 1)))


def inference_bytes(session: InferenceSession, model: GraphModel, data: Dataset, outputs: list[str]) -> int:
    """Bytes of the inputs and of these outputs in one inference of ``one_inference``. Raises Refused where there is no sample."""
    if len(data) == 0:
        raise Refused("run the model over the data", found="an empty data set", do="give at least one sample")
    feeds = one_inference(model, data)
    stated = _stated_bytes(session, feeds, outputs)
    if stated is None:
        stated = sum(values.nbytes for values in run(session, feeds, outputs).values())
    return stated + sum(values.nbytes for values in feeds.values())


def _stated_bytes(session: InferenceSession, feeds: Mapping[str, Array], outputs: list[str]) -> int | None:
    """Bytes of these outputs where the session states all their shapes in the sizes of its inputs, else None."""
    given, made = specs(session)
    sizes: dict[int | str, int] = {size: actual for spec in given if spec.name in feeds
                                   for size, actual in zip(spec.shape, feeds[spec.name].shape, strict=False) if size != "?"}
    total = 0
    for spec in made:
        if spec.name not in outputs:
            continue
        shape = [size if isinstance(size, int) else sizes.get(size) for size in spec.shape]
        if not shape or None in shape or spec.dtype not in np.sctypeDict:  # a shape that is not known at all comes as ()
            return None
        total += np.dtype(spec.dtype).itemsize * math.prod(size for size in shape if size is not None)
    return total


def one_inference(model: GraphModel, data: Dataset) -> dict[str, Array]:
    """The inputs of one inference: the first sample, or the first batch of a graph whose batch is fixed, filled up if need be."""
    size = model.fixed_batch or 1
    return _filled(next(iter(data.batches(size))), data.names, size)


def _filled(feeds: Mapping[str, Array], names: Collection[str], size: int) -> dict[str, Array]:
    """The batch with its samples repeated up to ``size``; constant inputs stay as they are."""
    return {name: np.resize(array, (size, *array.shape[1:])) if name in names else array for name, array in feeds.items()}


def outputs_of(model: GraphModel, data: Dataset, *, threads: int | None = None) -> dict[str, Array]:
    """The model's outputs on every sample, [n, ...] by name. What cannot be had in batches is computed one by one."""
    with opened(model, threads=threads) as session:
        size = model.fixed_batch or fitting(inference_bytes(session, model, data, [spec.name for spec in model.outputs]), len(data))
        try:
            return predict(lambda feeds: run(session, feeds), data, batch_size=size, fixed=model.fixed_batch is not None)
        except WhetError:
            if size == 1 or model.fixed_batch:
                raise
            return predict(lambda feeds: run(session, feeds), data, batch_size=1)


def takes_batch(session: InferenceSession, model: GraphModel, feeds: Mapping[str, Array]) -> bool:
    """Whether the model runs on the batch and gives as many outputs."""
    try:
        found = run(session, feeds, [spec.name for spec in model.outputs])
    except Unsupported:
        return False
    return are_as_many(model, feeds, found)


def are_as_many(model: GraphModel, feeds: Mapping[str, Array], found: Mapping[str, Array]) -> bool:
    """Whether there are as many of each output as samples were fed, where the model says to take any number."""
    sizes = {len(feeds[spec.name]) for spec in model.inputs if spec.shape and isinstance(spec.shape[0], str)}
    return all(values.ndim and len(values) in sizes for values in found.values()) or not sizes


def _weight_bytes(model: GraphModel) -> int:
    return sum(value.const_value.nbytes for value in model.ir.graph.initializers.values() if value.const_value is not None)
