"""The verdict in words."""

from __future__ import annotations

from collections.abc import Sequence

from whet.compress.data.dataset import Dataset
from whet.core.outcome import GOALS, Trial
from whet.core.target import Target


def headline(trials: Sequence[Trial], best: str, goal: str, data: Dataset) -> str:
    """One sentence: what is shipped and what it brings, or that nothing is and why."""
    named = {trial.name: trial for trial in trials}
    if not best:
        return refusal(trials)
    trial, first = named[best], trials[0]
    parts = []
    ratio, size, old = trial.value("latency_ratio"), trial.value("size_bytes"), first.value("size_bytes")
    if ratio:
        kind = " (estimated)" if trial.measurements["latency_ratio"].source == "estimated" else ""
        parts.append(f"{1 / ratio:.2f}x faster{kind}" if ratio < 1 else f"{1 / ratio:.2f}x as fast{kind}")
    if size and old:
        parts.append(f"{old / size:.2f}x smaller")
    drop = trial.measurements.get("drop")
    if drop is not None and drop.value is not None:
        high = f" (at most {drop.interval.high:.4f})" if drop.interval else ""
        parts.append(f"drop {drop.value:+.4f}{high} on {len(data)} samples")
    return f"{best}: {', '.join(parts)}"


def refusal(trials: Sequence[Trial]) -> str:
    """Why nothing is shipped: what came closest, and what it failed."""
    judged = [trial for trial in trials[1:] if trial.status == "measured" and trial.verdict is not None]
    if not judged:
        return "nothing is shipped: no candidate could be made for this model and target"
    near = min(judged, key=lambda trial: trial.verdict.excess if trial.verdict else 0.0)
    return f"nothing is shipped: {near.name} came closest, but {'; '.join(near.verdict.refusals if near.verdict else ())}"


def notes(target: Target, trials: Sequence[Trial], late: bool) -> tuple[str, ...]:
    """What a reader of the report must know."""
    found = []
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
    ratio, drop = trial.value(GOALS["latency"]), trial.value("drop")
    said = [f"{1 / ratio:.2f}x speed"] if ratio else []
    said += [f"drop {drop:+.4f}"] if drop is not None else []
    return f"{trial.name}: {', '.join(said)}{'' if trial.passed else ' (refused)'}"
