"""What the installed onnxruntime makes of weights and activations of other widths than 8 bits, probed as in test_fusion.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from tests.device.test_fusion import IMAGE, LEVEL, Graph, in_integers, run

WIDTH = {2: (TensorProto.INT2, 25), 4: (TensorProto.INT4, 21)}


def codes(g: Graph, shape: tuple[int, ...], bits: int) -> str:
    low, high = 1 - (1 << (bits - 1)), 1 << (bits - 1)
    name = f"codes_{len(g.constants)}"
    values = g.random.integers(low, high, shape).ravel().tolist()
    g.constants.append(helper.make_tensor(name, WIDTH[bits][0], shape, values))
    return name


def narrow(g: Graph, shape: tuple[int, ...], bits: int, axis: int = 0, *, cast: bool = True) -> str:
    """Codes of few bits -> (Cast to int8) -> DequantizeLinear, a scale for each index of ``axis``."""
    value = codes(g, shape, bits)
    scales = g.constant(0.01 * (1 + np.arange(shape[axis]) / shape[axis]))
    if not cast:
        return str(g.node("DequantizeLinear", value, scales, axis=axis))
    value = g.node("Cast", value, to=TensorProto.INT8)
    return str(g.node("DequantizeLinear", value, scales, g.constant(np.zeros(shape[axis]), "int8"), axis=axis))


LAYERS: dict[str, tuple[Callable[[Graph, int], Any], str]] = {
    "Conv": (lambda g, bits: g.node("Conv", g.x(), narrow(g, (8, 4, 3, 3), bits), g.bias(8)), "QLinearConv"),
    "depthwise Conv": (lambda g, bits: g.node("Conv", g.x(), narrow(g, (4, 1, 3, 3), bits), group=4), "QLinearConv"),
    "Gemm": (lambda g, bits: g.node("Gemm", g.x((2, 16)), narrow(g, (8, 16), bits), g.bias(8), transB=1), "QGemm"),
    "MatMul": (lambda g, bits: g.node("MatMul", g.x((1, 5, 16)), narrow(g, (16, 8), bits, 1)), "QLinearMatMul"),
}


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("layer", LAYERS)
def test_narrow_weights_behind_a_cast_are_folded_and_run_in_integers(layer: str, bits: int, tmp_path: Path) -> None:
    graph = Graph(WIDTH[bits][1])
    build, kernel = LAYERS[layer]
    graph.give(graph.quantised(build(graph, bits), scale=0.037))
    results, nodes = run(graph, tmp_path)
    plain, _ = run(graph, tmp_path, level=LEVEL.ORT_DISABLE_ALL, disable_quant_qdq="1")
    assert [node.op_type for node in nodes] == ["QuantizeLinear", kernel, "DequantizeLinear"]
    np.testing.assert_allclose(results[0], plain[0], rtol=0, atol=0.038)


def test_narrow_weights_straight_into_dequantize_linear_run_in_float_and_are_dequantised_every_time(tmp_path: Path) -> None:
    graph = Graph(21)
    graph.give(graph.quantised(graph.node("Conv", graph.x(), narrow(graph, (8, 4, 3, 3), 4, cast=False))))
    _, nodes = run(graph, tmp_path)
    found = [node.op_type for node in nodes]
    assert "QLinearConv" not in found
    assert "Conv" in found
    assert found.count("DequantizeLinear") >= 2


@pytest.mark.parametrize("op", ["Conv", "Gemm"])
def test_activations_of_16_bits_compute_in_float(op: str, tmp_path: Path) -> None:
    graph = Graph(21, "uint16")
    weight = (8, 4, 3, 3) if op == "Conv" else (16, 8)
    graph.give(
        graph.quantised(graph.node(op, graph.x(IMAGE if op == "Conv" else (2, 16)), graph.weight(weight, axis=0 if op == "Conv" else 1)))
    )
    _, nodes = run(graph, tmp_path)
    assert op in {node.op_type for node in nodes}


def test_codes_clipped_to_four_bits_keep_the_integer_kernel(tmp_path: Path) -> None:
    """uint8 -> Clip(0, 15) between Q and DQ: activations of 4 bits, exact, in integers."""

    def clipped(g: Graph, value: str) -> str:
        grid = (g.constant(0.2), g.constant(7, "uint8"))
        limited = g.node("Clip", g.node("QuantizeLinear", value, *grid), g.constant(0, "uint8"), g.constant(15, "uint8"))
        return str(g.node("DequantizeLinear", limited, *grid))

    graph = Graph(17, scale=0.2)
    value = graph.node("Conv", clipped(graph, graph.float_input()), graph.weight((8, 4, 3, 3)))
    graph.give(clipped(graph, value))
    results, nodes = run(graph, tmp_path)
    plain, _ = run(graph, tmp_path, level=LEVEL.ORT_DISABLE_ALL, disable_quant_qdq="1")
    assert [node.op_type for node in nodes] == ["QuantizeLinear", "Clip", "QLinearConv", "Clip", "DequantizeLinear"]
    assert in_integers(graph, nodes)
    assert len(np.unique(results[0])) <= 16
    np.testing.assert_allclose(results[0], plain[0], rtol=0, atol=0.201)


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("kept", [False, True])
def test_float_weights_between_integers_are_rounded_by_the_runtime_unless_something_stands_behind(
    op: str, kept: bool, tmp_path: Path
) -> None:
    """WeightBiasQuantization: a layer that was meant to stay in float gets int8 weights, one scale for the layer, without a word."""
    graph = Graph(17)
    shape = (8, 4, 3, 3) if op == "Conv" else (4, 8, 3, 3)
    weight = graph.constant(graph.random.normal(size=shape) * np.linspace(0.001, 1, shape[1])[:, None, None])
    value = graph.node(op, graph.x(), weight)
    if kept:
        value = graph.node("Max", value, graph.constant(np.finfo(np.float32).min))
    graph.give(graph.quantised(value, scale=0.05))
    _, nodes = run(graph, tmp_path)
    before = {node.op_type for node in nodes}
    weights_are_codes = "QLinearConv" in before or sum(node.op_type == "DequantizeLinear" for node in nodes) > 2
    assert weights_are_codes is (not kept)


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_packed_products_of_odd_widths_have_no_kernel(bits: int, tmp_path: Path) -> None:
    graph = Graph(17)
    blob = graph.constant(np.zeros((8, 1, 32 * bits // 8)), "uint8")
    attributes = {"K": 32, "N": 8, "bits": bits, "block_size": 32, "accuracy_level": 4}
    x = graph.float_input((2, 32))
    graph.nodes.append(helper.make_node("MatMulNBits", [x, blob, graph.constant(np.ones(8))], ["y"], domain="com.microsoft", **attributes))
    with pytest.raises(Exception, match=r"bits|NOT_IMPLEMENTED|nbits"):
        run(graph.give("y"), tmp_path)


@pytest.mark.parametrize("operator", ["ConvTranspose", "LSTM", "GRU"])
def test_operators_without_an_integer_kernel(operator: str, tmp_path: Path) -> None:
    graph = Graph(17)
    if operator == "ConvTranspose":
        value = graph.node(operator, graph.x(), graph.weight((4, 8, 3, 3), axis=1))
    else:
        gates = 4 if operator == "LSTM" else 3
        x, weight, again = graph.x((5, 2, 6)), graph.weight((1, gates * 4, 6), axis=1), graph.weight((1, gates * 4, 4), axis=1)
        value = graph.node(operator, x, weight, again, hidden_size=4)
    graph.give(graph.quantised(value))
    _, nodes = run(graph, tmp_path)
    assert operator in {node.op_type for node in nodes}
