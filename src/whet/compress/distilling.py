"""Learning the grids of a whole model, and the weights on them, so that it answers as it did in float.

Chen et al. 2024, "EfficientQAT", section 3.3 (codes stay, scales are trained from end to end); Liu et al. 2023, "LLM-QAT", section 2.2 (the
float model's answers in the place of labels); Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (with a share of labels).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from whet.compress.adam import Adam
from whet.compress.grid import Grid, Quantised
from whet.compress.learned_grids import LEAST_SHARE, Rounding, Schedule, step_within, storable
from whet.compress.views import Whole
from whet.compress.weight_search import grouped
from whet.core.errors import Refused
from whet.core.progress import task

HELD_SHARE, MOST_HELD = 8, 24  # one window in so many is kept to judge by, and no more than so many
CHECKS = 10  # times that it is judged on the way
REPORT_EVERY = 5
FALLING = 2  # power of the share of the steps that is left: while it is high, weights jump to and fro between two codes


class Learnable(Protocol):
    """A weight that is being learned: its values [out, in], through which gradients flow, and what is stored for it."""

    def values(self) -> Tensor: ...

    def rounded(self) -> Quantised: ...


class Scaled:
    """A weight [out, in] whose codes and zero points stay. share: [out, groups, 1] by what each scale is multiplied."""

    def __init__(self, made: Quantised, scales: str) -> None:
        grid = made.grid
        self.made, self.scales = made, scales
        self.scale = torch.tensor(grid.scale, dtype=torch.float32).reshape(len(made.codes), -1, 1)
        zero = np.asarray(grid.zero_point, np.float32).reshape(self.scale.shape)
        codes = grouped(made.codes.astype(np.float32), grid.block)
        self.steps = torch.from_numpy(codes - zero)  # [out, groups, block], a ragged end being cut off again
        self.share = torch.ones_like(self.scale).requires_grad_()

    def values(self) -> Tensor:
        """[out, in] the codes on their grid."""
        return (self.steps * self._scale()).flatten(1)[:, : self.made.codes.shape[1]]

    def rounded(self) -> Quantised:
        """The same codes on the grid as it is now, exactly as ``values`` gives it."""
        grid = self.made.grid
        scale = self._scale().detach().numpy().reshape(grid.scale.shape)
        return Quantised(self.made.codes, Grid(grid.bits, grid.signed, scale, grid.zero_point, grid.axis, grid.block))

    def _scale(self) -> Tensor:
        return storable(self.scale * self.share, self.scales)


def begun(view: Whole, weights: bool) -> dict[str, Learnable]:
    """By layer, the weight as it is before anything is learned. weights: codes may become others."""
    if weights:
        return {name: Rounding.of(made, view.weight(name), view.scales) for name, made in view.rounded.items()}
    return {name: Scaled(made, view.scales) for name, made in view.rounded.items()}


def distil(view: Whole, weights: Mapping[str, Learnable], schedule: Schedule, text: float = 0.0) -> dict[str, Quantised]:
    """The weights by layer where the ``loss`` was least, on windows that nothing was learned from; what they began with, where nothing was
    better. Deterministic by the seed of the schedule. Raises Refused where there is just one window.
    """
    generator = torch.Generator().manual_seed(schedule.seed)
    seen, held = parted(min(schedule.windows, view.windows))
    best, least = _rounded(weights), _measured(view, weights, held, schedule.batch, text)
    every = max(1, schedule.steps // CHECKS)
    draws = _draws(seen, schedule.batch, generator)
    with _stepping(weights) as set_rate, task("tuning the whole model", schedule.steps) as progress:
        for step in range(schedule.steps):
            set_rate(schedule.rate * (1 - step / schedule.steps) ** FALLING)
            loss(view, weights, next(draws), text).backward()
            if (step + 1) % every == 0 or step + 1 == schedule.steps:
                found = _measured(view, weights, held, schedule.batch, text)
                if found < least:
                    best, least = _rounded(weights), found
            if (step + 1) % REPORT_EVERY == 0:
                progress.advance(REPORT_EVERY, note=f"loss {least:.3g}")
    return best


def parted(count: int) -> tuple[Tensor, Tensor]:
    """The windows that are learned from, and those, spread among them, that are judged by."""
    if count < 2:
        raise Refused("tune a model on one window of text", found="none left to judge by", do="give more text with --calibration")
    held = torch.linspace(0, count - 1, max(1, min(MOST_HELD, count // HELD_SHARE))).round().long()
    learned = torch.ones(count, dtype=torch.bool)
    learned[held] = False
    return learned.nonzero()[:, 0], held


def loss(view: Whole, weights: Mapping[str, Learnable], chosen: Tensor, text: float) -> Tensor:
    """(1 - text) KL(parent || model) + text (-log of what the model gives the token that comes next), nats. Means over the tokens of the
    windows chosen; nothing comes behind the last of a window.
    """
    wanted = log_softmax(view.parent(chosen), -1)
    found = log_softmax(view.run(chosen, {name: each.values() for name, each in weights.items()}), -1)
    divergence = kl_div(found, wanted, log_target=True, reduction="sum") / wanted[..., 0].numel()
    if not text:
        return divergence
    said = found[:, :-1].gather(-1, view.tokens[chosen, 1:, None])
    return (1 - text) * divergence - text * said.mean()


def _measured(view: Whole, weights: Mapping[str, Learnable], held: Tensor, batch: int, text: float) -> float:
    with torch.no_grad():
        return sum(float(loss(view, weights, part, text)) * len(part) for part in held.split(batch)) / len(held)


def _draws(seen: Tensor, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of windows, each window once before any comes again."""
    while True:
        yield from seen[torch.randperm(len(seen), generator=generator)].split(batch)


def _rounded(weights: Mapping[str, Learnable]) -> dict[str, Quantised]:
    return {name: each.rounded() for name, each in weights.items()}


@contextmanager
def _stepping(weights: Mapping[str, Learnable]) -> Iterator[Callable[[float], None]]:
    """Inside, each variable steps with Adam as soon as its gradient is there, so that no two gradients of weights live at once. What it
    gives sets the rate of the steps to come.
    """
    own = [(Adam(variable, 0.0), least, share) for each in weights.values() for variable, least, share in _variables(each)]

    def set_rate(rate: float) -> None:
        for optimiser, _, share in own:
            optimiser.rate = rate * share

    with ExitStack() as stack:
        for optimiser, least, _ in own:
            hook = optimiser.parameter.register_post_accumulate_grad_hook(step_within(optimiser, least, float("inf")))
            stack.callback(hook.remove)
        yield set_rate


def _variables(weight: Learnable) -> list[tuple[Tensor, float, float]]:
    """Its variables, the least that each may be, and its rate as a share of the schedule's. The fewer codes there are, the further a weight
    may move, in steps between them. The ends of a grid go so much slower as it has steps, for all weights of a group move with them.
    """
    if isinstance(weight, Rounding):
        steps = 1 << weight.bits
        return [(weight.v, float("-inf"), 1 / steps), (weight.shares, LEAST_SHARE, 1 / (steps * (steps - 1)))]
    assert isinstance(weight, Scaled)
    steps = 1 << weight.made.grid.bits
    return [(weight.share, LEAST_SHARE, 1 / (steps * (steps - 1)))]
