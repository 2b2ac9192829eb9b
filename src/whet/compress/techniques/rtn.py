"""Plain rounding: each weight to the nearest number of its grid."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from whet.compress.grid import quantise
from whet.compress.technique import LANGUAGE_OPS, NOT_BY_TOKEN, Change, Foresight, LayerView, Search, rounded_matrix
from whet.compress.techniques import weight_only
from whet.compress.techniques.gptq import flat_weight, grid_of
from whet.core.inventory import Layer
from whet.core.target import Target

# Weights of one matrix, or a table of rows: blocks run along what each output is the sum of.
BLOCK_OPS = frozenset({*weight_only.BLOCK_OPS, "Gather", *LANGUAGE_OPS})
BY_ROWS = True


def rtn(layer: LayerView, target: Target, *,
        bits: Annotated[int, Search(4, 2, 3, 5, 6, 7, 8, help="bits a weight")] = 4,
        block: Annotated[int, Search(0, 16, 32, 64, 128, 256, help="weights that share a scale along the summed dimension; 0: one "
                                     "scale an output channel")] = 0,
        symmetric: Annotated[bool, Search(True, False, help="zero point in the middle")] = True,
        search: Annotated[bool, Search(False, True, help="ends of each grid searched, else minimum and maximum")] = False,
        activations: Annotated[int, Search(0, 8, help="bits of what a language model's layer reads, rounded for each token; 0: "
                                           "float")] = 0) -> Change:
    """Round each weight to the nearest number of its grid: the yardstick of whatever rounds weights with more thought.

    Paper: Dettmers & Zettlemoyer 2023, "The case for 4-bit precision: k-bit Inference Scaling Laws", section 2 (blocks); the grids of
    ``search`` are those of the authors' code of Frantar et al. 2022, "GPTQ".
    Needs: nothing.
    Cost: one pass over the weights in pieces that lie in the cache, 16 with ``search``; memory of the layer and its codes.
    Limits: smaller on disk, and faster where the runtime has a kernel for packed weights. 4 bits with one scale a row often lose too
    much; a block of 32 to 128, ``search`` or ``gptq`` mend that. ``activations`` goes with 8 symmetric bits, in language models.

    Per row or block: s = max|W| / (2**(bits-1) - 1), W' = s * clip(round(W / s)); asymmetric: s = (max - min) / (2**bits - 1) and
    z = round(-min / s). Symmetric in language models: s = w / -2**(bits-1), w being the number farthest from 0, with its sign, so that all
    codes are used. With ``search``, s times the share from 0.2 to 1 that has the least sum |W - W'|^2.5, or a wider one in language models.
    """
    weight = flat_weight(layer)
    block = block if layer.op in BLOCK_OPS and layer.weight is not None and layer.weight.ndim == 2 else 0
    grid = grid_of(weight, bits=bits, block=block, symmetric=symmetric, search=search, scales=layer.scales, either_sign=layer.either_sign)
    return Change(weight=quantise(weight, grid), compute="dynamic" if activations else "float32")


def foresee(layer: Layer, target: Target, *, bits: int = 4, block: int = 0, symmetric: bool = True, search: bool = False,
            activations: int = 0) -> Foresight:
    """Whatever ``weight_only`` would store, and blocks of a table."""
    if activations and layer.op != "Linear":
        return Foresight(False, note=NOT_BY_TOKEN)
    if layer.op in LANGUAGE_OPS:
        return rounded_matrix(bits, block, symmetric, activations)
    found = weight_only.foresee(layer, target, bits=bits, block=block, symmetric=symmetric)
    return replace(found, block=block) if found.applies and layer.op == "Gather" and len(layer.weight_shape) == 2 else found
