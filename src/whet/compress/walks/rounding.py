"""What the walks that round weights share: layers in order, each rounded weight counting for all that comes behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import onnx_ir as ir
import torch
from torch import Tensor

from whet.compress.graph import GraphModel
from whet.compress.grid import Quantised
from whet.compress.technique import Change, LayerView
from whet.compress.walks import Work
from whet.compress.walks.stream import Stop, stops
from whet.compress.weights import Slot, array, as_stored, slots
from whet.core.progress import track

Rounding = Callable[[Stop, ir.Node, Slot, LayerView], Change]


def rounded_in_turn(model: GraphModel, work: Work, change: Rounding, *, exact: bool) -> GraphModel:
    """The model with every weight as ``change`` rounds it at its layer, on the first ``samples`` calibration samples.

    A weight that several layers share, with its output channels on one axis, is rounded at the first of them and stays shared. What an
    earlier step rounded is rounded afresh, from the float weight. exact: whether ``change`` looks at the float stream.
    Raises Refused where there is no data.
    """
    nodes = {node.name or "": node for node in model.ir.graph}
    views = {name: found for name, found in (model.reference or model).views(list(work.layers)).items() if name in nodes}
    done: dict[tuple[str, int], Change] = {}
    changes: dict[str, dict[Slot, Change]] = {}
    names = _sharing(views, nodes)
    for stop in track(stops(model, names, work.samples, reference=model.reference, exact=exact), work.technique.name, len(names)):
        node = nodes[stop.step.name]
        for slot in slots(node):
            name = weight_of(node, slot)
            if stop.step.name not in views:  # not asked for, but it reads a weight that was rounded for another layer
                stop.found.constants[name] = torch.tensor(array(node.inputs[slot.index]))  # type: ignore[arg-type]
                continue
            if (name, slot.axis) not in done:
                view = views[stop.step.name][slot]
                done[name, slot.axis] = work.journal.once(f"{view.name} {slot.index}", partial(change, stop, node, slot, view))
            made = changes.setdefault(stop.step.name, {})[slot] = done[name, slot.axis]
            stop.found.constants[name] = _stored(made, stop.found.constants[name], slot)
    return model.rounded(changes)


def weight_of(node: ir.Node, slot: Slot) -> str:
    """The name of a weight."""
    value = node.inputs[slot.index]
    assert value is not None
    return value.name or ""


def _sharing(views: Iterable[str], nodes: Mapping[str, ir.Node]) -> list[str]:
    """The layers, and those others that read one of their weights."""
    weights = {weight_of(nodes[name], slot) for name in views for slot in slots(nodes[name])}
    return [name for name, node in nodes.items() if weights & {weight_of(node, slot) for slot in slots(node)}]


def _stored(change: Change, before: Tensor, slot: Slot) -> Tensor:
    """The rounded weight as the layer reads it."""
    assert isinstance(change.weight, Quantised)
    return torch.tensor(as_stored(change.weight.values, tuple(before.shape), slot), dtype=before.dtype)
