"""What each section of the report says, as plain values; the template only sets them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from whet.compress.report import cells, numbers
from whet.compress.report.cells import Cell
from whet.compress.report.quantities import kind_of, memory_name, quality_name, title_of
from whet.compress.report.rows import Row, judged, limit_text, standing
from whet.compress.report.scatter import Quantity
from whet.core.errors import Refused
from whet.core.outcome import GOALS, Outcome, Trial, resource_of

_PROFILE = ("latency_ms", "latency_p95_ms", "throughput_per_s", "peak_rss_bytes", "model_rss_bytes", "size_bytes", "energy_mj")


@dataclass(frozen=True)
class Figure:
    """A big number: what it is, the number with its interval, and what it was before."""

    label: str
    cell: Cell
    note: str = ""


@dataclass(frozen=True)
class GateRow:
    """One gate: what was asked and what was found."""

    title: str
    asked: str
    source: str
    whole: bool
    found: Cell
    passed: bool
    text: str


@dataclass(frozen=True)
class StageRow:
    """One stage of the search: what it made, why not more, and where the best candidate stood after it. numbers: of the candidates in
    the table."""

    name: str
    made: str
    best: str
    passed: bool
    drop: Cell
    faster: Cell
    size: Cell
    took: str
    note: str


@dataclass(frozen=True)
class ProfileRow:
    """One measurement before and after. change: after / before."""

    title: str
    before: Cell
    after: Cell
    change: Cell


@dataclass(frozen=True)
class Method:
    """How a measurement was made, and of which candidates."""

    title: str
    name: str
    source: str
    method: str
    n: str
    device: str
    data: str
    at: str
    trials: str


def subject(outcome: Outcome) -> Trial | None:
    """The trial that the report is about: the winner, else the closest one."""
    return outcome.trial(outcome.winner) if outcome.winner else outcome.trial(outcome.closest) if outcome.closest else None


def figures(outcome: Outcome, trial: Trial) -> tuple[Figure, ...]:
    """Times faster, times smaller, drop, memory."""
    memory = memory_name(outcome)
    return (
        Figure("times faster", cells.speedup(trial), _change(outcome, trial, "latency_ms")),
        Figure("times smaller", cells.shrinkage(outcome, trial), _change(outcome, trial, "size_bytes")),
        Figure(f"drop of {outcome.metric}", cells.measured(outcome, trial, "drop"), _change(outcome, trial, quality_name(outcome))),
        Figure(title_of(memory, outcome.metric).lower(), cells.measured(outcome, trial, memory), _before(outcome, memory)),
    )


def gate_rows(outcome: Outcome, trial: Trial | None) -> tuple[GateRow, ...]:
    """Every gate, held against ``trial``; against nothing where there is none."""
    against = trial or Trial("", outcome.trials[0].recipe if outcome.trials else _empty(), "failed", "no candidate was measured")
    found = []
    for each in judged(outcome, against):
        gate, kind = each.gate, kind_of(each.gate.measurement, outcome.metric)
        value = cells.cell(against.measurements.get(gate.measurement), kind, why=cells.why_nothing(against), digits=4)
        found.append(GateRow(title_of(gate.measurement, outcome.metric), limit_text(outcome, gate), gate.reason, gate.proven, value,
                             each.reason.passed, each.words if not each.reason.passed else ""))  # fmt: skip
    return tuple(found)


def plot_axes(outcome: Outcome) -> tuple[Quantity, Quantity, Quantity, Quantity]:
    """(x and y of the front, x and y of the second plot). x of the front is what is minimised, or what comes next to it."""
    wanted = [GOALS.get(resource_of(outcome.goal), "latency_ratio"), "latency_ratio", "latency_ms", "size_bytes"]
    held = [name for name in wanted if sum(trial.value(name) is not None for trial in outcome.trials) >= 2]
    across = held[0] if held else wanted[0]
    quantities = {name: Quantity(name, _axis_title(name, outcome), kind_of(name, outcome.metric), _limit(outcome, name))
                  for name in (across, "drop", "latency_ratio", "size_bytes")}  # fmt: skip
    return quantities[across], quantities["drop"], quantities["size_bytes"], quantities["latency_ratio"]


def profile_rows(outcome: Outcome, trial: Trial | None) -> tuple[ProfileRow, ...]:
    """The original beside ``trial``; measurements that neither has are left out."""
    original = outcome.trial(outcome.original)
    if original is None or trial is None:
        return ()
    found = []
    for name in _PROFILE:
        if name in original.measurements or name in trial.measurements:
            before, after = (cells.measured(outcome, each, name) for each in (original, trial))
            found.append(ProfileRow(title_of(name, outcome.metric), before, after, _ratio(outcome, original, trial, name)))
    return tuple(found)


def stage_rows(outcome: Outcome, rows: tuple[Row, ...]) -> tuple[StageRow, ...]:
    """What each stage of the search bought: the best candidate by its end."""
    places = {row.trial.name: row.number for row in rows}
    found = []
    for stage in outcome.stages:
        best = outcome.trial(stage.best) or Trial("", _empty(), "failed", "nothing was measured by then")
        found.append(StageRow(stage.name, _numbers([places[name] for name in stage.trials if name in places]) or cells.DASH, stage.best,
                              stage.passed, cells.measured(outcome, best, "drop"), cells.speedup(best), cells.shrinkage(outcome, best),
                              numbers.duration(stage.seconds), stage.note))  # fmt: skip
    return tuple(found)


def recipe_text(trial: Trial) -> str:
    """The recipe as TOML, as JSON where TOML cannot hold it."""
    try:
        return trial.recipe.to_text()
    except Refused:
        try:
            return trial.recipe.to_json()
        except Refused as refusal:
            return f"# {refusal}"


def facts(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested table as lines: ("evaluation sha256", "12ab...")."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from facts(value, f"{prefix}{name} ")
        elif isinstance(value, tuple) and not any(isinstance(each, Mapping) for each in value):
            yield f"{prefix}{name}", ", ".join(map(_fact, value)) or cells.DASH
        else:
            yield f"{prefix}{name}", _fact(value, name)


def methods(outcome: Outcome, rows: tuple[Row, ...]) -> tuple[Method, ...]:
    """How each measurement was made: one line for all candidates of which the same is true."""
    groups: dict[tuple[str, ...], list[tuple[Row, int, str]]] = {}
    for row in rows:
        for name, found in row.trial.measurements.items():
            if found.value is not None:
                groups.setdefault((name, found.source, found.method, found.device, found.data), []).append((row, found.n, found.at))
    measured_rows = sum(row.trial.status == "measured" for row in rows)
    return tuple(
        Method(title_of(name, outcome.metric), name, source, method or "not told", _range([n for _, n, _ in own]), device, data,
               _span([at for _, _, at in own]), "all" if len(own) == measured_rows else _numbers([row.number for row, _, _ in own]))
        for (name, source, method, device, data), own in groups.items()
    )  # fmt: skip


def gaps(outcome: Outcome, rows: tuple[Row, ...]) -> tuple[tuple[str, str, str], ...]:
    """(what, why, candidates) of every number that is missing although the candidate was measured."""
    names = dict.fromkeys(name for row in rows for name in row.trial.measurements)
    found: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        for name in names:
            one = row.trial.measurements.get(name)
            if row.trial.status == "measured" and (one is None or one.value is None or not math.isfinite(one.value)):
                why = cells.measured(outcome, row.trial, name).title
                found.setdefault((title_of(name, outcome.metric), why), []).append(row.number)
    return tuple((what, why, _numbers(own)) for (what, why), own in found.items())


def told(outcome: Outcome, row: Row) -> str:
    """The verdict of a candidate in a word, for filtering."""
    where = standing(outcome, row.trial)
    return "refused" if where == "closest" else "passed" if where == "winner" else where


def _empty() -> Any:
    from whet.core.recipe import Recipe

    return Recipe()


def _change(outcome: Outcome, trial: Trial, name: str) -> str:
    """ "4.10 ms → 1.20 ms"; "" where one of them is missing."""
    original = outcome.trial(outcome.original)
    if original is None or original is trial:
        return ""
    before, after = (cells.measured(outcome, each, name, digits=3) for each in (original, trial))
    return "" if before.missing or after.missing else f"{before.text} → {after.text}"


def _before(outcome: Outcome, name: str) -> str:
    original = outcome.trial(outcome.original)
    found = cells.measured(outcome, original, name) if original is not None else cells.missing("")
    return "" if found.missing else f"original {found.text}"


def _ratio(outcome: Outcome, original: Trial, trial: Trial, name: str) -> Cell:
    """After / before. For latency the paired ratio, which is better than the ratio of two medians."""
    if name == "latency_ms" and trial.value("latency_ratio") is not None:
        return cells.measured(outcome, trial, "latency_ratio")
    before, after = original.value(name), trial.value(name)
    if before is None or after is None or not math.isfinite(before) or not math.isfinite(after) or before <= 0:
        return cells.missing("one of the two numbers is missing")
    return Cell(numbers.number(after / before, numbers.TIMES), title="after / before", sort=after / before)


def _axis_title(name: str, outcome: Outcome) -> str:
    special = {
        "drop": f"Drop of {outcome.metric} (lower is better)",
        "latency_ratio": "Time of one inference, × that of the original (paired)",
        "latency_ms": "Median time of one inference",
    }
    return special.get(name, title_of(name, outcome.metric))


def _limit(outcome: Outcome, name: str) -> float | None:
    """The strictest gate on that measurement."""
    return min((gate.limit for gate in outcome.gates if gate.measurement == name and math.isfinite(gate.limit)), default=None)


def _fact(value: Any, name: str = "") -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return cells.DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_bytes") and isinstance(value, int | float):
        return numbers.number(float(value), numbers.BYTES)
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _range(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    if not high:
        return cells.DASH
    return _fact(low) if low == high else f"{_fact(low)} to {_fact(high)}"


def _span(times: list[str]) -> str:
    known = sorted(filter(None, times))
    if not known:
        return ""
    return known[0] if known[0] == known[-1] else f"{known[0]} to {known[-1]}"


def _numbers(found: list[int]) -> str:
    """ "1, 3 to 7, 9"."""
    parts: list[list[int]] = []
    for each in sorted(found):
        if parts and each == parts[-1][-1] + 1:
            parts[-1].append(each)
        else:
            parts.append([each])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts)
