"""Rounding up or down, learned layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from whet.compress.grid import Grid, Quantised, quantise, stored_bits
from whet.compress.technique import Change, Foresight, Search
from whet.compress.techniques import weight_only
from whet.compress.techniques.gptq import flat_weight, grid_of
from whet.compress.views import SampleView
from whet.core.inventory import Layer
from whet.core.progress import task
from whet.core.target import Target

if TYPE_CHECKING:
    from whet.compress.soft_rounding import Schedule

RATE = 1e-2  # Adam's, as in the authors' code (AIMET); the paper does not say
# The paper's regulariser is for outputs of about unit variance: there, rounding to the nearest costs about so much for each weight. All
# errors are measured in that unit, so that one regulariser serves outputs of every size.
NEAREST_COSTS = 1e-3
REPORT_EVERY = 100
PLAIN_OPS = frozenset({"LSTM", "GRU", "Gather"})


def adaround(view: SampleView, target: Target, *,
             bits: Annotated[int, Search(4, 2, 3, 5, 6, 7, 8, help="bits a weight, one scale an output channel")] = 4,
             symmetric: Annotated[bool, Search(True, False, help="zero point in the middle")] = True,
             search: Annotated[bool, Search(True, False, help="the ends of each grid are searched, else minimum and maximum")] = True,
             iterations: Annotated[int, Search(1000, 200, help="steps of Adam for each layer; the paper takes 10000", only=False,
                                                 least=1, most=1_000_000)] = 1000,
             warm_up: Annotated[float, Search(0.2, 0.1, help="share of the steps before the regulariser begins", only=False, least=0.0,
                                              most=1.0)] = 0.2,
             regulariser: Annotated[float, Search(0.01, 0.1, help="weight of the term that makes the rounding hard", only=False,
                                                  least=0.0, most=100.0)] = 0.01,
             batch: Annotated[int, Search(256, 32, help="input vectors a step (positions of a convolution)", only=False, least=1,
                                          most=1 << 20)] = 256,
             samples: Annotated[int, Search(1024, 32, help="how many calibration samples are learned on", only=False, least=1,
                                            most=100_000)] = 1024,
             seed: Annotated[int, Search(0, 1, help="of the vectors that are drawn", only=False, least=0, most=2**31 - 1)] = 0) -> Change:
    """Learn for each weight whether it is rounded up or down, so that the layer's output stays.

    Paper: Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", section 3.3: equations 21 to 25
    (the layer reads what the rounded layers before it give, and its activation function counts).
    Needs: calibration.
    Cost: ``iterations`` products of ``batch`` vectors forwards and backwards for each layer, batch * out * in multiplications each way;
    memory of up to 65536 input vectors of a layer with their outputs (256 MB); activations of all samples wait in temporary files.
    Limits: convolutions and products, transposed and stacked ones too. Recurrent layers and tables are rounded plainly. Smaller on disk;
    faster only where ``static`` follows.

    W' = s * clip(floor(W / s) + h(V)), h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1); least mean |f(W x) - f(W' x')|^2 over V, plus
    regulariser * sum(1 - |2 h(V) - 1|^beta), beta falling from 20 to 2 after the warm-up. The error is measured in a unit in which
    rounding to the nearest costs 0.001 a weight, so that outputs of every size get along with one regulariser. Then h is rounded.
    Where that is worse than rounding to the nearest, on all the vectors, the nearest is kept.
    """
    weight = flat_weight(view.layer)
    grid = grid_of(weight, bits=min(bits, target.weight_bits), block=0, symmetric=symmetric, search=search)
    nearest = quantise(weight, grid)
    if len(view.inputs) == 0:
        return Change(weight=nearest)
    from whet.compress.soft_rounding import Schedule

    error = _error(view, nearest, batch)
    if error == 0.0:
        return Change(weight=nearest)
    learned = _learned(view, grid, Schedule(iterations, batch, regulariser, RATE, seed=seed, warm_up=warm_up), error)
    return Change(weight=learned if _error(view, learned, batch) < error else nearest)


def foresee(layer: Layer, target: Target, *, bits: int = 4, symmetric: bool = True, search: bool = True, iterations: int = 1000,
            warm_up: float = 0.2, regulariser: float = 0.01, batch: int = 256, samples: int = 1024, seed: int = 0) -> Foresight:
    """Whatever ``weight_only`` would store; recurrent layers and tables rounded plainly."""
    found = weight_only.foresee(layer, target)
    if not found.applies:
        return found
    width = stored_bits(min(bits, target.weight_bits))
    note = "rounded plainly: nothing is learned for this operator" if layer.op in PLAIN_OPS else found.note
    return Foresight(True, f"{'' if symmetric else 'u'}int{width}", "float32", width, 0, found.runs_as, note)


def _learned(view: SampleView, grid: Grid, schedule: Schedule, unit: float) -> Quantised:
    """The codes after all steps. unit: the error of rounding to the nearest. Deterministic by the seed."""
    import torch

    from whet.compress.soft_rounding import SoftRounding
    from whet.compress.threads import one_thread

    assert view.layer.weight is not None
    generator, soft = torch.Generator().manual_seed(schedule.seed), SoftRounding(view.layer.weight, grid)
    size = min(_samples_for(view, schedule.batch), len(view.inputs))
    work = size * view.targets[0].numel() * view.layer.weight[0].size
    with task(f"learning {view.layer.name}", schedule.iterations) as progress, one_thread(work):
        for iteration in range(schedule.iterations):
            chosen = torch.randint(len(view.inputs), (size,), generator=generator)
            weight = soft.weight()
            found = view.product(view.inputs[chosen], weight)
            ((found - view.targets[chosen]).square().mean() * (NEAREST_COSTS * view.layer.weight.size / unit)).backward()
            assert weight.grad is not None
            soft.step(weight.grad, schedule.rounding_rate, schedule.regulariser, schedule.beta(iteration))
            if iteration % REPORT_EVERY == REPORT_EVERY - 1:
                progress.advance(REPORT_EVERY)
    return soft.codes()


def _error(view: SampleView, codes: Quantised, batch: int) -> float:
    """Mean squared error over all samples."""
    import torch

    assert view.layer.weight is not None
    weight, size = torch.tensor(codes.values.reshape(view.layer.weight.shape)), _samples_for(view, max(batch, 4096))
    with torch.no_grad():
        parts = zip(view.inputs.split(size), view.targets.split(size), strict=True)
        return sum(float((view.product(x, weight) - y).square().mean()) * len(x) for x, y in parts) / len(view.inputs)


def _samples_for(view: SampleView, positions: int) -> int:
    """How many samples have so many positions: a vector is one, a whole sample has several."""
    assert view.layer.weight is not None
    return max(1, positions * len(view.layer.weight) // max(view.targets[0].numel(), 1))
