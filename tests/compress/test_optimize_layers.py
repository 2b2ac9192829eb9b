"""Layer by layer: time is put down to the right layer, and noise to the layer that makes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from tests.compress.small_graphs import Sketch, feeds_of, samples

from whet.compress.apply import apply, apply_recipe
from whet.compress.artifacts import load
from whet.compress.data import Dataset, load_data
from whet.compress.graph import GraphModel
from whet.compress.inspect import inspect
from whet.compress.optimize import kernels as kernels_module
from whet.compress.optimize.kernels import kernels_of, layer_times, operator_reports
from whet.compress.optimize.layers import layer_reports, output_sqnr
from whet.core.recipe import Recipe, Step
from whet.device.operators import OperatorTime
from whet.device.targets import target

VNNI = target("x86-vnni")
DATA = samples({"x": (8, 24, 24)}, 24)
WEIGHTED = ("big", "small", "wide", "head")


def network() -> Sketch:
    """``big`` has 100 times the work of ``small``; a norm to fold, a residual, a pool, a product."""
    g = Sketch(seed=5)
    x = g.input("x", ["N", 8, 24, 24])
    y = g.node("Relu", g.batch_norm(g.conv(x, (8, 64), (5, 5), name="big"), 64, name="norm"), name="relu")
    y = g.node("Relu", g.conv(y, (64, 2), (1, 1), name="small"), name="relu_small")
    y = g.node("Add", y, g.conv(y, (2, 2), name="wide"), name="add")
    y = g.node("MaxPool", y, name="pool", kernel_shape=[2, 2], strides=[2, 2])
    g.output(g.gemm(g.node("Flatten", y, name="flat"), 288, 10, name="head"))
    return g


def made_of(model: GraphModel, technique: str = "static", data: Dataset = DATA, **options: object) -> GraphModel:
    return apply_recipe(model, Recipe((Step(technique, options=options),)), VNNI, calibration=data)


def kernel(name: str, op: str = "Conv", us: float = 1.0) -> OperatorTime:
    return OperatorTime(name, op, "CPUExecutionProvider", us, 0.1)


# -- times ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("technique", ["float", "static", "weight_only", "float16"])
def test_every_layer_with_weights_gets_a_time_and_most_of_the_time_is_put_down(technique: str) -> None:
    model = network().model().folded() if technique == "float" else made_of(network().model(), technique)
    kernels = kernels_of(model, feeds_of(DATA, 1), threads=1)
    found = layer_times(model, kernels)
    total = sum(each.mean_us for each in kernels)
    assert set(WEIGHTED) <= set(found)
    assert all(found[name] > 0 for name in WEIGHTED)
    assert 0.5 * total <= sum(found.values()) <= total * 1.0001
    assert found["big"] > 3 * found["small"]
    assert max(found, key=lambda name: found[name]) == "big"
    assert set(found) <= {node.name for node in model.nodes}


@pytest.mark.parametrize("name", ["resnet20_cifar10", "kws_mlperf_tiny", "cwru_bearing"])
def test_real_models_too(name: str, assets: Path) -> None:
    model = load(assets / name / "model.onnx")
    data = load_data(assets / name / "calib.npz", model.inputs)
    weighted = {layer.name for layer in inspect(model.folded()).layers if layer.op in ("Conv", "Gemm", "MatMul") and layer.weight_shape}
    for each in (model.folded(), made_of(model, data=data)):
        kernels = kernels_of(each, feeds_of(data, 1), threads=1)
        found = layer_times(each, kernels)
        assert weighted <= set(found)
        assert sum(found.values()) > 0.5 * sum(one.mean_us for one in kernels)
    reports = layer_reports(model.folded(), made_of(model, data=data), data, ((), ()))
    assert {report.name for report in reports if report.sqnr_db is not None} >= weighted


def test_kernels_are_known_by_node_by_output_and_with_what_onnxruntime_adds() -> None:
    g = Sketch()
    y = g.conv(g.input("x", [1, 3, 8, 8]), (3, 4), name="c")
    g.output(g.node("Relu", y, name="r"))
    model = g.model()
    conv_output, relu_output = (node.outputs[0].name for node in model.ir.graph)
    for name in ("c", "c_nchwc", "c_token_12", "c_nhwc_token_3", f"{conv_output}_nchwc", f"{relu_output}_nchwc"):
        assert layer_times(model, [kernel(name)]) == {"c": 1.0}, name
    assert layer_times(model, [kernel("r", "Relu")]) == {"r": 1.0}
    assert layer_times(model, [kernel("ReorderInput", "ReorderInput")]) == {}
    assert layer_times(model, [kernel("c", us=1.0), kernel("c_nchwc", us=2.5)]) == {"c": 3.5}


def test_a_layer_whose_own_name_looks_like_an_addition() -> None:
    g = Sketch()
    y = g.conv(g.input("x", [1, 3, 8, 8]), (3, 3), name="c")
    g.output(g.conv(y, (3, 3), name="c_quant"))
    assert layer_times(g.model(), [kernel("c_quant", us=2.0), kernel("c", us=1.0)]) == {"c_quant": 2.0, "c": 1.0}


def test_slow_models_are_timed_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def timed(*_: object, repeats: int, **__: object) -> tuple[OperatorTime, ...]:
        asked.append(repeats)
        return (kernel("c", us=us),)

    monkeypatch.setattr(kernels_module, "operator_times", timed)
    model = network().model()
    for us, repeats in ((100.0, [3, 100]), (100_000.0, [3, 20]), (3_000_000.0, [3])):
        asked.clear()
        kernels_of(model, {}, threads=1)
        assert asked == repeats, us


def test_operators_before_and_after_by_the_larger_time() -> None:
    before = [kernel("a", "Conv", 10.0), kernel("b", "Conv", 5.0), kernel("r", "Relu", 1.0)]
    after = [kernel("a", "QLinearConv", 4.0), kernel("b", "QLinearConv", 4.0), kernel("q", "QuantizeLinear", 0.5), kernel("r", "Relu", 2.0)]
    found = operator_reports(before, after)
    assert [(row.op, row.calls_before, row.calls_after, row.time_before_us, row.time_after_us) for row in found] == [
        ("Conv", 2, 0, 15.0, None), ("QLinearConv", 0, 2, None, 8.0), ("Relu", 1, 1, 1.0, 2.0), ("QuantizeLinear", 0, 1, None, 0.5)]
    assert operator_reports((), ()) == ()


# -- noise ------------------------------------------------------------------------------------------------------------------------------


def test_less_bits_make_more_noise_in_every_layer() -> None:
    model = network().model()
    eight, four = (output_sqnr(model.folded(), made_of(model, "weight_only", bits=bits), DATA, WEIGHTED) for bits in (8, 4))
    assert set(eight) == set(four) == set(WEIGHTED)
    assert all(15 < eight[name] - four[name] < 35 for name in WEIGHTED)  # 6 dB a bit
    assert all(30 < value < 60 for value in eight.values())


def test_noise_adds_up_along_the_way() -> None:
    model = network().model()
    found = output_sqnr(model.folded(), made_of(model), DATA, WEIGHTED)
    assert found["big"] > found["head"]


def test_a_layer_before_the_first_change_is_exact_and_has_no_figure() -> None:
    model = network().model()
    made = apply_recipe(model, Recipe((Step("weight_only", ("head",)),)), VNNI)
    reports = {report.name: report for report in layer_reports(model.folded(), made, DATA, ((), ()))}
    assert {name for name, report in reports.items() if report.sqnr_db is not None} == {"head"}
    assert reports["head"].dtype_after == "int8"
    assert reports["big"].dtype_after == "float32"
    assert reports["big"].bytes_before == reports["big"].bytes_after
    assert 3 < reports["head"].bytes_before / reports["head"].bytes_after < 4


def test_a_model_that_was_not_changed_has_no_noise_at_all() -> None:
    folded = network().model().folded()
    assert output_sqnr(folded, folded, DATA, WEIGHTED) == {}


def test_inner_tensors_of_unknown_types_do_not_spoil_the_table() -> None:
    g = network()
    flat = next(node for node in g.nodes if node.name == "flat")
    g.nodes.remove(flat)  # in place of it, the shape is computed, as exporters do: int64 tensors, whose types the file does not tell
    head = g.nodes.pop()
    shape = g.node("Shape", flat.input[0], name="shape")
    batch = g.node("Gather", shape, g.constant(0, np.int64), name="gather")
    sizes = g.node("Concat", g.node("Unsqueeze", batch, g.constant([0], np.int64)), g.constant([-1], np.int64), name="sizes", axis=0)
    g.node("Reshape", flat.input[0], sizes, name="flat")
    g.nodes[-1].output[0] = flat.output[0]
    g.nodes.append(head)
    model = g.model(infer=False)
    found = output_sqnr(model.folded(), made_of(model), DATA, [*WEIGHTED, "gather", "sizes"])
    assert set(found) == set(WEIGHTED)


def test_a_fixed_batch_larger_than_the_data() -> None:
    g = network()
    g.inputs[0].type.tensor_type.shape.dim[0].dim_value = 32
    model = g.model(infer=False)
    assert model.fixed_batch == 32
    found = output_sqnr(model.folded(), made_of(model), DATA, WEIGHTED)
    assert set(found) == set(WEIGHTED)
    free = network().model()
    plain = output_sqnr(free.folded(), made_of(free), DATA, WEIGHTED)
    assert all(found[name] == pytest.approx(plain[name], abs=1.5) for name in WEIGHTED)


def test_the_table_holds_the_layers_that_have_weights_or_multiply() -> None:
    model = network().model()
    times = [kernel("big", us=7.0)], [kernel("big", "QLinearConv", us=3.0)]
    reports = layer_reports(model.folded(), made_of(model), DATA, times, {"big": 0.25})
    assert [report.name for report in reports] == list(WEIGHTED)
    big = reports[0]
    assert (big.op, big.time_before_us, big.time_after_us, big.damage) == ("Conv", 7.0, 3.0, 0.25)
    assert (big.dtype_before, big.dtype_after) == ("float32", "int8")
    assert big.macs == 24 * 24 * 64 * 8 * 25
    assert reports[1].time_before_us is None
    assert reports[1].damage is None


def test_a_model_whose_outputs_are_whole_numbers() -> None:
    g = Sketch()
    g.output(g.node("ArgMax", g.gemm(g.input("x", ["N", 16]), 16, 8, name="head"), name="arg", axis=1, keepdims=0), TensorProto.INT64)
    data = samples({"x": (16,)}, 8)
    model = g.model()
    assert set(output_sqnr(model.folded(), made_of(model, data=data), data, ["head", "arg"])) == {"head"}


def test_the_tables_survive_writing(tmp_path: Path) -> None:
    from whet.core.outcome import LayerReport

    model = network().model()
    apply(model, "static", calibration=DATA, out=tmp_path / "made", target=VNNI)
    for report in layer_reports(model.folded(), load(tmp_path / "made"), DATA, ((), ())):
        assert LayerReport.from_json(report.to_json()) == report
