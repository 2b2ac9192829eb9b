"""Integers on disk, float arithmetic."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from whet.compress.grid import quantise, stored_bits, weight_grid
from whet.compress.technique import Change, Foresight, LayerView, Search
from whet.core.errors import Refused
from whet.core.inventory import Layer
from whet.core.target import Target

OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "LSTM", "GRU"})
# Blocks run along the summed dimension of a matrix product; a convolution kernel has no such one dimension, a table of rows none.
# A stack of matrices (a batched product) gets one scale an output channel.
BLOCK_OPS = frozenset({"Gemm", "MatMul"})
PACKED_BITS = (4, 8)  # as put/storage.py, which puts them into MatMulNBits


def weight_only(layer: LayerView, target: Target, *,
                bits: Annotated[int, Search(8, 7, 6, 5, 4, 3, 2, 16, help="bits a weight")] = 8,
                block: Annotated[int, Search(0, 16, 32, 64, 128, 256, help="weights that share a scale along the summed "
                                             "dimension of a matrix product; 0: one scale an output channel")] = 0,
                symmetric: Annotated[bool, Search(True, False, help="zero point in the middle")] = True,
                accuracy_level: Annotated[int, Search(0, 4, help="MatMulNBits: 0 computes in float32, 4 with int8 "
                                                      "activations (faster)")] = 4) -> Change:
    """Round weights to 2 to 8 or 16 bits, per output channel or per block, and compute in float.

    Paper: Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient inference", section 3.1 (weight only,
    per channel); Dettmers & Zettlemoyer 2023, "The case for 4-bit precision", section 2 (blocks).
    Needs: nothing.
    Cost: one pass over the weights, [out, ...] each; memory of two layers.
    Limits: smaller on disk, not faster, save where the runtime has a kernel for packed weights (onnxruntime: MatMulNBits for
    matrix products with blocks, 4 or 8 bits). Everything else is turned back into float32 once, at load. 3 bits take the room of 4,
    and 5 to 7 that of 8, for there are no such types.

    Per channel or block: s = max|W| / (2**(bits-1) - 1), W' = s * clip(round(W / s)); asymmetric: s = (max - min) / (2**bits - 1).
    """
    if layer.weight is None:
        raise Refused(f"quantise the weights of {layer.name}", found="it has none")
    rows = layer.weight.shape[0]
    blocked = block > 0 and layer.op in BLOCK_OPS and layer.weight.ndim == 2
    flat = layer.weight.reshape(rows, -1)  # [out, in]
    grid = weight_grid(flat, bits=bits, symmetric=symmetric, axis=1 if blocked else 0, block=block if blocked else 0)
    return Change(weight=quantise(np.ascontiguousarray(flat), grid), kernel={"accuracy_level": accuracy_level})


def foresee(layer: Layer, target: Target, *, bits: int = 8, block: int = 0, symmetric: bool = True, accuracy_level: int = 4) -> Foresight:
    """Weights of the layers that have them; a packed kernel for blocked matrix products where the target has one."""
    if not layer.weight_shape or layer.op not in OPS:
        return Foresight(False, note="no weights that can be stored as integers")
    blocked = block > 0 and layer.op in BLOCK_OPS and len(layer.weight_shape) == 2
    width = stored_bits(bits)
    dtype = f"{'' if symmetric else 'u'}int{width}"
    if blocked and bits in PACKED_BITS and "MatMul" in target.nbits_ops:
        level = "int8 activations" if accuracy_level == 4 else "float32"
        return Foresight(True, dtype, "float32", bits, block, f"MatMulNBits ({level})")
    return Foresight(True, dtype, "float32", width, block if blocked else 0, f"float32 {layer.op}", "dequantised once, at load")
