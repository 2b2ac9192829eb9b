"""Small models that the tests of loading and inspecting are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
node = helper.make_node
info = helper.make_tensor_value_info


def weight(name: str, *shape: int, seed: int = 0) -> onnx.TensorProto:
    """A float32 initializer of random values."""
    return numpy_helper.from_array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32), name)


def constant(name: str, values: Any, dtype: Any = np.int64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype), name)


def model(nodes: Sequence[onnx.NodeProto], inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto],
          initializers: Sequence[onnx.TensorProto] = (), *, opset: int = 13, ir_version: int = 8,
          domains: Mapping[str, int] | None = None, functions: Sequence[onnx.FunctionProto] = ()) -> onnx.ModelProto:
    """A ModelProto; nothing is checked."""
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(initializers))
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, version) for name, version in (domains or {}).items())]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, functions=list(functions))


def relu() -> onnx.ModelProto:
    """y = relu(x), x [2]."""
    return model([node("Relu", ["x"], ["y"], name="act")], [info("x", FLOAT, [2])], [info("y", FLOAT, [2])])


def many_sided() -> onnx.ModelProto:
    """A convolution, a local function, shape arithmetic with a constant result, and an If: x ['N', 1, 4, 4], flag [] to out."""
    then = helper.make_graph([node("Relu", ["y"], ["t"], name="r")], "then", [], [info("t", FLOAT, None)])
    plus_one = [node("Constant", [], ["k"], value=constant("", [1.0], np.float32)), node("Add", ["y", "k"], ["t"])]
    other = helper.make_graph(plus_one, "else", [], [info("t", FLOAT, None)])
    twice = helper.make_function("acme", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 13)])
    nodes = [
        node("Conv", ["x", "w"], ["c0"], pads=[1, 1, 1, 1]),
        node("Twice", ["c0"], ["y"], domain="acme"),
        node("ConstantOfShape", ["s"], ["z"]),
        node("If", ["flag"], ["o"], then_branch=then, else_branch=other),
        node("ReduceSum", ["z"], ["zz"], keepdims=0),
        node("Add", ["o", "zz"], ["out"]),
    ]
    return model(nodes, [info("x", FLOAT, ["N", 1, 4, 4]), info("flag", BOOL, [])], [info("out", FLOAT, ["N", 2, 4, 4])],
                 [weight("w", 2, 1, 3, 3), constant("s", [2, 3])], domains={"acme": 1}, functions=[twice])


def run(proto: onnx.ModelProto | bytes | str, feeds: Mapping[str, Any]) -> list[np.ndarray[Any, Any]]:
    """What onnxruntime computes."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    content = proto.SerializeToString() if isinstance(proto, onnx.ModelProto) else proto
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, dict(feeds))]
