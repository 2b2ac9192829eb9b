"""Every activation that will lie on a grid, with samples of it and the layers that read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import torch

from whet.compress.calibrate import collect
from whet.compress.data import Dataset
from whet.compress.graph import GraphModel
from whet.compress.grid import Floats
from whet.compress.mirror import Mirror, Step, mirror
from whet.compress.put.sites import Site
from whet.compress.runtime import exposed, feed_batches, opened
from whet.compress.views import Range, TensorView
from whet.compress.walks import Work
from whet.compress.walks.sites import observed
from whet.core.errors import Unsupported
from whet.core.progress import task
from whet.device.session import run

VALUES = 1 << 22  # numbers of a tensor that are looked at: samples beyond are left out
AT_ONCE = 16  # tensors of which so many numbers are held: 256 MB


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
    reflected = mirror(model)
    steps = {step.name: step for step in reflected.steps}
    some = work.samples
    ranges: dict[str, Range] = {}
    with task(work.technique.name, len(names)) as progress:
        for together in batched(names, AT_ONCE):
            for name, values in _values(model, together, some).items():
                error = _error(name, values, [steps[reader] for reader in readers.get(name, ())], reflected)
                ranges[name] = work.technique.apply(TensorView(statistics[name], values, error), work.target, **work.options)
                progress.advance()
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


def batched(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """``size`` of them at a time."""
    return (names[begin : begin + size] for begin in range(0, len(names), size))


def _values(model: GraphModel, names: Sequence[str], data: Dataset) -> dict[str, Floats]:
    """[n, ...] the tensors on some samples, in one pass: of each at most VALUES numbers and at least those of one batch."""
    found: dict[str, list[Floats]] = {name: [] for name in names}
    inner = [name for name in names if name not in data.names]
    with opened(exposed(model, inner)) as session:
        for feeds, _ in feed_batches(session, model, data, inner):
            wanted = [name for name in inner if _room(found[name])]
            given = {**feeds, **(run(session, feeds, wanted) if wanted else {})}
            for name in (*wanted, *(name for name in names if name in feeds and _room(found[name]))):
                found[name].append(given[name].astype(np.float32))
    return {name: np.concatenate(parts) if parts[0].ndim else parts[0] for name, parts in found.items()}


def _room(parts: Sequence[Floats]) -> bool:
    return sum(part.size for part in parts) < VALUES


def _error(name: str, values: Floats, layers: list[Step], reflected: Mirror) -> Callable[[Floats], float]:
    """The mean squared error that a fake of ``values`` brings to the layers, each relative to its output; of itself without layers."""
    constants = {key: tensor.detach() for key, tensor in reflected.constants().items()}

    def given(layer: Step, numbers: Floats) -> Floats:
        with torch.no_grad():
            inputs = [torch.as_tensor(numbers) if each == name else constants[each] for each in layer.inputs]
            return layer.run(*inputs)[0].numpy()

    exact = [given(layer, values) for layer in layers]

    def error(fake: Floats) -> float:
        if not layers:
            return _energy(fake - values)
        return sum(_energy(given(layer, fake) - wanted) / max(_energy(wanted), 1e-30) for layer, wanted in zip(layers, exact, strict=True))

    return error


def _energy(values: Floats) -> float:
    return float(np.mean(values.astype(np.float64) ** 2))
