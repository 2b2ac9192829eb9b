"""What a plan says before any work is what happens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.compress.operators_with_weights import CASES
from tests.compress.small_graphs import Sketch, samples, weights_of
from tests.compress.structures import INPUT, STRUCTURES

from whet.compress.apply import apply_recipe
from whet.compress.artifacts import load
from whet.compress.data import load_data
from whet.compress.estimate import latency_ms, weight_bytes, working_memory, working_seconds
from whet.compress.graph import GraphModel
from whet.compress.inspect import inspect
from whet.compress.plan import plan
from whet.compress.recipes import as_recipe
from whet.compress.technique import Foresight
from whet.core.errors import Refused, Unsupported
from whet.core.inventory import Inventory, Layer
from whet.core.plan import Plan
from whet.core.recipe import Recipe, Step
from whet.device.targets import target

ASSETS = ("resnet20_cifar10", "resnet8_mlperf_tiny", "kws_mlperf_tiny", "sisfall_falls", "cwru_bearing", "fsdd_digits")
WAYS: list[tuple[str, dict[str, Any]]] = [
    ("static", {}),
    ("weight_only", {}),
    ("weight_only", {"bits": 4}),
    ("weight_only", {"symmetric": False}),
    ("weight_only", {"bits": 4, "block": 32}),
    ("float16", {}),
    ("dynamic", {}),
]
VNNI = target("x86-vnni")


def network() -> GraphModel:
    sketch = Sketch()
    y = sketch.node("Relu", sketch.batch_norm(sketch.conv(sketch.input("x", INPUT), (4, 32), name="one"), 32, name="norm"), name="relu")
    y = sketch.node("MaxPool", sketch.conv(y, (32, 32), name="two"), name="pool", kernel_shape=[2, 2], strides=[2, 2])
    sketch.output(sketch.node("Tanh", sketch.gemm(sketch.node("Flatten", y), 512, 10, name="three"), name="tanh"))
    return sketch.model()


def planned(technique: str, model: GraphModel | None = None, where: str = "x86-vnni", **options: Any) -> Plan:
    return plan(network() if model is None else model, technique, target=where, options=options)


def cost(found: Plan, name: str) -> float:
    (value,) = (each.value for each in found.costs if each.name == name)
    assert value is not None
    return value


# -- sizes ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("technique", "options"), WAYS)
def test_the_size_is_foreseen_within_five_percent(technique: str, options: dict[str, Any]) -> None:
    made = apply_recipe(network(), as_recipe(technique, options), VNNI, calibration=samples({"x": INPUT[1:]}))
    assert cost(planned(technique, **options), "size_bytes") == pytest.approx(len(made.content), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("technique", "options"), WAYS)
@pytest.mark.parametrize("name", ASSETS)
def test_the_size_is_foreseen_within_fifteen_percent_on_real_models(
    assets: Path, name: str, technique: str, options: dict[str, Any]
) -> None:
    model = load(assets / name / "model.onnx")
    data = load_data(assets / name / "calib.npz", model.inputs).take(range(4))
    made = apply_recipe(model, as_recipe(technique, options), VNNI, calibration=data)
    assert cost(planned(technique, model, **options), "size_bytes") == pytest.approx(len(made.content), rel=0.15)


@pytest.mark.parametrize("name", [name for name in CASES if "Gather" not in name])
@pytest.mark.parametrize("bits", [8, 4])
def test_bytes_of_a_layer_are_those_of_its_codes_and_scales(name: str, bits: int) -> None:
    model = CASES[name]().model()
    if name == "ConvTranspose grouped":
        pytest.skip("its scales are shared by the groups, which a layer's shape does not tell")
    made = apply_recipe(model, as_recipe("weight_only", {"bits": bits}), VNNI)
    stored = sum(
        array.size * bits // 8 if array.dtype.itemsize == 1 else array.nbytes
        for array in weights_of(made).values()
        if array.dtype != np.int64
    )
    (layer,) = (each for each in planned("weight_only", model, bits=bits).layers if each.name == "layer")
    assert layer.bytes_after == pytest.approx(stored, rel=0.08)


def test_half_precision_halves_a_layer() -> None:
    layer = Layer("l", "Gemm", weight_shape=(8, 4), weight_dtype="float32", parameters=40, weight_bytes=160)
    assert weight_bytes(layer, Foresight(True, "float16", "float32", 16)) == 32 * 2 + 8 * 4
    assert weight_bytes(layer, Foresight(False)) == 160


# -- layers -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_layers_that_static_is_to_change_are_those_that_change(name: str) -> None:
    sketch = Sketch()
    STRUCTURES[name].build(sketch, sketch.input("x", INPUT))
    model = sketch.model()
    found = plan(model, "static", target=VNNI)
    made = apply_recipe(model, as_recipe("static"), VNNI, calibration=samples({"x": INPUT[1:]}, 4))
    integers = {
        node.name
        for node in made.ir.graph
        if any(
            value is not None
            and value.producer() is not None
            and value.producer().op_type == "DequantizeLinear"  # type: ignore[union-attr]
            and value.producer().inputs[0].const_value is not None
            for value in node.inputs
        )
    }  # type: ignore[union-attr]
    weighted = {layer.name for layer in found.layers if layer.technique and layer.weights}
    assert weighted == {layer.name for layer in found.layers if layer.name in integers and layer.weights}
    assert weighted
    assert all(layer.note for layer in found.layers if not layer.technique)


def test_each_layer_says_what_happens_to_it() -> None:
    layers = {layer.name: layer for layer in planned("static").layers}
    assert layers["one"].runs_as == "int8 Conv"
    assert (layers["one"].weights, layers["one"].activations) == ("int8", "uint8")
    assert layers["norm"].note == "folded into the layer before it"
    assert layers["norm"].bytes_after == 0
    assert "no integer kernel" in layers["tanh"].note
    assert layers["tanh"].runs_as == "float32 Tanh"
    assert layers["pool"].activations == "uint8"


def test_layers_out_of_company_stay_and_say_so() -> None:
    sketch = Sketch()
    y = sketch.node("Tanh", sketch.conv(sketch.input("x", INPUT), (4, 4), name="one"))
    sketch.output(sketch.node("Add", y, sketch.constant(1.0), name="lonely"))
    layers = {layer.name: layer for layer in planned("static", sketch.model()).layers}
    assert layers["lonely"].technique == ""
    assert "neighbours" in layers["lonely"].note


def test_of_two_steps_each_layer_gets_its_own() -> None:
    recipe = Recipe((Step("static", ("one", "two")), Step("weight_only", ("three",), options={"bits": 4})))
    layers = {layer.name: layer for layer in plan(network(), recipe, target=VNNI).layers}
    assert [layers[name].technique for name in ("one", "two", "three")] == ["static", "static", "weight_only"]
    assert layers["three"].weights == "int4"


def test_the_original_is_left_as_it_is() -> None:
    model = network()
    before = model.content
    planned("static", model)
    assert GraphModel(model.ir).content == before


# -- warnings and refusals ------------------------------------------------------------------------------------------------------------


def test_what_makes_a_model_slower_is_said_before_any_work() -> None:
    assert any("dynamic makes Conv slower" in line and "2 layers" in line for line in planned("dynamic", convolutions=True).warnings)
    assert planned("static").warnings == ()


def test_a_step_that_matches_nothing_and_an_unknown_option_are_refused() -> None:
    with pytest.raises(Refused, match="matches no layer"):
        plan(network(), Recipe((Step("static", ("nothing",)),)), target=VNNI)
    with pytest.raises(Refused, match="no such option"):
        planned("static", bitz=4)


def test_a_technique_that_can_do_nothing_is_unsupported() -> None:
    sketch = Sketch()
    sketch.output(sketch.conv(sketch.input("x", INPUT), (4, 4)))
    with pytest.raises(Unsupported, match="slower than float"):
        planned("dynamic", sketch.model())


def test_calibration_costs_time_and_memory_and_more_samples_more_time() -> None:
    few, many = (plan(network(), "static", target=VNNI, samples=count) for count in (10, 1000))
    assert cost(many, "working_s") > cost(few, "working_s")
    assert cost(few, "working_bytes") > cost(planned("weight_only"), "working_bytes")


def test_every_number_of_a_plan_is_an_estimate_with_its_method() -> None:
    for found in (planned("static"), planned("weight_only"), planned("static", where="mcu")):
        assert {each.source for each in found.costs} == {"estimated"}
        assert all(each.method or each.why for each in found.costs)


def test_the_latency_ratio_follows_the_table_of_the_target() -> None:
    found = planned("static")
    ratio = cost(found, "latency_ratio")
    slowest = min(VNNI.speed("static", op).ratio for op in ("Conv", "Gemm"))  # type: ignore[union-attr]
    fastest = max(VNNI.speed("static", op).ratio for op in ("Conv", "Gemm"))  # type: ignore[union-attr]
    assert 1 / fastest <= ratio <= 1 / slowest


def test_unknown_rates_give_no_number_but_a_reason() -> None:
    inventory = inspect(network())
    bare = target("mcu")
    if not bare.macs_per_s:
        assert latency_ms(inventory, {}, bare).value is None
    assert latency_ms(inventory, {}, VNNI).value is not None
    assert latency_ms(Inventory(()), {}, VNNI).why
    assert working_seconds(inventory, 10, 0.0).value is None
    assert working_memory(inventory, True, 32).value > working_memory(inventory, False, 32).value  # type: ignore[operator]
