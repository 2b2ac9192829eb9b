"""The candidates, one row each: for the report's table, and as plain texts for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from whet.compress.report import cells
from whet.compress.report.cells import Cell
from whet.compress.report.numbers import number
from whet.compress.report.quantities import kind_of, memory_name, title_of
from whet.core.gate import Gate, Reason, judge
from whet.core.outcome import GOALS, Outcome, Trial
from whet.core.recipe import Recipe, Step

Standing = Literal["winner", "original", "closest", "passed", "refused", "skipped", "failed"]

SIGNS: Mapping[Standing, str] = {
    "winner": "★", "original": "■", "closest": "◇", "passed": "✓", "refused": "✗", "skipped": "○", "failed": "!",
}  # fmt: skip
WORDS: Mapping[Standing, str] = {"closest": "refused, closest"}


@dataclass(frozen=True)
class Judged:
    """One gate beside what it found. words: the same in a few words; reason: as the gate itself put it."""

    gate: Gate
    reason: Reason
    words: str


@dataclass(frozen=True)
class Row:
    """One candidate. number: its place in the table, 1 first; plots use it as a label. cells: by the keys of ``COLUMNS``."""

    number: int
    trial: Trial
    standing: Standing
    recipe: str
    cells: Mapping[str, Cell]
    reasons: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """The standing with its sign."""
        return f"{SIGNS[self.standing]} {WORDS.get(self.standing, self.standing)}"


def columns(outcome: Outcome) -> dict[str, tuple[str, str]]:
    """The columns of numbers: (heading, explanation) by key, in order."""
    metric, memory = outcome.metric, memory_name(outcome)
    return {
        "quality": (metric[:1].upper() + metric[1:], "the metric with its interval"),
        "drop": ("Drop", "how much worse than the original on the same samples (paired), with its interval; below zero is better"),
        "faster": ("Times faster", "1 / the ratio of the times, interleaved with the original in one run (paired), with its interval"),
        "latency": ("Latency", "median of one inference"),
        "p95": ("p95", "95 % of the inferences took no longer"),
        "size": ("Size", "bytes of all files on disk"),
        "smaller": ("Times smaller", "size of the original / size of this one"),
        "memory": ("Memory", f"{title_of(memory, metric)}: resident, in a process of its own"),
        "energy": ("Energy", "of one inference"),
    }


def rows(outcome: Outcome) -> tuple[Row, ...]:
    """All trials: the original, the winner, then the others from good to bad, what was skipped or failed last."""
    ordered = sorted(outcome.trials, key=lambda trial: _rank(outcome, trial))
    return tuple(
        Row(index, trial, standing(outcome, trial), in_words(trial.recipe), _cells(outcome, trial), _reasons(outcome, trial))
        for index, trial in enumerate(ordered, 1)
    )


def summary_rows(outcome: Outcome) -> list[Mapping[str, str]]:
    """The candidates as plain texts, best first, for a terminal.

    Keys: number, name, quality, drop, faster, latency, p95, size, smaller, memory, energy, verdict, why; a number that was not
    measured is a dash, an estimate begins with "≈". The texts are as hostile as the names inside: escape them where it matters.
    """
    found: list[Mapping[str, str]] = []
    for row in rows(outcome):
        texts = {key: value.line if key in ("drop", "faster") else value.text for key, value in row.cells.items()}
        found.append({"number": str(row.number), "name": row.trial.name, **texts, "verdict": row.verdict, "why": "; ".join(row.reasons)})
    return found


def standing(outcome: Outcome, trial: Trial) -> Standing:
    """What became of a trial."""
    if trial.name == outcome.winner and outcome.winner:
        return "winner"
    if trial.name == outcome.original:
        return "original"
    if trial.status != "measured":
        return trial.status
    if trial.passed:
        return "passed"
    return "closest" if trial.name == outcome.closest and not outcome.winner else "refused"


def judged(outcome: Outcome, trial: Trial) -> tuple[Judged, ...]:
    """Every gate of the outcome against a trial, by the trial's own verdict where it speaks of the same gates."""
    own = trial.verdict.reasons if trial.verdict is not None else ()
    if [reason.measurement for reason in own] != [gate.measurement for gate in outcome.gates]:
        own = judge(outcome.gates, trial.measurements).reasons
    return tuple(Judged(gate, reason, _in_short(outcome, trial, gate)) for gate, reason in zip(outcome.gates, own, strict=True))


