"""Layer after layer, the mean error of the output that quantising brought; what the technique makes of the bias counts for the next."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from whet.compress.graph import GraphModel
from whet.compress.grid import Floats
from whet.compress.put.floats import float_bias
from whet.compress.technique import LayerView
from whet.compress.views import ErrorView
from whet.compress.walks import Work
from whet.compress.walks.stream import Stream, batches_of, stream
from whet.compress.weights import first_slot
from whet.core.errors import Refused
from whet.core.progress import track


def walk(model: GraphModel, work: Work) -> GraphModel:
    """Show the technique each layer's error, the biases before it being corrected. Raises Refused where nothing was quantised yet."""
    if model.reference is None:
        raise Refused(f"apply {work.technique.name}", found="no step before it quantised anything",
                      do="put it behind static, gptq or another step that rounds")
    nodes = {node.name: node for node in model.ir.graph}
    axes = {name: -1 if nodes[name].op_type == "Gemm" else 1 for name in work.layers if name in nodes}
    batches, biases = batches_of(model, work.samples), dict[str, Floats]()
    with ExitStack() as stack:
        expected = _float_means(stream(model.reference, batches, stack), axes)
        found = stream(model, batches, stack)
        ordered = [step.name for step in found.steps if step.name in axes]
        for name in track(ordered, work.technique.name, len(ordered)):
            node, slot, mean = nodes[name], first_slot(nodes[name]), _Mean(axes[name])
            step = found.run_through(name, mean.add)
            old = float_bias(node, slot)
            view = ErrorView(LayerView(name, node.op_type, None, old), (mean.value - expected[name]).numpy().astype(np.float32))
            change = work.technique.apply(view, work.target, **work.layers[name])
            if change.bias is None or slot.bias is None:
                continue
            biases[name] = change.bias
            found.shift(step.outputs[0], torch.as_tensor(change.bias - (0.0 if old is None else old)), axes[name])
    return replace(model.with_floats({}, biases), pending=model.pending)


class _Mean:
    """[C] float64 mean over everything but the channels on ``axis`` (1, or -1 of rows), batch by batch."""

    def __init__(self, axis: int) -> None:
        self._axis, self._count = axis, 0
        self._total = torch.zeros((), dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        count = values.numel() // values.shape[self._axis]
        if self._axis == 1 and values.ndim > 2:
            # numpy adds in float64 as it reads; torch would copy all of it to float64 first.
            values = torch.from_numpy(values.float().flatten(2).numpy().sum(2, dtype=np.float64))
        self._total = self._total + values.reshape(-1, values.shape[self._axis]).double().sum(0)
        self._count += count

    @property
    def value(self) -> Tensor:
        return self._total / max(self._count, 1)


def _float_means(through: Stream, axes: Mapping[str, int]) -> dict[str, Tensor]:
    """[out] of each layer's output in the float model, in one pass: nothing changes on the way, so batch after batch goes to the end."""
    means = {name: _Mean(axis) for name, axis in axes.items()}
    end = max((index for index, step in enumerate(through.steps) if step.name in axes), default=-1) + 1
    through.go(end, {name: mean.add for name, mean in means.items()})
    return {name: mean.value for name, mean in means.items()}
