"""More bits for the layers whose rounding shows in the answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

from whet.compress.mixed.problem import Offer, Problem, Unit, Way
from whet.compress.mixed.program import solve
from whet.compress.technique import Foresight, Search, rounded_matrix
from whet.compress.views import Sensitivities
from whet.core.errors import Refused
from whet.core.inventory import Layer
from whet.core.target import Target


def mixed(view: Sensitivities, target: Target, *,
          average: Annotated[float, Search(4.0, 3.0, 3.5, 5.0, help="bits a weight over all layers, without scales", only=False, least=2.0,
                                           most=8.0)] = 4.0,
          widths: Annotated[str, Search("2,3,4,8", "3,4", "4,8", "2,4", "2,3,4", "3,4,8", help="bits that a layer may have")] = "2,3,4,8",
          by: Annotated[str, Search("gptq", "rtn", "awq", "hqq", help="the technique that rounds")] = "gptq",
          block: Annotated[int, Search(128, 16, 32, 64, 256, 0, help="weights that share a scale along the summed dimension; 0: one "
                                       "scale an output channel")] = 128,
          symmetric: Annotated[bool, Search(True, False, help="zero point in the middle")] = True,
          samples: Annotated[int, Search(128, 16, 512, help="how many windows of calibration text are read", only=False, least=1,
                                         most=100_000)] = 128) -> Mapping[str, int]:
    """Give each layer 2, 3, 4 or 8 bits so that the answers change least at a given average, and round them with another technique.

    Paper: Hubara et al. 2021, "Accurate post training quantization with small calibration sets", section 3.4 (the integer program); the
    sensitivities are the Fisher information along each rounding, as Li et al. 2021, "BRECQ", section 3.3, without its diagonal.
    Needs: calibration.
    Cost: one pass of 32 windows of 128 tokens through the model and four back; a block with what each width adds to its weights in
    memory. Then an integer program of a few hundred numbers, and what ``by`` costs.
    Limits: language models, and encoders by their states. Harms of layers are added up, and they are those of plain rounding on searched
    grids, whatever ``by`` does better. Files of layers with different bits are read by fewer programs.

    Least sum of KL_l(b_l) over the layers l with sum n_l b_l <= average * sum n_l, b_l among ``widths``, n_l numbers in layer l.
    """
    offered = [int(width) for width in widths.split(",")]
    if average < min(offered):
        raise Refused(f"give layers {average:g} bits on average", found=f"at least {min(offered)} for each, as widths says",
                      do="allow fewer bits, or ask for more")
    # The program minimises a cost within a budget of harm: here the harm is what is least, and the budget is one of bits.
    units = tuple(Unit(name, (name,), tuple(Offer(Way(str(bits)), view.harms[name][bits], float(bits * count)) for bits in offered))
                  for name, count in view.numbers.items())
    found = solve(Problem(units), average * sum(view.numbers.values()))
    assert found is not None
    return {name: int(way) for name, way in found.choice.items()}


def foresee(layer: Layer, target: Target, *, average: float = 4.0, widths: str = "2,3,4,8", by: str = "gptq", block: int = 128,
            symmetric: bool = True, samples: int = 128) -> Foresight:
    """The linear layers of language models; which one gets how many bits shows the calibration text."""
    if layer.op != "Linear":
        return Foresight(False, note="bits by layer are for the linear layers of language models")
    return replace(rounded_matrix(round(average), block, symmetric), note=f"one of {widths} bits, {average:g} on average")
