"""Learning where each weight lies on its grid, and where the grid ends, so that a block of the model gives what it gave.

Cheng et al. 2023, "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs" (the variables, and steps of one
size along the sign of the gradient); Chen et al. 2024, "EfficientQAT", section 3.2 (the weights themselves move, with Adam).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whet.compress.adam import Adam
from whet.compress.grid import Floats, Grid, Quantised
from whet.compress.views import Block
from whet.compress.weight_search import grouped, widest_share
from whet.core.errors import Refused
from whet.core.progress import task

LEAST_SHARE = 0.01  # of a group's range that its grid keeps: a grid of no width has no scale
WITHIN = 0.49  # of a step: so far from the middle of a code a number may begin
CHECKS = 10  # times that the error is measured on the same windows while a block is learned
REPORT_EVERY = 10


@dataclass(frozen=True)
class Schedule:
    """steps of batch windows each, drawn from the first ``windows``. rate: of the first step, in steps of the grid; it falls to 0 in a
    line. moving: weights may go as far as they like, with Adam; else half a step of the grid each way, along signs, and alpha and beta
    with the same rate (the paper's). With Adam they go so much slower as the grid has steps, for all weights of a group move with them.
    """

    steps: int
    batch: int
    windows: int
    rate: float
    moving: bool = False
    seed: int = 0

    def rate_at(self, step: int) -> float:
        return self.rate * (1 - step / self.steps)


class Rounding:
    """A weight [out, in] on its way to a grid. Groups of ``block`` along the inputs share a scale; 0: all of a row.

    v: [out, groups, block] how far each weight is moved before it is rounded, in steps of its grid. shares: [2, out, groups, 1], alpha and
    beta: how much of the group's least and of its largest number the grid reaches to; symmetric grids look at alpha alone, as a share of
    ``full``. scales: the dtype that the scales will be stored in. either_sign: as in ``grid.weight_grid``; alpha may then be as large as
    ``widest``, where the highest code reaches as far as the lowest one does at 1. A ragged last group is filled up with 0. Raises Refused
    on NaN or infinity.
    """

    def __init__(self, weight: Floats, *, bits: int, block: int, symmetric: bool, scales: str = "float32",
                 either_sign: bool = False, share: Floats | None = None) -> None:
        self.columns, self.bits, self.block, self.symmetric, self.scales = weight.shape[1], bits, block, symmetric, scales
        self.weight = torch.tensor(grouped(weight, block))
        low, high = self.weight.amin(-1, keepdim=True).clamp(max=0), self.weight.amax(-1, keepdim=True).clamp(min=0)
        if not bool(torch.isfinite(low + high).all()):
            raise Refused("quantise a weight", found="NaN or infinity in it", do="repair or retrain the model")
        self.lowest, self.highest = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if symmetric else (0, (1 << bits) - 1)
        self.low, self.high = low, high
        every_code = symmetric and either_sign
        self.full = torch.where(high > -low, high, low) / self.lowest if every_code else torch.maximum(-low, high) / self.highest
        self.widest = widest_share(bits) if every_code else 1.0
        self.v = torch.zeros_like(self.weight, requires_grad=True)
        start = torch.ones_like(low) if share is None else torch.tensor(share).reshape(low.shape)
        self.shares = torch.stack([start, start]).requires_grad_()

    @classmethod
    def of(cls, made: Quantised, weight: Floats, scales: str) -> Rounding:
        """From what another technique has rounded the weight to, on that grid. Each number begins as near to the float weight as its code
        lets it: in the middle of its code it would need half a step to go anywhere.
        """
        grid = made.grid
        found = cls(weight, bits=grid.bits, block=grid.block, symmetric=grid.signed, scales=scales)
        scale, zero = (torch.tensor(part, dtype=torch.float32).reshape(found.low.shape) for part in (grid.scale, grid.zero_point))
        steps = torch.tensor(grouped(made.values, grid.block)) / scale
        found.weight = torch.maximum(torch.minimum(found.weight / scale, steps + WITHIN), steps - WITHIN) * scale
        found.low, found.high, found.full = -zero * scale, (found.highest - zero) * scale, scale
        return found

    def grid(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, [out, groups, 1]; the scale is a number of the dtype it is stored in. Gradients go straight through."""
        alpha, beta = self.shares
        if self.symmetric:
            return storable(alpha * self.full, self.scales), torch.zeros_like(alpha)
        scale = storable((beta * self.high - alpha * self.low) / self.highest, self.scales)
        zero = -alpha * self.low / scale
        return scale, _straight(zero, zero.detach().round().clamp(0, self.highest))

    def values(self) -> Tensor:
        """[out, in] the weight on its grid; gradients flow to ``v`` and ``shares``."""
        scale, zero = self.grid()
        found: Tensor = _OnGrid.apply(self.weight, self.v, scale, zero, self.lowest, self.highest)
        return found.flatten(1)[:, : self.columns]

    def rounded(self) -> Quantised:
        """What the weight has become, exactly as ``values`` gives it."""
        with torch.no_grad():
            scale, zero = (part.squeeze(-1) for part in self.grid())
            steps = _steps(self.weight, self.v, scale[..., None], zero[..., None], self.lowest, self.highest)[0]
            codes = (steps + zero[..., None]).flatten(1)[:, : self.columns].to(torch.int8 if self.symmetric else torch.uint8)
        shape = scale.shape if self.block else (len(scale),)
        grid = Grid(self.bits, self.symmetric, scale.numpy().reshape(shape), zero.numpy().astype(np.int32).reshape(shape),
                    1 if self.block else 0, self.block)
        return Quantised(np.ascontiguousarray(codes.numpy()), grid)


def storable(scale: Tensor, dtype: str) -> Tensor:
    """As ``grid.storable``, with the gradient of what was not rounded; a group of zeros gets scale 1."""
    scale = torch.where(scale.abs() > torch.finfo(torch.float32).tiny, scale, 1.0)
    if dtype == "float32":
        return scale
    kind = np.finfo(np.dtype(dtype))
    stored = scale.detach().abs().clamp(float(kind.smallest_subnormal), float(kind.max)).copysign(scale.detach())
    return _straight(scale, stored.to(getattr(torch, dtype)).float())


class _OnGrid(torch.autograd.Function):
    """s * (clip(round(W / s + V) + z) - z) with gradients for V, s and z, rounding being passed as if it were not there.

    Written out because the memory counts: all of a block's weights are alive, and autograd would keep five numbers for each of them.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, v: Tensor, scale: Tensor, zero: Tensor, lowest: int, highest: int) -> Tensor:
        ctx.save_for_backward(weight, v, scale, zero)
        ctx.ends = lowest, highest
        return _steps(weight, v, scale, zero, lowest, highest)[0].mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, v, scale, zero = ctx.saved_tensors
        steps, inside = _steps(weight, v, scale, zero, *ctx.ends)
        gradient = gradients[0]
        to_v = gradient * inside
        of_scale = steps.addcdiv_(weight * inside, scale, value=-1)  # inside: round(W / s + V) - W / s; outside: the end
        to_scale = (gradient * of_scale).sum(-1, keepdim=True)
        to_zero = (to_v - gradient).sum(-1, keepdim=True).mul_(scale)
        return None, to_v.mul_(scale), to_scale, to_zero, None, None


def _steps(weight: Tensor, v: Tensor, scale: Tensor, zero: Tensor, lowest: int, highest: int) -> tuple[Tensor, Tensor]:
    """How many steps from zero each weight lies after rounding, and whether it lies within the ends."""
    codes = (weight / scale).add_(v).round_().add_(zero)
    inside = (codes >= lowest) & (codes <= highest)
    return codes.clamp_(lowest, highest).sub_(zero), inside


def _straight(values: Tensor, rounded: Tensor) -> Tensor:
    """Exactly the rounded values, with the gradient of those that were not rounded."""
    return rounded + (values - values.detach())


class Signs:
    """Steps of one size along the sign of the gradient, which is forgotten afterwards (equation 6, SignSGD)."""

    def __init__(self, parameter: Tensor, rate: float) -> None:
        self.parameter, self.rate = parameter, rate

    def step(self) -> None:
        gradient, self.parameter.grad = self.parameter.grad, None
        assert gradient is not None
        with torch.no_grad():
            self.parameter.sub_(gradient.sign_(), alpha=self.rate)


def learn(block: Block, weights: Mapping[str, Rounding], schedule: Schedule) -> dict[str, Quantised]:
    """The weights of the block, by layer, at the step that gave the least error; what they began with, where nothing was better.

    The error of all steps is measured on the same windows. Deterministic by the seed of the schedule. Raises whatever ``run`` raises.
    """
    generator = torch.Generator().manual_seed(schedule.seed)
    count = min(schedule.windows, len(block.targets))
    probe = torch.linspace(0, count - 1, min(2 * schedule.batch, count)).round().long()
    best, least = _rounded(weights), _measured(block, weights, probe, schedule.batch)
    every = max(1, schedule.steps // CHECKS)
    with _stepping(weights, schedule.moving) as set_rate, task(f"learning {block.name}", schedule.steps) as progress:
        for step in range(schedule.steps):
            set_rate(schedule.rate_at(step))
            chosen = torch.randint(count, (min(schedule.batch, count),), generator=generator)
            _error(block, weights, chosen).backward()
            if (step + 1) % every == 0 or step + 1 == schedule.steps:
                error = _measured(block, weights, probe, schedule.batch)
                if error < least:
                    best, least = _rounded(weights), error
            if (step + 1) % REPORT_EVERY == 0:
                progress.advance(REPORT_EVERY, note=f"error {least:.3g}")
    return best


@contextmanager
def _stepping(weights: Mapping[str, Rounding], moving: bool) -> Iterator[Callable[[float], None]]:
    """Inside, each variable steps as soon as its gradient is there, so that no two gradients of weights are alive at once. What it gives
    sets the rate of the steps to come.
    """
    kind: type[Adam] | type[Signs] = Adam if moving else Signs
    reach = math.inf if moving else 0.5
    own: list[tuple[Adam | Signs, float]] = []  # and its rate as a share of that of the weights
    hooks = []
    for each in weights.values():
        slower = 1 / (each.highest - each.lowest) if moving else 1.0
        widest = math.inf if moving else each.widest
        for variable, least, most, share in ((each.v, -reach, reach, 1.0), (each.shares, LEAST_SHARE, widest, slower)):
            own.append((kind(variable, 0.0), share))
            hooks.append(variable.register_post_accumulate_grad_hook(step_within(own[-1][0], least, most)))

    def set_rate(rate: float) -> None:
        for optimiser, share in own:
            optimiser.rate = rate * share

    try:
        yield set_rate
    finally:
        for hook in hooks:
            hook.remove()


def step_within(optimiser: Adam | Signs, least: float, most: float) -> Callable[[Tensor], None]:
    def step(parameter: Tensor) -> None:
        optimiser.step()
        with torch.no_grad():
            parameter.clamp_(least, most)

    return step


def _rounded(weights: Mapping[str, Rounding]) -> dict[str, Quantised]:
    return {name: each.rounded() for name, each in weights.items()}


def _error(block: Block, weights: Mapping[str, Rounding], chosen: Tensor) -> Tensor:
    """Mean squared difference between what the block gives for some windows and what it gave in float."""
    found = block.run([each[chosen] for each in block.inputs], {name: each.values() for name, each in weights.items()}, _as_it_is)
    return (found - block.targets[chosen]).square().mean()


def _measured(block: Block, weights: Mapping[str, Rounding], probe: Tensor, batch: int) -> float:
    with torch.no_grad():
        return sum(float(_error(block, weights, part)) * len(part) for part in probe.split(batch)) / len(probe)


def _as_it_is(name: str, values: Tensor) -> Tensor:
    return values
