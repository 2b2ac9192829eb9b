"""Bits by layer by trying everything, and what rounding one layer costs by rounding it and asking the model."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor


def least_harm(harms: Mapping[str, Mapping[int, float]], numbers: Mapping[str, int], average: float) -> tuple[float, dict[str, int]]:
    """The least sum of harms with at most that many bits on average, and the bits of each layer."""
    names, best = list(numbers), (float("inf"), dict.fromkeys(numbers, 0))
    for bits in product(*[sorted(harms[name]) for name in names]):
        chosen = dict(zip(names, bits, strict=True))
        if sum(chosen[name] * numbers[name] for name in names) <= average * sum(numbers.values()) + 1e-9:
            harm = sum(harms[name][chosen[name]] for name in names)
            if harm < best[0]:
                best = harm, chosen
    return best


def divergence(model: Any, layer: str, change: Tensor, tokens: Tensor) -> float:
    """Nats of KL divergence a token that adding ``change`` to the stored weight of one layer costs."""
    weight = model.get_parameter(f"{layer}.weight")
    with torch.no_grad():
        before = torch.log_softmax(model(tokens).logits.double(), -1)
        kept = weight.clone()
        weight += change
        after = torch.log_softmax(model(tokens).logits.double(), -1)
        weight.copy_(kept)
    return float((before.exp() * (before - after)).sum(-1).mean())
