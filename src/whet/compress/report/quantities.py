"""What a measurement is called and how its numbers are written, told from its name: a table, not a branch a caller."""

from __future__ import annotations

import re

from whet.compress.report.numbers import (
    BYTES,
    COUNT,
    DECIBELS,
    DIFFERENCE,
    MICROSECONDS,
    MILLIJOULES,
    MILLISECONDS,
    PER_SECOND,
    PERCENT,
    PLAIN,
    POINTS,
    TIMES,
    Kind,
)
from whet.core.outcome import Outcome

MEMORY = ("model_rss_bytes", "peak_rss_bytes")
"""Measurements of memory in use, the one that says most about the model first."""

_SUFFIXES: tuple[tuple[str, Kind], ...] = (
    ("_bytes", BYTES), ("_ms", MILLISECONDS), ("_us", MICROSECONDS), ("_mj", MILLIJOULES), ("_db", DECIBELS), ("_ratio", TIMES),
    ("_per_s", PER_SECOND), ("_share", PERCENT), ("macs", COUNT),
)  # fmt: skip
_SHARES = re.compile(r"accuracy|f1|auc|fidelity|flips|top[-_ ]?\d+")
_TITLES = {
    "latency_ms": "Latency, median",
    "latency_p95_ms": "Latency, p95",
    "latency_ratio": "Time against the original",
    "throughput_per_s": "Throughput",
    "size_bytes": "Size on disk",
    "model_rss_bytes": "Memory of the model",
    "peak_rss_bytes": "Peak memory (RSS)",
    "energy_mj": "Energy per inference",
    "flips": "Answers changed",
    "kl": "KL divergence, nats",
    "sqnr_db": "SQNR of the output",
    "mcnemar_p": "McNemar's p",
    "auc": "AUC",
    "f1": "F1",
    "mae": "MAE",
    "rmse": "RMSE",
}


def kind_of(name: str, metric: str) -> Kind:
    """How the numbers of the measurement ``name`` are written. ``metric``: what the drop is a drop of."""
    if name == "drop":
        return drop_kind(metric)
    if _SHARES.fullmatch(name.strip().lower()):
        return PERCENT
    return next((kind for suffix, kind in _SUFFIXES if name.endswith(suffix)), PLAIN)


def drop_kind(metric: str) -> Kind:
    """Percentage points for a difference of shares; percent where the drop is itself a share (of answers changed, of error energy)."""
    name = metric.strip().lower()
    if name in ("fidelity", "flips", "sqnr_db"):
        return PERCENT
    return POINTS if _SHARES.fullmatch(name) else DIFFERENCE


def title_of(name: str, metric: str) -> str:
    """What the measurement ``name`` is called in a table."""
    if name == "drop":
        return f"Drop of {metric}"
    if name in _TITLES:
        return _TITLES[name]
    words = re.sub(r"_(bytes|ms|us|mj|db|per_s)$", "", name).replace("_", " ").strip()
    return words[:1].upper() + words[1:] if words else "(no name)"


def quality_name(outcome: Outcome) -> str:
    """The name under which the trials hold the metric: as asked for, or as the evaluation spells it ("top-5" is "top5")."""
    known = {name for trial in outcome.trials for name in trial.measurements}
    spelt = re.sub(r"^top[-_ ]", "top", outcome.metric.strip().lower())
    return spelt if outcome.metric not in known and spelt in known else outcome.metric


def memory_name(outcome: Outcome) -> str:
    """The measurement of memory that the trials hold."""
    held = [name for name in MEMORY if any(trial.value(name) is not None for trial in outcome.trials)]
    return held[0] if held else MEMORY[0]
