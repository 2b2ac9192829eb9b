"""SmoothQuant keeps the function, its factors are the paper's, and they go into whatever makes the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.compress.small_graphs import Sketch, feeds_of, noise_ratio, outputs, samples
from tests.slow_papers import smoothquant as paper

from whet.compress.apply import apply_recipe
from whet.compress.data import Dataset
from whet.compress.graph import GraphModel
from whet.compress.technique import LayerView
from whet.compress.techniques.smoothquant import smoothing, smoothquant
from whet.compress.views import SharedInput
from whet.core.errors import Refused, Unsupported
from whet.core.recipe import Recipe, Step
from whet.device.targets import target

Array = np.ndarray[Any, Any]
VNNI = target("x86-vnni")
IMAGES, ROWS = samples({"x": (4, 8, 8)}, 16), samples({"x": (5, 4)}, 16)


def smoothed(model: GraphModel, data: Dataset, **options: Any) -> GraphModel:
    return apply_recipe(model, Recipe((Step("smoothquant", options=options),)), VNNI, calibration=data)


def muls(model: GraphModel) -> int:
    return sum(node.op == "Mul" for node in model.nodes)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.95, 1.0])
def test_factors_are_those_of_the_paper(alpha: float) -> None:
    random = np.random.default_rng(0)
    inputs = (random.standard_normal((50, 6)) * np.exp(random.uniform(-3, 3, 6))).astype(np.float32)
    weights = [random.standard_normal((out, 6)).astype(np.float32) for out in (3, 8)]
    layers = tuple(LayerView(f"l{i}", "MatMul", weight) for i, weight in enumerate(weights))
    found = smoothquant(SharedInput("x", layers, np.abs(inputs).max(axis=0)), VNNI, alpha=alpha)
    np.testing.assert_allclose(found, paper.factors(inputs, weights, alpha), rtol=1e-5)


def test_channels_that_say_nothing() -> None:
    peaks, weights = np.array([0.0, 4.0, 1.0, 9.0], np.float32), np.array([1.0, 1.0, 0.0, 4.0], np.float32)
    found = smoothing(peaks, weights, 0.5)
    assert found[0] == 6.0  # never seen: its weight 1 becomes as wide as the widest of the others, 4 * 1.5
    assert smoothing(peaks, np.array([1e-3, 1, 1, 4]), 0.5)[0] == 2.0  # no larger than the others
    assert found[1] == 2.0
    assert found[3] == 1.5
    assert np.isfinite(found).all()
    assert found[2] > 100  # never used: as small as can be
    assert (smoothing(np.zeros(3), np.ones(3), 0.5) == 1).all()
    assert (smoothing(np.ones(3), np.zeros(3), 0.5) == 1).all()


def layer_norm(g: Sketch, x: str) -> str:
    gain, shift = g.constant(np.array([1, 50, 0.1, 3])), g.constant(g.random.standard_normal(4))
    return str(g.node("LayerNormalization", x, gain, shift, axis=-1))


# What makes the input of products [n, 5, 4] out of x [n, 5, 4].
MAKERS: dict[str, Callable[[Sketch, str], str]] = {
    "layer_norm": layer_norm,
    "mul_and_add": lambda g, x: str(g.node("Add", g.constant([1.0, 2, 3, 4]), g.node("Mul", x, g.constant([1.0, 50, 0.1, 3])))),
    "scalar_mul": lambda g, x: str(g.node("Mul", g.constant(3.0), x)),
    "product": lambda g, x: str(g.node("Relu", g.node("Add", g.matmul(x, 4, 4), g.constant([1.0, 20, 3, 4])))),
}


@pytest.mark.parametrize("what", MAKERS)
def test_what_makes_the_input_takes_the_factors(what: str) -> None:
    g = Sketch()
    x = MAKERS[what](g, g.input("x", ["N", 5, 4]))
    for name in ("query", "key", "value"):
        g.output(g.matmul(x, 4, 6, name=name))
    model = g.model()
    made = smoothed(model, ROWS)
    wanted, found = outputs(model, feeds_of(ROWS)), outputs(made, feeds_of(ROWS))
    assert all(noise_ratio(found[name], wanted[name]) < 1e-6 for name in wanted)
    assert made.content != model.content
    assert len(made.nodes) == len(model.nodes)


@pytest.mark.parametrize("trans_b", [0, 1])
def test_convolutions_and_gemm_take_them_too(trans_b: int) -> None:
    g = Sketch()
    y = g.node("Relu", g.conv(g.input("x", ["N", 4, 8, 8]), (4, 6), name="one"))
    y = g.node("Relu", g.conv(y, (6, 5), name="two"))
    y = g.node("Flatten", g.node("GlobalAveragePool", y))
    y = g.node("Relu", g.gemm(y, 5, 7, trans_b=trans_b, name="three"))
    g.output(g.gemm(y, 7, 3, trans_b=trans_b, name="four"))
    model = g.model()
    made = smoothed(model, IMAGES)
    assert noise_ratio(outputs(made, feeds_of(IMAGES))["four:0"], outputs(model, feeds_of(IMAGES))["four:0"]) < 2e-6
    assert made.content != model.content
    inserted = smoothed(model, IMAGES, insert=True)
    assert noise_ratio(outputs(inserted, feeds_of(IMAGES))["four:0"], outputs(model, feeds_of(IMAGES))["four:0"]) < 2e-6
    assert muls(made) == 0
    assert muls(inserted) == 2  # in front of the first convolution, and behind the pool


def test_an_input_that_others_read_too_is_left_alone() -> None:
    g = Sketch()
    x = layer_norm(g, g.input("x", ["N", 5, 4]))
    g.output(g.node("Add", g.matmul(x, 4, 4, name="product"), x, name="sum"))
    model = g.model()
    with pytest.raises(Unsupported, match="insert"):
        smoothed(model, ROWS)
    made = smoothed(model, ROWS, insert=True)
    assert muls(made) == 1
    assert noise_ratio(outputs(made, feeds_of(ROWS))["sum:0"], outputs(model, feeds_of(ROWS))["sum:0"]) < 1e-6


def test_layers_that_have_no_weight_a_channel_are_left_alone() -> None:
    g = Sketch()
    y = g.node("Relu", g.conv(g.input("x", ["N", 4, 8, 8]), (4, 4), name="one"))
    g.output(g.conv(y, (4, 4), group=4, name="depthwise"))
    with pytest.raises(Unsupported):
        smoothed(g.model(), IMAGES)
    steps = (Step("weight_only", options={"bits": 8}), Step("smoothquant", options={"insert": True}), Step("static"))
    with pytest.raises(Refused, match="before"):
        apply_recipe(g.model(), Recipe(steps), VNNI, calibration=IMAGES)
