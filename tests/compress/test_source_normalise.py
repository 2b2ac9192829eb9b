"""Normalising: the same function, the same interface, less graph and no larger a file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper
from tests.compress.source_models import FLOAT, INT64, constant, info, many_sided, model, node, run, weight

from whet.compress.source import from_proto, normalise, read_onnx
from whet.compress.source.normalise import weight_bytes


def operators(loaded: ir.Model) -> list[str]:
    return [each.op_type for each in loaded.graph]


def feeds_of(loaded: ir.Model) -> dict[str, Any]:
    """Random inputs of the sample models; open sizes are 2, but for the voice detector, which wants 256 samples at 8 kHz."""
    rng = np.random.default_rng(3)
    if {value.name for value in loaded.graph.inputs} == {"input", "state", "sr"}:
        return {"input": rng.standard_normal((1, 256)).astype(np.float32), "state": np.zeros((2, 1, 128), np.float32), "sr": np.array(8000)}
    return {str(value.name): rng.standard_normal([size if isinstance(size, int) else 2 for size in value.shape]).astype(np.float32)
            for value in loaded.graph.inputs}


def test_sample_models_compute_the_same(assets: Path) -> None:
    for path in sorted(assets.glob("*/*.onnx")):
        loaded = read_onnx(path)
        nodes, feeds, before = len(loaded.graph), feeds_of(loaded), run(str(path), feeds_of(loaded))
        normalise(loaded)
        proto = ir.to_proto(loaded)
        assert len(loaded.graph) <= nodes
        assert len(proto.SerializeToString()) <= 1.02 * path.stat().st_size + 1000, path
        for was, now in zip(before, run(proto, feeds), strict=True):
            np.testing.assert_allclose(now, was, rtol=1e-5, atol=1e-5, err_msg=str(path))


def test_the_shortcuts_of_resnet20_have_constant_paddings(assets: Path) -> None:
    loaded = normalise(read_onnx(assets / "resnet20_cifar10" / "model.onnx"))
    assert {"ConstantOfShape", "Cast", "Constant"}.isdisjoint(operators(loaded))
    pads = [each for each in loaded.graph if each.op_type == "Pad"]
    assert [each.inputs[1].const_value.numpy().tolist() for each in pads] == [[0, 8, 0, 0, 0, 8, 0, 0], [0, 16, 0, 0, 0, 16, 0, 0]]
    assert "/layer1/layer1.0/conv1/Conv" in [each.name for each in loaded.graph]


def test_the_reordered_weights_of_an_lstm_become_one_constant(assets: Path) -> None:
    loaded = normalise(read_onnx(assets / "silero_vad" / "model.onnx"))
    lstms = [each for each in loaded.graph.all_nodes() if each.op_type == "LSTM"]
    assert len(lstms) == 2
    assert all(each.inputs[index].const_value is not None for each in lstms for index in (1, 2, 3))


@pytest.mark.parametrize("flag", [True, False])
def test_every_kind_of_node_at_once(flag: bool) -> None:
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 1, 4, 4)).astype(np.float32), "flag": np.array(flag)}
    loaded = normalise(from_proto(many_sided()))
    assert operators(loaded) == ["Conv", "Add", "If", "Add"]
    np.testing.assert_allclose(run(ir.to_proto(loaded), feeds)[0], run(many_sided(), feeds)[0], rtol=1e-6)


def test_outputs_that_are_constants_inputs_and_identities_keep_their_names() -> None:
    nodes = [node("Identity", ["x"], ["same"]), node("Relu", ["x"], ["r"]), node("Identity", ["r"], ["copy"]),
             node("Identity", ["r"], ["again"]), node("Add", ["c", "c"], ["sum"]),
             node("Identity", ["same"], ["inner"]), node("Neg", ["inner"], ["neg"])]
    outputs = ["same", "copy", "again", "sum", "neg", "r"]
    proto = model(nodes, [info("x", FLOAT, [2])], [info(name, FLOAT, [2]) for name in outputs], [weight("c", 2)])
    loaded = normalise(from_proto(proto))
    assert [value.name for value in loaded.graph.outputs] == outputs
    feeds = {"x": np.float32([-1, 2])}
    for was, now in zip(run(proto, feeds), run(ir.to_proto(loaded), feeds), strict=True):
        assert np.array_equal(was, now)


def test_unread_nodes_and_weights_go() -> None:
    proto = model([node("Relu", ["x"], ["y"]), node("Add", ["x", "w"], ["dead"])], [info("x", FLOAT, [2])], [info("y", FLOAT, [2])],
                  [weight("w", 2), weight("unread", 1000)])
    loaded = normalise(from_proto(proto))
    assert operators(loaded) == ["Relu"]
    assert not loaded.graph.initializers


def folded_kind(operator: str, tensors: dict[str, Any], **attributes: Any) -> ir.Model:
    """x + operator(tensors), normalised."""
    initializers = [constant(name, values, values.dtype) for name, values in tensors.items()]
    nodes = [node(operator, list(tensors), ["made"], **attributes), node("Cast", ["made"], ["f"], to=FLOAT), node("Add", ["x", "f"], ["y"])]
    proto = model(nodes, [info("x", FLOAT, None)], [info("y", FLOAT, None)], initializers, opset=21, ir_version=10)
    return normalise(from_proto(proto))


def test_constants_that_would_blow_up_stay_as_they_are() -> None:
    one, big = np.ones(1, np.float32), np.array([100_000, 100_000])
    assert "ConstantOfShape" in operators(folded_kind("ConstantOfShape", {"s": big}))
    assert "Expand" in operators(folded_kind("Expand", {"v": one, "s": big}))
    assert "Tile" in operators(folded_kind("Tile", {"v": one, "s": np.array([1_000_000])}))
    assert "Range" in operators(folded_kind("Range", {"a": np.array(0), "b": np.array(10**12), "c": np.array(1)}))
    assert "Expand" not in operators(folded_kind("Expand", {"v": one, "s": np.array([2, 2])}))


def test_quantised_and_half_precision_weights_stay_small() -> None:
    scale, weights = np.float32([0.5]), np.ones((4, 4), np.int8)
    assert "DequantizeLinear" in operators(folded_kind("DequantizeLinear", {"w": weights, "s": scale[0]}))
    half = folded_kind("Identity", {"w": np.ones((64, 64), np.float16)})
    assert operators(half) == ["Cast", "Add"]
    assert weight_bytes(half) == 64 * 64 * 2


def test_a_weight_read_in_two_orders_is_not_stored_twice() -> None:
    nodes = [node("Transpose", ["w"], ["t"], perm=[1, 0]), node("MatMul", ["x", "t"], ["a"]), node("MatMul", ["a", "w"], ["y"])]
    proto = model(nodes, [info("x", FLOAT, [1, 300])], [info("y", FLOAT, [1, 300])], [weight("w", 300, 300)])
    assert weight_bytes(normalise(from_proto(proto))) == 4 * 300 * 300


def test_a_branch_that_is_never_taken_goes_with_its_weights() -> None:
    then = helper.make_graph([node("Add", ["x", "w"], ["t"])], "a", [], [info("t", FLOAT, [2])], [weight("w", 2)])
    other = helper.make_graph([node("Mul", ["x", "v"], ["e"])], "b", [], [info("e", FLOAT, [2])], [weight("v", 2)])
    proto = model([node("If", ["c"], ["y"], then_branch=then, else_branch=other)], [info("x", FLOAT, [2])], [info("y", FLOAT, [2])],
                  [constant("c", True, bool)])
    loaded = normalise(from_proto(proto))
    assert operators(loaded) == ["Add"]
    assert weight_bytes(loaded) == 8
    x = np.float32([1, 2])
    assert np.array_equal(run(ir.to_proto(loaded), {"x": x})[0], run(proto, {"x": x})[0])


def test_a_folder_that_fails_costs_nothing_but_the_folding(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a gap in the reference operators")

    monkeypatch.setattr("onnxscript.optimizer.fold_constants", fail)
    with caplog.at_level(logging.WARNING):
        loaded = normalise(from_proto(many_sided()))
    assert operators(loaded) == ["Conv", "Add", "ConstantOfShape", "If", "ReduceSum", "Add"]
    assert "a gap" in caplog.text


def test_values_of_inputs_are_not_folded() -> None:
    proto = model([node("Reshape", ["x", "s"], ["y"])], [info("x", FLOAT, [4]), info("s", INT64, [1])], [info("y", FLOAT, None)])
    assert operators(normalise(from_proto(proto))) == ["Reshape"]
