"""Learning to round: each weight goes up or down by what keeps the output, and activations learn their steps beside it.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization" (the rectified sigmoid, its regulariser and its
annealing); Li et al. 2021 (whole blocks); Wei et al. 2022 (dropping the quantisation of activations at random).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whet.compress.adam import Adam, adam_step_
from whet.compress.fake import on_learned_grid
from whet.compress.grid import Array, Grid, Quantised
from whet.compress.views import Block
from whet.core.progress import task

TOGETHER = 1 << 17  # numbers of a weight, so that a few tensors of them stay in the caches of two cores
STEP_BYTES = 96 << 20  # of what a step keeps of its samples for their gradients: it is taken in parts where they are more
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
    """One layer's weight [out, in] between the two codes beside each of its numbers. ``v``: the variables, [out, in].

    A number goes through some thirty operations a step, so they are done ``TOGETHER`` numbers at a time, which stay in the cache, and
    their gradients are written out: autograd would go through memory for each.
    """

    def __init__(self, weight: Array, grid: Grid) -> None:
        flat = torch.tensor(weight.reshape(len(weight), -1), dtype=torch.float32)
        scale, zero = (torch.as_tensor(part, dtype=torch.float32) for part in (grid.scale, grid.zero_point))
        self.shape, self.grid = weight.shape, grid
        self.scale, self.zero = (_spread(part, grid, flat.shape) for part in (scale, zero))
        exact = flat / self.scale
        self.floor = torch.floor(exact)
        rest = torch.clamp(exact - self.floor, 1e-4, 1 - 1e-4)
        self.v = -torch.log((ZETA - GAMMA) / (rest - GAMMA) - 1)
        self._moments = torch.zeros_like(flat), torch.zeros_like(flat)
        self._steps = 0

    @property
    def share(self) -> Tensor:
        """h(V): how far up, 0 to 1."""
        return torch.clamp(torch.sigmoid(self.v) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)

    def weight(self) -> Tensor:
        """[out, ...] the weight with soft rounding, which gathers the gradient that ``step`` wants."""
        found = torch.empty_like(self.v)
        for rows in self._parts():
            part = torch.sigmoid(self.v[rows], out=found[rows])
            part.mul_(ZETA - GAMMA).add_(GAMMA).clamp_(0.0, 1.0).add_(self.floor[rows])
            part.clamp_(*self._ends(rows)).mul_(self.scale[rows])
        return found.reshape(self.shape).requires_grad_()

    def step(self, gradient: Tensor, rate: float, regulariser: float = 0.0, beta: float | None = None) -> None:
        """One step of Adam. gradient: [out, ...] of the error, for the weight; the regulariser's is added where there is a ``beta``."""
        self._steps += 1
        flat, (mean, square) = gradient.reshape(self.v.shape), self._moments
        for rows in self._parts():
            found = self.gradient(flat[rows], rows, regulariser, beta)
            adam_step_(self.v[rows], found, mean[rows], square[rows], rate, self._steps)

    def gradient(self, of_weight: Tensor, rows: slice, regulariser: float = 0.0, beta: float | None = None) -> Tensor:
        """That of error + regulariser * sum(1 - |2 h - 1|^beta) for some rows of V, from the error's for the same rows of the weight."""
        sigmoid = torch.sigmoid(self.v[rows])
        stretched = sigmoid * (ZETA - GAMMA) + GAMMA
        share = stretched.clamp(0.0, 1.0)
        found = _inside(of_weight * self.scale[rows], share + self.floor[rows], *self._ends(rows))
        if beta is not None:
            undecided = share.mul_(2).sub_(1)  # 0 in the middle, 1 and -1 where the weight has decided
            found.sub_(undecided.abs().pow_(beta - 1).copysign_(undecided), alpha=2 * beta * regulariser)
        gradient: Tensor = torch.ops.aten.sigmoid_backward(_inside(found, stretched, 0.0, 1.0), sigmoid)
        return gradient.mul_(ZETA - GAMMA)

    def codes(self) -> Quantised:
        """The hard rounding that came out."""
        up = (self.share >= 0.5).float()
        codes = torch.clamp(self.floor + up + self.zero, self.grid.lowest, self.grid.highest)
        width = np.int8 if self.grid.signed else np.uint8
        return Quantised(codes.numpy().astype(width), self.grid)

    def _parts(self) -> Iterator[slice]:
        count = max(1, TOGETHER // max(self.v.shape[1], 1))
        return (slice(begin, begin + count) for begin in range(0, len(self.v), count))

    def _ends(self, rows: slice) -> tuple[Any, Any]:
        """The lowest and the highest code less the zero point, one for all rows where they have one."""
        zero = self.zero[rows] if self.zero.numel() > 1 else float(self.zero)
        return self.grid.lowest - zero, self.grid.highest - zero


def _inside(gradient: Tensor, values: Tensor, low: Any, high: Any) -> Tensor:
    """The gradient of clipping: what it is inside the ends, and 0 outside."""
    if isinstance(low, Tensor):
        return torch.where((values > low) & (values < high), gradient, 0.0)
    found: Tensor = torch.ops.aten.hardtanh_backward(gradient, values, low, high)
    return found


def learn(block: Block, weights: Mapping[str, Grid], activations: Mapping[str, Grid],
          schedule: Schedule) -> tuple[dict[str, Quantised], dict[str, Tensor]]:
    """Codes of the block's weights on ``weights`` (by layer), and the steps of its ``activations`` (by tensor).

    The gradients of a step are summed over parts of its samples, so that no more than ``STEP_BYTES`` wait for them, or one sample's.
    Deterministic by the seed of the schedule.
    """
    generator = torch.Generator().manual_seed(schedule.seed)
    steps = {name: torch.nn.Parameter(torch.as_tensor(grid.scale, dtype=torch.float32).clone()) for name, grid in activations.items()}
    learning = _Learning(block, {name: SoftRounding(_rows(block, name), grid) for name, grid in weights.items()}, steps, activations,
                         schedule.drop)
    stepping = [Adam(step, schedule.step_rate) for step in steps.values()]
    count = min(schedule.batch, len(block.targets))
    together = block.fixed or learning.samples_together(count)
    count = -(-count // together) * together if block.fixed else count
    with task(f"learning {block.name}", schedule.iterations) as progress:
        for iteration in range(schedule.iterations):
            chosen = torch.randint(len(block.targets), (count,), generator=generator)
            soft = learning.weights()
            error = sum(learning.add_gradients(soft, part, len(part) / count, generator) for part in chosen.split(together))
            for name, weight in soft.items():
                assert weight.grad is not None
                learning.soft[name].step(weight.grad, schedule.rounding_rate, schedule.regulariser, schedule.beta(iteration))
            for optimiser in stepping:  # along half a cosine down to 0, as BRECQ does
                optimiser.rate = 0.5 * schedule.step_rate * (1.0 + float(np.cos(np.pi * iteration / schedule.iterations)))
                optimiser.step()
            if iteration % REPORT_EVERY == REPORT_EVERY - 1:
                progress.advance(REPORT_EVERY, note=f"error {error:.3g}")
    return ({name: each.codes() for name, each in learning.soft.items()},
            {name: step.detach().abs() for name, step in learning.steps.items()})


@dataclass(frozen=True, eq=False)
class _Learning:
    """A block with what is learned of it: the rounding of its weights by layer, and the steps of its activations by tensor."""

    block: Block
    soft: Mapping[str, SoftRounding]
    steps: Mapping[str, Tensor]
    activations: Mapping[str, Grid]
    drop: float

    def weights(self) -> dict[str, Tensor]:
        """As they are now, by layer."""
        return {name: each.weight() for name, each in self.soft.items()}

    def add_gradients(self, weights: Mapping[str, Tensor], chosen: Tensor, share: float, generator: torch.Generator) -> float:
        """Add the gradients of ``share`` times the error on some samples to those that are there; that error."""
        loss = share * self._error(chosen, weights, generator)
        loss.backward()
        return float(loss.detach())

    def samples_together(self, count: int) -> int:
        """So many samples, ``count`` at most, that ``STEP_BYTES`` hold what is kept of them for their gradients; measured on one."""
        if count == 1:
            return 1
        weights = self.weights()
        counted = {each.untyped_storage().data_ptr() for each in (*weights.values(), *self.steps.values())}
        kept: dict[int, int] = {}

        def count_bytes(values: Tensor) -> Tensor:
            storage = values.untyped_storage()
            if storage.data_ptr() not in counted:
                kept[storage.data_ptr()] = storage.nbytes()
            return values.detach()  # a tensor that keeps what made it would hold itself alive

        with torch.autograd.graph.saved_tensors_hooks(count_bytes, lambda values: values):
            loss = self._error(torch.zeros(1, dtype=torch.int64), weights, torch.Generator())
        del loss  # until here its tensors were alive, so that no two of them lay in one place
        return max(1, min(count, STEP_BYTES // max(sum(kept.values()), 1)))

    def _error(self, chosen: Tensor, weights: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """Squared error, summed over channels and averaged over samples and positions (BRECQ's and QDrop's loss)."""
        def place(name: str, values: Tensor) -> Tensor:
            if name not in self.steps:
                return values
            return _mixed(on_learned_grid(values, self.steps[name].abs(), self.activations[name]), values, self.drop, generator)

        given = [_mixed(now[chosen], exact[chosen], self.drop, generator)
                 for now, exact in zip(self.block.inputs, self.block.exact_inputs, strict=True)]
        return (self.block.run(given, weights, place) - self.block.targets[chosen]).pow(2).sum(1).mean()


def _rows(block: Block, name: str) -> Array:
    weight = block.layers[name].weight
    assert weight is not None
    return weight


def _mixed(fake: Tensor, exact: Tensor, drop: float, generator: torch.Generator) -> Tensor:
    """Each number from ``exact`` with the probability ``drop``, else from ``fake``."""
    if drop <= 0.0 or not fake.is_floating_point():
        return fake
    return torch.where(torch.rand(fake.shape, generator=generator) < drop, exact, fake)


def _spread(part: Tensor, grid: Grid, shape: tuple[int, ...]) -> Tensor:
    """Scale or zero point for [out, in]: of its shape or [out, 1]; [1, 1] where one serves all and it is the zero point 0."""
    if not part.any():
        return torch.zeros(1, 1)
    if grid.block:
        return part.repeat_interleave(grid.block, 1)[:, : shape[1]]
    return part.reshape(-1, 1).expand(shape[0], 1)
