"""The report as one HTML file that needs nothing else, and its JSON beside it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import math
import re
from pathlib import Path
from typing import Any

from whet.compress.report import layers, sections
from whet.compress.report.cells import Cell
from whet.compress.report.numbers import BYTES, MICROSECONDS, duration, number
from whet.compress.report.rows import SIGNS, columns, rows
from whet.compress.report.scatter import scatter
from whet.core.document import FrozenMap
from whet.core.measurement import Interval, Measurement
from whet.core.outcome import OperatorReport, Outcome
from whet.device.files import write_file

HTML_NAME, JSON_NAME = "report.html", "report.json"
_TEMPLATES = Path(__file__).parent / "templates"
# What a file must not hold or a reader must not be misled by: control characters, halves of surrogate pairs (no UTF-8 has them), and
# the signs that turn the direction of text, with which a name could be made to read as another.
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def render(outcome: Outcome) -> str:
    """The outcome as one HTML page: no script, style, font or image from anywhere else; every text in it escaped.

    The page's own style and script are allowed by their hash (Content-Security-Policy), and nothing else is: should a hostile
    name ever get past the escaping, the browser still runs none of it.
    """
    return filled("report.html.j2", _context(outcome))


def filled(template: str, context: dict[str, Any]) -> str:
    """A template of this room as a page, with the style and the script that all pages share."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style, script = (_template(name) for name in ("style.css", "script.js"))
    text = environment.get_template(template).render(
        **context, style=style, script=script, style_hash=_hash(style), script_hash=_hash(script)
    )
    return _UNFIT.sub("\ufffd", text)


def write_report(outcome: Outcome, folder: Path) -> Path:
    """Write report.html and report.json into ``folder``; gives the path of the page. Raises Refused where they cannot be written.

    JSON has no NaN and no infinity: a measurement that holds one is written without a value and with the reason.
    """
    page = render(outcome)
    write_file(folder / JSON_NAME, finite(outcome).to_json())
    write_file(folder / HTML_NAME, page)
    return folder / HTML_NAME


def finite(outcome: Outcome) -> Outcome:
    """The outcome with every NaN and infinity of its measurements and layers taken out."""
    trials = tuple(
        dataclasses.replace(trial, measurements=FrozenMap({name: _finite_measurement(each) for name, each in trial.measurements.items()}))
        for trial in outcome.trials
    )
    return dataclasses.replace(
        outcome, trials=trials, layers=tuple(map(_finite_fields, outcome.layers)), operators=tuple(map(_finite_fields, outcome.operators))
    )


def _context(outcome: Outcome) -> dict[str, Any]:
    """Everything that the template names."""
    found, about = rows(outcome), sections.subject(outcome)
    across, drop, size, ratio = sections.plot_axes(outcome)
    weighty, rest = layers.layer_rows(outcome.layers)
    operators, executed = layers.operator_rows(outcome.layers, outcome.operators)
    return {
        "outcome": outcome,
        "subject": about,
        "won": bool(outcome.winner),
        "took": _took(outcome.seconds),
        "made": _took(about.seconds) if about else "",
        "figures": sections.figures(outcome, about) if about else (),
        "gates": sections.gate_rows(outcome, about),
        "front_plot": scatter(found, across, drop, width=860, height=480),
        "second_plot": scatter(found, size, ratio, width=620, height=360, most=(6, 14)),
        "signs": SIGNS,
        "columns": columns(outcome),
        "rows": found,
        "stages": sections.stage_rows(outcome, found),
        "told": {row.number: sections.told(outcome, row) for row in found},
        "estimated": any(cell.estimated for row in found for cell in row.cells.values()),
        "layers_top": weighty,
        "layers_rest": rest,
        "bars": layers.bars(weighty),
        "profile": sections.profile_rows(outcome, about),
        "operators": [(each, *_operator_cells(each)) for each in operators],
        "executed": executed,
        "recipe": sections.recipe_text(about) if about else "",
        "data": tuple(sections.facts(outcome.data)),
        "machine": tuple(sections.facts(outcome.machine)),
        "tools": tuple(sections.facts(outcome.tools)),
        "methods": sections.methods(outcome, found),
        "gaps": sections.gaps(outcome, found),
        "size_of": lambda count: number(count, BYTES),
    }


def _took(seconds: float) -> str:
    return duration(seconds) if seconds > 0 and math.isfinite(seconds) else ""


def _operator_cells(each: OperatorReport) -> tuple[Cell, Cell]:
    why = "not executed" if not (each.calls_before and each.calls_after) else "the runtime does not tell"
    return layers.maybe(each.time_before_us, MICROSECONDS, why), layers.maybe(each.time_after_us, MICROSECONDS, why)


def _template(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a Content-Security-Policy names a script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _finite_measurement(found: Measurement) -> Measurement:
    if found.interval is not None and not all(map(math.isfinite, _ends(found.interval))):
        found = dataclasses.replace(found, interval=None)
    if found.value is not None and not math.isfinite(found.value):
        return dataclasses.replace(found, value=None, interval=None, why=f"{found.value} came out, which is not a finite number")
    return found


def _ends(span: Interval) -> tuple[float, float, float]:
    return span.low, span.high, span.confidence


def _finite_fields(report: Any) -> Any:
    bad = {field.name: None for field in dataclasses.fields(report)
           if isinstance(value := getattr(report, field.name), float) and not math.isfinite(value)}  # fmt: skip
    return dataclasses.replace(report, **bad) if bad else report
