"""How likely a text is behind another, and what a model writes on: the whole beginning runs again for every single token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from tests.slow_papers.next_tokens import softmax


def answers(model: Any, tokens: Sequence[int]) -> list[float]:
    """The logits for what follows the tokens."""
    with torch.no_grad():
        found: list[float] = model(torch.tensor([list(tokens)])).logits[0, -1].double().tolist()
    return found


def likelihood(model: Any, context: Sequence[int], wanted: Sequence[int], room: int) -> tuple[float, bool]:
    """(nats, whether the model would write the same). What goes in is cut to ``room`` tokens as a whole, as lm_eval does."""
    nats, greedy = 0.0, True
    whole = [*context, *wanted]
    dropped = max(0, len(whole) - 1 - room)
    for at in range(len(context), len(whole)):
        logits = answers(model, whole[dropped:at])
        nats += math.log(softmax(logits)[whole[at]])
        greedy = greedy and logits.index(max(logits)) == whole[at]
    return nats, greedy


def rolling(model: Any, text: Sequence[int], start: int, length: int) -> float:
    """Pieces of ``length`` tokens; those of the last piece see as many before the text's end as go in."""
    total = 0.0
    for begin in range(0, len(text), length):
        end = min(begin + length, len(text))
        first = max(0, end - length - 1) if begin else 0
        for at in range(begin, end):
            before = list(text[first:at]) if begin else [start, *text[:at]]
            total += math.log(softmax(answers(model, before))[text[at]])
    return total


def written(model: Any, prompt: Sequence[int], most: int, ends: set[int]) -> list[int]:
    """The likeliest token each time."""
    found: list[int] = []
    for _ in range(most):
        logits = answers(model, [*prompt, *found])
        best = logits.index(max(logits))
        if best in ends:
            break
        found.append(best)
    return found
