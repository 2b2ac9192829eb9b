"""The verdict in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from whet.compress.data.dataset import Dataset
from whet.compress.optimize.choose import closest
from whet.core.outcome import GOALS, Trial
from whet.core.target import Target


def headline(trials: Sequence[Trial], best: str, goal: str, data: Dataset) -> str:
    """One sentence: what is shipped and what it brings, or that nothing is and why. The first trial is the original."""
    if not best:
        return refusal(trials)
    trial, first = next(trial for trial in trials if trial.name == best), trials[0]
    parts = [_speed(trial), _times_less(trial, first, "size_bytes", "smaller")]
    if goal in ("memory", "energy"):
        parts.append(_times_less(trial, first, GOALS[goal], f"less {goal}"))
    drop = trial.measurements.get("drop")
    if drop is not None and drop.value is not None:
        high = f" (at most {drop.interval.high:.4f})" if drop.interval else ""
        parts.append(f"drop {drop.value:+.4f}{high} on {len(data)} samples")
    return f"{best}: {', '.join(part for part in parts if part)}"


def refusal(trials: Sequence[Trial]) -> str:
    """Why nothing is shipped: what came closest, and what it failed. The first trial is the original."""
    near = next((trial for trial in trials if trial.name == closest(trials, trials[0].name)), None)
    if near is not None and near.verdict is not None:
        why = "; ".join(near.verdict.refusals) or "of what was to be least there is no number"
        return f"nothing is shipped: {near.name} came closest, but {why}"
    if len(trials) == 1:
        return "nothing is shipped: there was no time to try anything"
    first = next((trial for trial in trials[1:] if trial.status == "failed"), trials[1])
    return f"nothing is shipped: no candidate could be made for this model and target; {first.name}: {first.note}"


def notes(target: Target, trials: Sequence[Trial], goal: str, late: bool) -> tuple[str, ...]:
    """What a reader of the report must know."""
    found = []
    passed = sum(trial.passed for trial in trials[1:])
    if goal == "drop" and passed > 1:
        found.append(f"the winner has the least drop of {passed} candidates on the samples that it was chosen by; "
                     "on others it will be somewhat larger")
    if not target.here:
        found.append(f"{target.name} is not this machine: quality and size were measured here, "
                     "latency and memory are estimates from its table")
    if late:
        found.append("the time budget ended the search before everything was tried")
    if any(trial.status == "failed" for trial in trials):
        found.append("some candidates could not be made; their rows say why")
    return tuple(found)


def progress(trial: Trial) -> str:
    """A trial in a few words, for the progress display."""
    if trial.status != "measured":
        return f"{trial.name}: {trial.status}"
    ratio, drop = (trial.value(name) for name in (GOALS["latency"], "drop"))
    said = [f"{1 / ratio:.2f}x speed"] if ratio and math.isfinite(ratio) else []
    said += [f"drop {drop:+.4f}"] if drop is not None and math.isfinite(drop) else []
    return f"{trial.name}: {', '.join(said) or 'measured'}{'' if trial.passed else ' (refused)'}"


def divergence(value: float) -> str:
    """How far outputs are from the original's, as ``mixed.measured.divergence`` has it."""
    return f"a divergence of {value:.2g}" if math.isfinite(value) else "no outputs"


def _speed(trial: Trial) -> str:
    ratio = trial.value("latency_ratio")
    if not ratio:
        return ""
    kind = " (estimated)" if trial.measurements["latency_ratio"].source == "estimated" else ""
    return f"{1 / ratio:.2f}x {'faster' if ratio < 1 else 'as fast'}{kind}"


def _times_less(trial: Trial, first: Trial, name: str, what: str) -> str:
    value, old = trial.value(name), first.value(name)
    if not value or not old:
        return ""
    kind = " (estimated)" if trial.measurements[name].source == "estimated" else ""
    return f"{old / value:.2f}x {what}{kind}"
