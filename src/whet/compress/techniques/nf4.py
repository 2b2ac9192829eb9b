"""The sixteen quantiles of a normal distribution."""

from __future__ import annotations

from typing import Annotated

from whet.compress.codebook import coded, where_misread
from whet.compress.technique import Change, Foresight, LayerView, Search
from whet.core.errors import Refused
from whet.core.inventory import Layer
from whet.core.target import Target

# A table of tokens stays: bitsandbytes has code books for linear layers alone. Graphs have none of these operators.
OPS = frozenset({"Linear", "Head"})


def nf4(layer: LayerView, target: Target, *,
        block: Annotated[int, Search(64, 128, 256, 512, help="weights that share a scale, along the flattened weight")] = 64,
        double: Annotated[bool, Search(True, False, help="round the scales to 8 bits too, 256 of them together")] = True) -> Change:
    """Round weights to the sixteen quantiles of a normal distribution, one scale for each block of the flattened weight.

    Paper: Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", section 3 and appendix E (levels); its double quantisation
    stores the scales in 8 bits, with the dynamic map of Dettmers 2015, "8-Bit Approximations for Parallelism in Deep Learning".
    Needs: nothing.
    Cost: one pass over the weights, [out, in] each; 0.1 s for 16.8 million of them; memory of two layers.
    Limits: made for weights that are normally distributed in each block; read by bitsandbytes alone (transformers loads it), not by
    onnxruntime or llama.cpp; tables of tokens stay as they are. 4.13 bits a weight with blocks of 64, 4.5 without ``double``.

    s = max|w| of the block, code = the number of the level q nearest to w / s, W' = q[code] s. Double: s' = m[c] t + mean(s), where m is
    the dynamic map, t the largest |s - mean(s)| of 256 blocks, and c the number of the level of m nearest to (s - mean(s)) / t.
    """
    if layer.weight is None:
        raise Refused(f"quantise the weights of {layer.name}", found="it has none")
    return Change(weight=coded(layer.weight, "nf4", block=block, double=double))


def foresee(layer: Layer, target: Target, *, block: int = 64, double: bool = True) -> Foresight:
    """The linear layers of language models."""
    if layer.op not in OPS or len(layer.weight_shape) != 2:
        return Foresight(False, note="code books are for the linear layers of language models; weight_only has 4 bits for others")
    return Foresight(True, "nf4", "float32", 4, block, "bitsandbytes", where_misread(layer.weight_shape[0], layer.weight_shape[1], block))
