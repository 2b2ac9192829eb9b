"""Static quantisation of other widths and grids than 8 bits a channel: right numbers, on the kernels that there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.compress.operators_with_weights import CASES, on_grid
from tests.compress.small_graphs import Sketch, executed, feeds_of, noise_ratio, outputs, samples, weights_of
from tests.compress.structures import INPUT, STRUCTURES
from tests.compress.test_static import VNNI, as_written, quantising_grids, sketched, static, two_layers
from tests.slow_papers import affine, layers

from whet.compress.apply import apply_recipe
from whet.compress.graph import GraphModel
from whet.compress.grid import quantise, weight_grid
from whet.compress.plan import changes_of, plan
from whet.compress.technique import Change
from whet.core.recipe import Recipe, Step
from whet.device.targets import target

Array = np.ndarray[Any, Any]
IMAGES = samples({"x": INPUT[1:]})
INTEGERS: list[dict[str, Any]] = [
    {"bits": 7},
    {"bits": 5, "per_channel": False},
    {"bits": 4},
    {"bits": 3},
    {"bits": 2},
    {"activation_bits": 6},
    {"bits": 4, "activation_bits": 4},
    {"bits": 2, "activation_bits": 7, "per_channel": False},
]
FLOATS: list[dict[str, Any]] = [
    {"bits": 16},
    {"activation_bits": 16},
    {"bits": 4, "activation_bits": 16},
    {"symmetric": False},
    {"block": 16},
    {"bits": 4, "block": 16},
    {"bits": 3, "symmetric": False, "block": 16, "activation_bits": 5},
    {"bits": 4, "symmetric": False, "per_channel": False},
]


def named(options: dict[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in options.items())


def by_hand(sketch: Sketch, x: Array, options: dict[str, Any], in_integers: bool) -> tuple[Array, float]:
    """The output of ``two_layers`` as it would be on paper, float64, and the step of its grid."""
    bits, activation_bits = options.get("bits", 8), options.get("activation_bits", 8)
    kind = {"symmetric": options.get("symmetric", True), "block": options.get("block", 0), "per_channel": options.get("per_channel", True)}
    exact, found, step = x.astype(np.float64), x, 1.0
    for name in ("one", "two"):
        weight, bias = sketch.constants[f"{name}.W"], sketch.constants[f"{name}.B"].astype(np.float64)
        found, scale = layers.on_activation_grid(found.astype(np.float32), float(exact.min()), float(exact.max()), activation_bits)
        exact = layers.conv2d(exact, weight.astype(np.float64), bias, pad=1)
        if in_integers:
            scales, _ = affine.weight_grid(weight, bits, True, 0 if kind["per_channel"] else None, 0)
            each = np.array([scales.get((c,), scales.get(())) for c in range(len(weight))], np.float32)
            bias = np.array(affine.bias(bias, float(scale), each)) * (float(scale) * each.astype(np.float64))
        found = layers.conv2d(found, on_grid(weight, 0, bits, **kind).astype(np.float64), bias, pad=1)
        if name == "one":
            exact, found = np.maximum(exact, 0), np.maximum(found, 0)
    found, step = layers.on_activation_grid(found.astype(np.float32), float(exact.min()), float(exact.max()), activation_bits)
    return found, float(step)


@pytest.mark.parametrize("options", [*INTEGERS, *FLOATS], ids=named)
def test_the_numbers_are_those_of_the_definition(options: dict[str, Any]) -> None:
    sketch, data = two_layers(0), samples({"x": (3, 7, 7)}, 2, seed=10)
    made = static(sketch.model(), data, **options)
    (ours,) = outputs(made, feeds_of(data)).values()
    (written,) = as_written(made, feeds_of(data)).values()
    expected, step = by_hand(sketch, feeds_of(data)["x"], options, options in INTEGERS)
    # A tie may fall otherwise, and what lies on the finest grid may differ by the rounding of float32 sums.
    slack = 1.01 * step if options.get("activation_bits") != 16 else 3e-4
    for found in (ours, written):
        assert np.abs(found - expected).max() <= slack
        assert np.mean(np.abs(found - expected) > step / 2) <= (0.01 if options.get("activation_bits") != 16 else 1.0)
    kernels = executed(made)
    assert ("QLinearConv" in kernels) is (options in INTEGERS)
    assert not any(op in kernels for op in (("Conv", "FusedConv", "Cast", "Max") if options in INTEGERS else ("Cast", "QLinearConv")))


@pytest.mark.parametrize("options", [{"bits": 16}, {"symmetric": False}, {"block": 16}, {"activation_bits": 16}], ids=named)
def test_what_no_kernel_executes_is_not_rounded_again_by_the_runtime(options: dict[str, Any]) -> None:
    """onnxruntime would round the float weights between two integer tensors to int8 itself (tests/device/test_bits.py)."""
    made = static(two_layers(0).model(), samples({"x": (3, 7, 7)}), **options)
    # What is dequantised at run time are the three activations, and no weight.
    assert executed(made)["DequantizeLinear"] == 3


def test_a_layer_that_is_excluded_between_integer_ones_keeps_its_weights_at_run_time() -> None:
    sketch = Sketch()
    x = sketch.input("x", INPUT)
    y = sketch.node("Relu", sketch.conv(x, (4, 4), name="one"))
    y = sketch.node("Relu", sketch.conv(y, (4, 4), name="kept"))
    sketch.output(sketch.conv(y, (4, 4), name="three"))
    sketch.constants["kept.W"] *= np.linspace(0.001, 1, 4, dtype=np.float32)[:, None, None, None]  # one scale for the layer ruins it
    found = executed(static(sketch.model(), IMAGES, without=("kept",)))
    assert found["QLinearConv"] == 2
    assert found["Conv"] + found.get("FusedConv", 0) == 1


@pytest.mark.parametrize(("bits", "kind"), [(8, "int8"), (5, "int8"), (4, "int4"), (3, "int4"), (2, "int2"), (16, "int16")])
def test_weights_lie_on_disk_as_narrow_as_a_type_goes(bits: int, kind: str) -> None:
    made = static(two_layers(0).model(), samples({"x": (3, 7, 7)}), bits=bits)
    stored = {str(array.dtype) for array in weights_of(made).values() if array.ndim == 4 and array.dtype != np.float32}
    assert stored == {kind}
    if bits < 8 and kind != "int8":
        assert made.ir.ir_version >= 10
        assert made.ir.opset_imports[""] >= 21


def test_defaults_need_no_newer_opset_than_before() -> None:
    assert static(two_layers(0).model(), samples({"x": (3, 7, 7)}), bits=5, activation_bits=4).ir.opset_imports[""] == 17


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_structure_runs_on_the_same_kernels_with_activations_of_four_bits(name: str) -> None:
    model = sketched(name)
    made = static(model, IMAGES, bits=4, activation_bits=4)
    found = executed(made)
    assert {op: found.get(op, 0) for op in STRUCTURES[name].runs} == dict(STRUCTURES[name].runs)
    feeds = feeds_of(IMAGES)
    wanted, written = outputs(model, feeds), as_written(made, feeds)
    for output, ours in outputs(made, feeds).items():
        assert noise_ratio(ours, wanted[output]) < 0.7
        assert noise_ratio(ours, written[output]) < 0.1  # ties, which are rare and wide


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_structure_is_computed_in_float_with_activations_of_16_bits(name: str) -> None:
    model = sketched(name)
    made = static(model, IMAGES, bits=16, activation_bits=16)
    assert not [op for op in executed(made) if op.startswith("QLinear") or op == "QGemm"]
    wanted = outputs(model, feeds_of(IMAGES))
    assert all(noise_ratio(ours, wanted[output]) < 1e-3 for output, ours in outputs(made, feeds_of(IMAGES)).items())


@pytest.mark.parametrize("name", ["Conv grouped", "ConvTranspose", "ConvTranspose grouped", "Gemm", "LSTM bidirectional"])
def test_blocks_run_along_all_weights_of_an_output_channel_whatever_their_layout(name: str) -> None:
    case = CASES[name]()
    model = case.model().folded()
    changes = {
        layer: {
            slot: Change(quantise(flat, weight_grid(flat, bits=4, axis=1, block=16)))
            for slot, view in views.items()
            if view.weight is not None and (flat := view.weight.reshape(len(view.weight), -1)) is not None
        }
        for layer, views in model.views(["layer"]).items()
    }
    made = model.with_weights(changes, target("mcu"), {})  # which has no kernel for packed products
    wanted = outputs(case.with_weights(lambda _, weight, axis: on_grid(weight, axis, 4, block=16)), feeds_of(case.data))
    assert all(noise_ratio(found, wanted[output]) < 1e-6 for output, found in outputs(made, feeds_of(case.data)).items())


def levels(model: GraphModel, tensor: str) -> int:
    """How many points the grid of a tensor has: 256, or what the Clip behind its QuantizeLinear leaves."""
    for node in model.ir.graph:
        if node.op_type == "QuantizeLinear" and node.inputs[0].name == tensor:  # type: ignore[union-attr]
            (reader,) = (use for use, _ in node.outputs[0].uses())
            kind = node.inputs[2].const_value.numpy().dtype  # type: ignore[union-attr]
            if reader.op_type == "Clip":
                return int(reader.inputs[2].const_value.numpy()) + 1  # type: ignore[union-attr]
            return 1 << (8 * kind.itemsize)
    raise AssertionError(tensor)


def mixed(*steps: tuple[tuple[str, ...], dict[str, Any]]) -> Recipe:
    return Recipe(tuple(Step("static", names, options=options) for names, options in steps))


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("wide", [6, 16])
def test_a_tensor_that_layers_of_different_widths_share_has_the_widest_grid(pool: bool, wide: int) -> None:
    """one (4 bits) -> two (wide), three (4 bits): the tensor between has ``wide`` bits, seen through a pool too."""
    sketch = Sketch()
    y = sketch.node("Relu", sketch.conv(sketch.input("x", INPUT), (4, 4), name="one"), name="relu")
    z = sketch.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]) if pool else y
    sketch.output(sketch.conv(z, (4, 4), name="two"))
    sketch.output(sketch.conv(z, (4, 4), name="three"))
    model = sketch.model()
    named_relu = next(node.outputs[0].name for node in model.folded().ir.graph if node.op_type == "Relu")
    made = apply_recipe(model, mixed((("*",), {"activation_bits": 4}), (("two",), {"activation_bits": wide})), VNNI, calibration=IMAGES)
    assert levels(made, str(named_relu)) == 1 << wide
    assert levels(made, "x") == 16
    found = executed(made)
    assert found.get("QLinearConv", 0) == (3 if wide == 6 else 0)
    wanted = outputs(model, feeds_of(IMAGES))
    assert all(noise_ratio(ours, wanted[name]) < 0.2 for name, ours in outputs(made, feeds_of(IMAGES)).items())


@pytest.mark.parametrize("earlier", [{"bits": 4}, {"bits": 3, "symmetric": False}, {"bits": 4, "block": 16}], ids=named)
def test_weights_on_a_grid_of_an_earlier_step_stay_on_it(earlier: dict[str, Any]) -> None:
    sketch, data = two_layers(1), samples({"x": (3, 7, 7)}, 4)
    model = sketch.model()
    recipe = Recipe((Step("weight_only", options=earlier), Step("static", options={"activation_bits": 16})))
    made = apply_recipe(model, recipe, VNNI, calibration=data)
    on_grids = two_layers(1)
    # A convolution has no one summed dimension for weight_only: it gets a scale a channel instead of blocks.
    kind = {"symmetric": earlier.get("symmetric", True)}
    for name in ("one.W", "two.W"):
        on_grids.constants[name] = on_grid(sketch.constants[name], 0, earlier["bits"], **kind).astype(np.float32)
    wanted = next(iter(outputs(on_grids.model(), feeds_of(data)).values()))
    assert noise_ratio(next(iter(outputs(made, feeds_of(data)).values())), wanted) < 1e-3


@pytest.mark.parametrize("options", [*INTEGERS, *FLOATS], ids=named)
def test_what_is_foreseen_is_what_runs(options: dict[str, Any]) -> None:
    model = two_layers(0).model()
    found = changes_of(model, mixed((("*",), options)), VNNI)["two"]
    if options in FLOATS:
        assert found.foresight.runs_as.startswith("float32 Conv (simulated: onnxruntime has no kernel for")
    else:
        assert found.foresight.runs_as == "int8 Conv"
    assert found.in_integers is (options in INTEGERS)
    costs = {cost.name: cost.value for cost in plan(model, mixed((("*",), options)), target=VNNI).costs}
    assert (costs["latency_ratio"] == 1.0) is (options in FLOATS)  # no speed is promised


def test_the_range_is_searched_for_as_many_points_as_there_are() -> None:
    """With few points it pays to cut off more of the tails."""
    tops = {}
    for bits in (4, 8):
        made = static(two_layers(0).model(), samples({"x": (3, 7, 7)}, 64), ranges="mse", activation_bits=bits)
        tops[bits] = quantising_grids(made)["x"][0] * ((1 << bits) - 1)
    assert tops[4] < 0.95 * tops[8]


def test_16_bits_are_integers_where_the_target_has_them() -> None:
    from dataclasses import replace

    npu = replace(target("x86-vnni"), activation_dtype="uint16")
    made = static(two_layers(0).model(), samples({"x": (3, 7, 7)}), npu)
    assert {str(array.dtype) for array in weights_of(made).values() if array.ndim == 4} == {"int8"}
    weights = [node for node in made.ir.graph if node.op_type == "Conv"]
    assert all(node.inputs[1].producer().op_type == "DequantizeLinear" for node in weights)  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "points"), [({"bits": 4}, 3.0), ({"activation_bits": 16, "bits": 16}, 0.1), ({"bits": 6}, 0.6)])
def test_accuracy_on_real_data(assets: Path, options: dict[str, Any], points: float) -> None:
    from tests.compress.test_apply import accuracy

    from whet.compress.apply import apply
    from whet.compress.artifacts import load

    folder = assets / "resnet20_cifar10"
    model = load(folder / "model.onnx")
    made = apply(model, "static", target=VNNI, calibration=folder / "calib.npz", options=options)
    assert accuracy(made, folder) >= accuracy(model, folder) - points / 100
