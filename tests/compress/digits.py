"""A small convolutional network that knows something, and data for it, in about a second: for tests of the whole way."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx.reference
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

CALIBRATION = 120


@cache
def network() -> bytes:
    """Images [N, 1, 8, 8] -> scores [N, 10]: two random convolutions, and a linear layer fitted on what they give."""
    random = np.random.default_rng(0)
    images, labels = data()
    weights = {
        "w1": random.normal(0, 0.4, (16, 1, 3, 3)).astype(np.float32), "b1": random.normal(0, 0.1, 16).astype(np.float32),
        "w2": random.normal(0, 0.15, (32, 16, 3, 3)).astype(np.float32), "b2": random.normal(0, 0.1, 32).astype(np.float32),
    }
    features = onnx.reference.ReferenceEvaluator(_model(weights, fitted=False)).run(None, {"image": images[:500]})[0]
    with threadpool_limits(1):  # 0.06 s; with threads that wait for each other 7 s
        found = LogisticRegression(C=0.05, max_iter=200).fit(features, labels[:500])
    weights |= {"w3": found.coef_.astype(np.float32), "b3": found.intercept_.astype(np.float32)}
    return _model(weights, fitted=True).SerializeToString()


@cache
def data() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits in a fixed order: images [1797, 1, 8, 8] float32 from 0 to 1, labels [1797]."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    return (digits.images[order, None] / 16).astype(np.float32), digits.target[order].astype(np.int64)


def write(folder: Path, *, evaluated: int = 400) -> dict[str, Path]:
    """model.onnx, calib.npz and eval.npz in ``folder``; images that the linear layer was not fitted on are evaluated."""
    images, labels = data()
    paths = {name: folder / name for name in ("model.onnx", "calib.npz", "eval.npz")}
    paths["model.onnx"].write_bytes(network())
    np.savez(paths["calib.npz"], image=images[:CALIBRATION])
    np.savez(paths["eval.npz"], image=images[500 : 500 + evaluated], labels=labels[500 : 500 + evaluated])
    return {name.split(".")[0]: path for name, path in paths.items()}


def _model(weights: dict[str, np.ndarray], *, fitted: bool) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("MaxPool", ["r2"], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
    ]
    if fitted:
        nodes.append(helper.make_node("Gemm", ["f", "w3", "b3"], ["scores"], name="last", transB=1))
    out = helper.make_tensor_value_info("scores" if fitted else "f", TensorProto.FLOAT, ["N", 10 if fitted else 512])
    graph = helper.make_graph(nodes, "digits", [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])], [out],
                              [numpy_helper.from_array(values, name) for name, values in weights.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
