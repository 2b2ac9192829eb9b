"""Integer weights and integer activations, with ranges found beforehand."""

from __future__ import annotations

from typing import Annotated

from whet.compress.grid import Grid, from_range, quantise, weight_grid
from whet.compress.ranges import find_range
from whet.compress.statistics import Statistics
from whet.compress.technique import Change, Foresight, LayerView, Search
from whet.core.inventory import Layer
from whet.core.target import Target


def static(layer: LayerView, target: Target, *,
           ranges: Annotated[str, Search("minmax", "moving_average", "percentile", "entropy", "mse",
                                         help="how the range of an activation is found")] = "minmax",
           percentile: Annotated[float, Search(99.9, 99.99, 99.999, 100.0, only=False, least=50, most=100,
                                               help="share of the numbers inside the range, for ranges = percentile")] = 99.999,
           per_channel: Annotated[bool, Search(True, False, help="one weight scale an output channel, else one a layer")] = True,
           ) -> Change:
    """Quantise weights (symmetric, per channel) and activations (one range a tensor, from calibration data) to 8 bits.

    Paper: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
    sections 2.1-2.4; Krishnamoorthi 2018, section 3.1.2 (per channel); Nagel et al. 2021, sections 2.2 and 3 (ranges).
    Needs: calibration.
    Cost: one pass of the calibration data through the model, with the activations of one batch and a few kB a tensor in
    memory; then one pass over the weights, [out, ...] each.
    Limits: 8 bits, in the types and for the operators that the target's runtime really executes in integers; the others stay
    float32. On x86 without VNNI weights get 7 bits, for their 8-bit products saturate.

    Weight of channel c: s_c = max|W_c| / 127, q = clip(round(W_c / s_c), -127, 127).
    Weights that an earlier step put on a grid stay on it.
    Activation: (low, high) by ``ranges``, widened to hold 0; s = (high - low) / 255, z = round(-low / s).
    Bias: int32 on the grid of the accumulator, s_x * s_c.
    """
    weight = None
    if layer.weight is not None:
        flat = layer.weight.reshape(layer.weight.shape[0], -1)  # [out, in * kernel]
        weight = quantise(flat, layer.grid or weight_grid(flat, bits=target.weight_bits, axis=0 if per_channel else None))
    inputs = tuple(None if tensor is None else _activation_grid(tensor, target, ranges, percentile) for tensor in layer.inputs)
    output = None if layer.output is None else _activation_grid(layer.output, target, ranges, percentile)
    return Change(weight, "int8", inputs, output)


def foresee(layer: Layer, target: Target, *, ranges: str = "minmax", percentile: float = 99.999, per_channel: bool = True) -> Foresight:
    """What the target's runtime executes in integers."""
    if layer.op not in target.fused_ops:
        return Foresight(False, note=f"{target.runtime} has no integer kernel for it on this target")
    if layer.weight_dtype not in ("", "float32"):
        return Foresight(False, note=f"its weights are {layer.weight_dtype}, and integer kernels stand among float32 ones only")
    if layer.op in target.moving_ops:
        return Foresight(True, "", target.activation_dtype, 8, runs_as=f"{layer.op} of codes", note="follows its neighbours")
    speed = target.speed("static", layer.op)
    if speed and speed.ratio < 1 and not layer.weight_shape:
        return Foresight(False, note=f"its integer kernel runs at {speed.ratio:g} of float's speed on this target")
    return Foresight(True, target.weight_dtype if layer.weight_shape else "", target.activation_dtype, 8, runs_as=f"int8 {layer.op}")


def _activation_grid(tensor: Statistics, target: Target, ranges: str, percentile: float) -> Grid:
    bits = 16 if target.activation_dtype.endswith("16") else 8
    signed = target.activation_dtype.startswith("int")
    low, high = find_range(tensor, ranges, codes=1 << bits, percentile=percentile)
    scale, zero = from_range(low, high, bits=bits, signed=signed, symmetric=target.symmetric_activations)
    return Grid(bits, signed, scale, zero)
