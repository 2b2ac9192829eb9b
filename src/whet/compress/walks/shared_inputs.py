"""Tensors that layers with weights read, each with all of these layers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from whet.compress.calibrate import collect
from whet.compress.edit import Editor
from whet.compress.graph import GraphModel
from whet.compress.put.scaling import can_take, channel_axis, divide
from whet.compress.views import SharedInput
from whet.compress.walks import Work
from whet.compress.walks.chains import check
from whet.compress.weights import slots
from whet.core.errors import Unsupported
from whet.core.progress import track

_Readers = dict[ir.Value, list[ir.Node]]


def walk(model: GraphModel, work: Work) -> GraphModel:
    """Show the technique each input with the layers that read it, and divide it by what comes of that. Raises Unsupported where there is
    none that can be divided.
    """
    check(model, work)
    made = model.copied()
    groups = _groups(made, work)
    if not groups:
        raise Unsupported(f"apply {work.technique.name} to {', '.join(list(work.layers)[:5])}",
                          found="what makes their inputs has no constants that could take factors, or others read them too",
                          do="say insert = true for a Mul in front of the layers")
    axes = {value.name or "": channel_axis(nodes[0]) or 0 for value, nodes in groups.items()}
    statistics = collect(made, (), work.calibration, histogram=False, channels=axes)
    views = made.views(list(work.layers))
    editor = Editor(made.ir.graph)
    for value, nodes in track(groups.items(), work.technique.name, len(groups)):
        low, high = statistics[value.name or ""].channel_low, statistics[value.name or ""].channel_high
        assert low is not None
        assert high is not None
        layers = tuple(views[node.name or ""][slots(node)[0]] for node in nodes)
        shared = SharedInput(value.name or "", layers, np.maximum(np.abs(low), np.abs(high)))
        divide(value, nodes, work.technique.apply(shared, work.target, **work.options), editor)
    editor.close()
    return made


def _groups(model: GraphModel, work: Work) -> _Readers:
    """The layers of the step by the tensor that they read."""
    found: _Readers = {}
    for node in model.ir.graph:
        if node.name in work.layers and channel_axis(node) is not None:
            found.setdefault(node.inputs[0], []).append(node)  # type: ignore[arg-type]
    plain = {value: nodes for value, nodes in found.items() if len({channel_axis(node) for node in nodes}) == 1}
    return {value: nodes for value, nodes in plain.items() if work.options["insert"] or can_take(value, nodes)}

