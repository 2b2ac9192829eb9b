"""Branches of unequal range that a Concat joins for one layer: its one grid would leave the narrow ones a code or two. What makes a
branch gives it divided by a factor, and the layer takes the factors in its weights; nothing is added at run time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from whet.compress.edit import Editor
from whet.compress.graph import GraphModel
from whet.compress.grid import Floats
from whet.compress.put.scaling import by_input, channel_axis, divide_alone, is_divisible, multiply_inputs
from whet.compress.put.sites import UNEQUAL, Site
from whet.compress.shapes import infer_shapes
from whet.compress.statistics import Statistics


@dataclass(frozen=True, eq=False)
class Join:
    """A Concat along the channels whose output is read by layers with weights alone. sizes: channels of each branch."""

    site: Site
    layers: tuple[ir.Node, ...]
    sizes: tuple[int, ...]


def balanced(model: GraphModel, found: Mapping[str, Site], statistics: Mapping[str, Statistics]) -> tuple[str, ...]:
    """Divide the branches that need it, in the graph of ``model``; the names of the tensors that have new ranges now. Behind a step that
    rounded weights nothing is divided."""
    if model.reference is not None:
        return ()
    unequal = [site for site in found.values() if site.node.op_type == "Concat" and _is_unequal(site, statistics)]
    if not unequal:
        return ()
    shapes = {name: shape for name, (_, shape) in infer_shapes(model.ir).items()}
    editor, changed = Editor(model.ir.graph), []
    for site in unequal:
        join = _join(site, found, model, shapes)
        if join is None:
            continue
        factors = _factors(join, statistics)
        for value, factor in zip(site.tensors, factors, strict=True):
            divide_alone(value, channel_axis(join.layers[0]), float(factor), editor)
        multiply_inputs(join.layers, np.repeat(factors, join.sizes), editor)
        changed += [value.name or "" for value in (*site.tensors, *(() if site.output is None else (site.output,)))]
    if changed:
        editor.close()
    return tuple(changed)


def _widths(site: Site, statistics: Mapping[str, Statistics]) -> Floats:
    seen = [statistics[value.name or ""] for value in site.tensors]
    return np.array([max(each.high, 0.0) - min(each.low, 0.0) for each in seen], np.float32)


def _is_unequal(site: Site, statistics: Mapping[str, Statistics]) -> bool:
    widths = _widths(site, statistics)
    return bool(widths.min() > 0 and widths.max() > UNEQUAL * widths.min())


def _join(site: Site, found: Mapping[str, Site], model: GraphModel, shapes: Mapping[str, tuple[int, ...]]) -> Join | None:
    """The Concat with its layers, where all branches can be divided at no cost."""
    out = site.output
    layers = tuple(out.consumers()) if out is not None and not out.is_graph_output() else ()
    ready = [node.name in found and channel_axis(node) is not None for node in layers]
    if not layers or not all(ready) or any(node.inputs[0] is not out for node in layers):
        return None
    known = [shapes.get(value.name or "", ()) for value in site.tensors]
    rank, axes = len(known[0]), {channel_axis(node) for node in layers}
    axis = site.node.attributes["axis"].as_int()
    if len(axes) > 1 or any(len(shape) != rank or rank == 0 for shape in known) or (axes.pop() or 0) % rank != axis % rank:
        return None
    fits = len(site.tensors) == len(site.node.inputs) and len(set(site.tensors)) == len(site.tensors)
    fits = fits and not any(value.name in model.ranges for value in site.tensors)
    fits = fits and all(is_divisible(value, site.node, channel_axis(layers[0])) for value in site.tensors)
    return Join(site, layers, tuple(shape[axis] for shape in known)) if fits else None


def _factors(join: Join, statistics: Mapping[str, Statistics]) -> Floats:
    """For each branch s = sqrt(width / max|W|), W the weights that read it: then both width / s and max|W| s are equal over the branches
    (Nagel et al. 2019, section 4.1, with branches in the place of channels). The largest is 1.
    """
    ends = np.cumsum((0, *join.sizes))
    weights = [by_input(node) for node in join.layers]
    strongest = np.array([max(float(np.abs(weight[begin:end]).max(initial=0.0)) for weight in weights)
                          for begin, end in pairwise(ends)])
    factors = np.sqrt(_widths(join.site, statistics) / np.maximum(strongest, 1e-12))
    factors = np.where(strongest > 0, factors, factors.max(initial=0.0, where=strongest > 0) or 1.0)
    return (factors / factors.max()).astype(np.float32)
