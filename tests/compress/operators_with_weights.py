"""One graph for every operator that has weights, with the axis along which the weights' output channels lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto
from tests.compress.small_graphs import Sketch, samples
from tests.slow_papers import affine

from whet.compress.data import Dataset
from whet.compress.graph import GraphModel

Array = np.ndarray[Any, Any]


class Case(NamedTuple):
    """weights: by the name of the constant, the axis of its output channels."""

    sketch: Sketch
    data: Dataset
    weights: dict[str, int]

    @property
    def op(self) -> str:
        return self.sketch.nodes[-1].op_type

    def model(self) -> GraphModel:
        return self.sketch.model()

    def with_weights(self, change: Callable[[str, Array, int], Array]) -> GraphModel:
        """The same graph with other numbers in its weights."""
        before = dict(self.sketch.constants)
        try:
            for name, axis in self.weights.items():
                self.sketch.constants[name] = change(name, before[name], axis).astype(np.float32)
            return self.sketch.model()
        finally:
            self.sketch.constants.update(before)


def conv(shape: tuple[int, ...], channels: tuple[int, int], kernel: tuple[int, ...], **attributes: Any) -> Case:
    sketch = Sketch()
    sketch.output(sketch.conv(sketch.input("x", ["N", *shape]), channels, kernel, name="layer", **attributes))
    return Case(sketch, samples({"x": shape}, 6), {"layer.W": 0})


def conv_transpose(group: int) -> Case:
    sketch = Sketch()
    x = sketch.input("x", ["N", 6, 5, 5])
    inputs = [x, sketch.weight(6, 8 // group, 3, 3, fan_in=54, name="layer.W"), sketch.constant(np.linspace(-1, 1, 8))]
    sketch.output(sketch.node("ConvTranspose", *inputs, name="layer", strides=[2, 2], group=group))
    return Case(sketch, samples({"x": (6, 5, 5)}, 6), {"layer.W": 1})


def gemm(trans_b: int, **attributes: Any) -> Case:
    sketch = Sketch()
    sketch.output(sketch.gemm(sketch.input("x", ["N", 70]), 70, 24, name="layer", trans_b=trans_b, **attributes))
    return Case(sketch, samples({"x": (70,)}, 6), {"layer.W": 0 if trans_b else 1})


def matmul(shape: tuple[int, ...], *weight: int) -> Case:
    sketch = Sketch()
    sketch.output(sketch.matmul(sketch.input("x", ["N", *shape]), *weight, name="layer"))
    return Case(sketch, samples({"x": shape}, 6), {"layer.W": len(weight) - 1})


def gather(axis: int) -> Case:
    sketch = Sketch()
    x = sketch.input("x", ["N", 7], TensorProto.INT64)
    sketch.output(sketch.node("Gather", sketch.weight(20, 8, fan_in=8, name="layer.W"), x, name="layer", axis=axis))
    return Case(sketch, Dataset.of({"x": np.random.default_rng(0).integers(0, 8, (6, 7))}), {"layer.W": 0})


def recurrent(op: str, direction: str = "forward", *, lengths: bool = False, peepholes: bool = False) -> Case:
    """x: [7, N, 12] as its operator wants it; the data set has one sample, of 7 steps, which is the constant input x."""
    sketch, directions, gates, hidden = Sketch(), 2 if direction == "bidirectional" else 1, 4 if op == "LSTM" else 3, 10
    inputs = [
        sketch.input("x", [7, 2, 12]),
        sketch.weight(directions, gates * hidden, 12, fan_in=12, name="layer.W"),
        sketch.weight(directions, gates * hidden, hidden, fan_in=10, name="layer.R"),
        sketch.constant(sketch.random.standard_normal((directions, 2 * gates * hidden)) * 0.3),
    ]
    if lengths or peepholes:
        inputs.append(sketch.constant([7, 4], np.int32) if lengths else "")
    if peepholes:
        inputs += ["", "", sketch.constant(sketch.random.standard_normal((directions, 3 * hidden)) * 0.3)]
    for value in sketch.node(op, *inputs, name="layer", count=3 if op == "LSTM" else 2, hidden_size=hidden, direction=direction):
        sketch.output(value)
    return Case(sketch, samples({"x": (2, 12)}, 7), {"layer.W": 1, "layer.R": 1})


CASES: dict[str, Callable[[], Case]] = {
    "Conv 1-D": lambda: conv((4, 20), (4, 6), (5,)),
    "Conv 2-D": lambda: conv((4, 9, 9), (4, 6), (3, 3)),
    "Conv 3-D": lambda: conv((2, 5, 5, 5), (2, 3), (3, 3, 3)),
    "Conv without bias": lambda: conv((4, 9, 9), (4, 6), (3, 3), bias=False),
    "Conv depthwise": lambda: conv((6, 9, 9), (6, 6), (3, 3), group=6),
    "Conv grouped": lambda: conv((6, 9, 9), (6, 8), (3, 3), group=2),
    "Conv strided and dilated": lambda: conv((4, 9, 9), (4, 6), (3, 3), strides=[2, 2], dilations=[2, 2]),
    "ConvTranspose": lambda: conv_transpose(1),
    "ConvTranspose grouped": lambda: conv_transpose(2),
    "Gemm": lambda: gemm(0),
    "Gemm transB": lambda: gemm(1),
    "Gemm alpha beta": lambda: gemm(1, alpha=0.5, beta=3.0),
    "Gemm without bias": lambda: gemm(1, bias=False),
    "MatMul": lambda: matmul((70,), 70, 24),
    "MatMul of 3 dimensions": lambda: matmul((5, 70), 70, 24),
    "MatMul of stacks": lambda: matmul((3, 5, 70), 3, 70, 24),
    "Gather": lambda: gather(0),
    "Gather along axis 1": lambda: gather(1),
    "LSTM": lambda: recurrent("LSTM"),
    "LSTM bidirectional": lambda: recurrent("LSTM", "bidirectional"),
    "LSTM reverse": lambda: recurrent("LSTM", "reverse"),
    "LSTM with lengths": lambda: recurrent("LSTM", lengths=True),
    "LSTM with peepholes": lambda: recurrent("LSTM", peepholes=True),
    "GRU": lambda: recurrent("GRU"),
    "GRU bidirectional": lambda: recurrent("GRU", "bidirectional"),
}


def on_grid(weight: Array, axis: int, bits: int, *, symmetric: bool = True, block: int = 0, per_channel: bool = True) -> Array:
    """The weight as it comes back from its grid, computed slowly: a scale a channel of ``axis``, or a block, or one for all."""
    rows = np.moveaxis(weight, axis, 0)
    flat = rows.reshape(len(rows), -1)
    where = None if not per_channel else 1 if block else 0
    scales, zeros = affine.weight_grid(flat, bits, symmetric, where, block)
    shape = () if where is None else tuple(np.max(list(scales), axis=0) + 1)
    scale, zero = np.zeros(shape, np.float32), np.zeros(shape, np.int32)
    for key in scales:
        scale[key], zero[key] = scales[key], zeros[key]
    low, high = (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    codes = affine.quantize_linear(flat, scale, zero, low, high, where, block)
    values = affine.dequantize_linear(codes, scale, zero, where, block)
    return np.moveaxis(values.reshape(rows.shape), 0, axis)
