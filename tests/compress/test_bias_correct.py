"""Bias correction: mean errors vanish, in integer models and in those whose weights alone are rounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.compress.small_graphs import Sketch, executed, feeds_of, outputs, samples
from tests.slow_papers import bias as slow

from whet.compress.apply import apply_recipe
from whet.compress.graph import GraphModel
from whet.compress.put.floats import float_bias
from whet.compress.technique import technique
from whet.compress.weights import array, first_slot
from whet.core.errors import Refused
from whet.core.recipe import Recipe, Step
from whet.device.targets import target

VNNI = target("x86-vnni")
DATA = samples({"x": (3, 8, 8)}, 40)
FEEDS = feeds_of(DATA)
LAYERS = [("first", 1), ("deep", 1), ("last", -1)]


def network(bias: bool = True) -> GraphModel:
    g = Sketch()
    y = g.node("Relu", g.conv(g.input("x", ["N", 3, 8, 8]), (3, 8), name="first", bias=bias))
    y = g.node("Relu", g.conv(y, (8, 8), name="deep", group=8, bias=bias))
    g.output(g.gemm(g.node("Flatten", g.node("GlobalAveragePool", y)), 8, 6, name="last", bias=bias))
    return g.model()


def recipe(*given: tuple[str, dict[str, Any]]) -> Recipe:
    return Recipe(tuple(Step(name, options=options) for name, options in given))


def biases(model: GraphModel) -> dict[str, Any]:
    nodes = {node.name: node for node in model.ir.graph}
    return {name: float_bias(nodes[name], first_slot(nodes[name])) for name, _ in LAYERS}


def steps(model: GraphModel) -> dict[str, float]:
    """The widest step of each layer's bias; 0 where it is in float."""
    nodes = {node.name: node for node in model.ir.graph}
    made = {name: nodes[name].inputs[2].producer() for name, _ in LAYERS}  # type: ignore[union-attr]
    return {name: 0.0 if each is None else float(array(each.inputs[1]).max()) for name, each in made.items()}  # type: ignore[arg-type]


def mean_errors(model: GraphModel, exact: GraphModel) -> dict[str, Any]:
    """Of every layer's channels, largest absolute value, relative to the spread of the layer's float output."""
    found = {}
    for name, axis in LAYERS:
        now, before = (slow._output(each, name, FEEDS) for each in (model, exact))
        others = tuple(i for i in range(now.ndim) if i != axis % now.ndim)
        found[name] = float(np.abs((now - before).mean(axis=others, dtype=np.float64)).max() / before.std())
    return found


@pytest.mark.parametrize("step", [("static", {}), ("weight_only", {"bits": 4})], ids=["integers", "4-bit weights"])
def test_mean_errors_of_all_layers_vanish(step: tuple[str, dict[str, Any]]) -> None:
    exact = network().folded()
    plain = apply_recipe(network(), recipe(step), VNNI, calibration=DATA)
    made = apply_recipe(network(), recipe(step, ("bias_correct", {})), VNNI, calibration=DATA)
    before, after = (mean_errors(model, exact) for model in (plain, made))
    # What is left is the bias's own rounding: half a step of the accumulator's grid.
    assert all(after[name] < 0.2 * before[name] + steps(made)[name] for name, _ in LAYERS), (before, after)
    assert sum(after.values()) < 0.5 * sum(before.values())
    assert executed(plain) == executed(made)


def test_it_agrees_with_whole_models_corrected_one_layer_at_a_time() -> None:
    exact = network().folded()
    plain = apply_recipe(network(), recipe(("static", {})), VNNI, calibration=DATA)
    wanted = slow.corrected(plain, exact, LAYERS, FEEDS, biases(plain))
    found = biases(apply_recipe(network(), recipe(("static", {}), ("bias_correct", {})), VNNI, calibration=DATA))
    for name, _ in LAYERS:
        change = np.abs(wanted[name] - biases(plain)[name]).max()
        assert np.abs(found[name] - wanted[name]).max() < 0.05 * change + steps(plain)[name], name
        assert change > 0


def test_a_share_of_it() -> None:
    plain, half, whole = (biases(apply_recipe(network(), recipe(("weight_only", {"bits": 4}), *more), VNNI, calibration=DATA))["first"]
                          for more in ((), [("bias_correct", {"share": 0.5})], [("bias_correct", {})]))
    np.testing.assert_allclose(half - plain, (whole - plain) / 2, rtol=1e-4, atol=1e-6)


def test_a_layer_without_a_bias_gets_one() -> None:
    exact = network(bias=False).folded()
    made = apply_recipe(network(bias=False), recipe(("weight_only", {"bits": 4}), ("bias_correct", {})), VNNI, calibration=DATA)
    plain = apply_recipe(network(bias=False), recipe(("weight_only", {"bits": 4})), VNNI, calibration=DATA)
    assert mean_errors(made, exact)["last"] < 0.2 * mean_errors(plain, exact)["last"]
    integers = [apply_recipe(network(bias=False), recipe(("static", {}), *more), VNNI, calibration=DATA)
                for more in ((), [("bias_correct", {})])]
    assert executed(integers[0]) == executed(integers[1])
    assert mean_errors(integers[1], exact)["last"] < 0.2 * mean_errors(integers[0], exact)["last"]


def test_layers_that_are_left_out_keep_their_bias() -> None:
    plain = apply_recipe(network(), recipe(("static", {})), VNNI, calibration=DATA)
    only = Recipe((Step("static"), Step("bias_correct", ("last",))))
    made = apply_recipe(network(), only, VNNI, calibration=DATA)
    assert np.array_equal(biases(plain)["first"], biases(made)["first"])
    assert not np.array_equal(biases(plain)["last"], biases(made)["last"])


def test_without_a_step_that_rounds_there_is_nothing_to_correct() -> None:
    with pytest.raises(Refused, match="no step before it"):
        apply_recipe(network(), recipe(("bias_correct", {})), VNNI, calibration=DATA)


def test_only_some_samples_are_looked_at() -> None:
    few, all_ = (apply_recipe(network(), recipe(("static", {}), ("bias_correct", {"samples": count})), VNNI, calibration=DATA)
                 for count in (4, 40))
    assert not np.array_equal(biases(few)["last"], biases(all_)["last"])
    assert technique("bias_correct").needs == "calibration"


def test_the_model_still_computes_what_it_did() -> None:
    exact = outputs(network(), FEEDS)
    made = outputs(apply_recipe(network(), recipe(("static", {}), ("bias_correct", {})), VNNI, calibration=DATA), FEEDS)
    for name, values in exact.items():
        assert np.abs(made[name] - values).max() < 0.1 * np.abs(values).max()
