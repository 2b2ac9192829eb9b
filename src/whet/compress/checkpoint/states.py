"""Two encoders on the same text: how far the states of tokens, and of whole windows, moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whet.compress.checkpoint.checkpoint import Checkpoint
from whet.compress.checkpoint.running import Ran
from whet.compress.checkpoint.text import Windows
from whet.compress.evaluate.drops import decibels
from whet.compress.evaluate.intervals import mean_interval, two_sided
from whet.core.document import Document
from whet.core.errors import Refused
from whet.core.measurement import Interval, Measurement


@dataclass(frozen=True)
class EncoderComparison(Document):
    """Parent and candidate on ``windows`` windows of ``tokens`` tokens in all, by the states h and h' that leave their last layers.

    cosine: mean cosine similarity of h and h' of one token; drop: 1 - cosine; drop_p999: the drop that one token in a thousand exceeds.
    sentence_cosine, sentence_drop: the same of a window's mean over its tokens, which is what sentence encoders give. sqnr_db:
    10 log10 of |h|^2 / |h - h'|^2, the mean over windows taken before the logarithm. sizes in bytes of the weights on disk.

    Intervals are over windows and two-sided at 2 * confidence - 1, as those of ``LanguageComparison``.
    """

    windows: int
    tokens: int
    cosine: Measurement
    drop: Measurement
    drop_p999: Measurement
    sentence_cosine: Measurement
    sentence_drop: Measurement
    sqnr_db: Measurement
    parent_size: Measurement
    candidate_size: Measurement

    @property
    def measurements(self) -> dict[str, Measurement]:
        """The candidate's measurements by name, as gates ask for them."""
        found = (self.cosine, self.drop, self.drop_p999, self.sentence_cosine, self.sentence_drop, self.sqnr_db, self.candidate_size)
        return {each.name: each for each in found}


@dataclass(frozen=True, eq=False)
class Moved:
    """drops: [windows, tokens]. sentences, energies: [windows], of the means over tokens, and |h - h'|^2 / |h|^2 of the whole window."""

    drops: np.ndarray[Any, Any]
    sentences: np.ndarray[Any, Any]
    energies: np.ndarray[Any, Any]


def state_comparison(outputs: tuple[Ran, Ran], windows: Windows, models: tuple[Checkpoint, Checkpoint], *, confidence: float,
                     seed: int) -> EncoderComparison:
    """What the states say of the candidate. Raises Refused where they hold NaN or infinity."""
    found = [_window(*(_states(ran, index) for ran in outputs)) for index in range(len(windows))]
    moved = Moved(*(np.stack(kind) for kind in zip(*found, strict=True)))
    if not np.isfinite(moved.energies).all():
        raise Refused(f"compare {models[0].folder} and {models[1].folder}", found="NaN or infinity in their states")
    return judged(moved, windows.content_hash, models, confidence=confidence, seed=seed)


@torch.no_grad()
def _states(ran: Ran, index: int) -> Tensor:
    """[tokens, width] float64, of one window."""
    found: Tensor = ran.head(ran.hidden.read(index, index + 1))[0]
    return found.double()


def _window(parent: Tensor, candidate: Tensor) -> Sequence[np.ndarray[Any, Any]]:
    """What ``Moved`` holds, of the states [tokens, width] of one window."""
    energy = (parent - candidate).square().sum() / parent.square().sum()
    return [each.numpy() for each in (lost(parent, candidate), lost(parent.mean(0), candidate.mean(0)), energy)]


def lost(one: Tensor, other: Tensor) -> Tensor:
    """1 - cos(one, other) along the last axis, as |one / |one| - other / |other||^2 / 2, 0 where both are the same and never less."""
    one, other = (each / each.norm(dim=-1, keepdim=True).clamp_min(1e-30) for each in (one, other))
    return (one - other).square().sum(-1) / 2


def judged(moved: Moved, data: str, models: tuple[Checkpoint, Checkpoint], *, confidence: float, seed: int) -> EncoderComparison:
    """What was found as measurements."""
    level, count = two_sided(confidence), len(moved.sentences)

    def measured(name: str, values: np.ndarray[Any, Any]) -> Measurement:
        interval, method = mean_interval(values, level, seed) if count > 1 else (None, "one window: no interval")
        return Measurement(name, float(values.mean()), interval=interval, n=count, data=data, method=method)

    drop, sentence = measured("drop", moved.drops.mean(1)), measured("sentence_drop", moved.sentences)
    rare = Measurement("drop_p999", float(np.quantile(moved.drops, 0.999)), n=count, data=data, method="quantile over all tokens")
    noise = replace(decibels(measured("sqnr_db", moved.energies)), direction="higher")
    sizes = [Measurement("size_bytes", float(model.size_bytes), " B") for model in models]
    return EncoderComparison(count, moved.drops.size, _cosine("cosine", drop), drop, rare, _cosine("sentence_cosine", sentence), sentence,
                             noise, *sizes)


def _cosine(name: str, drop: Measurement) -> Measurement:
    """The similarity of which that is the drop."""
    ends = drop.interval and Interval(1 - drop.interval.high, 1 - drop.interval.low, drop.interval.confidence)
    return replace(drop, name=name, value=1 - (drop.value or 0.0), interval=ends, direction="higher")
