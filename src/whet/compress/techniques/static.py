"""Integer weights and integer activations, with ranges found beforehand."""

from __future__ import annotations

from typing import Annotated

from whet.compress.grid import Grid, from_range, quantise, stored_bits, weight_grid
from whet.compress.ranges import find_range
from whet.compress.statistics import Statistics
from whet.compress.technique import Change, Foresight, LayerView, Search
from whet.core.inventory import Layer
from whet.core.target import Target


def static(layer: LayerView, target: Target, *,
           ranges: Annotated[str, Search("minmax", "moving_average", "percentile", "entropy", "mse", "octav",
                                         help="how the range of an activation is found")] = "minmax",
           percentile: Annotated[float, Search(99.9, 99.99, 99.999, 100.0, only=False, least=50, most=100,
                                               help="share of the numbers inside the range, for ranges = percentile")] = 99.999,
           per_channel: Annotated[bool, Search(True, False, help="one weight scale an output channel, else one a layer")] = True,
           bits: Annotated[int, Search(8, 7, 6, 5, 4, 3, 2, 16, help="bits a weight")] = 8,
           activation_bits: Annotated[int, Search(8, 7, 6, 5, 4, 16, help="bits an activation")] = 8,
           block: Annotated[int, Search(0, 16, 32, 64, 128, 256, help="weights that share a scale along the summed dimension; 0: as "
                                        "per_channel says")] = 0,
           symmetric: Annotated[bool, Search(True, False, help="zero point of the weights in the middle")] = True) -> Change:
    """Quantise weights and activations (one range a tensor, from calibration data) and compute in integers.

    Paper: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
    sections 2.1-2.4; Krishnamoorthi 2018, section 3.1.2 (per channel); Nagel et al. 2021, sections 2.2 and 3 (ranges).
    Needs: calibration.
    Cost: one pass of the calibration data through the model, with the activations of one batch and a few kB a tensor in
    memory; then one pass over the weights, [out, ...] each.
    Limits: in integers for the operators that the target's runtime really executes so, with symmetric weights of up to 8 bits, one
    scale a channel or a layer, and activations of up to 8 bits; the other operators stay float32. Blocks, zero points of weights
    and 16 bits have no kernel: there the same numbers are computed in float, which is exact and not faster. On x86 without VNNI
    weights get 7 bits, for their 8-bit products saturate.

    Weight of channel c: s_c = max|W_c| / (2**(bits-1) - 1), q = clip(round(W_c / s_c)). Not symmetric: s_c = (max - min) / (2**bits - 1).
    Weights that an earlier step put on a grid stay on it.
    Activation: (low, high) by ``ranges``, widened to hold 0; s = (high - low) / (2**activation_bits - 1), z = round(-low / s).
    Bias: int32 on the grid of the accumulator, s_x * s_c; in float where the layer computes in float.
    """
    weight = None
    if layer.weight is not None:
        flat = layer.weight.reshape(layer.weight.shape[0], -1)  # [out, in * kernel]
        axis = 1 if block else 0 if per_channel else None
        fresh = layer.grid or weight_grid(flat, bits=_weight_bits(bits, target), symmetric=symmetric, axis=axis, block=block)
        weight = quantise(flat, fresh)
    inputs = tuple(None if each is None else _activation_grid(each, target, ranges, percentile, activation_bits) for each in layer.inputs)
    output = None if layer.output is None else _activation_grid(layer.output, target, ranges, percentile, activation_bits)
    return Change(weight, "int8", inputs, output)


def foresee(layer: Layer, target: Target, *, ranges: str = "minmax", percentile: float = 99.999, per_channel: bool = True, bits: int = 8,
            activation_bits: int = 8, block: int = 0, symmetric: bool = True) -> Foresight:
    """What the target's runtime executes in integers, and what it can only compute in float on the same grids."""
    if layer.op not in target.fused_ops:
        return Foresight(False, note=f"{target.runtime} has no integer kernel for it on this target")
    if layer.weight_dtype not in ("", "float32"):
        return Foresight(False, note=f"its weights are {layer.weight_dtype}, and integer kernels stand among float32 ones only")
    signed, width = target.activation_dtype.startswith("int"), _activation_bits(activation_bits, target)
    activations = f"{'' if signed else 'u'}int{max(stored_bits(width), 8)}"
    lacking = _without_kernel(layer, target, activations, bits, block, symmetric)
    note = f"activations clipped to {width} bits" if width < 8 else ""
    if layer.op in target.moving_ops:
        runs_as = f"float32 {layer.op}" if lacking else f"{layer.op} of codes"
        return Foresight(True, "", activations, 8, runs_as=runs_as, note="follows its neighbours")
    speed = target.speed("static", layer.op)
    if speed and speed.ratio < 1 and not layer.weight_shape:
        return Foresight(False, note=f"its integer kernel runs at {speed.ratio:g} of float's speed on this target")
    runs_as = f"float32 {layer.op} (simulated: {target.runtime} has no kernel for {lacking})" if lacking else f"int8 {layer.op}"
    if not layer.weight_shape:
        return Foresight(True, "", activations, 8, runs_as=runs_as, note=note)
    if bits == 8 and symmetric:
        return Foresight(True, target.weight_dtype, activations, 8, block, runs_as, note)
    width = stored_bits(_weight_bits(bits, target))
    return Foresight(True, f"{'' if symmetric else 'u'}int{width}", activations, width, block, runs_as, note)


def _weight_bits(bits: int, target: Target) -> int:
    return bits if bits > 8 else min(bits, target.weight_bits)


def _activation_bits(bits: int, target: Target) -> int:
    return 16 if target.activation_dtype.endswith("16") else bits


def _without_kernel(layer: Layer, target: Target, activations: str, bits: int, block: int, symmetric: bool) -> str:
    """What it is about the layer that the runtime has no integer kernel for, or ""."""
    if activations != target.activation_dtype:
        return f"{activations} activations"
    if not layer.weight_shape:
        return ""
    if bits > 8:
        return f"{bits}-bit weights"
    return "weights in blocks" if block else "" if symmetric else "asymmetric weights"


def _activation_grid(tensor: Statistics, target: Target, ranges: str, percentile: float, bits: int) -> Grid:
    bits = _activation_bits(bits, target)
    signed = target.activation_dtype.startswith("int")
    low, high = find_range(tensor, ranges, codes=1 << bits, percentile=percentile)
    scale, zero = from_range(low, high, bits=bits, signed=signed, symmetric=target.symmetric_activations)
    return Grid(bits, signed, scale, zero)
