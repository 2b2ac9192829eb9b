"""Integer weights, and activations quantised as they come."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from whet.compress.grid import Quantised, quantise, weight_grid
from whet.compress.technique import Change, Foresight, LayerView, Search
from whet.core.errors import Refused
from whet.core.inventory import Layer
from whet.core.target import Target

KERNELS = {"MatMul": "DynamicQuantizeMatMul", "Gemm": "DynamicQuantizeMatMul", "LSTM": "DynamicQuantizeLSTM", "Conv": "ConvInteger"}


def dynamic(layer: LayerView, target: Target, *,
            per_channel: Annotated[bool, Search(True, False, help="one scale an output channel, else one a layer")] = True,
            convolutions: Annotated[bool, Search(False, True, help="also Conv, which makes it slower on every CPU measured")] = False,
            ) -> Change:
    """Store weights as int8 and quantise each activation tensor when it arrives, from its own minimum and maximum.

    Paper: Krishnamoorthi 2018, section 3.2; ONNX operators DynamicQuantizeLinear, MatMulInteger and ConvInteger; onnxruntime's
    contrib operator DynamicQuantizeLSTM.
    Needs: nothing.
    Cost: one pass over the weights, [out, ...] each; memory of two layers. At run time a pass over every activation.
    Limits: for matrix products and LSTM. A convolution becomes slower (0.1 to 1.1 of float's speed with onnxruntime on x86),
    so it is left in float unless ``convolutions`` says otherwise.

    W' = s_w * clip(round(W / s_w), -127, 127); x' = s_x * (clip(round(x / s_x) + z, 0, 255) - z) with s_x = (max - min) / 255.
    """
    if layer.weight is None:
        raise Refused(f"quantise the weights of {layer.name}", found="it has none")
    flat = layer.weight.reshape(layer.weight.shape[0], -1)  # [out, in]
    codes = quantise(flat, weight_grid(flat, bits=target.weight_bits, axis=0 if per_channel else None))
    return Change(weight=Quantised(np.ascontiguousarray(codes.codes), codes.grid), compute="dynamic")


def foresee(layer: Layer, target: Target, *, per_channel: bool = True, convolutions: bool = False) -> Foresight:
    """Matrix products and LSTM; Conv only when asked for."""
    if not layer.weight_shape or layer.op not in KERNELS:
        return Foresight(False, note="no dynamic kernel for this operator")
    if layer.weight_dtype not in ("", "float32"):
        return Foresight(False, note=f"its weights are {layer.weight_dtype}, and integer kernels stand among float32 ones only")
    if layer.op == "Conv" and not convolutions:
        return Foresight(False, note="a dynamic convolution is slower than float (option convolutions = true does it all the same)")
    note = "slower than float on every CPU measured" if layer.op == "Conv" else ""
    return Foresight(True, "int8", "uint8 (dynamic)", 8, runs_as=KERNELS[layer.op], note=note)
