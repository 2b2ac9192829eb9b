"""How far the states of one encoder lie from those of another: definitions, with Python's own numbers, one token after the other."""

from __future__ import annotations

import math
from typing import Any

import torch
from tests.slow_papers.next_tokens import quantile
from torch import Tensor


def compared(parent: Any, candidate: Any, windows: Any) -> dict[str, float]:
    """parent, candidate: modules that give last_hidden_state. windows: [n, length]."""
    tokens, sentences, energies = [], [], []
    with torch.no_grad():
        for window in windows:
            one, other = (model(window[None]).last_hidden_state[0].double().tolist() for model in (parent, candidate))
            tokens += [cosine(h, k) for h, k in zip(one, other, strict=True)]
            sentences.append(cosine(mean(one), mean(other)))
            noise = sum((a - b) ** 2 for h, k in zip(one, other, strict=True) for a, b in zip(h, k, strict=True))
            energies.append(noise / sum(a * a for h in one for a in h))
    return {"cosine": sum(tokens) / len(tokens), "drop": 1 - sum(tokens) / len(tokens),
            "drop_p999": quantile([1 - each for each in tokens], 0.999),
            "sentence_cosine": sum(sentences) / len(sentences), "sentence_drop": 1 - sum(sentences) / len(sentences),
            "sqnr_db": -10 * math.log10(sum(energies) / len(energies))}


def cosine(one: list[float], other: list[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.sqrt(sum(a * a for a in one)) / math.sqrt(sum(b * b for b in other))


def mean(states: list[list[float]]) -> list[float]:
    return [sum(column) / len(states) for column in zip(*states, strict=True)]


def drop(model: Any, layer: str, change: Tensor, tokens: Tensor) -> float:
    """1 - cosine of a token's states, in the mean, that adding ``change`` to the weight of one layer costs."""
    weight = model.get_parameter(f"{layer}.weight")
    with torch.no_grad():
        before = model(tokens).last_hidden_state.double()
        kept = weight.clone()
        weight += change
        after = model(tokens).last_hidden_state.double()
        weight.copy_(kept)
    return float(1 - torch.cosine_similarity(before, after, dim=-1).mean())
