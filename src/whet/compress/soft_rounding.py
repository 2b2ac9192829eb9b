"""Learning to round: each weight goes up or down by what keeps the output, and activations learn their steps beside it.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization" (the rectified sigmoid, its regulariser and its
annealing); Li et al. 2021 (whole blocks); Wei et al. 2022 (dropping the quantisation of activations at random).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from whet.compress.adam import Adam
from whet.compress.fake import on_learned_grid
from whet.compress.grid import Array, Grid, Quantised
from whet.compress.views import Block
from whet.core.progress import task

ZETA, GAMMA = 1.1, -0.1  # how far the sigmoid is stretched, so that it reaches 0 and 1 (Nagel et al. 2020, equation 23)
WARM_UP, FIRST_BETA, LAST_BETA = 0.2, 20.0, 2.0
REPORT_EVERY = 100


@dataclass(frozen=True)
class Schedule:
    """iterations of batch samples each. rounding_rate, step_rate: Adam's, of rounding variables and activation steps. drop: share of
    the numbers of an activation that are not quantised in a step.
    """

    iterations: int
    batch: int
    regulariser: float
    rounding_rate: float
    step_rate: float = 0.0
    drop: float = 0.0
    seed: int = 0
    warm_up: float = WARM_UP

    def beta(self, iteration: int) -> float | None:
        """Exponent of the regulariser: none while warming up, then from 20 down to 2 along half a cosine."""
        start = self.warm_up * self.iterations
        if iteration < start:
            return None
        share = (iteration - start) / max(self.iterations - start, 1.0)
        return LAST_BETA + 0.5 * (FIRST_BETA - LAST_BETA) * (1.0 + float(np.cos(share * np.pi)))


class SoftRounding:
    """One layer's weight [out, in] between the two codes beside each of its numbers. ``v``: the variables, of the weight's shape."""

    def __init__(self, weight: Array, grid: Grid) -> None:
        flat = torch.tensor(weight.reshape(len(weight), -1), dtype=torch.float32)
        scale, zero = (torch.as_tensor(part, dtype=torch.float32) for part in (grid.scale, grid.zero_point))
        self.shape, self.grid = weight.shape, grid
        self.scale, self.zero = (_spread(part, grid, flat.shape[1]) for part in (scale, zero))
        exact = flat / self.scale
        self.floor = torch.floor(exact)
        rest = torch.clamp(exact - self.floor, 1e-4, 1 - 1e-4)
        self.v = torch.nn.Parameter(-torch.log((ZETA - GAMMA) / (rest - GAMMA) - 1))

    @property
    def share(self) -> Tensor:
        """h(V): how far up, 0 to 1."""
        return torch.clamp(torch.sigmoid(self.v) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)

    def weight(self) -> Tensor:
        """[out, ...] the weight with soft rounding."""
        codes = torch.clamp(self.floor + self.share + self.zero, self.grid.lowest, self.grid.highest)
        return ((codes - self.zero) * self.scale).reshape(self.shape)

    def regulariser(self, beta: float) -> Tensor:
        """sum(1 - |2 h - 1|^beta): 0 where every weight has decided."""
        return (1 - (2 * self.share - 1).abs().pow(beta)).sum()

    def codes(self) -> Quantised:
        """The hard rounding that came out."""
        with torch.no_grad():
            up = (self.share >= 0.5).float()
            codes = torch.clamp(self.floor + up + self.zero, self.grid.lowest, self.grid.highest)
        width = np.int8 if self.grid.signed else np.uint8
        return Quantised(codes.numpy().astype(width), self.grid)


def learn(block: Block, weights: Mapping[str, Grid], activations: Mapping[str, Grid],
          schedule: Schedule) -> tuple[dict[str, Quantised], dict[str, Tensor]]:
    """Codes of the block's weights on ``weights`` (by layer), and the steps of its ``activations`` (by tensor).

    Deterministic by the seed of the schedule.
    """
    generator = torch.Generator().manual_seed(schedule.seed)
    soft = {name: SoftRounding(_rows(block, name), grid) for name, grid in weights.items()}
    steps = {name: torch.nn.Parameter(torch.as_tensor(grid.scale, dtype=torch.float32).clone()) for name, grid in activations.items()}
    rounding = [Adam(each.v, schedule.rounding_rate) for each in soft.values()]
    stepping = [Adam(step, schedule.step_rate) for step in steps.values()]

    def place(name: str, values: Tensor) -> Tensor:
        if name not in steps:
            return values
        return _mixed(on_learned_grid(values, steps[name].abs(), activations[name]), values, schedule.drop, generator)

    with task(f"learning {block.name}", schedule.iterations) as progress:
        for iteration in range(schedule.iterations):
            chosen = torch.randint(len(block.targets), (min(schedule.batch, len(block.targets)),), generator=generator)
            given = [_mixed(now[chosen], exact[chosen], schedule.drop, generator)
                     for now, exact in zip(block.inputs, block.exact_inputs, strict=True)]
            found = block.run(given, {name: each.weight() for name, each in soft.items()}, place)
            loss = _error(found, block.targets[chosen])
            beta = schedule.beta(iteration)
            if beta is not None:
                loss = loss + schedule.regulariser * sum(each.regulariser(beta) for each in soft.values())
            loss.backward()
            for optimiser in stepping:  # along half a cosine down to 0, as BRECQ does
                optimiser.rate = 0.5 * schedule.step_rate * (1.0 + float(np.cos(np.pi * iteration / schedule.iterations)))
            for optimiser in (*rounding, *stepping):
                optimiser.step()
            if iteration % REPORT_EVERY == REPORT_EVERY - 1:
                progress.advance(REPORT_EVERY, note=f"error {float(loss.detach()):.3g}")
    return {name: each.codes() for name, each in soft.items()}, {name: step.detach().abs() for name, step in steps.items()}


def _rows(block: Block, name: str) -> Array:
    weight = block.layers[name].weight
    assert weight is not None
    return weight


def _error(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared error, summed over channels and averaged over samples and positions (BRECQ's and QDrop's loss)."""
    return (found - wanted).pow(2).sum(1).mean()


def _mixed(fake: Tensor, exact: Tensor, drop: float, generator: torch.Generator) -> Tensor:
    """Each number from ``exact`` with the probability ``drop``, else from ``fake``."""
    if drop <= 0.0 or not fake.is_floating_point():
        return fake
    return torch.where(torch.rand(fake.shape, generator=generator) < drop, exact, fake)


def _spread(part: Tensor, grid: Grid, columns: int) -> Tensor:
    """Scale or zero point, to broadcast against [out, in]."""
    if grid.axis is None:
        return part
    if grid.block:
        return part.repeat_interleave(grid.block, 1)[:, :columns]
    return part.reshape(-1, 1)
