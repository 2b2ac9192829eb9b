"""Graphs around convolutions and products as they stand in real networks, and what onnxruntime must execute of each after ``static``.

A structure takes a Sketch and its input x, float [N, 4, 8, 8], and makes the rest of the graph. ``runs`` names the operators that must be
executed, with their number, and ``floats`` those that may be executed in float besides conversions and moves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from tests.compress.small_graphs import Sketch

INPUT = ("N", 4, 8, 8)
POOL = {"kernel_shape": [2, 2], "strides": [2, 2]}


@dataclass(frozen=True)
class Structure:
    build: Callable[[Sketch, str], object]
    runs: Mapping[str, int]
    floats: frozenset[str] = frozenset()


STRUCTURES: dict[str, Structure] = {}


def runs(*floats: str, **integers: int) -> Callable[[Callable[[Sketch, str], object]], Callable[[Sketch, str], object]]:
    def noted(build: Callable[[Sketch, str], object]) -> Callable[[Sketch, str], object]:
        STRUCTURES[build.__name__] = Structure(build, integers, frozenset(floats))
        return build

    return noted


def relu(g: Sketch, y: str) -> str:
    return str(g.node("Relu", y))


@runs(QLinearConv=2)
def conv_relu(g: Sketch, x: str) -> None:
    g.output(g.conv(relu(g, g.conv(x, (4, 4))), (4, 3)))


@runs(QLinearConv=2)
def conv_clip_0_6(g: Sketch, x: str) -> None:
    g.output(g.conv(g.node("Clip", g.conv(x, (4, 4)), g.constant(0.0), g.constant(0.3)), (4, 3)))


@runs("Max", "Min", QLinearConv=2)
def relu6_of_min_and_max(g: Sketch, x: str) -> None:
    y = g.node("Max", g.conv(x, (4, 4)), g.constant(0.0))
    g.output(g.conv(g.node("Min", y, g.constant(6.0)), (4, 3)))


@runs(QLinearConv=3, QLinearAdd=1)
def residual_add_relu(g: Sketch, x: str) -> None:
    y = relu(g, g.conv(x, (4, 4)))
    g.output(g.conv(relu(g, g.node("Add", g.conv(y, (4, 4)), y)), (4, 3)))


@runs(QLinearConv=3, QLinearMul=1, QLinearConcat=1)
def concat_of_unequal_ranges(g: Sketch, x: str) -> None:
    z = g.node("Mul", g.conv(x, (4, 4)), g.constant(20.0))
    g.output(g.conv(g.node("Concat", relu(g, g.conv(x, (4, 4))), z, axis=1), (8, 3)))


@runs(QLinearConv=2, NhwcMaxPool=1)
def max_pool(g: Sketch, x: str) -> None:
    g.output(g.conv(g.node("MaxPool", relu(g, g.conv(x, (4, 4))), **POOL), (4, 3)))


@runs(QLinearConv=2, NhwcMaxPool=1)
def max_pool_with_padding_of_negative_numbers(g: Sketch, x: str) -> None:
    g.output(g.conv(g.node("MaxPool", g.conv(x, (4, 4)), pads=[1] * 4, **POOL), (4, 3)))


@runs("AveragePool", "Max", QLinearConv=2)
def average_pool_that_slides_stays_float(g: Sketch, x: str) -> None:
    g.output(g.conv(g.node("AveragePool", relu(g, g.conv(x, (4, 4))), **POOL), (4, 3)))


@runs(QLinearConv=1, QLinearGlobalAveragePool=1, QGemm=1)
def global_average_pool(g: Sketch, x: str) -> None:
    y = g.node("Flatten", g.node("GlobalAveragePool", relu(g, g.conv(x, (4, 4)))))
    g.output(g.gemm(y, 4, 3))


@runs(QLinearConv=2, Pad=1)
def pad_with_zero(g: Sketch, x: str) -> None:
    y = g.node("Pad", g.conv(x, (4, 4)), g.constant([0, 0, 1, 2, 0, 0, 1, 2], np.int64))
    g.output(g.conv(y, (4, 3), pads=[0] * 4))


@runs(QLinearConv=2, Pad=1)
def pad_with_one(g: Sketch, x: str) -> None:
    y = g.node("Pad", g.conv(x, (4, 4)), g.constant([0, 0, 1, 2, 0, 0, 1, 2], np.int64), g.constant(1.0))
    g.output(g.conv(y, (4, 3), pads=[0] * 4))


@runs(QLinearConv=2, Pad=1)
def pad_with_reflection(g: Sketch, x: str) -> None:
    y = g.node("Pad", g.conv(x, (4, 4)), g.constant([0, 0, 1, 2, 0, 0, 1, 2], np.int64), mode="reflect")
    g.output(g.conv(y, (4, 3), pads=[0] * 4))


@runs(QLinearConv=1)
def transposed_input(g: Sketch, x: str) -> None:
    g.output(g.conv(g.node("Transpose", x, perm=[0, 1, 3, 2]), (4, 3)))


@runs(QGemm=2)
def reshaped_input(g: Sketch, x: str) -> None:
    y = g.node("Reshape", x, g.constant([-1, 256], np.int64))
    g.output(g.gemm(relu(g, g.gemm(y, 256, 16)), 16, 3))


@runs(QLinearConv=1, QGemm=1, DequantizeLinear=0)
def shape_gather_reshape(g: Sketch, x: str) -> None:
    y = relu(g, g.conv(x, (4, 4)))
    sizes = g.output(g.node("Shape", y), dtype=7)
    size = g.node("Unsqueeze", g.node("Gather", sizes, g.constant(0, np.int64)), g.constant([0], np.int64))
    shape = g.node("Concat", size, g.constant([-1], np.int64), axis=0)
    g.output(g.gemm(g.node("Reshape", y, shape), 256, 5))


@runs(QLinearConv=2, QLinearSigmoid=1, QLinearMul=1)
def x_times_sigmoid(g: Sketch, x: str) -> None:
    y = g.conv(x, (4, 4))
    g.output(g.conv(g.node("Mul", y, g.node("Sigmoid", y)), (4, 3)))


@runs(QLinearConv=4, QLinearGlobalAveragePool=1, QLinearSigmoid=1, QLinearMul=1)
def squeeze_and_excite(g: Sketch, x: str) -> None:
    y = relu(g, g.conv(x, (4, 4)))
    w = relu(g, g.conv(g.node("GlobalAveragePool", y), (4, 2), (1, 1)))
    g.output(g.conv(g.node("Mul", y, g.node("Sigmoid", g.conv(w, (2, 4), (1, 1)))), (4, 3)))


@runs("HardSigmoid", "Mul", QLinearConv=2)
def hard_swish_stays_float(g: Sketch, x: str) -> None:
    g.output(g.conv(g.node("HardSwish", g.conv(x, (4, 4))), (4, 3)))


@runs(QLinearConv=2, QLinearLeakyRelu=1)
def leaky_relu(g: Sketch, x: str) -> None:
    g.output(g.conv(g.node("LeakyRelu", g.conv(x, (4, 4)), alpha=0.1), (4, 3)))


@runs(QLinearConv=2)
def batch_norm(g: Sketch, x: str) -> None:
    g.output(g.conv(relu(g, g.batch_norm(g.conv(x, (4, 4)), 4)), (4, 3)))


@runs("Relu", QLinearConv=2)
def outputs_before_and_after_a_relu(g: Sketch, x: str) -> None:
    y = g.output(g.conv(x, (4, 4)))
    z = g.output(relu(g, y))
    g.output(g.conv(z, (4, 3)))


@runs("Tanh", QLinearConv=2)
def read_by_float_and_integer_layers(g: Sketch, x: str) -> None:
    y = g.conv(x, (4, 4))
    g.output(g.node("Tanh", y))
    g.output(g.conv(y, (4, 3)))


@runs(QLinearConv=3)
def read_with_and_without_its_relu(g: Sketch, x: str) -> None:
    y = g.conv(x, (4, 4))
    g.output(g.conv(relu(g, y), (4, 3)))
    g.output(g.conv(y, (4, 3)))


@runs(QLinearConv=2, QLinearAdd=1)
def added_to_itself(g: Sketch, x: str) -> None:
    y = g.conv(x, (4, 4))
    g.output(g.conv(g.node("Add", y, y), (4, 3)))


@runs(QLinearConv=2, QLinearAdd=1, QLinearMul=1)
def constants_added_and_multiplied(g: Sketch, x: str) -> None:
    y = g.node("Add", g.conv(x, (4, 4)), g.weight(4, 1, 1))
    g.output(g.conv(g.node("Mul", g.constant(-0.3), y), (4, 3)))


@runs("Split", "Concat", QLinearConv=2)
def split_stays_float(g: Sketch, x: str) -> None:
    a, b = g.node("Split", g.conv(x, (4, 4)), count=2, axis=1, **({"num_outputs": 2} if g.opset >= 18 else {}))
    g.output(g.conv(g.node("Concat", b, a, axis=1), (4, 3)))


@runs(QLinearConv=2, Resize=1)
def resize_nearest(g: Sketch, x: str) -> None:
    y = g.node("Resize", relu(g, g.conv(x, (4, 4))), "", g.constant([1, 1, 2, 2]), mode="nearest")
    g.output(g.conv(y, (4, 3)))


@runs("Softmax", QLinearConv=1, QGemm=1)
def softmax_at_the_end(g: Sketch, x: str) -> None:
    y = g.node("Flatten", g.conv(x, (4, 4)))
    g.output(g.node("Softmax", g.gemm(y, 256, 5), axis=1))


@runs("Mul", "Softmax", "Add", QLinearMatMul=4, MatMulIntegerToFloat=2)
def attention(g: Sketch, x: str) -> None:
    t = g.node("Reshape", x, g.constant([-1, 32, 8], np.int64))
    q, k, v = (g.matmul(t, 8, 8) for _ in range(3))
    s = g.node("Mul", g.node("MatMul", q, g.node("Transpose", k, perm=[0, 2, 1])), g.constant(0.35))
    g.output(g.node("Add", g.matmul(g.node("MatMul", g.node("Softmax", s, axis=-1), v), 8, 8), t))


@runs(QLinearConv=2, QLinearMul=1)
def a_tensor_that_is_always_zero(g: Sketch, x: str) -> None:
    g.output(g.conv(g.node("Mul", g.conv(x, (4, 4)), g.constant(0.0)), (4, 3)))


@runs(QLinearConv=3)
def a_weight_that_two_layers_share(g: Sketch, x: str) -> None:
    y = g.conv(x, (4, 4), name="first")
    z = g.node("Conv", y, "first.W", "first.B", pads=[1] * 4)
    g.output(g.node("Conv", z, "first.W", pads=[1] * 4))


@runs(QLinearConv=4)
def depthwise_grouped_dilated_strided(g: Sketch, x: str) -> None:
    y = relu(g, g.conv(x, (4, 4), group=4))
    y = relu(g, g.conv(y, (4, 8), group=2))
    y = relu(g, g.conv(y, (8, 6), dilations=[2, 2], pads=[2] * 4))
    g.output(g.node("Conv", y, g.weight(3, 6, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"))


@runs("InstanceNormalization", QLinearConv=2)
def a_norm_between_convolutions(g: Sketch, x: str) -> None:
    y = g.node("InstanceNormalization", g.conv(x, (4, 4)), g.constant(np.ones(4)), g.constant(np.zeros(4)))
    g.output(g.conv(y, (4, 3)))
