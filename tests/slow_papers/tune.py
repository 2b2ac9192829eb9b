"""Tuning scales from end to end in plain loops, in float64, for a model that is one matrix product and a softmax.

Chen et al. 2024, "EfficientQAT", section 3.3, the loss being the divergence from the float model. Adam: Kingma & Ba 2015, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def said(logits: Sequence[float]) -> list[float]:
    """The probabilities that logits stand for."""
    total = sum(math.exp(each) for each in logits)
    return [math.exp(each) / total for each in logits]


class Model:
    """Codes [out, in] in groups of ``block`` along the inputs, each with a scale and a zero point; ``share`` of it is what is learned."""

    def __init__(self, codes: Array, scales: Array, zeros: Array, block: int, bits: int) -> None:
        self.steps = [[int(code) - int(zeros[row, column // block]) for column, code in enumerate(own)] for row, own in enumerate(codes)]
        self.scales, self.block, self.share = scales.tolist(), block, [[1.0] * len(own) for own in scales]
        self.slower = 1 / (2**bits * (2**bits - 1))
        self.mean, self.square = ([[0.0] * len(own) for own in scales] for _ in range(2))
        self.count = 0

    def stored(self) -> list[list[float]]:
        return [[float(np.float16(scale * share)) for scale, share in zip(*own, strict=True)]
                for own in zip(self.scales, self.share, strict=True)]

    def logits(self, x: Sequence[float]) -> list[float]:
        scales = self.stored()
        return [sum(step * scales[row][column // self.block] * x[column] for column, step in enumerate(own))
                for row, own in enumerate(self.steps)]

    def loss(self, tokens: Array, wanted: Array, text: float = 0.0, follows: Sequence[int] = ()) -> float:
        """tokens: [n, in]. wanted: [n, out] the logits of the parent. follows: what comes next in the text, by token; below 0: nothing."""
        divergence, nats = 0.0, []
        for at, (x, w) in enumerate(zip(tokens, wanted, strict=True)):
            answer = said(self.logits(x))
            divergence += sum(p * math.log(p / q) for p, q in zip(said(w), answer, strict=True))
            if text and follows[at] >= 0:
                nats.append(-math.log(answer[follows[at]]))
        return (1 - text) * divergence / len(tokens) + (text * sum(nats) / len(nats) if text else 0.0)

    def gradients(self, tokens: Array, wanted: Array, text: float = 0.0, follows: Sequence[int] = ()) -> list[list[float]]:
        """Of ``share``, rounding to float16 being passed: d KL / d logit = q - p, and p is all in one place where labels speak."""
        found = [[0.0] * len(own) for own in self.scales]
        labels = sum(each >= 0 for each in follows)
        for at, (x, w) in enumerate(zip(tokens, wanted, strict=True)):
            for row, (p, q) in enumerate(zip(said(w), said(self.logits(x)), strict=True)):
                slope = (1 - text) * (q - p) / len(tokens)
                if text and follows[at] >= 0:
                    slope += text * (q - (row == follows[at])) / labels
                for column, step in enumerate(self.steps[row]):
                    group = column // self.block
                    found[row][group] += slope * step * x[column] * self.scales[row][group]
        return found

    def step(self, tokens: Array, wanted: Array, rate: float) -> None:
        self.count += 1
        for row, own in enumerate(self.gradients(tokens, wanted)):
            for group, g in enumerate(own):
                self.mean[row][group] = 0.9 * self.mean[row][group] + 0.1 * g
                self.square[row][group] = 0.999 * self.square[row][group] + 0.001 * g * g
                m, v = self.mean[row][group] / (1 - 0.9**self.count), self.square[row][group] / (1 - 0.999**self.count)
                self.share[row][group] = max(self.share[row][group] - self.slower * rate * m / (math.sqrt(v) + 1e-8), 0.01)


def tuned(model: Model, windows: Array, wanted: Array, *, batches: Sequence[Sequence[int]], held: Sequence[int], rate: float,
          every: int) -> list[list[float]]:
    """The scales with the least divergence on ``held``, among the start and what there is after each ``every`` steps and the last.

    windows: [n, length, in]. wanted: [n, length, out]."""
    def of(chosen: Sequence[int]) -> tuple[Array, Array]:
        return windows[list(chosen)].reshape(-1, windows.shape[-1]), wanted[list(chosen)].reshape(-1, wanted.shape[-1])

    best, least = model.stored(), model.loss(*of(held))
    for step, batch in enumerate(batches):
        model.step(*of(batch), rate * (1 - step / len(batches)) ** 2)
        if (step + 1) % every == 0 or step + 1 == len(batches):
            found = model.loss(*of(held))
            if found < least:
                best, least = model.stored(), found
    return best
