"""What the runtime executes and how long it takes, put down to the layers and the operators of the model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from whet.compress.data.dataset import Array
from whet.compress.graph import GraphModel
from whet.compress.runtime import stored
from whet.core.outcome import OperatorReport
from whet.device.operators import OperatorTime, operator_times

REPEATS, FIRST_REPEATS, SECONDS = 100, 3, 2.0  # as many as fit into the time, after a few that tell how long one takes
# How onnxruntime 1.31 names what it made of a node: in NCHWc layout after its output, in NHWC with a number, fused products with a suffix.
_ADDED = re.compile(r"(_nchwc|_token_\d+|_nhwc|/MatMulAddFusion|_MatMulInteger\w*|_quant)+$")
_ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh")


def kernels_of(model: GraphModel, feeds: Mapping[str, Array], threads: int) -> tuple[OperatorTime, ...]:
    """The executed kernels of one inference on this machine, longest first."""
    with stored(model) as source:
        first = operator_times(source, feeds, threads=threads, options=model.session_options, repeats=FIRST_REPEATS)
        fitting = int(SECONDS * 1e6 / max(sum(kernel.mean_us for kernel in first), 1.0))
        if fitting <= FIRST_REPEATS:
            return first
        return operator_times(source, feeds, threads=threads, options=model.session_options, repeats=min(fitting, REPEATS))


def layer_times(model: GraphModel, kernels: Sequence[OperatorTime]) -> dict[str, float]:
    """Microseconds a layer: each kernel put down to the node that it was made of, an activation to the layer before it."""
    owners = _owners(model)
    found: dict[str, float] = {}
    for kernel in kernels:
        name = owners.get(kernel.name) or owners.get(_ADDED.sub("", kernel.name))
        if name:
            found[name] = found.get(name, 0.0) + kernel.mean_us
    return found


def operator_reports(before: Sequence[OperatorTime], after: Sequence[OperatorTime]) -> tuple[OperatorReport, ...]:
    """Calls and time of every executed operator in the two, in the order of the larger time."""
    rows = []
    for op in dict.fromkeys(kernel.op for kernel in (*before, *after)):
        old, new = ([kernel.mean_us for kernel in kernels if kernel.op == op] for kernels in (before, after))
        rows.append(OperatorReport(op, len(old), len(new), sum(old) if old else None, sum(new) if new else None))
    return tuple(sorted(rows, key=lambda row: -max(row.time_before_us or 0.0, row.time_after_us or 0.0)))


def _owners(model: GraphModel) -> dict[str, str]:
    """Kernel names (node names, and names of outputs) to layers."""
    found: dict[str, str] = {}
    for node in model.ir.graph:
        found.setdefault(node.name or "", node.name or "")
        for value in node.outputs:
            found[value.name or ""] = _layer_behind(node)
    return found


def _layer_behind(node: ir.Node) -> str:
    source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    if node.op_type in _ACTIVATIONS and source is not None and source.op_type in ("Conv", "Gemm", "MatMul", "Add"):
        return source.name or ""
    return node.name or ""
