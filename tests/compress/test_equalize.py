"""Equalising keeps the function, makes the ranges of neighbours equal, and stops where a factor may not pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.compress.small_graphs import Sketch, feeds_of, noise_ratio, outputs, samples
from tests.slow_papers import equalize as paper

from whet.compress.apply import apply_recipe
from whet.compress.data import Dataset
from whet.compress.graph import GraphModel
from whet.compress.statistics import Statistics
from whet.compress.technique import LayerView
from whet.compress.techniques.equalize import equalize
from whet.compress.views import Chain, Link
from whet.compress.walks.chains import joints_of
from whet.core.errors import Refused, Unsupported
from whet.core.recipe import Recipe, Step
from whet.device.targets import target

Array = np.ndarray[Any, Any]
VNNI = target("x86-vnni")
SHAPE = (4, 8, 8)
DATA = samples({"x": SHAPE}, 24)


def equalised(model: GraphModel, data: Dataset = DATA, **options: Any) -> GraphModel:
    return apply_recipe(model, Recipe((Step("equalize", options=options),)), VNNI, calibration=data)


def static(model: GraphModel, data: Dataset, *before: str, **options: Any) -> GraphModel:
    steps = (*(Step(name) for name in before), Step("static", options=options))
    return apply_recipe(model, Recipe(steps), VNNI, calibration=data)


def pairs(model: GraphModel) -> set[tuple[str, str]]:
    """The layers that a factor may go between."""
    folded = model.folded()
    joints = joints_of(folded, [node.name for node in folded.nodes])
    return {(node.name or "", joint.following.name or "") for node, joint in joints.items()}


def spread(sketch: Sketch, *names: str) -> None:
    """Make the output channels of these layers unlike in range: factors from 1/30 to 30, in weights and biases."""
    for name in names:
        weight = sketch.constants[f"{name}.W"]
        factor = np.exp(sketch.random.uniform(-3.4, 3.4, len(weight))).astype(np.float32)
        sketch.constants[f"{name}.W"] = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
        sketch.constants[f"{name}.B"] = sketch.constants[f"{name}.B"] * factor


# -- against the paper ---------------------------------------------------------------------------------------------------------------


def layers(seed: int) -> tuple[list[Array], list[Array], list[bool]]:
    """A convolution, a depthwise one, two of 1x1: [out, in, kernel]."""
    random = np.random.default_rng(seed)
    weights = [random.standard_normal(shape) for shape in ((5, 3, 9), (5, 1, 9), (7, 5, 1), (2, 7, 1))]
    weights = [weight * np.exp(random.uniform(-2, 2, (len(weight), 1, 1))) for weight in weights]
    weights[0][2] = 0.0  # a dead channel
    biases = [random.standard_normal(len(weight)) + 2 for weight in weights]
    return weights, biases, [False, True, False, False]


def chain(weights: list[Array], biases: list[Array], depthwise: list[bool], seen: list[Statistics | None] | None = None) -> Chain:
    links = [
        Link(LayerView(f"l{i}", "Conv", w.astype(np.float32), b.astype(np.float32)), len(w) if d else 1, seen[i] if seen else None)
        for i, (w, b, d) in enumerate(zip(weights, biases, depthwise, strict=True))
    ]
    return Chain(tuple(links), tuple(bool(seen and seen[i]) for i in range(len(links))))


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_factors_are_those_of_the_paper(rounds: int) -> None:
    weights, biases, depthwise = layers(rounds)
    wanted, wanted_biases, _ = paper.equalised(weights, biases, depthwise, rounds)
    found = equalize(chain(weights, biases, depthwise), VNNI, iterations=rounds, absorb=False)
    for i in range(4):
        np.testing.assert_allclose(found.weights[f"l{i}"], wanted[i], rtol=1e-5)
        np.testing.assert_allclose(found.biases[f"l{i}"], wanted_biases[i], rtol=1e-5)


def test_ranges_of_neighbours_are_equal_in_the_end() -> None:
    weights, biases, depthwise = layers(0)
    found = equalize(chain(weights, biases, depthwise), VNNI, iterations=1000)
    for i in range(3):
        first, second = found.weights[f"l{i}"], found.weights[f"l{i + 1}"]
        before = np.abs(first).max(axis=(1, 2))
        after = np.abs(second).max(axis=(1, 2)) if depthwise[i + 1] else np.abs(second).max(axis=(0, 2))
        live = before > 0
        np.testing.assert_allclose(before[live], after[live], rtol=1e-3)
    assert not found.weights["l0"][2].any()


def test_high_biases_go_over_as_in_the_paper() -> None:
    weights, biases, depthwise = layers(3)
    random = np.random.default_rng(4)
    before = random.uniform(0, 1, (400, 5)) + np.array([0.0, 4.0, 8.0, -3.0, 2.0])
    after = random.standard_normal((400, 5)) + np.array([6.0, 0.0, 4.0, 9.0, -5.0])
    seen: list[Statistics | None] = [Statistics("a", channel_axis=1), Statistics("b", channel_axis=1), None, None]
    for statistics, values in zip(seen, (before, after), strict=False):
        if statistics is not None:
            statistics.update(values)
    new, moved, factors = paper.equalised(weights, biases, depthwise, 1)
    for i, values in ((0, before), (1, after)):
        moved[i], moved[i + 1] = paper.absorbed(new[i], moved[i], new[i + 1], moved[i + 1], depthwise[i + 1], values / factors[i])
    found = equalize(chain(weights, biases, depthwise, seen), VNNI, iterations=1)
    for i in range(4):
        np.testing.assert_allclose(found.biases[f"l{i}"], moved[i], rtol=1e-4, atol=1e-5)
    plain = equalize(chain(weights, biases, depthwise, seen), VNNI, iterations=1, absorb=False)
    assert np.abs(plain.biases["l1"] - moved[1]).max() > 1


# -- in graphs: the function stays ---------------------------------------------------------------------------------------------------

Part = Callable[[Sketch, str, int], str]
BETWEEN: dict[str, Part] = {
    "relu": lambda g, x, c: str(g.node("Relu", x)),
    "leaky": lambda g, x, c: str(g.node("LeakyRelu", x, alpha=0.2)),
    "prelu": lambda g, x, c: str(g.node("PRelu", x, g.constant(g.random.uniform(0, 1, (c, 1, 1))))),
    "nothing": lambda g, x, c: x,
    "norm": lambda g, x, c: str(g.node("Relu", g.batch_norm(x, c))),
    "max_pool": lambda g, x, c: str(g.node("MaxPool", g.node("Relu", x), kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4)),
    "average": lambda g, x, c: str(g.node("Relu", g.node("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4))),
    "average_of_zeros": lambda g, x, c: str(
        g.node("AveragePool", g.node("Relu", x), kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
    ),
    "pad": lambda g, x, c: str(g.node("Pad", g.node("Relu", x), g.constant([0, 0, 1, 0, 0, 0, 0, 2], np.int64))),
    "identity": lambda g, x, c: str(g.node("Relu", g.node("Identity", x))),
}


def random_chain(seed: int) -> Sketch:
    """Three to five layers of all kinds with random things between, unlike ranges and high biases, and one or two products at the end."""
    g = Sketch(seed=seed)
    pick = g.random
    x, channels = g.input("x", ["N", *SHAPE]), SHAPE[0]
    names = []
    for index in range(int(pick.integers(2, 5))):
        kind, name = pick.choice(["conv", "narrow", "depthwise", "grouped", "transposed"]), f"layer{index}"
        out = channels if kind == "depthwise" else 2 * int(pick.integers(2, 5))
        if kind == "transposed":
            parts = [x, g.weight(channels, out, 2, 2, name=f"{name}.W"), g.constant(pick.standard_normal(out), name=f"{name}.B")]
            x = str(g.node("ConvTranspose", *parts, name=name))
        elif kind == "narrow":
            x = g.conv(x, (channels, out), (1, 1), name=name)
        else:
            x = g.conv(x, (channels, out), name=name, group={"conv": 1, "depthwise": channels, "grouped": 2}[str(kind)])
        g.constants[f"{name}.B"] = g.constants[f"{name}.B"] + np.float32(pick.choice([0.0, 3.0]))
        channels = out
        x = BETWEEN[str(pick.choice(list(BETWEEN)))](g, x, channels)
        names.append((name, kind))
    pool = str(pick.choice(["GlobalAveragePool", "GlobalMaxPool", "ReduceMean"]))
    x = str(g.node(pool, x, **({"axes": [2, 3], "keepdims": int(pick.integers(0, 2))} if pool == "ReduceMean" else {})))
    x = x if pool == "ReduceMean" and not g.nodes[-1].attribute[1].i else str(g.node("Flatten", x))
    x = str(g.node("Relu", g.gemm(x, channels, 6, trans_b=int(pick.integers(0, 2)), name="first")))
    g.output(g.matmul(x, 6, 3, name="last"))
    spread(g, *(name for name, kind in names if kind != "transposed"))
    return g


@pytest.mark.parametrize("seed", range(12))
def test_any_chain_computes_what_it_did(seed: int) -> None:
    model = random_chain(seed).model()
    made = equalised(model)
    wanted, found = outputs(model, feeds_of(DATA)), outputs(made, feeds_of(DATA))
    for name in wanted:
        assert noise_ratio(found[name], wanted[name]) < 2e-6
    assert {("first", "last")} <= pairs(model)
    assert made.content != model.content


def test_flattened_maps_give_each_channel_its_columns() -> None:
    for op in ("Flatten", "Reshape"):
        g = Sketch()
        y = g.node("Relu", g.conv(g.input("x", ["N", *SHAPE]), (4, 6), name="conv"))
        y = g.node("Flatten", y) if op == "Flatten" else g.node("Reshape", y, g.constant([-1, 384], np.int64))
        g.output(g.gemm(y, 384, 5, name="fc"))
        spread(g, "conv")
        model = g.model()
        assert pairs(model) == {("conv", "fc")}
        made = equalised(model)
        assert noise_ratio(outputs(made, feeds_of(DATA))["fc:0"], outputs(model, feeds_of(DATA))["fc:0"]) < 2e-6


def test_products_of_three_dimensions_with_a_bias_of_their_own() -> None:
    g = Sketch()
    y = g.node("Add", g.constant(g.random.standard_normal(7) + 3), g.matmul(g.input("x", ["N", 5, 4]), 4, 7, name="up"))
    g.output(g.node("Add", g.matmul(g.node("Relu", y), 7, 3, name="down"), g.constant([1.0, 2.0, 3.0]), name="end"))
    model, data = g.model(), samples({"x": (5, 4)})
    assert pairs(model) == {("up", "down")}
    made = equalised(model, data)
    assert noise_ratio(outputs(made, feeds_of(data))["end:0"], outputs(model, feeds_of(data))["end:0"]) < 2e-6


ENDS: dict[str, Callable[[Sketch, str], str]] = {
    "clip": lambda g, x: str(g.node("Clip", x, g.constant(0.0), g.constant(6.0))),
    "sigmoid": lambda g, x: str(g.node("Sigmoid", x)),
    "residual": lambda g, x: str(g.node("Add", x, g.node("Relu", x))),
    "mean_of_channels": lambda g, x: str(g.node("ReduceMean", x, axes=[1], keepdims=1)),
    "pad_with_one": lambda g, x: str(g.node("Pad", x, g.constant([0, 0, 1, 1, 0, 0, 1, 1], np.int64), g.constant(1.0))),
    "pad_of_channels": lambda g, x: str(g.node("Pad", x, g.constant([0, 1, 0, 0, 0, 0, 0, 0], np.int64))),
    "transposed": lambda g, x: str(g.node("Transpose", x, perm=[0, 2, 1, 3])),
    "output": lambda g, x: g.output(x),
    "computed_slope": lambda g, x: str(g.node("PRelu", x, g.node("Sigmoid", g.inputs[0].name))),
}


@pytest.mark.parametrize("what", ENDS)
def test_what_ends_a_chain(what: str) -> None:
    g = Sketch()
    x = g.input("x", ["N", 8, 8, 8])
    y = ENDS[what](g, g.conv(x, (8, 8), name="one"))
    inside = {"mean_of_channels": 1, "pad_of_channels": 9}.get(what, 8)
    g.output(g.conv(y, (inside, 4), name="two"))
    assert pairs(g.model()) == set()
    with pytest.raises(Unsupported, match="follow"):
        equalised(g.model(), samples({"x": (8, 8, 8)}))


def test_weights_that_two_layers_share_stay_shared() -> None:
    g = Sketch()
    y = g.node("Relu", g.conv(g.input("x", ["N", *SHAPE]), (4, 4), name="one"))
    y = g.node("Relu", g.node("Conv", y, "one.W", name="two", kernel_shape=[3, 3], pads=[1] * 4))
    g.output(g.conv(g.node("Relu", g.conv(y, (4, 4), name="three")), (4, 2), name="four"))
    assert pairs(g.model()) == {("three", "four")}


def test_it_stands_before_what_rounds() -> None:
    model = random_chain(0).model()
    steps = (Step("weight_only", options={"bits": 8}), Step("equalize"), Step("static"))
    with pytest.raises(Refused, match="before"):
        apply_recipe(model, Recipe(steps), VNNI, calibration=DATA)


# -- what it is for ------------------------------------------------------------------------------------------------------------------


def mobile_net() -> Sketch:
    """Depthwise and pointwise convolutions of unlike channels, as training with batch norms leaves them."""
    g = Sketch(seed=5)
    x = str(g.node("Relu", g.conv(g.input("x", ["N", *SHAPE]), (4, 16), name="stem")))
    for i in range(3):
        x = str(g.node("Relu", g.conv(x, (16, 16), name=f"deep{i}", group=16)))
        x = str(g.node("Relu", g.conv(x, (16, 16), (1, 1), name=f"point{i}")))
    g.output(g.gemm(g.node("Flatten", g.node("GlobalAveragePool", x)), 16, 10, name="fc"))
    for i in range(3):  # a factor in front and its inverse behind: the same net with other ranges
        for name, following in ((f"deep{i}", f"point{i}"), (f"point{i}", f"deep{i + 1}" if i < 2 else "fc")):
            factor = np.exp(g.random.uniform(-2.5, 2.5, 16)).astype(np.float32)
            g.constants[f"{name}.W"] *= factor.reshape(-1, 1, 1, 1)
            g.constants[f"{name}.B"] *= factor
            weight = g.constants[f"{following}.W"]
            weight /= factor.reshape(-1, 1, 1, 1) if following.startswith("deep") else factor.reshape(1, -1, *[1] * (weight.ndim - 2))
    return g


def test_unlike_channels_lose_less_in_integers() -> None:
    model, data = mobile_net().model(), samples({"x": SHAPE}, 64)
    wanted = outputs(model, feeds_of(data))["fc:0"]

    def loss(*before: str, **options: Any) -> float:
        return noise_ratio(outputs(static(model, data, *before, **options), feeds_of(data))["fc:0"], wanted)

    assert loss("equalize", per_channel=False) < loss(per_channel=False) / 5
    assert loss("equalize") < loss() / 2
