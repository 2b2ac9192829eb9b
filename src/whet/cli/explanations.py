"""An explanation on the terminal: the verdict, the worst layers as bars, causes, remedies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from whet.cli.screen import Column, Screen
from whet.cli.words import counted

if TYPE_CHECKING:
    from whet.core.explanation import Explanation, LayerBlame

SHOWN, CAUSED, TOLD = 12, 5, 10  # layers in the table, layers whose causes are told, remedies
_BAR = 14


def show_explanation(screen: Screen, found: Explanation, places: Mapping[str, str]) -> None:
    """places: what was written where ("report")."""
    screen.line(found.headline, "bold")
    if not screen.quiet:
        screen.gap()
        _show_layers(screen, found)
        _show_causes(screen, found.layers)
        _show_remedies(screen, found)
        for note in found.notes:
            screen.remark(f"note: {note}")
    if places:
        screen.facts(places)


def bar(share: float, width: int = _BAR) -> str:
    """A bar of eighths of a letter; what is more than nothing shows."""
    eighths = max(round(min(share, 1.0) * width * 8), 1 if share > 0 else 0)
    return "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")


def _show_layers(screen: Screen, found: Explanation) -> None:
    shown = found.layers[:SHOWN]
    largest = max((layer.share or 0.0 for layer in shown), default=0.0) or 1.0
    rows = [[layer.name, layer.op, bar((layer.share or 0.0) / largest), _percent(layer.share), _decibels(layer.damage),
             _decibels(layer.weights_damage), _decibels(layer.activations_damage), _decibels(layer.without), _plain(layer.sqnr_db)]
            for layer in shown]  # fmt: skip
    details = (Column(title, right=True, optional=True) for title in ("weights", "output", "without", "in place"))
    screen.table((Column("layer", flexible=True), Column("operator", optional=True), Column("damage"), Column("share", right=True),
                  Column("alone", right=True), *details), rows)  # fmt: skip
    rest = len(found.layers) - len(shown)
    if rest:
        screen.remark(f"and {counted(rest, 'layer')} with less")
    screen.remark("dB of signal to noise; alone, weights, output: of the model's output when only that is rounded; "
                  "without: when all else is; in place: of the layer's own output")  # fmt: skip
    screen.gap()


def _show_causes(screen: Screen, layers: Sequence[LayerBlame]) -> None:
    for layer in [layer for layer in layers if layer.causes][:CAUSED]:
        signs = [cause for cause in layer.causes if cause.kind != "rounding"] or layer.causes[:1]
        for cause in signs[:2]:
            screen.line(f"{layer.name}: {cause.text}")
    screen.gap()


def _show_remedies(screen: Screen, found: Explanation) -> None:
    tried = [remedy for remedy in found.remedies if remedy.status == "measured"]
    good = found.useful[:TOLD]
    if not tried:
        return
    columns = (Column("remedy", flexible=True, keep="ends"), Column("what it gives and costs"))
    screen.table(columns, [[remedy.name, remedy.price] for remedy in good])
    without = len(tried) - len(good)
    if without:
        screen.remark(f"{counted(without, 'remedy', 'remedies')} more tried, that mend less; --json lists all")
    screen.gap()


def _decibels(error: float | None) -> str:
    from whet.compress.evaluate.output_error import decibels

    return "-" if error is None else "exact" if error == 0 else _plain(decibels(error))


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
