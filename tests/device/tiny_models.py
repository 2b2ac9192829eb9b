"""Models of a few nodes for the tests of the device floor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def graph_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[onnx.TensorProto] = (),
    opset: int = 17,
) -> bytes:
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("custom", 1)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    return helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()


def value(name: str, shape: Sequence[int | str | None] | None, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def relu() -> bytes:
    """y = relu(x), x float32 [N, 3]."""
    return graph_model([helper.make_node("Relu", ["x"], ["y"], name="relu")], [value("x", ["N", 3])], [value("y", ["N", 3])])


def dense(size: int = 64, layers: int = 2) -> bytes:
    """``layers`` products with a relu after each, x float32 [N, size]; 4 * size * size bytes of weights a layer."""
    nodes, weights, generator = [], [], np.random.default_rng(0)
    for at in range(layers):
        matrix = generator.standard_normal((size, size), dtype=np.float32) / size
        weights.append(numpy_helper.from_array(matrix, f"W{at}"))
        nodes.append(helper.make_node("MatMul", [f"h{at}" if at else "x", f"W{at}"], [f"m{at}"], name=f"product{at}"))
        nodes.append(helper.make_node("Relu", [f"m{at}"], [f"h{at + 1}"], name=f"relu{at}"))
    return graph_model(nodes, [value("x", ["N", size])], [value(f"h{layers}", ["N", size])], weights)


def branching() -> bytes:
    """An If with one operator in each branch, and one after it: y = relu(abs(x) if c else neg(x))."""
    branches = {
        name: helper.make_graph([helper.make_node(op, ["x"], [name], name=f"in {name}")], name, [], [value(name, [2])])
        for name, op in (("yes", "Abs"), ("no", "Neg"))
    }
    nodes = [
        helper.make_node("If", ["c"], ["b"], name="choose", then_branch=branches["yes"], else_branch=branches["no"]),
        helper.make_node("Sigmoid", ["b"], ["y"], name="last"),
    ]
    return graph_model(nodes, [value("c", [], TensorProto.BOOL), value("x", [2])], [value("y", [2])])


def quantised(channels: int = 32) -> bytes:
    """Q -> DQ -> Conv -> Q -> DQ with uint8 activations and int8 weights: onnxruntime makes one QLinearConv of it."""
    generator = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(generator.integers(-127, 127, (channels, channels, 1, 1), dtype=np.int8), "W"),
        numpy_helper.from_array(np.float32(0.02), "s"), numpy_helper.from_array(np.uint8(128), "z"),
        numpy_helper.from_array(np.float32(0.01), "ws"), numpy_helper.from_array(np.int8(0), "wz"),
    ]  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]), helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["W", "ws", "wz"], ["Wd"]), helper.make_node("Conv", ["xd", "Wd"], ["c"], name="conv"),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["cq"]), helper.make_node("DequantizeLinear", ["cq", "s", "z"], ["y"]),
    ]  # fmt: skip
    shape = [1, channels, 8, 8]
    return graph_model(nodes, [value("x", shape)], [value("y", shape)], weights)
