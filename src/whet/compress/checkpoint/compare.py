"""Two language models on the same text: what the candidate lost, in nats, in divergence and in tokens that it would have said otherwise.

Of encoders, which say no next token, ``states`` tells how far the states of tokens moved.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from whet.compress.checkpoint.checkpoint import Checkpoint, open_checkpoint
from whet.compress.checkpoint.running import Ran, ran
from whet.compress.checkpoint.skeleton import Skeleton
from whet.compress.checkpoint.states import EncoderComparison, state_comparison
from whet.compress.checkpoint.text import Windows, windows_of
from whet.compress.evaluate.intervals import mean_interval, two_sided
from whet.compress.threads import one_thread
from whet.core.document import Document
from whet.core.errors import Refused
from whet.core.measurement import Measurement

LOGITS = 1 << 24  # numbers of one model's answers that are in memory at a time: 64 MB


@dataclass(frozen=True)
class LanguageComparison(Document):
    """Parent and candidate on ``windows`` windows with ``tokens`` predictions in all.

    parent, candidate: nats a token (perplexity is their exponential). drop: how many more the candidate needs. kl: mean divergence
    KL(parent || candidate) of the answers to each token; kl_p999: the divergence that one token in a thousand exceeds. same_top_token:
    share of the tokens for which both would say the same. sizes in bytes of the weights on disk.

    Intervals are over windows, for tokens of one text are no independent samples, and two-sided at 2 * confidence - 1, so that
    ``interval.high`` alone, which is all that a gate looks at, has the confidence that was asked for.
    """

    windows: int
    tokens: int
    parent: Measurement
    candidate: Measurement
    drop: Measurement
    kl: Measurement
    kl_p999: Measurement
    same_top_token: Measurement
    parent_size: Measurement
    candidate_size: Measurement

    @property
    def measurements(self) -> dict[str, Measurement]:
        """The candidate's measurements by name, as gates ask for them."""
        size = self.candidate_size
        return {each.name: each for each in (self.candidate, self.drop, self.kl, self.kl_p999, self.same_top_token, size)}


@dataclass(frozen=True, eq=False)
class Scores:
    """By window: nats a token of both models. kl: [windows, tokens]. same: [windows, tokens] whether both would say the same."""

    parent: np.ndarray[Any, Any]
    candidate: np.ndarray[Any, Any]
    kl: np.ndarray[Any, Any]
    same: np.ndarray[Any, Any]


def compare_checkpoints(parent: Any, candidate: Any, data: Any, *, length: int | None = None, confidence: float = 0.95,
                        seed: int = 0) -> LanguageComparison | EncoderComparison:
    """How the candidate does beside its parent on a text, as ``windows_of`` takes it. Both run block by block, so that no more than a block
    of weights is in memory. Raises Refused where the models do not read the same tokens, or only one of them is an encoder.
    """
    first, second = open_checkpoint(parent), open_checkpoint(candidate)
    _check_alike(first, second)
    with judging(first, windows_of(first, data, length=length), confidence=confidence, seed=seed) as judge:
        found = judge(second)
    if isinstance(found, EncoderComparison):
        return found
    for model, nats in ((first, found.parent), (second, found.candidate)):
        if nats.value is None or not math.isfinite(nats.value):
            raise Refused(f"compare {model.folder}", found="answers that are no numbers", do="look for NaN or infinity in its weights")
    return found


def _check_alike(first: Checkpoint, second: Checkpoint) -> None:
    do = "compare a model with what was made of it"
    if first.family.encoder != second.family.encoder:
        kinds = ["an encoder" if model.family.encoder else "a model that predicts the next token" for model in (first, second)]
        raise Refused(f"compare {first.folder} and {second.folder}", found=" and ".join(kinds), do=do)
    widths = [model.size(model.family.embedding)[1] for model in (first, second)]
    if first.family.encoder and widths[0] != widths[1]:
        raise Refused("compare two encoders", found=f"states of {widths[0]} and {widths[1]} numbers", do=do)
    if first.config.get("vocab_size") != second.config.get("vocab_size"):
        raise Refused("compare two language models", found=f"vocabularies of {first.config.get('vocab_size')} and "
                      f"{second.config.get('vocab_size')} tokens", do=do)


