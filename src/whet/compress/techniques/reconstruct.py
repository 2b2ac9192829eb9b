"""Rounding and activation steps learned block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np

from whet.compress.grid import Grid, from_range
from whet.compress.ranges import by_mse
from whet.compress.statistics import Statistics
from whet.compress.technique import Foresight, LayerView, Search
from whet.compress.techniques import static
from whet.compress.views import Block, Learned
from whet.core.inventory import Layer
from whet.core.target import Target

if TYPE_CHECKING:
    from torch import Tensor

# BRECQ's and QDrop's learning rates, of the rounding variables and of the activation steps, are for 20,000 iterations. Fewer get larger
# ones, so that the variables can still travel from one end to the other; AdaRound's 1e-2 is the largest.
ROUNDING_RATE, STEP_RATE, PAPERS_ITERATIONS, LARGEST_RATE = 1e-3, 4e-5, 20_000, 1e-2


def reconstruct(view: Block, target: Target, *,
                bits: Annotated[int, Search(4, 2, 3, 5, 6, 7, 8, help="bits a weight, symmetric, one scale an output channel")] = 4,
                activation_bits: Annotated[int, Search(8, 4, 5, 6, 7, help="bits an activation; give static the same")] = 8,
                iterations: Annotated[int, Search(2000, 500, help="steps of Adam for each block", only=False, least=1,
                                                  most=1_000_000)] = 2000,
                drop: Annotated[float, Search(0.5, 0.0, 1.0, help="share of the numbers of an activation that stay in float in each step: "
                                              "0 is BRECQ, 0.5 QDrop", only=False, least=0.0, most=1.0)] = 0.5,
                regulariser: Annotated[float, Search(0.01, 0.1, help="weight of the term that makes the rounding hard", only=False,
                                                     least=0.0, most=100.0)] = 0.01,
                batch: Annotated[int, Search(32, 16, help="samples a step", only=False, least=1, most=4096)] = 32,
                samples: Annotated[int, Search(1024, 32, help="how many calibration samples are learned on", only=False, least=1,
                                               most=100_000)] = 1024,
                seed: Annotated[int, Search(0, 1, help="of batches and dropping", only=False, least=0, most=2**31 - 1)] = 0) -> Learned:
    """Learn for each block whether its weights are rounded up or down, and the step of each activation, so that its output stays.

    Paper: Li et al. 2021, "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", section 3.2; Wei et al.
    2022, "QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training Quantization", section 4 and algorithm 1; Nagel
    et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", equations 21 to 24; Esser et al. 2020, "Learned Step
    Size Quantization", equation 3.
    Needs: calibration.
    Cost: ``iterations`` forward and backward passes of ``batch`` samples for each block; memory of 96 MB for what their gradients need, and
    ten times the block's weights; a block's inputs and output for all samples, three times, in files beyond 32 MB each.
    Limits: what ``static`` would quantise. Give it more samples than other techniques: 1024 are usual.

    W' = s * clip(floor(W / s) + h(V)), h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1); least mean |f(x', W') - f(x, W)|^2 over V and the
    steps of the activations, plus regulariser * sum(1 - |2 h(V) - 1|^beta), beta falling from 20 to 2 after a fifth of the steps.
    x' is x on its grid, of which a share ``drop`` of the numbers, chosen anew in each step, stays as it was.
    """
    from whet.compress.soft_rounding import Schedule, learn

    roundings = {name: _scales(layer, bits) for name, layer in view.layers.items()}
    grids = {name: _start(known, activation_bits, target) for name, known in view.tensors.items()}
    faster = min(PAPERS_ITERATIONS / iterations, LARGEST_RATE / ROUNDING_RATE)
    schedule = Schedule(iterations, batch, regulariser, faster * ROUNDING_RATE, faster * STEP_RATE, drop, seed)
    codes, steps = learn(view, roundings, grids, schedule)
    return Learned(codes, {name: _stepped(grids[name], steps[name]) for name in grids})


def foresee(layer: Layer, target: Target, *, bits: int = 4, activation_bits: int = 8, iterations: int = 2000, drop: float = 0.5,
            regulariser: float = 0.01, batch: int = 32, samples: int = 1024, seed: int = 0) -> Foresight:
    """Whatever ``static`` would quantise; the weights are stored small where nothing comes after."""
    found = static.foresee(layer, target)
    if not found.applies or not layer.weight_shape:
        return Foresight(found.applies, note=found.note or "its activations are learned")
    return Foresight(True, f"int{bits}", "float32", bits, 0, f"float32 {layer.op}", "rounding and steps are learned")


def _start(statistics: Statistics, bits: int, target: Target) -> Grid:
    """The grid of least squared error, from which learning starts."""
    signed = target.activation_dtype.startswith("int")
    low, high = by_mse(statistics, 1 << bits) if statistics.low < statistics.high else (statistics.low, statistics.high)
    scale, zero = from_range(low, high, bits=bits, signed=signed, symmetric=target.symmetric_activations)
    return Grid(bits, signed, scale, zero)


def _stepped(grid: Grid, step: Tensor) -> Grid:
    return Grid(grid.bits, grid.signed, np.asarray(step.item(), np.float32), grid.zero_point)


def _scales(layer: LayerView, bits: int) -> Grid:
    from whet.compress.weight_search import searched_grid

    assert layer.weight is not None
    return searched_grid(layer.weight.reshape(len(layer.weight), -1), bits=bits)
