"""The table of fused operators, probed: what the installed onnxruntime really makes of Q/DQ around each of them.

A probe is a small graph, float -> Q -> DQ -> operator -> Q -> DQ -> float. It is optimised by the runtime, and the operator
computes in integers when nothing converts inside any more: every Q reads a graph input, every DQ writes a graph output.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from whet.device.targets import target

LEVEL = ort.GraphOptimizationLevel
ONNX_TYPE = {"uint8": TensorProto.UINT8, "int8": TensorProto.INT8, "uint16": TensorProto.UINT16}
MIDDLE = {"uint8": 128, "int8": 0, "uint16": 32768}
IMAGE = (1, 4, 8, 8)
PADS = [0, 0, 1, 1, 0, 0, 1, 1]


class Graph:
    """A graph under construction. ``zero`` is the zero point of every Q/DQ pair around an activation."""

    def __init__(self, opset: int = 13, dtype: str = "uint8", zero: int | None = None, scale: float = 0.02) -> None:
        self.opset, self.dtype, self.scale = opset, dtype, scale
        self.zero = MIDDLE[dtype] if zero is None else zero
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.feeds: dict[str, np.ndarray] = {}
        self.random = np.random.default_rng(7)

    def node(self, op: str, *inputs: str, count: int = 1, **attributes: Any) -> Any:
        names = [f"{op}_{len(self.nodes)}_{i}" for i in range(count)]
        # 16-bit Q/DQ came to ONNX with opset 21; before, they are onnxruntime's own.
        domain = "com.microsoft" if op.endswith("izeLinear") and "16" in self.dtype and self.opset < 21 else ""
        self.nodes.append(helper.make_node(op, inputs, names, name=f"node_{len(self.nodes)}", domain=domain, **attributes))
        return names[0] if count == 1 else names

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def quantised(self, value: str, *, scale: float | None = None, zero: int | None = None) -> str:
        """``value`` through a Q/DQ pair."""
        grid = (self.constant(self.scale if scale is None else scale), self.constant(self.zero if zero is None else zero, self.dtype))
        return str(self.node("DequantizeLinear", self.node("QuantizeLinear", value, *grid), *grid))

    def float_input(self, shape: tuple[int, ...] = IMAGE) -> str:
        name = f"input_{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        self.feeds[name] = self.random.normal(size=shape).astype(np.float32)
        return name

    def x(self, shape: tuple[int, ...] = IMAGE) -> str:
        """A quantised activation."""
        return self.quantised(self.float_input(shape))

    def weight(self, shape: tuple[int, ...], axis: int | None = 0, dtype: str = "int8") -> str:
        """A constant of 8 bits behind DequantizeLinear, with a scale for each index of ``axis``."""
        low, high = (-127, 128) if dtype == "int8" else (0, 256)
        codes = self.constant(self.random.integers(low, high, shape), dtype)
        if axis is None:
            return str(self.node("DequantizeLinear", codes, self.constant(0.01), self.constant(MIDDLE[dtype], dtype)))
        scales = 0.01 * (1 + np.arange(shape[axis]) / shape[axis])
        return str(self.node("DequantizeLinear", codes, self.constant(scales), self.constant(np.zeros(shape[axis]), dtype), axis=axis))

    def bias(self, count: int, *, error: float = 1.0) -> str:
        """An int32 bias whose scale is that of the accumulator, times ``error``."""
        scales = np.float32(self.scale) * (0.01 * (1 + np.arange(count) / count)).astype(np.float32) * np.float32(error)
        codes = self.constant(self.random.integers(-3000, 3000, count), np.int32)
        return str(self.node("DequantizeLinear", codes, self.constant(scales), self.constant(np.zeros(count), np.int32), axis=0))

    def give(self, *values: str, dtype: int = TensorProto.FLOAT) -> Graph:
        self.outputs += [helper.make_tensor_value_info(value, dtype, None) for value in values]
        return self

    def model(self) -> Any:
        graph = helper.make_graph(self.nodes, "probe", self.inputs, self.outputs, self.constants)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def run(graph: Graph, folder: Path, *, level: Any = LEVEL.ORT_ENABLE_EXTENDED, **config: str) -> tuple[list[Any], list[Any]]:
    """The outputs, and the nodes of the optimised graph. EXTENDED, for the last level turns layouts and renames what it turns."""
    options = ort.SessionOptions()
    options.graph_optimization_level, options.intra_op_num_threads, options.log_severity_level = level, 1, 4
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    for name, value in config.items():
        options.add_session_config_entry(f"session.{name}", value)
    session = ort.InferenceSession(graph.model().SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, graph.feeds), list(onnx.load(folder / "optimised.onnx").graph.node)


def in_integers(graph: Graph, nodes: list[Any]) -> bool:
    """Whether all that lies between the outer conversions computes on codes."""
    given, wanted = {value.name for value in graph.inputs}, {value.name for value in graph.outputs}
    ends = all(node.input[0] in given for node in nodes if node.op_type == "QuantizeLinear")
    return ends and all(node.output[0] in wanted for node in nodes if node.op_type == "DequantizeLinear")


def fused(graph: Graph, folder: Path, *, codes_off: float = 1.0) -> bool:
    """Whether the graph computes in integers; its outputs must be right, to ``codes_off`` steps of the grid, either way."""
    results, nodes = run(graph, folder)
    plain, _ = run(graph, folder, level=LEVEL.ORT_DISABLE_ALL, disable_quant_qdq="1")
    for result, expected in zip(results, plain, strict=True):
        np.testing.assert_allclose(result, expected, rtol=0, atol=codes_off * graph.scale * 1.001)
    return in_integers(graph, nodes)


Build = Callable[[Graph], str | list[str]]
INT = np.int64


def unary(op: str, shape: tuple[int, ...] = IMAGE, **attributes: Any) -> Build:
    return lambda g: g.node(op, g.x(shape), **attributes)


def binary(op: str, **attributes: Any) -> Build:
    return lambda g: g.node(op, g.x(), g.x(), **attributes)


def with_constants(op: str, *constants: Any, dtype: Any = INT, **attributes: Any) -> Build:
    return lambda g: g.node(op, g.x(), *(g.constant(value, dtype) for value in constants), **attributes)


def reduced(op: str) -> Build:
    """The axes became an input with opset 18 (ReduceSum: 13)."""
    return lambda g: with_constants(op, [2, 3])(g) if g.opset >= 18 or op == "ReduceSum" else g.node(op, g.x(), axes=[2, 3])


def resized(mode: str, **attributes: Any) -> Build:
    return with_constants("Resize", [], [1, 1, 2, 2], dtype=np.float32, mode=mode, **attributes)


def conv(g: Graph, shape: tuple[int, ...] = IMAGE, kernel: tuple[int, ...] = (8, 4, 3, 3), **attributes: Any) -> str:
    return str(g.node("Conv", g.x(shape), g.weight(kernel), g.bias(kernel[0]), **attributes))


def where(g: Graph) -> str:
    return str(g.node("Where", g.constant([True, False] * 4, bool), g.x(), g.x()))


FUSED: dict[str, Build] = {
    "Conv": conv,
    "Gemm": lambda g: g.node("Gemm", g.x((2, 16)), g.weight((8, 16)), g.bias(8), transB=1),
    "MatMul": lambda g: g.node("MatMul", g.x((1, 5, 16)), g.weight((16, 8), axis=1)),
    "Add": binary("Add"), "Mul": binary("Mul"), "Concat": binary("Concat", axis=1), "Where": where,
    "AveragePool": unary("AveragePool", kernel_shape=[2, 2]), "GlobalAveragePool": unary("GlobalAveragePool"),
    "LeakyRelu": unary("LeakyRelu", alpha=0.1), "Sigmoid": unary("Sigmoid"), "Softmax": unary("Softmax", axis=1),
    "MaxPool": unary("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "ReduceMax": reduced("ReduceMax"), "ReduceMin": reduced("ReduceMin"),
    "Resize": resized("nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    "DepthToSpace": unary("DepthToSpace", blocksize=2),
    "Split": lambda g: g.node("Split", g.x(), g.constant([1, 3], INT), count=2, axis=1),
    "Reshape": with_constants("Reshape", [1, -1]), "Transpose": unary("Transpose", perm=[0, 2, 3, 1]), "Flatten": unary("Flatten"),
    "Squeeze": with_constants("Squeeze", [0]), "Unsqueeze": with_constants("Unsqueeze", [0]),
    "Slice": with_constants("Slice", [1], [3], [1]), "Gather": with_constants("Gather", [0, 2], axis=1),
    "GatherElements": with_constants("GatherElements", np.zeros(IMAGE), axis=1), "Expand": with_constants("Expand", [2, 4, 8, 8]),
    "Tile": with_constants("Tile", [1, 2, 1, 1]), "Identity": unary("Identity"), "Dropout": unary("Dropout"),
}  # fmt: skip

NEVER: dict[str, Build] = {
    "Sub": binary("Sub"), "Div": binary("Div"), "Min": binary("Min"), "Max": binary("Max"),
    "Tanh": unary("Tanh"), "HardSigmoid": unary("HardSigmoid"), "HardSwish": unary("HardSwish"), "Elu": unary("Elu"),
    "Erf": unary("Erf"), "LogSoftmax": unary("LogSoftmax"), "Relu": unary("Relu"),
    "Clip": with_constants("Clip", 0.0, 1.0, dtype=np.float32), "PRelu": with_constants("PRelu", 0.1, dtype=np.float32),
    "ReduceMean": reduced("ReduceMean"), "ReduceSum": reduced("ReduceSum"), "GlobalMaxPool": unary("GlobalMaxPool"),
    "LRN": unary("LRN", size=3), "SpaceToDepth": unary("SpaceToDepth", blocksize=2), "Pad": with_constants("Pad", PADS),
    "GatherND": with_constants("GatherND", [[0]]), "Resize linear": resized("linear"),
    "ConvTranspose": lambda g: g.node("ConvTranspose", g.x(), g.weight((4, 8, 3, 3), axis=1), g.bias(8)),
    "LayerNormalization": lambda g: g.node("LayerNormalization", g.x(), g.constant(np.ones(8)), g.constant(np.zeros(8))),
    "InstanceNormalization": lambda g: g.node("InstanceNormalization", g.x(), g.constant(np.ones(4)), g.constant(np.zeros(4))),
    "Einsum": lambda g: g.node("Einsum", g.x((2, 3)), g.x((3, 4)), equation="ij,jk->ik"),
    "Add of a float constant": with_constants("Add", 0.5, dtype=np.float32),
    "Gemm with alpha and bias": lambda g: g.node("Gemm", g.x((2, 16)), g.weight((8, 16)), g.bias(8), transB=1, alpha=0.5),
}  # fmt: skip


def probe(build: Build, folder: Path, *, same: bool, opset: int = 17, dtype: str = "uint8") -> bool:
    """Whether ``build`` between Q/DQ pairs is fused; ``same``: one grid before and after."""
    graph = Graph(opset, dtype)
    built = build(graph)
    scale = graph.scale if same else 0.037
    values = [graph.quantised(value, scale=scale) for value in ([built] if isinstance(built, str) else built)]
    return fused(graph.give(*values), folder, codes_off=2)


CPU = target("x86")
KERNELS = sorted(set(CPU.fused_ops) - set(CPU.moving_ops))


@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("op", KERNELS)
def test_an_operator_of_the_table_computes_in_integers_whatever_its_grids(op: str, opset: int, tmp_path: Path) -> None:
    assert probe(FUSED[op], tmp_path, same=False, opset=opset)
    assert probe(FUSED[op], tmp_path, same=True, opset=opset)


@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("op", sorted(set(CPU.moving_ops) - {"Identity", "Dropout"}))
def test_a_mover_of_the_table_runs_on_codes_where_its_grids_are_one_and_only_there(op: str, opset: int, tmp_path: Path) -> None:
    assert probe(FUSED[op], tmp_path, same=True, opset=opset)
    assert not probe(FUSED[op], tmp_path, same=False, opset=opset)


@pytest.mark.parametrize("op", ["Identity", "Dropout"])
def test_operators_that_do_nothing_are_gone(op: str, tmp_path: Path) -> None:
    assert probe(FUSED[op], tmp_path, same=True)


@pytest.mark.parametrize("name", sorted(NEVER))
def test_operators_that_the_table_leaves_out_stay_in_float(name: str, tmp_path: Path) -> None:
    assert name not in CPU.fused_ops
    assert not probe(NEVER[name], tmp_path, same=True)


@pytest.mark.parametrize("op", ["Conv", "Gemm", "MatMul", "Add", "MaxPool"])
def test_16_bit_activations_have_no_kernel(op: str, tmp_path: Path) -> None:
    assert not probe(FUSED[op], tmp_path, same=True, opset=21, dtype="uint16")


@pytest.mark.parametrize("op", ["Conv", "Gemm", "MatMul", "Add", "MaxPool"])
def test_int8_activations_fuse_too(op: str, tmp_path: Path) -> None:
    assert probe(FUSED[op], tmp_path, same=True, dtype="int8")


@pytest.mark.parametrize("kernel", [(8, 4, 3), (8, 4, 3, 3), (8, 4, 3, 3, 3)])
def test_convolutions_of_any_rank_fuse(kernel: tuple[int, ...], tmp_path: Path) -> None:
    assert probe(lambda g: conv(g, (1, 4) + (6,) * (len(kernel) - 2), kernel), tmp_path, same=False)


def test_depthwise_convolutions_fuse(tmp_path: Path) -> None:
    assert probe(lambda g: conv(g, kernel=(4, 1, 3, 3), group=4), tmp_path, same=False)


@pytest.mark.parametrize("op", ["Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool"])
@pytest.mark.parametrize(("dtype", "zero", "gone"), [("uint8", 0, True), ("int8", -128, True), ("uint8", 100, False)])
def test_a_relu_vanishes_where_the_grid_starts_at_zero_and_else_keeps_its_operator_in_float(
    op: str, dtype: str, zero: int, gone: bool, tmp_path: Path
) -> None:
    graph = Graph(dtype=dtype)
    value = graph.node("Relu", str(FUSED[op](graph)))
    assert fused(graph.give(graph.quantised(value, zero=zero)), tmp_path, codes_off=2) is gone


@pytest.mark.parametrize(("top", "gone"), [(6.0, True), (5.9, True), (12.0, False)])
def test_a_clip_vanishes_where_the_grid_lies_inside_it(top: float, gone: bool, tmp_path: Path) -> None:
    graph = Graph()
    value = graph.node("Clip", conv(graph), graph.constant(0.0), graph.constant(6.0))
    assert fused(graph.give(graph.quantised(value, scale=top / 255, zero=0)), tmp_path, codes_off=2) is gone


def test_a_pair_between_a_convolution_and_its_relu_leaves_conversions_behind(tmp_path: Path) -> None:
    graph = Graph()
    value = graph.node("Relu", graph.quantised(conv(graph)))
    assert not fused(graph.give(graph.quantised(value)), tmp_path)


@pytest.mark.parametrize(("op", "kernel"), [("Gemm", "QGemm"), ("MatMul", "MatMulIntegerToFloat"), ("Conv", None), ("Add", None)])
def test_only_matrix_products_may_end_in_float(op: str, kernel: str | None, tmp_path: Path) -> None:
    graph = Graph()
    graph.give(str(FUSED[op](graph)))
    _, nodes = run(graph, tmp_path)
    assert in_integers(graph, nodes) is (kernel is not None)
    assert kernel is None or kernel in {node.op_type for node in nodes}


@pytest.mark.parametrize(("error", "expected"), [(1.0, True), (1.5, False)])
def test_the_bias_of_a_convolution_must_lie_on_the_accumulators_grid(error: float, expected: bool, tmp_path: Path) -> None:
    assert probe(lambda g: g.node("Conv", g.x(), g.weight((8, 4, 3, 3)), g.bias(8, error=error)), tmp_path, same=False) is expected


def test_a_float_bias_is_quantised_by_the_runtime(tmp_path: Path) -> None:
    assert probe(lambda g: g.node("Conv", g.x(), g.weight((8, 4, 3, 3)), g.constant(np.ones(8))), tmp_path, same=False)
    assert probe(lambda g: g.node("Gemm", g.x((2, 16)), g.weight((8, 16)), g.constant(np.ones(8)), transB=1), tmp_path, same=False)


def test_padding_with_zero_in_front_of_a_convolution_goes_into_it_unless_a_pair_stands_between(tmp_path: Path) -> None:
    def padded(g: Graph, between: bool) -> str:
        value = g.node("Pad", g.x(), g.constant(PADS, INT))
        return str(g.node("Conv", g.quantised(value) if between else value, g.weight((8, 4, 3, 3))))

    assert probe(lambda g: padded(g, False), tmp_path, same=False)
    assert not probe(lambda g: padded(g, True), tmp_path, same=False)


def test_a_convolution_that_is_also_read_in_float_stays_in_float(tmp_path: Path) -> None:
    graph = Graph()
    value = conv(graph)
    _, nodes = run(graph.give(value, graph.quantised(value)), tmp_path)
    assert "Conv" in {node.op_type for node in nodes}


def test_per_channel_weights_of_a_matrix_product_must_be_scaled_along_their_last_axis(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="QLinearMatMul"):
        probe(lambda g: g.node("MatMul", g.x((1, 5, 16)), g.weight((16, 8), axis=0)), tmp_path, same=False)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("level", "exact"), [("1", True), (None, False)])
def test_a_weight_only_matrix_product_computes_with_int8_activations_unless_told_otherwise(
    bits: int, level: str | None, exact: bool, tmp_path: Path
) -> None:
    graph = Graph(opset=21)
    dtype = TensorProto.INT4 if bits == 4 else TensorProto.INT8
    codes = graph.random.integers(-8, 8, (64, 32)).ravel().tolist()
    graph.constants.append(helper.make_tensor("codes", dtype, [64, 32], codes))
    weight = graph.node("DequantizeLinear", "codes", graph.constant(np.full((2, 32), 0.1)), axis=0, block_size=32)
    graph.give(graph.node("MatMul", graph.float_input((3, 64)), weight))
    results, nodes = run(graph, tmp_path, **({"qdq_matmulnbits_accuracy_level": level} if level else {}))
    plain, _ = run(graph, tmp_path, level=LEVEL.ORT_DISABLE_ALL, disable_quant_qdq="1")
    assert [node.op_type for node in nodes] == ["MatMulNBits"]
    assert bool(np.abs(results[0] - plain[0]).max() < 1e-4) is exact


@pytest.mark.parametrize(("off", "ops"), [("0", ["DequantizeLinear", "Conv"]), ("1", ["Conv"])])
def test_weights_of_a_convolution_are_dequantised_at_every_run_unless_qdq_is_off(off: str, ops: list[str], tmp_path: Path) -> None:
    graph = Graph()
    graph.give(graph.node("Conv", graph.float_input(), graph.weight((8, 4, 3, 3))))
    _, nodes = run(graph, tmp_path, disable_quant_qdq=off)
    assert [node.op_type for node in nodes] == ops
