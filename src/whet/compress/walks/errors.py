"""Layer after layer, the mean error of the output that quantising brought; what the technique makes of the bias counts for the next."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from whet.compress.graph import GraphModel
from whet.compress.grid import Floats
from whet.compress.mirror import Step
from whet.compress.put.floats import float_bias
from whet.compress.technique import LayerView
from whet.compress.views import ErrorView
from whet.compress.walks import Work
from whet.compress.walks.stream import Stop, Stream, stops
from whet.compress.weights import first_slot
from whet.core.errors import Refused
from whet.core.progress import track


def walk(model: GraphModel, work: Work) -> GraphModel:
    """Show the technique each layer's error, the biases before it being corrected. Raises Refused where nothing was quantised yet."""
    if model.reference is None:
        raise Refused(f"apply {work.technique.name}", found="no step before it quantised anything",
                      do="put it behind static, gptq or another step that rounds")
    nodes = {node.name: node for node in model.ir.graph}
    data = work.samples
    names = [name for name in work.layers if name in nodes]
    biases: dict[str, Floats] = {}
    for stop in track(stops(model, names, data, reference=model.reference), work.technique.name, len(names)):
        name = stop.step.name
        node, slot = nodes[name], first_slot(nodes[name])
        error = _mean_error(stop, axis=-1 if node.op_type == "Gemm" else 1)
        old = float_bias(node, slot)
        view = ErrorView(LayerView(name, node.op_type, None, old), error)
        change = work.technique.apply(view, work.target, **work.layers[name])
        if change.bias is None or slot.bias is None:
            continue
        biases[name] = change.bias
        _shift(stop, change.bias - (0.0 if old is None else old), axis=-1 if node.op_type == "Gemm" else 1)
    return replace(model.with_floats({}, biases), pending=model.pending)


def _mean_error(stop: Stop, axis: int) -> Floats:
    """[out] mean over samples and positions of what the layer gives now minus what it gave in float."""
    found, expected = (_channel_mean(stream, step, axis) for stream, step in ((stop.found, stop.step), (stop.expected, stop.exact)))
    return (found - expected).numpy().astype(np.float32)


def _channel_mean(stream: Stream, step: Step, axis: int) -> Tensor:
    """[out] float64 mean of the operator's output over everything else."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for values in stream.outputs(step):
        others = [i for i in range(values.ndim) if i != axis % values.ndim]
        total = total + values.double().sum(others)
        count += values.numel() // values.shape[axis]
    return total / max(count, 1)


def _shift(stop: Stop, difference: Floats, axis: int) -> None:
    """The layer's output in the stream moves by [out] from here on."""
    stop.found.shift(stop.step.outputs[0], torch.as_tensor(difference), axis)
