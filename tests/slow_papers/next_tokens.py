"""What one language model loses against another, token by token: definitions, in float64, all at once."""

from __future__ import annotations

import math
from typing import Any

import torch


def compared(parent: Any, candidate: Any, windows: Any, *, skip: int) -> dict[str, float]:
    """parent, candidate: modules that give logits. windows: [n, length]; the answers to the first ``skip`` tokens do not count."""
    nats, other_nats, divergences, same = [], [], [], []
    with torch.no_grad():
        for window in windows:
            one, other = (model(window[None]).logits[0].double() for model in (parent, candidate))
            for place in range(skip, len(window) - 1):
                p, q = softmax(one[place].tolist()), softmax(other[place].tolist())
                answer = int(window[place + 1])
                nats.append(-math.log(p[answer]))
                other_nats.append(-math.log(q[answer]))
                divergences.append(sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True)))
                same.append(max(range(len(p)), key=p.__getitem__) == max(range(len(q)), key=q.__getitem__))
    count = len(nats)
    return {"parent": sum(nats) / count, "candidate": sum(other_nats) / count, "drop": (sum(other_nats) - sum(nats)) / count,
            "kl": sum(divergences) / count, "kl_p999": quantile(divergences, 0.999), "same_top_token": sum(same) / count}


def softmax(logits: list[float]) -> list[float]:
    most = max(logits)
    weights = [math.exp(each - most) for each in logits]
    return [weight / sum(weights) for weight in weights]


def quantile(values: list[float], share: float) -> float:
    """Between the two values around the place ``share`` of the way from the first to the last."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
