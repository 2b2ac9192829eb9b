"""The keyword net of the assets with inputs as MFCC front ends give them: the first coefficient is far wider than the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray[Any, Any]
INPUT = "serving_default_input_1:0"  # [n, 49, 10, 1]
OUTS, WIDTH, COEFFICIENTS, TIMES = 64, 5, 10, 25


def with_true_channels(file: Path, factor: float) -> onnx.ModelProto:
    """The first convolution (10 x 4 over time and coefficients) as one over time alone, whose input channels are the coefficients.

    Every output column has the kernel's four columns where it reads them, so the numbers are the same. ``factor`` is divided out of
    the weights of coefficient 0, for an input whose coefficient 0 was multiplied by it.
    """
    model = onnx.load(file)
    graph = model.graph
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    first = graph.node[1]
    weight, bias = constants[first.input[1]], constants[first.input[2]]  # [64, 1, 10, 4], stride 2 x 2, one column of padding in front
    wide = np.zeros((OUTS, WIDTH, COEFFICIENTS, weight.shape[2], 1), np.float32)
    for column in range(WIDTH):
        for tap in range(weight.shape[3]):
            if 0 <= 2 * column + tap - 1 < COEFFICIENTS:
                wide[:, column, 2 * column + tap - 1, :, 0] = weight[:, 0, :, tap]
    wide[:, :, 0] /= factor
    new = [
        helper.make_node("Transpose", [INPUT], ["coefficients first"], perm=[0, 2, 1, 3], name="turn"),
        helper.make_node("Conv", ["coefficients first", "wide.W", "wide.B"], ["rows"], name="first", strides=[2, 1], pads=[4, 0, 5, 0]),
        helper.make_node("Reshape", ["rows", "wide.shape"], ["columns"], name="split"),
        helper.make_node("Transpose", ["columns"], [first.output[0]], perm=[0, 1, 3, 2], name="back"),
    ]
    rest = list(graph.node)[2:]
    del graph.node[:]
    graph.node.extend([*new, *rest])
    arrays = {
        "wide.W": wide.reshape(OUTS * WIDTH, COEFFICIENTS, -1, 1),
        "wide.B": np.repeat(bias, WIDTH),
        "wide.shape": np.array([-1, OUTS, WIDTH, TIMES], np.int64),
    }
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return model


def with_normalisation(file: Path, factor: float) -> onnx.ModelProto:
    """A Mul in front takes ``factor`` out of coefficient 0."""
    model = onnx.load(file)
    inverse = np.ones((1, 1, COEFFICIENTS, 1), np.float32)
    inverse[0, 0, 0] = 1 / factor
    model.graph.initializer.append(numpy_helper.from_array(inverse, "inverse"))
    rest = list(model.graph.node)
    rest[0].input[0] = "normalised"
    del model.graph.node[:]
    model.graph.node.extend([helper.make_node("Mul", [INPUT, "inverse"], ["normalised"], name="normalise"), *rest])
    return model


def inputs(file: Path, factor: float) -> tuple[Array, Array | None]:
    """The samples with coefficient 0 multiplied, and their labels where there are any."""
    with np.load(file) as data:
        values = data[INPUT].copy()
        values[:, :, 0] *= factor
        return values, data.get("labels")
