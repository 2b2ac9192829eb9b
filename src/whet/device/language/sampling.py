"""Choosing the next token from its logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whet.core.errors import Refused


@dataclass(frozen=True)
class Sampling:
    """temperature: 0 takes the likeliest token; 1 is the model's own distribution. top_k: only the k likeliest, 0 for all.
    top_p: only the likeliest whose shares sum up to p (Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration"), 1 for all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise Refused(f"sample at temperature {self.temperature}", found="it is below 0", do="use 0, or about 0.8")
        if self.top_k < 0:
            raise Refused(f"sample from the top {self.top_k}", found="it is below 0", do="use 0 for all tokens, or about 40")
        if not 0 < self.top_p <= 1:
            raise Refused(f"sample from the top share {self.top_p}", found="it is not in (0, 1]", do="use 1 for all, or about 0.9")


def chosen(logits: NDArray[np.float32], sampling: Sampling, generator: np.random.Generator) -> int:
    """The next token. logits: [vocabulary]. Equal for equal generators."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    tokens = np.arange(logits.size)
    if 0 < sampling.top_k < logits.size:
        tokens = np.argpartition(logits, -sampling.top_k)[-sampling.top_k :]
    kept = logits[tokens].astype(np.float64) / sampling.temperature
    order = np.argsort(-kept, kind="stable")
    shares = np.exp(kept[order] - kept[order[0]])
    shares /= shares.sum()
    if sampling.top_p < 1:  # the one that crosses p is kept
        shares = shares[: int(np.searchsorted(np.cumsum(shares), sampling.top_p)) + 1]
        shares /= shares.sum()
    return int(tokens[order[generator.choice(shares.size, p=shares)]])
