"""Rounding onto a grid inside torch. The numbers are those of ``grid.quantise``: half to even, in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from whet.compress.grid import Grid, fake_quantise, token_grid


def on_grid(values: Tensor, grid: Grid) -> Tensor:
    """The values as they come back from a grid of one scale; no gradient reaches them."""
    scale, zero = (torch.as_tensor(part, dtype=torch.float32) for part in (grid.scale, grid.zero_point))
    with torch.no_grad():
        return to_codes_(values.clone(), scale, zero, grid.lowest, grid.highest).sub_(zero).mul_(scale)


def on_learned_grid(values: Tensor, step: Tensor, grid: Grid) -> Tensor:
    """The same with the scale ``step``, a tensor of no dimensions that is being learned, in the place of the grid's.

    Gradients go straight through to the values inside the grid, and to the step as in Esser et al. 2020, "Learned step size
    quantization", equation 3. torch's fused kernel multiplies by 1 / step: at ties it may take the other of two codes.
    """
    zero = torch.as_tensor(grid.zero_point, dtype=torch.float32).reshape(1)
    fake: Tensor = torch._fake_quantize_learnable_per_tensor_affine(values, step.reshape(1), zero, grid.lowest, grid.highest, 1.0)
    return fake


def by_token(inputs: Tensor) -> Tensor:
    """What a layer reads, float32 [..., in], as it comes back from the int8 grid of each token. Gradients go straight through."""
    flat = inputs.detach().reshape(-1, inputs.shape[-1]).numpy()
    found: Tensor = _Through.apply(inputs, torch.from_numpy(fake_quantise(flat, token_grid(flat))).reshape(inputs.shape))
    return found


class _Through(torch.autograd.Function):
    """Gives the second tensor, and takes its gradient for that of the first."""

    @staticmethod
    def forward(ctx: Any, exact: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def to_codes_(values: Tensor, scale: Tensor, zero: Tensor, lowest: int, highest: int) -> Tensor:
    """In place, the code of the nearest point of the grid for each value; scale and zero in a shape that broadcasts against values."""
    return values.div_(scale).round_().add_(zero).clamp_(lowest, highest)
