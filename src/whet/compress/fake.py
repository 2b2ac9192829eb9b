"""Rounding onto a grid inside torch, with gradients that pass straight through (Bengio et al. 2013, "Estimating or propagating gradients
through stochastic neurons"). The numbers are those of ``grid.quantise``: half to even, in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from whet.compress.grid import Grid


def round_through(values: Tensor) -> Tensor:
    """Half to even; the gradient is that of the identity."""
    return values + (torch.round(values) - values).detach()


def fake_quantise(values: Tensor, scale: Tensor, zero: Tensor, lowest: int, highest: int) -> Tensor:
    """The values as they come back from the grid. scale, zero: in a shape that broadcasts against values.

    Gradients reach values inside the grid, and scale as in Esser et al. 2020, "Learned step size quantization", equation 3.
    """
    codes = torch.clamp(round_through(values / scale) + zero, lowest, highest)
    return (codes - zero) * scale


def on_grid(values: Tensor, grid: Grid) -> Tensor:
    """``fake_quantise`` with a grid of one scale for the whole tensor."""
    scale = torch.as_tensor(grid.scale, dtype=torch.float32)
    zero = torch.as_tensor(grid.zero_point, dtype=torch.float32)
    return fake_quantise(values, scale, zero, grid.lowest, grid.highest)
