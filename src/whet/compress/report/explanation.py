"""The page of an explanation: one HTML file that needs nothing else, in the look of the report."""

from __future__ import annotations

import math

from whet.compress.report import blame_plots
from whet.compress.report.cells import Cell, cell, missing
from whet.compress.report.layers import maybe
from whet.compress.report.numbers import BYTES, DECIBELS, PERCENT, PLAIN, duration, number
from whet.compress.report.page import filled
from whet.compress.report.quantities import drop_kind, kind_of, title_of
from whet.compress.report.sections import facts
from whet.core.explanation import Explanation, LayerBlame, Remedy
from whet.core.measurement import Measurement


def render_explanation(found: Explanation) -> str:
    """The explanation as one HTML page; every text in it escaped, nothing from anywhere else (see ``page.render``)."""
    return filled("explanation.html.j2", {
        "found": found,
        "took": duration(found.seconds) if found.seconds > 0 else "",
        "figures": _figures(found),
        "layers": [(layer, _cells(layer, found.metric)) for layer in found.layers],
        "damages": blame_plots.damages(found.layers),
        "along": blame_plots.along(found.layers, found.executed),
        "histograms": [blame_plots.histogram(each) for each in found.histograms],
        "remedies": [(each, _prices(each, found)) for each in found.remedies],
        "recipe": found.recipe.to_text(),
        "facts": [(title, tuple(facts(each)))
                  for title, each in (("Data", found.data), ("Machine", found.machine), ("Versions", found.tools))],
    })


def _figures(found: Explanation) -> tuple[tuple[str, Cell], ...]:
    shown = [(title_of(name, found.metric), cell(each, kind_of(name, found.metric), digits=4)) for name, each in found.quality.items()
             if name in (found.metric, "drop", "flips", "sqnr_db")]
    size = Measurement("size_bytes", float(found.size_bytes), method=f"{number(found.original_bytes, BYTES)} in float")
    return (*shown, ("Size on disk", cell(size, BYTES)))


def _cells(layer: LayerBlame, metric: str) -> tuple[Cell, ...]:
    why = "not measured: others add more noise in place"
    no_part = "it has no such part, or it was not measured alone"
    shares = maybe(layer.share, PERCENT, why)
    errors = [_error(each, reason) for each, reason in ((layer.damage, why), (layer.weights_damage, no_part),
                                                        (layer.activations_damage, no_part), (layer.without, why))]
    noise = [maybe(each, DECIBELS, "not known") for each in (layer.own_sqnr_db, layer.sqnr_db)]
    drop = maybe(layer.drop_without, drop_kind(metric), "only computed for the worst layers, where there are labels")
    return (shares, *errors, *noise, maybe(layer.kl, PLAIN, "the output holds no class scores, or it was not measured"), drop)


def _error(value: float | None, why: str) -> Cell:
    """Relative error energy as signal to noise."""
    if value is None:
        return missing(why)
    title = f"relative error energy {number(value)}"
    return Cell("exact", title=title, sort=math.inf) if value <= 0 else Cell(number(-10 * math.log10(value), DECIBELS), title=title,
                                                                              sort=-10 * math.log10(value))


def _prices(remedy: Remedy, found: Explanation) -> tuple[str, str]:
    """(what it gives and costs, the recipe in TOML)."""
    return remedy.price if remedy.status == "measured" else f"could not be done: {remedy.note}", remedy.recipe.to_text()
