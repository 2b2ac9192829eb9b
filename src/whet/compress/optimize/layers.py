"""Layer by layer: bytes, time and error of the original beside those of what was made of it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from whet.compress.data.dataset import Array, Dataset
from whet.compress.graph import GraphModel
from whet.compress.measure import inspect
from whet.compress.runtime import exposed, opened
from whet.core.errors import WhetError
from whet.core.outcome import LayerReport
from whet.core.target import Target
from whet.device.operators import operator_times
from whet.device.session import run

SAMPLES = 16
# How onnxruntime 1.31 names what it made of a node: in NCHWc layout after its output, in NHWC with a number, fused products with a suffix.
_ADDED = re.compile(r"(_nchwc|_token_\d+|_nhwc|/MatMulAddFusion|_MatMulInteger\w*|_quant)+$")


def layer_reports(original: GraphModel, made: GraphModel, data: Dataset, feeds: Mapping[str, Array], target: Target,
                  damage: Mapping[str, float] | None = None) -> tuple[LayerReport, ...]:
    """The layers of the folded original that have weights or multiply, beside the same of ``made``."""
    folded = original.folded()
    before = {layer.name: layer for layer in inspect(folded).layers}
    after = {layer.name: layer for layer in inspect(made).layers}
    quality = output_sqnr(folded, made, data)
    times = (times_of(folded, feeds, target.threads), times_of(made, feeds, target.threads)) if target.here else ({}, {})
    found = []
    for name, layer in before.items():
        new = after.get(name)
        if layer.parameters or layer.macs:
            dtype = new.weight_dtype if new else ""
            found.append(LayerReport(name, layer.op, layer.weight_bytes, new.weight_bytes if new else 0, layer.weight_dtype or "", dtype or "",
                                     layer.macs, quality.get(name), times[0].get(name), times[1].get(name), (damage or {}).get(name)))
    return tuple(found)


def output_sqnr(folded: GraphModel, made: GraphModel, data: Dataset) -> dict[str, float]:
    """Signal to quantisation noise (dB) of each layer's output, errors of earlier layers included, on a few samples.

    Tensors keep their names from the folded original to what was made of it, so they are compared by name.
    """
    theirs = {value.name for node in made.ir.graph for value in node.outputs}
    names = {node.name or "": node.outputs[0].name or "" for node in folded.ir.graph if node.outputs[0].name in theirs and _is_float(node)}
    some = data.take(range(min(SAMPLES if not folded.fixed_batch else folded.fixed_batch, len(data))))
    signal, noise = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    tensors = sorted(set(names.values()))
    try:
        with opened(exposed(folded, tensors)) as float_session, opened(exposed(made, tensors)) as session:
            for feeds in some.batches(folded.fixed_batch or 1):
                expected, found = run(float_session, feeds, tensors), run(session, feeds, tensors)
                for layer, tensor in names.items():
                    wide = expected[tensor].astype(np.float64)
                    signal[layer] += float((wide**2).sum())
                    noise[layer] += float(((found[tensor].astype(np.float64) - wide) ** 2).sum())
    except WhetError:  # an inner tensor of a type that cannot be an output: then there is no table, which is no harm to the verdict
        return {}
    return {layer: 10 * float(np.log10(signal[layer] / noise[layer])) for layer in names if signal[layer] > 0 and noise[layer] > 0}


def times_of(model: GraphModel, feeds: Mapping[str, Array], threads: int, repeats: int = 100) -> dict[str, float]:
    """Microseconds a layer on this machine, one inference: executed kernels, each put down to the node it was made of."""
    owners = _owners(model)
    found: dict[str, float] = {}
    for kernel in operator_times(model.content, feeds, threads=threads, options=model.session_options, repeats=repeats):
        name = owners.get(kernel.name) or owners.get(_ADDED.sub("", kernel.name))
        if name:
            found[name] = found.get(name, 0.0) + kernel.mean_us
    return found


def _owners(model: GraphModel) -> dict[str, str]:
    """Kernel names (node names, and names of outputs) to the layer: an activation fused into a layer counts as that layer."""
    found: dict[str, str] = {}
    for node in model.ir.graph:
        found.setdefault(node.name or "", node.name or "")
        for value in node.outputs:
            found[value.name or ""] = _layer_behind(node)
    return found


def _layer_behind(node: ir.Node) -> str:
    source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    if node.op_type in ("Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh") and source is not None and source.op_type in ("Conv", "Gemm", "MatMul", "Add"):
        return source.name or ""
    return node.name or ""


def _is_float(node: ir.Node) -> bool:
    return node.op_type not in ("Shape", "Constant", "ConstantOfShape", "Cast", "Size", "QuantizeLinear", "DequantizeLinear") and \
        node.outputs[0].dtype in (None, ir.DataType.FLOAT)
