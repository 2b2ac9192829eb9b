"""Dynamic quantisation: what is exported computes what its operators' specifications say, on onnxruntime's fused kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.compress.operators_with_weights import CASES, on_grid
from tests.compress.small_graphs import Sketch, executed, feeds_of, noise_ratio, outputs, samples, weights_of
from tests.slow_papers import affine

from whet.compress.apply import apply_recipe
from whet.compress.graph import GraphModel
from whet.core.errors import Unsupported
from whet.core.recipe import Recipe, Step
from whet.device.targets import target

Array = np.ndarray[Any, Any]
VNNI = target("x86-vnni")
PRODUCTS = [name for name in CASES if name.startswith(("Gemm", "MatMul"))]
CONVOLUTIONS = [name for name in CASES if name.startswith("Conv") and "Transpose" not in name]
LSTMS = [name for name in CASES if name.startswith("LSTM")]


def dynamic(model: GraphModel, **options: Any) -> GraphModel:
    return apply_recipe(model, Recipe((Step("dynamic", options=options),)), VNNI)


def from_dynamic_grid(x: Array) -> Array:
    """The activations as they come back from the grid that DynamicQuantizeLinear puts them on."""
    codes, scale, zero = affine.dynamic_quantize_linear(x)
    return affine.dequantize_linear(codes, np.array(scale), np.array(zero))


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", [*PRODUCTS, *CONVOLUTIONS])
def test_products_and_convolutions_compute_on_the_grids_of_the_specification(name: str, per_channel: bool) -> None:
    case = CASES[name]()
    made = dynamic(case.model(), per_channel=per_channel, convolutions=True)
    factor = 0.5 if "alpha" in name else 1.0
    wanted = case.with_weights(lambda _, weight, axis: on_grid(weight * factor, axis, 8, per_channel=per_channel) / factor)
    x = feeds_of(case.data)["x"]
    exact = outputs(wanted, {"x": from_dynamic_grid(x)})
    for output, ours in outputs(made, {"x": x}).items():
        assert noise_ratio(ours, exact[output]) < 2e-6
    found = executed(made)
    if name in PRODUCTS:
        assert found.pop("DynamicQuantizeMatMul") == 1
        # The bias goes into the kernel, save where the weight is no matrix; nothing else is left to do.
        assert found in ({}, {"Mul": 1})
    else:
        assert found["ConvInteger"] == found["DynamicQuantizeLinear"] == 1
        assert not {"Conv", "FusedConv"} & set(found)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", LSTMS)
def test_recurrent_layers_run_on_their_own_kernel_with_weights_on_the_grid(name: str, per_channel: bool) -> None:
    case = CASES[name]()
    made = dynamic(case.model(), per_channel=per_channel)
    assert executed(made) == {"DynamicQuantizeLSTM": 1}
    feeds = feeds_of(case.data)
    on_its_grid = outputs(case.with_weights(lambda _, weight, axis: on_grid(weight, axis, 8, per_channel=per_channel)), feeds)
    # What is left is the rounding of activations and states: half a step of 1/255 of their range in every time step.
    assert all(noise_ratio(ours, on_its_grid[output]) < 0.012 for output, ours in outputs(made, feeds).items())


def test_swapped_directions_or_gates_would_be_seen() -> None:
    case = CASES["LSTM bidirectional"]()
    feeds = feeds_of(case.data)
    turned = outputs(case.with_weights(lambda _, weight, __: weight[::-1]), feeds)
    made = outputs(dynamic(case.model()), feeds)
    assert all(noise_ratio(made[output], turned[output]) > 0.3 for output in made)


def test_what_has_no_kernel_stays_float() -> None:
    sketch = Sketch()
    y = sketch.conv(sketch.input("x", ["N", 4, 8, 8]), (4, 4), name="c")
    sketch.output(sketch.gemm(sketch.node("Flatten", y), 256, 10, name="g"))
    made = dynamic(sketch.model())
    assert sketch.constants["c.W"].tobytes() in {array.tobytes() for array in weights_of(made).values()}
    assert executed(made)["DynamicQuantizeMatMul"] == 1


@pytest.mark.parametrize("name", ["Conv 2-D", "ConvTranspose", "Gather", "GRU"])
def test_a_model_with_nothing_for_it_is_unsupported_and_says_why(name: str) -> None:
    with pytest.raises(Unsupported, match="slower than float" if name == "Conv 2-D" else "no dynamic kernel"):
        dynamic(CASES[name]().model())


def test_one_dynamic_quantisation_serves_all_layers_that_read_the_tensor() -> None:
    sketch = Sketch()
    x = sketch.input("x", ["N", 40])
    for _ in range(3):
        sketch.output(sketch.matmul(x, 40, 8))
    made = dynamic(sketch.model())
    assert sum(node.op == "DynamicQuantizeLinear" for node in made.nodes) == 1
    feeds = feeds_of(samples({"x": (40,)}))
    wanted = outputs(sketch.model(), feeds)
    assert all(noise_ratio(ours, wanted[name]) < 0.02 for name, ours in outputs(made, feeds).items())


@pytest.mark.parametrize("shape", [(3, 4), (4,), (1, 4), (3, 1), ()])
@pytest.mark.parametrize("constant", [True, False])
def test_biases_of_every_shape_are_added(shape: tuple[int, ...], constant: bool) -> None:
    sketch, numbers = Sketch(), np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    feeds = feeds_of(samples({"x": (40,)}, 3))
    bias = sketch.constant(numbers) if constant else sketch.input("b", shape)
    if not constant:
        feeds["b"] = numbers
    y = sketch.output(sketch.node("Gemm", sketch.input("x", [3, 40]), sketch.weight(40, 4), bias, alpha=0.5, beta=-2.0))
    assert noise_ratio(outputs(dynamic(sketch.model()), feeds)[y], outputs(sketch.model(), feeds)[y]) < 0.02


def test_a_transposed_activation_is_turned_first() -> None:
    sketch = Sketch()
    y = sketch.output(sketch.node("Gemm", sketch.input("x", [40, 6]), sketch.weight(40, 24), transA=1))
    feeds = feeds_of(samples({"x": (6,)}, 40))
    made = dynamic(sketch.model())
    assert executed(made)["DynamicQuantizeMatMul"] == 1
    assert noise_ratio(outputs(made, feeds)[y], outputs(sketch.model(), feeds)[y]) < 0.02


def test_a_convolution_whose_bias_is_an_activation() -> None:
    sketch = Sketch()
    x, b = sketch.input("x", ["N", 4, 8, 8]), sketch.input("b", [5])
    y = sketch.output(sketch.node("Conv", x, sketch.weight(5, 4, 3, 3), b))
    feeds = {**feeds_of(samples({"x": (4, 8, 8)})), "b": np.linspace(-1, 1, 5, dtype=np.float32)}
    made = dynamic(sketch.model(), convolutions=True)
    assert noise_ratio(outputs(made, feeds)[y], outputs(sketch.model(), feeds)[y]) < 0.02


def test_a_recurrent_layer_with_states_from_outside_keeps_them() -> None:
    sketch = Sketch()
    names = [sketch.input("h", [1, 2, 10]), sketch.input("c", [1, 2, 10])]
    inputs = [sketch.input("x", [7, 2, 12]), sketch.weight(1, 40, 12, fan_in=12), sketch.weight(1, 40, 10, fan_in=10), "", "", *names]
    for value in sketch.node("LSTM", *inputs, count=3, hidden_size=10):
        sketch.output(value)
    random = np.random.default_rng(0)
    feeds = {
        name: random.standard_normal(shape).astype(np.float32) for name, shape in (("x", (7, 2, 12)), ("h", (1, 2, 10)), ("c", (1, 2, 10)))
    }
    wanted = outputs(sketch.model(), feeds)
    assert all(noise_ratio(ours, wanted[name]) < 0.02 for name, ours in outputs(dynamic(sketch.model()), feeds).items())


def test_a_recurrent_layer_half_of_whose_weights_come_from_outside_is_named() -> None:
    sketch = Sketch()
    recurrent = sketch.input("r", [1, 40, 10])
    weight = sketch.weight(1, 40, 12, fan_in=12)
    sketch.output(sketch.node("LSTM", sketch.input("x", [7, 2, 12]), weight, recurrent, name="memory", count=3, hidden_size=10)[0])
    with pytest.raises(Unsupported, match=r"memory \(LSTM\)"):
        dynamic(sketch.model())
