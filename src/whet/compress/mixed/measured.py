"""The harm of every rounding by trying it: that weight or that activation alone is rounded in an otherwise float model, and the model run.

Exact, and as dear as a run of the model for each: for what the mirror cannot differentiate, and to hold ``fisher`` against.
"""

from __future__ import annotations

from collections.abc import Mapping

from whet.compress.data import Dataset
from whet.compress.edit import Editor
from whet.compress.evaluate.output_error import relative_error, softmax_divergence
from whet.compress.graph import GraphModel
from whet.compress.grid import Array, Grid
from whet.compress.mixed.roundings import Harms, Roundings
from whet.compress.put.floats import put_rows
from whet.compress.runtime import outputs_of
from whet.compress.weights import Slot
from whet.core.progress import track


def measured(folded: GraphModel, found: Roundings, data: Dataset) -> Harms:
    """As ``fisher``, by a run of the model for each rounding."""
    expected = outputs_of(folded, data)
    weights, tensors = {}, {}
    for key in track(found.weights, "rounding one weight at a time", len(found.weights)):
        weights[key] = divergence(expected, outputs_of(_with_weights(folded, key[0], found.weights[key]), data))
    for name in track(found.grids, "rounding one activation at a time", len(found.grids)):
        tensors[name] = divergence(expected, outputs_of(_with_grid(folded, name, found.grids[name]), data))
    return Harms(weights, tensors)


def divergence(expected: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """Mean KL divergence (nats) where the only float output holds class scores, else error energy over output energy."""
    nats = softmax_divergence(expected, found)
    return relative_error(expected, found) if nats is None else nats


def _with_weights(folded: GraphModel, layer: str, weights: Mapping[Slot, Array]) -> GraphModel:
    model = folded.copied()
    editor = Editor(model.ir.graph)
    node = next(node for node in model.ir.graph if node.name == layer)
    for slot, rows in weights.items():
        put_rows(node, slot, rows, editor)
    editor.close()
    return model


def _with_grid(folded: GraphModel, tensor: str, grid: Grid) -> GraphModel:
    model = folded.copied()
    graph = model.ir.graph
    editor = Editor(graph)
    value = next(value for value in (*graph.inputs, *(out for node in graph for out in node.outputs)) if value.name == tensor)
    codes = editor.quantise(value, grid)
    pair = editor.dequantise(codes, grid)
    own = codes.producer()
    editor.take_output(value, pair)
    editor.redirect(value, pair, [node for node in value.consumers() if node is not own])
    editor.close()
    return model
