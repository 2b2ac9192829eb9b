"""The plots of an explanation: damage by layer, signal to noise along the network, histograms with the range of the grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from whet.compress.report import axis
from whet.compress.report.axis import Axis
from whet.compress.report.labels import Box, shortened
from whet.compress.report.numbers import DECIBELS, PLAIN, number
from whet.core.explanation import Counted, LayerBlame

SHOWN = 25  # layers in the plot of damages
_WIDTH, _NAMES, _ROW, _TOP, _BOTTOM = 900.0, 250.0, 20.0, 24.0, 30.0


@dataclass(frozen=True)
class Bar:
    """kind: "before" (weights) or "after" (what the layer gives), as the style names the two colours."""

    x: float
    y: float
    width: float
    kind: str
    title: str


@dataclass(frozen=True)
class Damages:
    """names: (text, y, whole name). bars: two a layer, of its weights and of its output."""

    width: float
    height: float
    axis: Axis
    names: tuple[tuple[str, float, str], ...]
    bars: tuple[Bar, ...]
    top: float
    bottom: float


@dataclass(frozen=True)
class Line:
    """Points (x, y, title), joined where they follow each other."""

    kind: str
    points: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True)
class Along:
    """Signal to noise over the order of execution."""

    width: float
    height: float
    frame: Box
    y: Axis
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Histogram:
    """bars: (x, y, width, height), of logarithmic height. outside: boxes beyond the grid's range; edges: x of its ends."""

    title: str
    said: str
    width: float
    height: float
    frame: Box
    x: Axis
    bars: tuple[tuple[float, float, float, float], ...]
    outside: tuple[Box, ...]
    edges: tuple[float, ...]


def damages(layers: Sequence[LayerBlame]) -> Damages | None:
    """The layers that were measured, worst first; None for none."""
    shown = [layer for layer in layers if layer.damage is not None][:SHOWN]
    if not shown:
        return None
    values = [value for layer in shown for value in _parts(layer).values()]
    scale = axis.sizes([max(max(values, default=0.0), 1e-30)], PLAIN, _NAMES, _WIDTH - 20)
    bars, names = [], []
    for index, layer in enumerate(shown):
        top = _TOP + _ROW * index
        names.append((shortened(layer.name, 32) or "(no name)", top + 14, layer.name))
        for kind, value in _parts(layer).items():
            title = f"{layer.name}, {_SAID[kind]}: {number(value)} of the output's energy"
            bars.append(Bar(_NAMES, top + (3 if kind == "before" else 10.5), round(scale.at(value) - _NAMES, 1), kind, title))
    bottom = _TOP + _ROW * len(shown)
    return Damages(_WIDTH, bottom + _BOTTOM, scale, tuple(names), tuple(bars), _TOP, bottom)


def along(layers: Sequence[LayerBlame], executed: Sequence[str]) -> Along | None:
    """In place, and with the own rounding alone; None where fewer than two layers have a number."""
    known = {layer.name: layer for layer in layers}
    rows = [known[name] for name in executed if name in known]
    both = {"whole": [layer.sqnr_db for layer in rows], "own": [layer.own_sqnr_db for layer in rows]}
    values = [value for found in both.values() for value in found if value is not None]
    if len([value for value in both["whole"] if value is not None]) < 2:
        return None
    frame = Box(70, 12, _WIDTH - 20, 250)
    scale = axis.span(min(values), max(values), DECIBELS, frame.bottom, frame.top)
    step = (frame.right - frame.left) / max(len(rows), 1)
    lines = tuple(Line(kind, tuple((round(frame.left + step * (index + 0.5), 1), round(scale.at(value), 1),
                                    f"{layer.name}: {number(value, DECIBELS)}")
                                   for index, (layer, value) in enumerate(zip(rows, found, strict=True)) if value is not None))
                  for kind, found in both.items())
    return Along(_WIDTH, 280, frame, scale, lines)


def histogram(found: Counted) -> Histogram:
    """The counts, logarithmic, with what lies beyond the grid marked."""
    frame = Box(14, 10, 416, 150)
    end = found.start + found.width * len(found.counts)
    low, high = min(found.start, found.low), max(end, found.high)
    x = axis.span(low, high, PLAIN, frame.left, frame.right)
    most = math.log1p(max(found.counts, default=1))
    bars = []
    for index, count in enumerate(found.counts):
        if count:
            left, right = (x.at(found.start + found.width * place) for place in (index, index + 1))
            height = (frame.bottom - frame.top) * math.log1p(count) / most
            bars.append((round(left, 1), round(frame.bottom - height, 1), round(max(right - left, 0.6), 1), round(height, 1)))
    edges = tuple(round(x.at(value), 1) for value in (found.low, found.high))
    outside = tuple(box for box in (Box(frame.left, frame.top, edges[0], frame.bottom), Box(edges[1], frame.top, frame.right, frame.bottom))
                    if box.right > box.left)
    said = f"grid from {number(found.low)} to {number(found.high)}, in steps of {number(found.step)}"
    said += " where they are coarsest" if found.part == "weights" else ""
    what = "weights" if found.part == "weights" else "output"
    return Histogram(f"{found.layer}: {what}", said, 430, 182, frame, x, tuple(bars), outside, edges)


_SAID = {"before": "its weights alone", "after": "what it gives alone"}


def _parts(layer: LayerBlame) -> dict[str, float]:
    """The damage of the weights and of the output; of a layer that was done again as a whole, all of it."""
    parts = {"before": layer.weights_damage, "after": layer.activations_damage}
    known = {kind: value for kind, value in parts.items() if value is not None}
    return known or {"before": layer.damage or 0.0}
