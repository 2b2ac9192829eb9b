"""Every activation that will lie on a grid, with samples of it and the layers that read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir
import torch

from whet.compress.calibrate import collect
from whet.compress.data import Dataset
from whet.compress.graph import GraphModel
from whet.compress.grid import Floats
from whet.compress.mirror import Step, unrolled
from whet.compress.put.sites import Site
from whet.compress.runtime import batches_of, exposed, fitting, inference_bytes, opened
from whet.compress.views import Range, TensorView
from whet.compress.walks import Work
from whet.compress.walks.held import Held
from whet.compress.walks.sites import observed
from whet.compress.walks.stream import Constants
from whet.core.errors import Unsupported
from whet.core.progress import track
from whet.device.session import run

VALUES = 1 << 22  # numbers of a tensor that are looked at: samples beyond are left out
CHUNK = 1 << 19  # of those go through a convolution at a time
EXACT_BYTES = 64 << 20  # in memory, of what layers make of a tensor; the rest is read from files for each candidate
_BLOCK = 1 << 16  # numbers that are squared at a time
BATCH_BYTES = 8 << 20  # of the tensors of one inference that are seen together


def walk(model: GraphModel, work: Work) -> GraphModel:
    """Show the technique each activation and note its range. Raises Unsupported where nothing would be quantised."""
    if work.last:
        raise Unsupported(f"apply {work.technique.name} as the last step", found="ranges change nothing by themselves",
                          do="put a step that uses them behind it, such as static")
    found = model.copied().integer_sites(list(work.layers), work.target)
    names = observed(found)
    if not names:
        raise Unsupported(f"apply {work.technique.name} to {', '.join(list(work.layers)[:5])}", found="nothing there computes in integers")
    statistics = collect(model, names, work.calibration, histogram=True)
    readers = _readers(found)
    unrolled_steps, stored = unrolled(model)
    steps, constants = {step.name: step for step in unrolled_steps}, Constants(stored)
    ranges: dict[str, Range] = {}
    with closing(Held()) as held, closing(Held(EXACT_BYTES)) as exact:
        parts = _hold(model, names, work.samples, held)

        def found_range(name: str) -> Range:
            values = _joined([held.get(part, name).numpy() for part in range(parts[name])])
            layers = [steps[reader] for reader in readers.get(name, ())]
            error = _error(name, values, layers, constants, exact)
            made: Range = work.technique.apply(TensorView(statistics[name], values, error), work.target, **work.options)
            exact.forget(*(layer.name for layer in layers))
            return made

        for name in track(names, work.technique.name, len(names)):
            ranges[name] = work.journal.once(name, partial(found_range, name))
            held.forget(name)
    return replace(model, ranges={**model.ranges, **ranges})


def _readers(found: Mapping[str, Site]) -> dict[str, list[str]]:
    """The layers with weights that read each tensor."""
    readers: dict[str, list[str]] = {}
    for name, site in found.items():
        if len(site.inputs) == 1 and len(site.node.inputs) > 1 and _has_weight(site.node):
            readers.setdefault(site.tensors[0].name or "", []).append(name)
    return readers


def _has_weight(node: ir.Node) -> bool:
    return node.op_type in ("Conv", "Gemm", "MatMul")


def _hold(model: GraphModel, names: Sequence[str], data: Dataset, held: Held) -> dict[str, int]:
    """Put the tensors on some samples into ``held``, in one pass: of each at most VALUES numbers and at least those of one batch.

    Returns how many parts there are of each.
    """
    parts, sizes = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    inner = [name for name in names if name not in data.names]
    with opened(exposed(model, inner), plan_memory=False) as session:
        size = fitting(inference_bytes(session, model, data, inner), len(data), at_most=BATCH_BYTES)
        for feeds, _ in batches_of(session, model, data, size):
            wanted = [name for name in names if sizes[name] < VALUES]
            if not wanted:
                break
            made = [name for name in wanted if name not in feeds]
            given = {**feeds, **(run(session, feeds, made) if made else {})}
            for name in wanted:
                values = given[name].astype(np.float32)  # a copy: onnxruntime's own array would keep the memory of the session
                held.put(parts[name], name, torch.from_numpy(values))
                parts[name] += 1
                sizes[name] += values.size
    return parts


def _joined(parts: Sequence[Floats]) -> Floats:
    return np.concatenate(parts) if parts[0].ndim else parts[0]


def _error(name: str, values: Floats, layers: list[Step], constants: Constants, exact: Held) -> Callable[[Floats], float]:
    """The mean squared error that a fake of ``values`` brings to the layers, each relative to its output; of itself without layers.

    What the layers give of the values themselves waits in ``exact``, by their names.
    """
    def given(layer: Step, numbers: Floats) -> Iterator[Floats]:
        """The layer's output; of a convolution, some samples at a time, for it may be many times as large as what it reads."""
        pieces = max(1, numbers.size // CHUNK) if layer.op == "Conv" else 1
        with torch.no_grad():
            for piece in np.array_split(numbers, min(pieces, len(numbers))) if pieces > 1 else [numbers]:
                inputs = [torch.as_tensor(piece) if each == name else constants[each] for each in layer.inputs]
                yield layer.run(*inputs)[0].numpy()

    energies = []
    for layer in layers:
        energy = _Energy()
        for number, piece in enumerate(given(layer, values)):
            energy.add(piece)
            exact.put(number, layer.name, torch.from_numpy(piece))
        energies.append(max(energy.mean, 1e-30))

    def error(fake: Floats) -> float:
        total = 0.0
        for layer, energy in zip(layers, energies, strict=True):
            lost = _Energy()
            for number, piece in enumerate(given(layer, fake)):
                lost.add(piece, exact.get(number, layer.name).numpy())
            total += lost.mean / energy
        if layers:
            return total
        itself = _Energy()
        itself.add(fake, values)
        return itself.mean

    return error


class _Energy:
    """The mean square of all the numbers, or of their differences to others, in float64, without a copy of them all."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, numbers: Floats, others: Floats | None = None) -> None:
        flat, subtrahend = numbers.ravel(), None if others is None else others.ravel()
        for at in range(0, flat.size, _BLOCK):
            part = flat[at : at + _BLOCK]
            part = (part if subtrahend is None else part - subtrahend[at : at + _BLOCK]).astype(np.float64)
            self._sum += float(np.square(part, out=part).sum())  # a dot product would wake threads that take the cores from torch's
        self._count += flat.size

    @property
    def mean(self) -> float:
        return self._sum / max(self._count, 1)