Judge = Callable[[Checkpoint], LanguageComparison | EncoderComparison]


@contextmanager
def judging(parent: Checkpoint, windows: Windows, *, confidence: float = 0.95, seed: int = 0) -> Iterator[Judge]:
    """A function that compares a candidate with the parent, which runs once for all of them."""
    with tempfile.TemporaryDirectory(prefix="whet-") as folder, ran(Skeleton(parent), windows, Path(folder), "parent") as first:
        def judge(candidate: Checkpoint) -> LanguageComparison | EncoderComparison:
            with ran(Skeleton(candidate), windows, Path(folder), "candidate") as second:
                if parent.family.encoder:
                    return state_comparison((first, second), windows, (parent, candidate), confidence=confidence, seed=seed)
                scores = _scored((first, second), windows)
            return judged(scores, windows, (parent, candidate), confidence=confidence, seed=seed)

        yield judge


@torch.no_grad()
def _scored(outputs: tuple[Ran, Ran], windows: Windows) -> Scores:
    skip = 1 if windows.starts else 0  # what follows the mark for the beginning is the first that is predicted from something
    with one_thread(math.prod(outputs[0].hidden.shape[1:]) * _width(outputs[0])):
        parts = [_window(outputs, windows.tokens[index], index, skip) for index in range(len(windows))]
    parent, candidate, kl, same = (np.stack([part[kind] for part in parts]) for kind in range(4))
    return Scores(parent.mean(1), candidate.mean(1), kl, same)


def _window(outputs: tuple[Ran, Ran], tokens: Tensor, index: int, skip: int) -> tuple[np.ndarray[Any, Any], ...]:
    """(nats of the parent, of the candidate, divergence, whether they agree) for each predicted token of a window."""
    length = len(tokens)
    found: list[tuple[Tensor, ...]] = []
    states = [ran.hidden.read(index, index + 1)[:, skip : length - 1] for ran in outputs]
    answers = tokens[skip + 1 :]
    for begin in range(0, len(answers), chunk := max(1, LOGITS // max(1, int(_width(outputs[0]))))):
        one, other = (log_softmax(ran.head(state[:, begin : begin + chunk])[0].double(), -1)
                      for ran, state in zip(outputs, states, strict=True))
        wanted = answers[begin : begin + chunk, None]
        found.append((-one.gather(1, wanted)[:, 0], -other.gather(1, wanted)[:, 0], divergences(one, other),
                      one.argmax(1) == other.argmax(1)))
    return tuple(torch.cat(kind).numpy() for kind in zip(*found, strict=True))


def divergences(one: Tensor, other: Tensor) -> Tensor:
    """[n] KL(one || other) in nats, of logarithms of probabilities [n, vocabulary]; never below 0."""
    return (one.exp() * (one - other)).sum(1).clamp_min(0.0)


def _width(ran: Ran) -> int:
    return int(ran.head(torch.zeros(1, 1, ran.hidden.shape[2])).shape[-1])


def judged(scores: Scores, windows: Windows, models: tuple[Checkpoint, Checkpoint], *, confidence: float, seed: int) -> LanguageComparison:
    """The scores as measurements."""
    data = windows.content_hash
    level, count = two_sided(confidence), scores.kl.shape[0]

    def measured(name: str, values: np.ndarray[Any, Any], direction: Any = "lower") -> Measurement:
        interval, method = mean_interval(values, level, seed) if count > 1 else (None, "one window: no interval")
        return Measurement(name, float(values.mean()), interval=interval, direction=direction, n=count, data=data, method=method)

    rare = Measurement("kl_p999", float(np.quantile(scores.kl, 0.999)), n=count, data=data, method="quantile over all tokens")
    sizes = [Measurement("size_bytes", float(model.size_bytes), " B") for model in models]
    return LanguageComparison(
        count, scores.kl.size, measured("nats_per_token", scores.parent), measured("nats_per_token", scores.candidate),
        measured("drop", scores.candidate - scores.parent), measured("kl", scores.kl.mean(1)), rare,
        measured("same_top_token", scores.same.mean(1), "higher"), *sizes)
