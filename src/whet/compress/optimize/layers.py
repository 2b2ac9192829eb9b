"""Layer by layer: bytes, time and error of the original beside those of what was made of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from whet.compress.data.dataset import Dataset
from whet.compress.graph import GraphModel
from whet.compress.inspect import inspect
from whet.compress.optimize.kernels import layer_times
from whet.compress.runtime import exposed, feed_batches, opened
from whet.core.errors import WhetError
from whet.core.outcome import LayerReport
from whet.device.operators import OperatorTime
from whet.device.session import run

SAMPLES = 16
Kernels = Sequence[OperatorTime]


def layer_reports(folded: GraphModel, made: GraphModel, data: Dataset, kernels: tuple[Kernels, Kernels],
                  damage: Mapping[str, float] | None = None) -> tuple[LayerReport, ...]:
    """The layers of the folded original that have weights or multiply, beside the same of ``made``.

    kernels: what the runtime executes for each of the two, empty where that is not known (the target is another machine).
    """
    before = {layer.name: layer for layer in inspect(folded).layers if layer.parameters or layer.macs}
    after = {layer.name: layer for layer in inspect(made).layers}
    quality = output_sqnr(folded, made, data, before)
    times = layer_times(folded, kernels[0]), layer_times(made, kernels[1])
    found = []
    for name, layer in before.items():
        new = after.get(name)
        found.append(LayerReport(name, layer.op, layer.weight_bytes, new.weight_bytes if new else 0, layer.weight_dtype,
                                 new.weight_dtype if new else "", layer.macs, quality.get(name), times[0].get(name), times[1].get(name),
                                 (damage or {}).get(name)))
    return tuple(found)


def output_sqnr(folded: GraphModel, made: GraphModel, data: Dataset, layers: Collection[str]) -> dict[str, float]:
    """Signal to quantisation noise (dB) of each layer's output, errors of earlier layers included, on a few samples.

    Tensors keep their names from the folded original to what was made of it, so they are compared by name, before they are rounded
    themselves. A layer whose output is exact, or is no floating point, has none.
    """
    theirs = {value.name for node in made.ir.graph for value in node.outputs}
    names = {node.name or "": node.outputs[0].name or "" for node in folded.ir.graph
             if node.name in layers and node.outputs[0].name in theirs}
    some = data.first(max(SAMPLES, folded.fixed_batch or 0))
    signal, noise = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    tensors = sorted(set(names.values()))
    if not tensors:
        return {}
    try:
        with opened(exposed(folded, tensors)) as float_session, opened(exposed(made, tensors)) as session:
            for feeds, _ in feed_batches(float_session, folded, some, tensors):
                expected, found = run(float_session, feeds, tensors), run(session, feeds, tensors)
                for layer, tensor in names.items():
                    if np.issubdtype(expected[tensor].dtype, np.floating):
                        wide = expected[tensor].astype(np.float64)
                        signal[layer] += float((wide**2).sum())
                        noise[layer] += float(((found[tensor].astype(np.float64) - wide) ** 2).sum())
    except WhetError:  # one of the two does not run with its inner tensors shown: then there is no table, and no harm to the verdict
        return {}
    return {layer: 10 * float(np.log10(signal[layer] / noise[layer])) for layer in names if signal[layer] > 0 and noise[layer] > 0}
