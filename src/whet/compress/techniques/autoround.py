"""Rounding and the ends of grids learned for a whole transformer block, along the signs of gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from whet.compress.grid import Floats, Quantised, weight_grid
from whet.compress.technique import Foresight, LayerView, Search, rounded_matrix
from whet.compress.techniques.gptq import flat_weight
from whet.compress.views import Block, Learned
from whet.compress.weight_search import searched_grid
from whet.core.inventory import Layer
from whet.core.target import Target

if TYPE_CHECKING:
    from whet.compress.learned_grids import Rounding

MOVING_RATE = 0.04  # Adam's where the weights themselves move, as a share of all steps of the grid: 0.01 of a step for 2 bits


def autoround(view: Block, target: Target, *,
              bits: Annotated[int, Search(4, 2, 3, 5, 6, 7, 8, help="bits a weight")] = 4,
              block: Annotated[int, Search(128, 16, 32, 64, 256, 0, help="weights that share a scale along the summed dimension; 0: one "
                                           "scale an output channel")] = 128,
              symmetric: Annotated[bool, Search(False, True, help="zero point in the middle")] = False,
              move: Annotated[bool, Search(False, True, help="the weights themselves move, as far as it helps; else each goes up or "
                                              "down")] = False,
              search: Annotated[bool, Search(False, True, help="learning begins with searched ends of the grids, else with minimum and "
                                             "maximum")] = False,
              steps: Annotated[int, Search(200, 50, 1000, help="steps for each block; 50 is light, 1000 best", only=False, least=1,
                                           most=100_000)] = 200,
              batch: Annotated[int, Search(8, 2, help="windows a step", only=False, least=1, most=1024)] = 8,
              lr: Annotated[float, Search(0.0, 0.01, help="size of the first step, in steps of the grid; 0: 1 / steps, and 0.04 / "
                                          "2**bits with move", only=False, least=0.0, most=1.0)] = 0.0,
              samples: Annotated[int, Search(128, 16, 512, help="how many windows of calibration text are learned on", only=False, least=1,
                                             most=100_000)] = 128,
              seed: Annotated[int, Search(0, 1, help="of the windows that are drawn", only=False, least=0, most=2**31 - 1)] = 0) -> Learned:
    """Learn for each block how its weights are rounded and where their grids end, so that its output stays what it was in float.

    Paper: Cheng et al. 2023, "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs", equations 3 to 6 and
    algorithm 1; with ``move``, Chen et al. 2024, "EfficientQAT: Efficient Quantization-Aware Training for Large Language Models",
    section 3.2 (block-wise training of all parameters).
    Needs: calibration.
    Cost: ``steps`` forward and backward passes of ``batch`` windows through each block; memory of seven float32 numbers for each weight of
    a block, nine with ``move``, and of the activations of a batch in it. Windows are read from the disk as they are drawn.
    Limits: the linear layers of language models. ``move`` is quantisation-aware training, block by block and without labels: with
    little text it learns the text; give it as much as there is.

    W' = s * (clip(round(W / s + V) + z) - z), s = (beta * max W - alpha * min W) / (2**bits - 1), z = round(-alpha * min W / s); least
    mean (f(x', W') - f(x, W))^2 over V in [-1/2, 1/2] and alpha, beta in (0, 1], f being the block, x what enters it in float and x' what
    the rounded blocks before it give. Each step goes lr along the sign of the gradient, lr falling to 0; rounding passes gradients on.
    symmetric: s = alpha * w / -2**(bits-1), w being the number farthest from 0, with its sign, and z = 0; alpha goes up to 2**(bits-1) /
    (2**(bits-1) - 1), for 2 bits to 1. Scales are numbers of their dtype all along. With ``move``, V, alpha and beta have no upper ends
    and Adam takes the steps. What had the least error on the same windows is kept, the start included. Behind a
    step that has rounded the layers onto grids of the same kind (``gptq``), learning begins with what that has made of them.
    """
    from whet.compress.learned_grids import Schedule, learn

    roundings = {name: _begun(layer, view.rounded.get(name), bits, block, symmetric, search) for name, layer in view.layers.items()}
    rate = lr or (MOVING_RATE / (1 << bits) if move else 1 / steps)
    return Learned(learn(view, roundings, Schedule(steps, batch, samples, rate, move, seed)))


def foresee(layer: Layer, target: Target, *, bits: int = 4, block: int = 128, symmetric: bool = False, move: bool = False,
            search: bool = False, steps: int = 200, batch: int = 8, lr: float = 0.0, samples: int = 128, seed: int = 0) -> Foresight:
    """The linear layers of language models."""
    if layer.op != "Linear":
        return Foresight(False, note="autoround learns the blocks of language models; reconstruct and rtn round the layers of graphs, and "
                                     "rtn tables")
    return rounded_matrix(bits, block, symmetric)


def _begun(layer: LayerView, before: Quantised | None, bits: int, block: int, symmetric: bool, search: bool) -> Rounding:
    """A weight before it is learned; what a step before has made of it, where that has grids of the same kind."""
    from whet.compress.learned_grids import Rounding

    weight = flat_weight(layer)
    if before is not None and (before.grid.bits, before.grid.signed, before.grid.block) == (bits, symmetric, block):
        return Rounding.of(before, weight, layer.scales)
    share = _shares(weight, bits, block, symmetric, layer.either_sign) if search else None
    return Rounding(weight, bits=bits, block=block, symmetric=symmetric, scales=layer.scales, either_sign=layer.either_sign, share=share)


def _shares(weight: Floats, bits: int, block: int, symmetric: bool, either_sign: bool) -> Floats:
    """The share of minimum and maximum that each group's searched grid keeps, in the shape of its scales."""
    searched, full = (make(weight, bits=bits, symmetric=symmetric, axis=1 if block else 0, block=block, either_sign=either_sign).scale
                      for make in (searched_grid, weight_grid))
    return searched / full
