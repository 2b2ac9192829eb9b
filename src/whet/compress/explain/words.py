"""The explanation in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from whet.compress.data import Dataset
from whet.compress.evaluate.output_error import decibels
from whet.compress.report.labels import shortened
from whet.compress.report.numbers import number
from whet.compress.report.quantities import drop_kind
from whet.core.explanation import Explanation, LayerBlame

NAME = 48
"""Letters of a layer's name in a sentence: converters make names of 200, and the tables have them in full."""


def headline(found: Explanation) -> str:
    """One sentence: what the recipe does to the output, who does most of it and why, and the remedy that gives most."""
    drop = found.quality.get("drop")
    lost = f"{found.metric} drops by {number(drop.value, drop_kind(found.metric))}" if drop is not None and drop.value is not None else ""
    sqnr = decibels(found.damage)
    noise = f"{sqnr:.1f} dB signal to noise at the output" if sqnr is not None else "the output is as it was"
    parts = [", ".join(filter(None, (lost, noise)))]
    if found.layers and found.layers[0].damage:
        worst = found.layers[0]
        share = f" does {worst.share:.0%} of the damage" if worst.share else " does most damage"
        parts.append(f"{shortened(worst.name, NAME)} ({worst.op}){share}" + (f": {worst.causes[0].text}" if worst.causes else ""))
    best = next(iter(found.useful), None)
    return "; ".join([*parts, *([f"{best.name}: {best.price}"] if best else [])])


def unmeasured(layers: Sequence[LayerBlame]) -> tuple[str, ...]:
    """How many layers were not measured one by one."""
    known = sum(layer.damage is not None for layer in layers)
    if known == len(layers):
        return ()
    return (f"{known} of {len(layers)} layers were measured one by one, those that add most noise in place; shares are of their damage",)


def described(judged: Dataset, calibrating: Dataset) -> dict[str, Any]:
    """The two sets, as reports name them."""
    return {name: {"source": each.source, "samples": len(each), "sha256": each.content_hash, "labels": each.labels is not None}
            for name, each in (("evaluation", judged), ("calibration", calibrating))}
