"""Layers in plain loops: convolution and batch normalisation in float64, and their integer forms from the operators' specifications."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def conv2d(x: Array, weight: Array, bias: Array | None, pad: int = 0, stride: int = 1, group: int = 1) -> Array:
    """[n, in, h, w] with [out, in / group, kh, kw]; the numbers stay of the type that they have (int64 or float64)."""
    n, _, height, width = x.shape
    out, inside, kh, kw = weight.shape
    rows, columns = (height + 2 * pad - kh) // stride + 1, (width + 2 * pad - kw) // stride + 1
    y = np.zeros((n, out, rows, columns), np.result_type(x, weight))
    for image, channel, row, column in np.ndindex(y.shape):
        total = 0 if bias is None else bias[channel]
        for c, i, j in np.ndindex(inside, kh, kw):
            source = c + (channel // (out // group)) * inside
            at, to = row * stride + i - pad, column * stride + j - pad
            if 0 <= at < height and 0 <= to < width:
                total = total + x[image, source, at, to] * weight[channel, c, i, j]
        y[image, channel, row, column] = total
    return y


def batch_norm(x: Array, gain: Array, beta: Array, mean: Array, variance: Array, epsilon: float) -> Array:
    """(x - mean) / sqrt(variance + epsilon) * gain + beta for each channel of [n, c, ...] (ONNX BatchNormalization, inference)."""
    y = np.zeros(x.shape, np.float64)
    for place in np.ndindex(x.shape):
        c = place[1]
        y[place] = (float(x[place]) - float(mean[c])) / (float(variance[c]) + epsilon) ** 0.5 * float(gain[c]) + float(beta[c])
    return y


def requantise(accumulator: Array, factors: Array, zero: int, low: int, high: int) -> Array:
    """int32 [n, c, ...] -> codes: saturate(round(accumulator * factor of its channel) + zero), as QLinearConv's specification has it."""
    codes = np.zeros(accumulator.shape, np.int64)
    for place in np.ndindex(accumulator.shape):
        scaled = np.float32(accumulator[place]) * np.float32(factors[place[1]])
        codes[place] = min(max(round(float(scaled)) + zero, low), high)
    return codes


def on_activation_grid(x: Array, low: float, high: float, bits: int) -> tuple[Array, np.float32]:
    """(values as they come back from the unsigned grid over low..high widened to hold 0, its scale) (Jacob et al. 2018, section 2.1)."""
    low, high, top = min(0.0, low), max(0.0, high), 2**bits - 1
    scale = np.float32((high - low) / top)
    zero = min(max(round(-low / float(scale)), 0), top)
    values = np.zeros(x.shape, np.float64)
    for place in np.ndindex(x.shape):
        code = min(max(round(float(np.float32(x[place]) / scale)) + zero, 0), top)
        values[place] = (code - zero) * float(scale)
    return values, scale


def matmul_nbits(packed: Array, scales: Array, zeros: Array, rows: int, columns: int, bits: int, block: int) -> Array:
    """The weights [rows, columns] that MatMulNBits computes with (onnxruntime, docs/ContribOperators.md), float64.

    packed: uint8 [rows, blocks, block * bits / 8], low bits first; scales: [rows * blocks]; zeros: uint8, the zero points of one row's
    blocks packed together, low bits first, each row beginning with a whole byte.
    """
    blocks = (columns + block - 1) // block
    zero_bytes = (blocks * bits + 7) // 8
    mask = 2**bits - 1
    values = np.zeros((rows, columns))
    for row, column in np.ndindex(rows, columns):
        at, inside = divmod(column, block)
        bit = inside * bits
        code = int(packed[row, at, bit // 8]) >> (bit % 8) & mask
        zero = int(zeros[row * zero_bytes + at * bits // 8]) >> (at * bits % 8) & mask
        values[row, column] = (code - zero) * float(scales[row * blocks + at])
    return values