def limit_text(outcome: Outcome, gate: Gate) -> str:
    """The limit with its unit, with enough digits to tell it from what was found beside it."""
    if not math.isfinite(gate.limit):
        return "(no number)"
    return number(gate.limit, kind_of(gate.measurement, outcome.metric), digits=4)


def in_words(recipe: Recipe) -> str:
    """A recipe as a sentence: "static on all layers but conv1, with ranges = mse; then float16 on all layers"."""
    return "; then ".join(map(_step_in_words, recipe.steps)) or "left as it is"


def _step_in_words(step: Step) -> str:
    text = f"{step.technique} on " + ("all layers" if step.layers == ("*",) else ", ".join(step.layers) or "no layer")
    if step.exclude:
        text += f" but {', '.join(step.exclude)}"
    if step.options:
        text += ", with " + ", ".join(f"{name} = {_value(value)}" for name, value in step.options.items())
    return text


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cells(outcome: Outcome, trial: Trial) -> dict[str, Cell]:
    return {
        "quality": cells.quality(outcome, trial),
        "drop": cells.measured(outcome, trial, "drop"),
        "faster": cells.speedup(trial),
        "latency": cells.measured(outcome, trial, "latency_ms"),
        "p95": cells.measured(outcome, trial, "latency_p95_ms"),
        "size": cells.measured(outcome, trial, "size_bytes"),
        "smaller": cells.shrinkage(outcome, trial),
        "memory": cells.measured(outcome, trial, memory_name(outcome)),
        "energy": cells.measured(outcome, trial, "energy_mj"),
    }


def _reasons(outcome: Outcome, trial: Trial) -> tuple[str, ...]:
    """Why it was refused, skipped or failed."""
    if trial.status != "measured":
        return (trial.note,) if trial.note else ()
    note = (trial.note,) if trial.note else ()
    if trial.name == outcome.original or trial.passed:
        return note
    return (*(each.words for each in judged(outcome, trial) if not each.reason.passed), *note)


def _in_short(outcome: Outcome, trial: Trial, gate: Gate) -> str:
    """ "Drop of accuracy +1.20 pts [+0.80, +1.61], asked at most +0.50 pts". """
    kind = kind_of(gate.measurement, outcome.metric)
    found = cells.cell(trial.measurements.get(gate.measurement), kind, why=cells.why_nothing(trial), digits=4)
    title = title_of(gate.measurement, outcome.metric)
    if found.missing:
        return f"{title} not known ({found.title}), asked at most {limit_text(outcome, gate)}"
    unproven = gate.proven and found.sort is not None and found.sort <= gate.limit and found.detail
    shown = found.line if gate.proven else found.text
    text = f"{title} {shown}, asked at most {limit_text(outcome, gate)}"
    return f"{text}: within it, but the interval is not" if unproven and _beyond(trial, gate) else text


def _beyond(trial: Trial, gate: Gate) -> bool:
    found = trial.measurements.get(gate.measurement)
    return found is not None and found.interval is not None and found.interval.high > gate.limit


def _rank(outcome: Outcome, trial: Trial) -> tuple[int, float]:
    place: dict[Standing, int] = {"original": 0, "winner": 1, "passed": 2, "closest": 3, "refused": 4, "skipped": 5, "failed": 6}
    where = standing(outcome, trial)
    if where == "winner" and trial.name == outcome.original:
        where = "original"
    if where in ("refused", "closest"):
        return place[where], trial.verdict.excess if trial.verdict is not None else math.inf
    value = trial.value(GOALS.get(outcome.goal, ""))
    return place[where], value if value is not None and math.isfinite(value) else math.inf
