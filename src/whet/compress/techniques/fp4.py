"""Floating point of four bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from whet.compress.codebook import coded
from whet.compress.technique import Change, Foresight, LayerView, Search
from whet.compress.techniques import nf4
from whet.core.errors import Refused
from whet.core.inventory import Layer
from whet.core.target import Target


def fp4(layer: LayerView, target: Target, *,
        block: Annotated[int, Search(64, 128, 256, 512, help="weights that share a scale, along the flattened weight")] = 64,
        double: Annotated[bool, Search(True, False, help="round the scales to 8 bits too, 256 of them together")] = True) -> Change:
    """Round weights to numbers of four bits (sign, two of exponent, one of mantissa), one scale for each block of the flattened weight.

    Paper: Dettmers & Zettlemoyer 2023, "The case for 4-bit precision", section 2 (floating point in blocks); Dettmers et al. 2023, "QLoRA",
    section 3 (double quantisation) and table 2, where it is behind ``nf4``.
    Needs: nothing.
    Cost: one pass over the weights, [out, in] each; 0.1 s for 16.8 million of them; memory of two layers.
    Limits: a larger error than ``nf4`` on weights that are normally distributed; it is here to be compared; read by bitsandbytes alone
    (transformers loads it), not by onnxruntime or llama.cpp; tables of tokens stay as they are. One of the sixteen codes is a second 0.

    s = max|w| of the block, W' = q s with q the nearest to w / s of +-(0, 0.0625, 2, 3, 4, 6, 8, 12) / 12. Double: as ``nf4``.
    """
    if layer.weight is None:
        raise Refused(f"quantise the weights of {layer.name}", found="it has none")
    return Change(weight=coded(layer.weight, "fp4", block=block, double=double))


def foresee(layer: Layer, target: Target, *, block: int = 64, double: bool = True) -> Foresight:
    """Where ``nf4`` would."""
    found = nf4.foresee(layer, target, block=block, double=double)
    return replace(found, weights="fp4") if found.applies else found
