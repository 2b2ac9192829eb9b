"""A rounded model tuned from end to end, so that it answers as it did in float."""

from __future__ import annotations

from typing import Annotated

from whet.compress.technique import Foresight, Search
from whet.compress.views import Learned, Whole
from whet.core.inventory import Layer
from whet.core.target import Target

MOVING_RATE, RATE = 0.1, 1.0  # Adam's, where the weights themselves move, and where scales alone do


def tune(view: Whole, target: Target, *,
         codes: Annotated[bool, Search(False, True, help="codes and zero points become others too, as the weights behind them move; else "
                                       "scales alone")] = False,
         steps: Annotated[int, Search(500, 100, 2000, help="steps for the whole model", only=False, least=1, most=1_000_000)] = 500,
         batch: Annotated[int, Search(2, 1, 8, help="windows a step", only=False, least=1, most=1024)] = 2,
         lr: Annotated[float, Search(0.0, 0.05, help="size of Adam's first step for a weight, in steps of the grid times 2**bits; 0: 0.1 "
                                          "with codes, else 1", only=False, least=0.0, most=10.0)] = 0.0,
         text: Annotated[float, Search(0.0, 0.03, help="share of the text's own next token in what it is to say; 0: the parent alone",
                                       only=False, least=0.0, most=1.0)] = 0.0,
         samples: Annotated[int, Search(300, 128, 1000, help="how many windows of calibration text are learned from or judged by",
                                        only=False, least=2, most=100_000)] = 300,
         seed: Annotated[int, Search(0, 1, help="of the order of the windows", only=False, least=0, most=2**31 - 1)] = 0) -> Learned:
    """Tune all scales of a rounded model together, and with ``codes`` those too, so that its answers are those of its float parent.

    Paper: Chen et al. 2024, "EfficientQAT: Efficient Quantization-Aware Training for Large Language Models", section 3.3 (end-to-end
    training of quantisation parameters: the scales alone); with the parent's answers in the place of labels, as in Liu et al. 2023,
    "LLM-QAT: Data-Free Quantization Aware Training for Large Language Models", section 2.2; with ``codes``, all parameters at once.
    With ``text``, answers and labels together: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2.
    Needs: calibration.
    Cost: ``steps`` forward and backward passes of ``batch`` windows through the whole model. All of the model is in memory: 18 bytes for
    each weight of its blocks, 35 with ``codes``, the activations of a batch in all blocks, and a batch's answers several times.
    Limits: the linear layers of language models that a step before it has rounded to integers; it is the last step. The one technique
    for which a model must fit in memory. A kill while it works costs all of its steps. With ``codes`` and little text it learns
    the text: what is best on windows that nothing is learned from is kept. ``text`` makes a model that is better on text like that of the
    calibration, maybe better than its parent, and further from the parent.

    Least mean over tokens of KL(p || p') = sum p * (log p - log p'), p and p' being what the parent and the model say comes next; with
    ``text`` t, of (1 - t) KL(p || p') - t log p'(what comes next).
    W' = s * (q - z); with ``codes`` q = clip(round(W / s + V) + z), V anywhere, s and z from the ends of the grid, as in ``autoround``;
    rounding passes gradients on. Scales are numbers of their dtype all along. Adam's rate falls to 0 as the square of the steps left; a
    scale goes so much slower than the weights as its grid has steps. At the start and ten times on the way the same is measured
    on one window in eight (at most 24), from which nothing is learned; what had the least is kept.
    """
    from whet.compress.distilling import begun, distil
    from whet.compress.learned_grids import Schedule

    rate = lr or (MOVING_RATE if codes else RATE)
    return Learned(distil(view, begun(view, codes), Schedule(steps, batch, samples, rate, codes, seed), text))


def foresee(layer: Layer, target: Target, *, codes: bool = False, steps: int = 500, batch: int = 2, lr: float = 0.0, text: float = 0.0,
            samples: int = 300, seed: int = 0) -> Foresight:
    """The linear layers of language models, which stay of the type that they were rounded to."""
    if layer.op != "Linear":
        return Foresight(False, note="tune moves the grids of language models' linear layers; tables, heads and graphs stay as they are")
    return Foresight(True, layer.weight_dtype, runs_as="packed codes", note="its grid is tuned with those of all layers", adjusts=True)
