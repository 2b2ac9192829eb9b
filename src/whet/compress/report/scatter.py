"""The candidates as points of a plot: where everything lies, so that the template only has to draw it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from whet.compress.report import axis, labels
from whet.compress.report.axis import Axis
from whet.compress.report.labels import Box, Label, Wish
from whet.compress.report.numbers import Kind, number
from whet.compress.report.rows import Row, Standing
from whet.core.front import front
from whet.core.measurement import Interval, Measurement

NAMED = 14  # up to so many points all are labelled by name; above that the less important ones get the number of their row
NUMBERED = 80  # up to so many; above that only the important ones are labelled, and the others by their tooltip
FAR = 5.0  # a drop this many times the limit, and the typical drop, is put at the edge, so that the others keep their room
RADIUS: dict[Standing, float] = {"winner": 7.5, "original": 5.0, "closest": 6.0}


@dataclass(frozen=True)
class Quantity:
    """What one axis shows. name: of the measurement."""

    name: str
    title: str
    kind: Kind
    limit: float | None = None


@dataclass(frozen=True)
class Mark:
    """One candidate in the plot. whiskers: (x1, y1, x2, y2) of its intervals. off: whether it really lies above the plot."""

    row: Row
    x: float
    y: float
    radius: float
    title: str
    whiskers: tuple[tuple[float, float, float, float], ...]
    off: bool
    label: Label | None


@dataclass(frozen=True)
class Scatter:
    """Everything to draw, in the units of the viewBox (0, 0, width, height). marks: the important ones last.

    front: the corners of the joined front. limit_x, limit_y: the lines of the gates; refused: the boxes behind them. zero_y: where
    nothing is lost. absent: the rows that lack one of the two numbers.
    """

    width: float
    height: float
    frame: Box
    x: Axis
    y: Axis
    x_title: str
    y_title: str
    marks: tuple[Mark, ...]
    front: tuple[tuple[float, float], ...]
    refused: tuple[Box, ...]
    limit_x: float | None
    limit_y: float | None
    limit_texts: tuple[Label, ...]
    zero_y: float | None
    absent: tuple[Row, ...]

    @property
    def off(self) -> bool:
        return any(mark.off for mark in self.marks)


def scatter(
    rows: Sequence[Row], across: Quantity, up: Quantity, *, width: float, height: float, most: tuple[int, int] = (NAMED, NUMBERED)
) -> Scatter | None:
    """The plot of ``up`` over ``across``; None where fewer than two candidates have both numbers.

    most: up to how many points are labelled by name, and up to how many by number.
    """
    shown = [row for row in rows if _value(row, across) is not None and _value(row, up) is not None]
    if len(shown) < 2:
        return None
    frame = Box(94, 14, width - 18, height - 52)
    x, y = _axes(shown, across, up, frame)
    limit_x = x.at(across.limit) if across.limit is not None and x.holds(across.limit) else None
    limit_y = y.at(up.limit) if up.limit is not None and y.holds(up.limit) else None
    bare = [_mark(row, across, up, x, y) for row in shown]
    steps = _front([row for row, mark in zip(shown, bare, strict=True) if not mark.off], across, up, x, y)
    lines = _limit_lines(limit_x, limit_y, frame)
    limits = _limit_texts(across, up, limit_x, limit_y, frame, [*lines, *map(_square, bare)])
    lines += [_thin(*start, *end) for start, end in itertools.pairwise(steps)]
    lines += [_thin(*whisker) for mark in bare for whisker in mark.whiskers]
    marks = _labelled(bare, frame, [text.box for text in limits], lines, most)
    return Scatter(
        width, height, frame, x, y, across.title, up.title, marks, steps, _refused(limit_x, limit_y, frame),
        limit_x, limit_y, limits, y.at(0.0) if y.low < 0 < y.high else None, tuple(row for row in rows if row not in shown),
    )  # fmt: skip


def _axes(shown: Sequence[Row], across: Quantity, up: Quantity, frame: Box) -> tuple[Axis, Axis]:
    wide = [_value(row, across) or 0.0 for row in shown] + ([across.limit] if across.limit is not None else [])
    tall = [_value(row, up) or 0.0 for row in shown]
    x = axis.sizes(_sensible(wide), across.kind, frame.left, frame.right)
    if up.name != "drop":
        return x, axis.sizes(_sensible(tall + ([up.limit] if up.limit is not None else [])), up.kind, frame.bottom, frame.top)
    low, high = _drop_range(shown, up)
    return x, axis.span(low, high, up.kind, frame.bottom, frame.top)


def _sensible(values: Sequence[float]) -> list[float]:
    """Without a limit that lies far above everything else: it would press the points into a corner."""
    largest = max(values[:-1], default=values[-1]) if len(values) > 1 else values[-1]
    return [value for value in values if value <= 3 * largest] or list(values)


def _drop_range(shown: Sequence[Row], up: Quantity) -> tuple[float, float]:
    """From the best to the worst, intervals included, but not much further than ``FAR`` times the limit or the typical drop: a
    candidate that lost everything would else make one line of all the others."""
    worse = sorted(value for row in shown if (value := _value(row, up) or 0.0) > 0)
    limit = up.limit or 0.0
    far = max(FAR * limit, FAR * worse[len(worse) // 2] if worse else 0.0) or max(abs(end) for row in shown for end in _ends(row, up))
    near = [end for row in shown if (_value(row, up) or 0.0) <= far for end in _ends(row, up)]
    low = min(0.0, limit, max([-far, min(near, default=0.0)]))
    return low, max(0.0, 1.3 * limit, min(far, max(near, default=0.0)))


def _mark(row: Row, across: Quantity, up: Quantity, x: Axis, y: Axis) -> Mark:
    wide, tall = _value(row, across) or 0.0, _value(row, up) or 0.0
    place_x, place_y = round(x.at(wide), 1), round(y.at(tall), 1)
    off = tall > y.high
    whiskers = []
    if (span := _interval(row, up)) is not None and not off:
        whiskers.append((place_x, round(y.at(span.low), 1), place_x, round(y.at(span.high), 1)))
    if (span := _interval(row, across)) is not None and not off:
        whiskers.append((round(x.at(span.low), 1), place_y, round(x.at(span.high), 1), place_y))
    radius = RADIUS.get(row.standing, 4.5)
    title = f"{row.number}. {row.trial.name}: {number(tall, up.kind)}, {number(wide, across.kind)} ({row.verdict})"
    return Mark(row, place_x, place_y + (radius if off else 0.0), radius, title, tuple(whiskers), off, None)


def _labelled(
    marks: Sequence[Mark], frame: Box, taken: Sequence[Box], lines: Sequence[Box], most: tuple[int, int]
) -> tuple[Mark, ...]:
    """The marks with their labels: the important ones first, so that they get the best places."""
    order = sorted(range(len(marks)), key=lambda index: _importance(marks[index]))
    wishes = [_wish(marks[index], len(marks) <= most[0], len(marks) <= most[1]) for index in order]
    found = dict(zip(order, labels.place(wishes, frame, taken, lines), strict=True))
    return tuple(replace(marks[index], label=found[index]) for index in reversed(order))  # the important ones are drawn last, on top


def _wish(mark: Mark, all_named: bool, all_numbered: bool) -> Wish:
    own = str(mark.row.number)
    name = labels.shortened(mark.row.trial.name) or own
    important = mark.row.standing in ("winner", "original", "closest")
    texts = (name, own) if important or all_named else (own,) if all_numbered or mark.row.trial.on_front else ()
    return Wish(mark.x, mark.y, mark.radius, texts)


def _importance(mark: Mark) -> tuple[int, int]:
    first: dict[Standing, int] = {"winner": 0, "original": 1, "closest": 2}
    return first.get(mark.row.standing, 3 if mark.row.trial.on_front else 4), mark.row.number


def _front(shown: Sequence[Row], across: Quantity, up: Quantity, x: Axis, y: Axis) -> tuple[tuple[float, float], ...]:
    """Steps through the candidates that no other one beats in these two numbers: below and left of them nothing was found."""
    points = {str(row.number): (_value(row, across) or 0.0, _value(row, up) or 0.0) for row in shown}
    corners: list[tuple[float, float]] = []
    for across_value, up_value in sorted({points[name] for name in front(points)}):
        place = (round(x.at(across_value), 1), round(y.at(up_value), 1))
        if corners:
            corners.append((place[0], corners[-1][1]))
        corners.append(place)
    return tuple(corners)


def _refused(limit_x: float | None, limit_y: float | None, frame: Box) -> tuple[Box, ...]:
    """The zones behind the limits, without shading their common corner twice."""
    found = []
    if limit_y is not None and limit_y > frame.top:
        found.append(Box(frame.left, frame.top, frame.right, round(limit_y, 1)))
    if limit_x is not None and limit_x < frame.right:
        found.append(Box(round(limit_x, 1), found[0].bottom if found else frame.top, frame.right, frame.bottom))
    return tuple(found)


def _limit_lines(limit_x: float | None, limit_y: float | None, frame: Box) -> list[Box]:
    across = [] if limit_y is None else [_thin(frame.left, limit_y, frame.right, limit_y)]
    return across + ([] if limit_x is None else [_thin(limit_x, frame.top, limit_x, frame.bottom)])


def _limit_texts(
    across: Quantity, up: Quantity, limit_x: float | None, limit_y: float | None, frame: Box, taken: Sequence[Box]
) -> tuple[Label, ...]:
    """The limits written along their lines, where they cover no point; at the first place where they must."""
    found: list[Label] = []
    if limit_y is not None and up.limit is not None:
        text = f"limit {number(up.limit, up.kind)}"
        lefts = (frame.right - labels.text_width(text) - 2, frame.left + 4, (frame.left + frame.right) / 2)
        found.append(_free([_fixed(text, left, top) for top in (limit_y - labels.LINE - 2, limit_y + 2) for left in lefts], frame, taken))
    if limit_x is not None and across.limit is not None:
        text = f"limit {number(across.limit, across.kind)}"
        tops = (frame.bottom - labels.LINE - 3, frame.top + 3, (frame.top + frame.bottom) / 2)
        sides = (limit_x + 4, limit_x - 4 - labels.text_width(text))
        found.append(_free([_fixed(text, left, top) for left in sides for top in tops], frame, [*taken, *(each.box for each in found)]))
    return tuple(found)


def _free(offers: Sequence[Label], frame: Box, taken: Sequence[Box]) -> Label:
    inside = [label for label in offers if label.box.within(frame)] or list(offers)
    return next((label for label in inside if not any(label.box.overlaps(box, 1) for box in taken)), inside[0])


def _fixed(text: str, left: float, top: float) -> Label:
    box = Box(round(left, 1), round(top, 1), round(left + labels.text_width(text), 1), round(top + labels.LINE, 1))
    return Label(text, box.left, round(top + labels.LINE - 3.2, 1), box)


def _measurement(row: Row, what: Quantity) -> Measurement | None:
    return row.trial.measurements.get(what.name)


def _value(row: Row, what: Quantity) -> float | None:
    """The number to plot, None where there is none. Against itself the original has lost nothing, measured or not."""
    found = _measurement(row, what)
    if found is not None and found.value is not None and math.isfinite(found.value):
        return found.value
    return {"drop": 0.0, "latency_ratio": 1.0}.get(what.name) if row.standing == "original" else None


def _interval(row: Row, what: Quantity) -> Interval | None:
    found = _measurement(row, what)
    span = found.interval if found is not None else None
    return span if span is not None and math.isfinite(span.low) and math.isfinite(span.high) else None


def _ends(row: Row, what: Quantity) -> tuple[float, ...]:
    span, value = _interval(row, what), _value(row, what) or 0.0
    return (span.low, span.high, value) if span is not None else (value,)


def _square(mark: Mark) -> Box:
    return Box(mark.x - mark.radius, mark.y - mark.radius, mark.x + mark.radius, mark.y + mark.radius)


def _thin(x1: float, y1: float, x2: float, y2: float) -> Box:
    return Box(min(x1, x2) - 1, min(y1, y2) - 1, max(x1, x2) + 1, max(y1, y2) + 1)
