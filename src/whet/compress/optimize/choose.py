"""From measured trials to the front and the winner. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from whet.core.front import front
from whet.core.outcome import GOALS, Trial

# Two values this near are equal: then the smaller file wins, and among equal files the smaller drop.
EQUAL = 0.03
SAME_SIZE = 0.005
# Drops of few samples are often the same: then the outputs say which model is nearer to the original.
_BY_DROP = ("drop", "kl", "latency_ratio", "size_bytes")
# Techniques, and options of ``static``, that change numbers in a graph of integers and no operator of it.
_ADJUSTING = frozenset({"adaround", "bias_correct", "clip", "equalize", "gptq", "reconstruct"})
_CONSTANTS = frozenset({"ranges", "percentile"})
_AXES = ("drop", "latency_ratio", "size_bytes", "model_rss_bytes")


def with_front(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """The trials, those marked that no other one beats in drop, latency, size and memory (those of the four that all have)."""
    measured = [trial for trial in trials if trial.status == "measured"]
    axes = [name for name in _AXES if measured and all(trial.value(name) is not None for trial in measured)]
    best = set(front({trial.name: [trial.value(name) or 0.0 for name in axes] for trial in measured})) if axes else set()
    return tuple(replace(trial, on_front=trial.name in best) for trial in trials)


def winner(trials: Sequence[Trial], goal: str, original: str) -> str:
    """The name of the best trial that passed its gates; "" where none did. The original is no answer."""
    passed = [trial for trial in trials if trial.passed and trial.name != original and trial.value(GOALS[goal]) is not None]
    if not passed:
        return ""
    if goal == "drop":
        return least_drop(passed)
    order = (GOALS[goal], "size_bytes") if goal != "size" else ("size_bytes", "latency_ratio")
    for name in order:
        passed = _near_best(passed, name)
    return min(passed, key=lambda trial: _or_last(trial.value("drop"))).name


def least_drop(trials: Sequence[Trial]) -> str:
    """The name of the measured trial of least drop; "" where there is none."""
    measured = [trial for trial in trials if trial.status == "measured"]
    return min(measured, key=lambda trial: [_or_last(trial.value(name)) for name in _BY_DROP]).name if measured else ""


def _near_best(trials: Sequence[Trial], name: str) -> list[Trial]:
    """Those whose value is within EQUAL of the least; of times also those that run the same kernels, or were not shown to be longer in
    files of one size."""
    best = min(trials, key=lambda trial: _or_last(trial.value(name)))
    limit = _or_last(best.value(name)) * (1 + EQUAL)
    return [trial for trial in trials if _or_last(trial.value(name)) <= limit or (name == "latency_ratio" and _as_fast(trial, best))]


def _as_fast(trial: Trial, best: Trial) -> bool:
    """Whether the two run the same kernels with other constants, by their recipes, or probably do (their files are as large) and their
    times overlap. Between such models a difference is chance: sessions over the same kernels were timed a quarter apart (docs/log.md)."""
    mine, other = (each.measurements.get("latency_ratio") for each in (trial, best))
    size, least = trial.value("size_bytes"), best.value("size_bytes")
    if size is None or least is None or mine is None or other is None or abs(size - least) > SAME_SIZE * least:
        return False
    overlap = mine.interval is not None and other.interval is not None and mine.interval.low <= other.interval.high
    return overlap or _kernels(trial) == _kernels(best)


def _kernels(trial: Trial) -> list[Any]:
    """What decides which kernels run: the steps, less those and less the options that change nothing but constants."""
    return [(step.technique, step.layers, step.exclude, {name: value for name, value in step.options.items() if name not in _CONSTANTS})
            for step in trial.recipe.steps if step.technique not in _ADJUSTING]


def closest(trials: Sequence[Trial], original: str) -> str:
    """The name of the refused trial with the least excess over its gates; "" where nothing was measured."""
    refused = [trial for trial in trials if trial.status == "measured" and trial.name != original and trial.verdict is not None]
    return min(refused, key=lambda trial: trial.verdict.excess if trial.verdict else 0.0).name if refused else ""


def _or_last(value: float | None) -> float:
    return float("inf") if value is None else value
