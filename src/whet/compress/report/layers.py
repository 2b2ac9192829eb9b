"""Layer by layer: the rows of the table, the bars beside each other, and which layers come first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from whet.compress.report import numbers
from whet.compress.report.axis import Axis, sizes
from whet.compress.report.cells import Cell, missing
from whet.compress.report.labels import shortened
from whet.compress.report.numbers import BYTES, COUNT, DECIBELS, MICROSECONDS, Kind
from whet.core.outcome import LayerReport, OperatorReport

SHOWN = 30  # layers; the rest is folded away
_NAME_WIDTH, _PANEL_GAP, _ROW, _TOP, _BOTTOM, _WIDTH = 236.0, 26.0, 20.0, 40.0, 26.0, 900.0

_NO_TIME = "the runtime does not tell the time of this layer (fused into another, or not profiled)"
_NO_SQNR = "not computed for this layer"


@dataclass(frozen=True)
class LayerRow:
    """place: in the order of execution, 1 first."""

    place: int
    layer: LayerReport
    dtype: str
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Bar:
    """A bar from ``x`` over ``width``; title: the number."""

    x: float
    y: float
    width: float
    title: str
    after: bool


@dataclass(frozen=True)
class Panel:
    """One column of bars with its own axis. dots: (x, y, title), for what has no natural zero. dashes: y of what is not known."""

    title: str
    axis: Axis
    bars: tuple[Bar, ...]
    dots: tuple[tuple[float, float, str], ...]
    dashes: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Bars:
    """The bar plot: names down the left side, (text, y, whole name); then the panels."""

    width: float
    height: float
    names: tuple[tuple[str, float, str], ...]
    panels: tuple[Panel, ...]
    top: float
    bottom: float


def layer_rows(layers: Sequence[LayerReport], shown: int = SHOWN) -> tuple[tuple[LayerRow, ...], tuple[LayerRow, ...]]:
    """(the ``shown`` layers that hold most of the bytes, the time, the error or the damage; the others), in the order of execution."""
    found = [_row(place, layer) for place, layer in enumerate(layers, 1)]
    shares = [_share(layers, measure) for measure in (_bytes, _time, _noise, _damage)]
    weightiest = sorted(found, key=lambda row: (-max(share[row.place - 1] for share in shares), row.place))[:shown]
    chosen = {row.place for row in weightiest}
    return tuple(row for row in found if row.place in chosen), tuple(row for row in found if row.place not in chosen)


def bars(rows: Sequence[LayerRow]) -> Bars | None:
    """Bytes and time before and after, and SQNR, of the rows given; None for none."""
    if not rows:
        return None
    layers = [row.layer for row in rows]
    pairs: list[tuple[str, Kind, list[tuple[float | None, float | None]], str]] = [
        ("Bytes", BYTES, [(float(layer.bytes_before), float(layer.bytes_after)) for layer in layers], "")
    ]
    if any(_known(layer.time_before_us, layer.time_after_us) for layer in layers):
        pairs.append(("Time", MICROSECONDS, [(layer.time_before_us, layer.time_after_us) for layer in layers], _NO_TIME))
    noisy = any(_known(layer.sqnr_db) for layer in layers)
    count = len(pairs) + noisy
    width = (_WIDTH - _NAME_WIDTH - 24.0 - _PANEL_GAP * (count - 1)) / count
    starts = [_NAME_WIDTH + index * (width + _PANEL_GAP) for index in range(count)]
    panels = [_pair_panel(title, kind, values, why, start, width) for (title, kind, values, why), start in zip(pairs, starts, strict=False)]
    if noisy:
        panels.append(_dot_panel([layer.sqnr_db for layer in layers], starts[-1], width))
    names = tuple((shortened(layer.name, 30) or "(no name)", _middle(index), layer.name) for index, layer in enumerate(layers))
    bottom = _TOP + _ROW * len(rows)
    return Bars(_WIDTH, bottom + _BOTTOM, names, tuple(panels), _TOP, bottom)


def operator_rows(
    layers: Sequence[LayerReport], operators: Sequence[OperatorReport], most: int = 15
) -> tuple[tuple[OperatorReport, ...], bool]:
    """(the operators that take most of the time before or after, whether they are what the runtime executes).

    Where the executed operators were not told, the layers are added up by the operator of the original; what belongs to no layer
    (conversions between float and integers, above all) is then missing.
    """
    executed = bool(operators)
    found = operators if executed else _added_up(layers)
    timed = [each for each in found if _known(each.time_before_us, each.time_after_us)]
    return tuple(sorted(timed, key=lambda each: -max(each.time_before_us or 0.0, each.time_after_us or 0.0))[:most]), executed


def maybe(value: float | None, kind: Kind, why: str, title: str = "") -> Cell:
    """A number that may be missing, as a cell."""
    if value is None or not math.isfinite(value):
        return missing(why if value is None else "what came out is not a finite number")
    return Cell(numbers.number(value, kind), title=title, sort=value)


def _row(place: int, layer: LayerReport) -> LayerRow:
    dtype = layer.dtype_before if layer.dtype_before == layer.dtype_after else f"{layer.dtype_before} → {layer.dtype_after}"
    damage = maybe(layer.damage, numbers.PERCENT, "only computed where blame was asked for",
                   "relative error of the model's output when this layer alone is changed")  # fmt: skip
    return LayerRow(place, layer, dtype, {
        "macs": maybe(layer.macs, COUNT, "its shapes are not known"),
        "bytes_before": maybe(layer.bytes_before, BYTES, ""),
        "bytes_after": maybe(layer.bytes_after, BYTES, ""),
        "time_before": maybe(layer.time_before_us, MICROSECONDS, _NO_TIME),
        "time_after": maybe(layer.time_after_us, MICROSECONDS, _NO_TIME),
        "sqnr": maybe(layer.sqnr_db, DECIBELS, _NO_SQNR),
        "damage": damage,
    })  # fmt: skip


def _pair_panel(title: str, kind: Kind, values: Sequence[tuple[float | None, float | None]], why: str, start: float, width: float) -> Panel:
    known = [value for pair in values for value in pair if value is not None and _known(value)]
    scale = _from_zero(known, kind, start, width)
    found, dashes = [], []
    for index, pair in enumerate(values):
        top = _TOP + _ROW * index
        for value, offset, after in ((pair[0], 2.5, False), (pair[1], 10.0, True)):
            if value is not None and _known(value):
                when = "after" if after else "before"
                found.append(Bar(start, top + offset, round(scale.at(value) - start, 1), f"{when}: {numbers.number(value, kind)}", after))
        if not _known(*pair):
            dashes.append((_middle(index), why))
    return Panel(title, scale, tuple(found), (), tuple(dashes))


def _dot_panel(values: Sequence[float | None], start: float, width: float) -> Panel:
    known = [value for value in values if value is not None and _known(value)]
    scale = _from_zero(known, DECIBELS, start, width, min(0.0, *known) if known else 0.0)
    dots = tuple(
        (round(scale.at(value), 1), _middle(index), numbers.number(value, DECIBELS))
        for index, value in enumerate(values) if value is not None and _known(value)
    )  # fmt: skip
    dashes = tuple((_middle(index), _NO_SQNR) for index, value in enumerate(values) if not _known(value))
    return Panel("SQNR, higher is better", scale, (), dots, dashes)


def _from_zero(known: Sequence[float], kind: Kind, start: float, width: float, low: float = 0.0) -> Axis:
    """A linear axis whatever the values: bars are compared by their length."""
    found = sizes([max(known, default=1.0)], kind, start, start + width)
    if low >= 0.0:
        return found
    return Axis(low * 1.05, found.high, start, start + width, False)


def _added_up(layers: Iterable[LayerReport]) -> tuple[OperatorReport, ...]:
    groups: dict[str, list[LayerReport]] = {}
    for layer in layers:
        groups.setdefault(layer.op, []).append(layer)
    return tuple(
        OperatorReport(op, len(own), len(own), _sum(each.time_before_us for each in own), _sum(each.time_after_us for each in own))
        for op, own in groups.items()
    )


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and _known(value)]
    return math.fsum(known) if known else None


def _share(layers: Sequence[LayerReport], measure: Callable[[LayerReport], float]) -> list[float]:
    values = [measure(layer) for layer in layers]
    total = math.fsum(values)
    return [value / total if total > 0 else 0.0 for value in values]


def _bytes(layer: LayerReport) -> float:
    return float(layer.bytes_before)


def _time(layer: LayerReport) -> float:
    return max((value for value in (layer.time_before_us, layer.time_after_us) if value is not None and _known(value)), default=0.0)


def _noise(layer: LayerReport) -> float:
    """Noise over signal, so that a layer at 10 dB counts as ten at 20 dB."""
    sqnr = layer.sqnr_db
    return 10.0 ** (-max(sqnr, -200.0) / 10.0) if sqnr is not None and _known(sqnr) else 0.0


def _damage(layer: LayerReport) -> float:
    return max(layer.damage, 0.0) if layer.damage is not None and _known(layer.damage) else 0.0


def _known(*values: float | None) -> bool:
    """Whether any of them is a number."""
    return any(value is not None and math.isfinite(value) for value in values)


def _middle(index: int) -> float:
    return _TOP + _ROW * index + _ROW / 2
