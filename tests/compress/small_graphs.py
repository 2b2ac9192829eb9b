"""ONNX graphs of a few nodes for the tests of the techniques, and the few ways in which those tests look at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from whet.compress.artifacts import load
from whet.compress.data import Dataset
from whet.compress.graph import GraphModel
from whet.compress.runtime import opened
from whet.device.operators import executed_graph
from whet.device.session import run

Array = np.ndarray[Any, Any]


class Sketch:
    """A graph under construction. Values are named by what makes them; weights are standard normal / sqrt(inputs), seeded."""

    def __init__(self, opset: int = 17, seed: int = 0) -> None:
        self.opset = opset
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: Sequence[int | str | None], dtype: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def constant(self, values: Any, dtype: Any = np.float32, name: str = "") -> str:
        name = name or f"constant_{len(self.constants)}"
        self.constants[name] = np.asarray(values, dtype)
        return name

    def weight(self, *shape: int, fan_in: int = 0, name: str = "") -> str:
        scale = 1.0 / np.sqrt(fan_in or max(int(np.prod(shape[1:])), 1))
        return self.constant(self.random.standard_normal(shape) * scale, name=name)

    def node(self, op: str, *inputs: str, name: str = "", count: int = 1, domain: str = "", **attributes: Any) -> Any:
        """Name of the output, or a list of ``count`` names. The node is called ``name``, or op and number."""
        name = name or f"{op.lower()}_{len(self.nodes)}"
        names = [f"{name}:{index}" for index in range(count)]
        self.nodes.append(helper.make_node(op, inputs, names, name=name, domain=domain, **attributes))
        return names[0] if count == 1 else names

    def conv(
        self,
        x: str,
        channels: tuple[int, int],
        kernel: tuple[int, ...] = (3, 3),
        *,
        name: str = "",
        bias: bool = True,
        group: int = 1,
        **attributes: Any,
    ) -> str:
        """Conv with padding that keeps the size; weight ``name``.W [out, in / group, *kernel]."""
        name = name or f"conv_{len(self.nodes)}"
        inside, out = channels
        inputs = [x, self.weight(out, inside // group, *kernel, name=f"{name}.W")]
        if bias:
            inputs.append(self.constant(self.random.standard_normal(out) * 0.5, name=f"{name}.B"))
        pads = [size // 2 for size in kernel] * 2
        return str(self.node("Conv", *inputs, name=name, **{"pads": pads, "group": group, "kernel_shape": list(kernel), **attributes}))

    def batch_norm(self, x: str, channels: int, **attributes: Any) -> str:
        parts = [self.constant(self.random.uniform(low, high, channels)) for low, high in ((-2, 2), (-1, 1), (-1, 1), (0.1, 3))]
        return str(self.node("BatchNormalization", x, *parts, **attributes))

    def gemm(self, x: str, inside: int, out: int, *, name: str = "", trans_b: int = 1, bias: bool = True, **attributes: Any) -> str:
        name = name or f"gemm_{len(self.nodes)}"
        shape = (out, inside) if trans_b else (inside, out)
        inputs = [x, self.weight(*shape, fan_in=inside, name=f"{name}.W")]
        if bias:
            inputs.append(self.constant(self.random.standard_normal(out) * 0.5, name=f"{name}.B"))
        return str(self.node("Gemm", *inputs, name=name, transB=trans_b, **attributes))

    def matmul(self, x: str, *shape: int, name: str = "") -> str:
        name = name or f"matmul_{len(self.nodes)}"
        return str(self.node("MatMul", x, self.weight(*shape, fan_in=shape[-2], name=f"{name}.W"), name=name))

    def output(self, value: str, dtype: int = TensorProto.FLOAT, shape: Sequence[int | str | None] | None = None) -> str:
        self.outputs.append(helper.make_tensor_value_info(value, dtype, shape))
        return value

    def subgraph(
        self,
        nodes: Sequence[onnx.NodeProto],
        outputs: Sequence[str],
        constants: Mapping[str, Array] | None = None,
        inputs: Sequence[onnx.ValueInfoProto] = (),
    ) -> onnx.GraphProto:
        made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        held = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
        return helper.make_graph(list(nodes), "inner", list(inputs), made, held)

    def proto(self, *, infer: bool = True) -> onnx.ModelProto:
        """infer: with the shapes of all values, as most exporters write them."""
        constants = [numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        graph = helper.make_graph(self.nodes, "sketch", self.inputs, self.outputs, constants)
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        made = helper.make_model(graph, opset_imports=imports, ir_version=10 if self.opset >= 21 else 8)
        return onnx.shape_inference.infer_shapes(made) if infer else made

    def model(self, *, infer: bool = True) -> GraphModel:
        return load(self.proto(infer=infer))


def outputs(model: GraphModel, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """One inference, with the session options that the model ships with."""
    with opened(model, threads=1) as session:
        return run(session, feeds)


def executed(model: GraphModel) -> dict[str, int]:
    """How many nodes of each operator onnxruntime executes, with the session options that the model ships with."""
    counts: dict[str, int] = {}
    for (_, op), count in executed_graph(model.content, threads=1, options=model.session_options).items():
        counts[op] = counts.get(op, 0) + count
    return counts


def samples(shapes: Mapping[str, Sequence[int]], count: int = 16, *, seed: int = 1, scale: float = 1.0) -> Dataset:
    """``count`` normally distributed samples of each input (shapes without the batch)."""
    random = np.random.default_rng(seed)
    return Dataset.of({name: (random.standard_normal((count, *shape)) * scale).astype(np.float32) for name, shape in shapes.items()})


def feeds_of(data: Dataset, size: int = 0) -> dict[str, Array]:
    """The first ``size`` samples (all with 0) as one batch."""
    return next(data.batches(size or len(data)))


def weights_of(model: GraphModel) -> dict[str, Array]:
    """The initializers of the model by their names in the file."""
    return {str(name): value.const_value.numpy() for name, value in model.ir.graph.initializers.items() if value.const_value is not None}


def noise_ratio(found: Array, wanted: Array) -> float:
    """Root of the mean squared error, relative to the root mean square of what was wanted."""
    error = np.sqrt(np.mean((found.astype(np.float64) - wanted) ** 2))
    return float(error / max(np.sqrt(np.mean(wanted.astype(np.float64) ** 2)), 1e-30))
