"""What flows between the layers of a language model turned, so that no channel stands out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from whet.compress.grid import Floats
from whet.compress.hadamard import rotation
from whet.compress.technique import LANGUAGE_OPS, Foresight, Search
from whet.compress.views import Stream
from whet.core.inventory import Layer
from whet.core.target import Target


def rotate(view: Stream, target: Target, *,
           residual: Annotated[bool, Search(True, False, help="turn what flows from block to block (R1)")] = True,
           heads: Annotated[bool, Search(True, False, help="turn the values inside each attention head (R2)")] = True,
           seed: Annotated[int, Search(0, 1, 2, 3, help="of the random signs", only=False, least=0, most=2**31)] = 0,
           untie: Annotated[bool, Search(True, False, help="give a model whose head is its embedding a head of its own; else such a "
                                         "model is refused")] = True) -> Mapping[str, Floats]:
    """Multiply all that reads or writes a vector by one random Hadamard matrix: the model computes what it did, with fewer outliers.

    Paper: Ashkboos et al. 2024, "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", section 4 (stage 1a); Liu et al. 2024, "SpinQuant:
    LLM Quantization with Learned Rotations", section 3.1 (R1 and R2, which need nothing at run time). Sizes: Paley 1933, "On orthogonal
    matrices".
    Needs: nothing.
    Cost: about 2 * in * out * sqrt(channels) operations a layer; memory of two layers. A tensor is turned when it is read.
    Limits: before all steps that round, and for the whole model. ``residual`` needs RMS norms whose gains can go into the layers behind
    them: Llama, Mistral, Qwen, SmolLM, Gemma 1, Phi-3; not GPT-2, Phi or BERT (LayerNorm), not Gemma 2 and 3 (norms whose output
    is added up). A tied embedding becomes two tables. Whether a model gains depends on it; measure, or let ``optimize`` choose.

    Q = diag(+-1) H / sqrt(n). For a vector x that becomes x Q: a layer that reads it W' = W Q, one that writes it W'^T = W^T Q, b' = b Q, a
    table E' = E Q; all are given here with the channels of x last. Where n is no power of two, H is a product of Paley's matrices and
    Sylvester's; where there is none (n = 45), the odd part is a random orthogonal matrix. Gains g of a norm go first: W diag(g).
    """
    found = rotation(view.width, seed)
    return {name: found.of(weight) for name, weight in view.weights.items()}


def foresee(layer: Layer, target: Target, *, residual: bool = True, heads: bool = True, seed: int = 0, untie: bool = True) -> Foresight:
    """Nothing of types or sizes changes, but for a head of its own."""
    if layer.op not in LANGUAGE_OPS:
        return Foresight(False, note="rotate is for language models")
    return Foresight(True, layer.weight_dtype or "float32", note="its channels are turned into others", adjusts=True)
