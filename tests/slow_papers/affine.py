"""Affine quantisation in plain loops, from the operators' specifications and the papers, not from our code.

QuantizeLinear: y = saturate(round(x / y_scale) + y_zero_point), "rounding to the nearest even"; DequantizeLinear:
y = (x - x_zero_point) * x_scale; both per tensor, per axis, or per block of an axis (ONNX operator specification, opset 21).
DynamicQuantizeLinear: ONNX operator specification, opset 11. Scales and zero points of a range: Jacob et al. 2018, section 2.1;
Krishnamoorthi 2018, section 2. Division and multiplication are those of float32, as in the runtimes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def ends(bits: int, signed: bool) -> tuple[int, int]:
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def of_place(parameter: Array, place: tuple[int, ...], axis: int | None, block: int) -> Any:
    """The scale or zero point of the element at ``place``."""
    if axis is None:
        return parameter[()]
    if block == 0:
        return parameter[place[axis]]
    return parameter[tuple(index // block if at == axis else index for at, index in enumerate(place))]


def quantize_linear(x: Array, scale: Array, zero: Array, low: int, high: int, axis: int | None = None, block: int = 0) -> Array:
    codes = np.zeros(x.shape, np.int64)
    for place in np.ndindex(x.shape):
        quotient = np.float32(x[place]) / np.float32(of_place(scale, place, axis, block))
        code = round(float(quotient)) + int(of_place(zero, place, axis, block))  # Python rounds halves to even
        codes[place] = min(max(code, low), high)
    return codes


def dequantize_linear(codes: Array, scale: Array, zero: Array, axis: int | None = None, block: int = 0) -> Array:
    values = np.zeros(codes.shape, np.float32)
    for place in np.ndindex(codes.shape):
        steps = int(codes[place]) - int(of_place(zero, place, axis, block))
        values[place] = np.float32(steps) * np.float32(of_place(scale, place, axis, block))
    return values


def dynamic_quantize_linear(x: Array) -> tuple[Array, np.float32, int]:
    """(codes, scale, zero point), uint8."""
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    scale = np.float32((np.float32(high) - np.float32(low)) / np.float32(255))
    zero = round(float(np.float32(0) - np.float32(low) / scale))
    zero = min(max(zero, 0), 255)
    return quantize_linear(x, np.array(scale), np.array(zero), 0, 255), scale, zero


def parts(shape: tuple[int, ...], axis: int | None, block: int) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
    """The places that share a scale, by the index of that scale."""
    found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for place in np.ndindex(shape):
        if axis is None:
            key: tuple[int, ...] = ()
        elif block == 0:
            key = (place[axis],)
        else:
            key = tuple(index // block if at == axis else index for at, index in enumerate(place))
        found.setdefault(key, []).append(place)
    return found


def weight_grid(
    weight: Array, bits: int, symmetric: bool, axis: int | None, block: int, either_sign: bool = False
) -> tuple[dict[tuple[int, ...], float], dict[tuple[int, ...], int]]:
    """Scale and zero point of every part, in float64.

    Symmetric: s = max|W| / (2**(bits-1) - 1), zero point 0. Asymmetric: s = (max - min) / (2**bits - 1) of the range widened to
    hold 0, zero point round(-min / s). A part that is all zero gets scale 1. either_sign: as llama.cpp's Q4_0 (quantize_row_q4_0_ref of
    ggml-quants.c: d = max / -8, max being the number of largest magnitude with its sign), of any number of bits.
    """
    scales, zeros = {}, {}
    for key, places in parts(weight.shape, axis, block).items():
        values = [float(weight[place]) for place in places]
        low, high = min(0.0, *values), max(0.0, *values)
        scale = max(-low, high) / (2 ** (bits - 1) - 1) if symmetric else (high - low) / (2**bits - 1)
        if symmetric and either_sign:
            scale = (high if high > -low else low) / -(2 ** (bits - 1))
        scale = scale if scale != 0 else 1.0
        scales[key] = scale
        zeros[key] = 0 if symmetric else min(max(round(-low / float(np.float32(scale))), 0), 2**bits - 1)
    return scales, zeros


def bias(numbers: Array, input_scale: float, weight_scales: Array) -> list[int]:
    """int32 on the accumulator's grid: round(b / (s_x * s_w)), zero point 0 (Jacob et al. 2018, section 2.4)."""
    return [
        round(float(b) / float(np.float32(np.float32(input_scale) * np.float32(s)))) for b, s in zip(numbers, weight_scales, strict=True)
    ]
