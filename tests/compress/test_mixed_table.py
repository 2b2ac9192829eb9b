"""From a model to the table: what can choose, what each choice costs, and what it does to the output."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from onnx import TensorProto
from tests.compress.small_graphs import Sketch, executed, samples

from whet.compress.apply import apply_recipe
from whet.compress.graph import GraphModel
from whet.compress.inspect import inspect
from whet.compress.mixed.allotted import Outline, recipe_of
from whet.compress.mixed.costs import Profile, priced, times_of
from whet.compress.mixed.fisher import fisher
from whet.compress.mixed.measured import divergence, measured
from whet.compress.mixed.problem import Border, Problem, all_integers, cost_of, harm_of
from whet.compress.mixed.program import front, solve
from whet.compress.mixed.roundings import Harms, prepare, roundings
from whet.compress.mixed.structure import structure
from whet.compress.mixed.table import table
from whet.compress.mixed.ways import ways_for
from whet.compress.runtime import outputs_of
from whet.core.target import Target
from whet.device.operators import OperatorTime
from whet.device.targets import target

VNNI = target("x86-vnni")
DATA = samples({"x": (3, 10, 10)}, 40)


def network(*, scaled: str = "", scores: bool = True) -> GraphModel:
    """A residual network with a pool, a deconvolution beside the main way, and class scores or plain values at the end."""
    g = Sketch(seed=4)
    x = g.input("x", ["N", 3, 10, 10])
    y = g.node("Relu", g.conv(x, (3, 8), name="stem"), name="relu")
    z = g.node("Relu", g.conv(y, (8, 8), name="first"), name="relu_first")
    y = g.node("Relu", g.node("Add", g.conv(z, (8, 8), name="second"), y, name="sum"), name="relu_sum")
    y = g.node("MaxPool", y, name="pool", kernel_shape=[2, 2], strides=[2, 2])
    y = g.conv(y, (8, 8), name="narrow")
    if not scores:
        g.output(g.node("Sigmoid", y, name="end"))
        return g.model()
    g.output(g.gemm(g.node("Flatten", y, name="flat"), 200, 5, name="head"))
    if scaled:
        g.constants[f"{scaled}.W"][3] *= 100
    return g.model()


def whole(model: GraphModel) -> Problem:
    return table(model.folded(), {}, VNNI, "size", DATA).harmed(DATA).problem


def costs(goal: str, where: Target = VNNI, profile: Profile | None = None) -> Problem:
    """Costs alone, without harms."""
    ready = prepare(network().folded(), {}, where, DATA.take(range(4)))
    problem = structure(ready.model, ready.found, where)
    every = {layer.name: ways_for(layer, layer.op == "Add", where, goal, {}) for layer in ready.model.plain_layers()}
    return priced(problem, ready.model, every, where, goal, profile)


@cache
def plain() -> Problem:
    return whole(network())


def border(problem: Problem, maker: str) -> Border:
    return next(each for each in problem.borders if each.maker == maker)


# -- units and borders ----------------------------------------------------------------------------------------------------------------


def test_units_are_the_layers_that_could_compute_in_integers() -> None:
    problem = plain()
    assert [unit.name for unit in problem.units] == ["stem", "first", "second", "sum", "narrow", "head"]
    assert [unit.name for unit in problem.units if unit.follows] == ["sum"]


def test_borders_run_through_what_only_moves_data() -> None:
    problem = plain()
    assert set(border(problem, "stem").readers) == {"first", "sum"}
    assert border(problem, "sum").readers == ("narrow",)
    assert border(problem, "sum").last == "pool"
    assert border(problem, "narrow").readers == ("head",)
    assert border(problem, "").readers == ("stem",)
    ending = border(problem, "head")
    assert ending.in_float
    assert ending.ends_float
    assert not any(each.in_float or each.ends_float for each in problem.borders if each.maker not in ("", "head"))


def test_layers_that_share_a_weight_choose_together() -> None:
    g = Sketch()
    x = g.input("x", ["N", 8, 6, 6])
    shared = g.weight(8, 8, 3, 3, name="shared")
    y = g.node("Relu", g.node("Conv", x, shared, name="one", pads=[1] * 4))
    y = g.node("Relu", g.conv(y, (8, 8), name="between"))
    g.output(g.node("Conv", y, shared, name="two", pads=[1] * 4))
    model, data = g.model(), samples({"x": (8, 6, 6)}, 8)
    problem = table(model.folded(), {}, VNNI, "size", data).problem
    assert [unit.layers for unit in problem.units] == [("one", "two"), ("between",)]
    choice = {"one": "W4A8", "between": "int8"}
    made = apply_recipe(model, recipe_of(Outline(), problem, choice), VNNI, calibration=data)
    assert {layer.name: layer.weight_dtype for layer in inspect(made).layers if layer.weight_shape} == {
        "one": "int4", "two": "int4", "between": "int8"}


def test_a_reader_without_integer_kernel_reads_in_float() -> None:
    g = Sketch()
    x = g.input("x", ["N", 4, 6, 6])
    y = g.conv(x, (4, 4), name="one")
    g.output(g.node("Erf", y, name="odd"))
    g.output(g.conv(y, (4, 4), name="two"))
    problem = table(g.model().folded(), {}, VNNI, "size", samples({"x": (4, 6, 6)}, 8)).problem
    assert border(problem, "one").in_float
    assert border(problem, "two").in_float  # an output of the model
    assert not border(problem, "").in_float


# -- ways -------------------------------------------------------------------------------------------------------------------------------


def ways(goal: str, name: str, where: Target = VNNI) -> list[str]:
    (layer,) = (layer for layer in network().folded().plain_layers() if layer.name == name)
    return [way.name for way in ways_for(layer, name == "sum", where, goal, {}, site=layer.op in where.fused_ops)]


def test_only_what_brings_the_goal_nearer_is_offered() -> None:
    assert ways("latency", "stem") == ["float32", "int8"]
    assert ways("size", "stem") == ["float32", "int8", "W4A8"]
    assert ways("size", "sum") == ["float32", "int8"]


def test_where_there_is_no_integer_kernel_weights_are_only_stored_smaller() -> None:
    bare = replace(VNNI, fused_ops=("Gemm",))
    assert ways("size", "stem", bare) == ["float32", "8-bit weights", "4-bit weights"]
    assert ways("latency", "stem", bare) == ["float32"]


# -- costs ------------------------------------------------------------------------------------------------------------------------------


def test_bytes_are_those_of_the_file() -> None:
    model, problem = network(), plain()
    sizes, costs = [], []
    for budget in (np.inf, 1e-2, 1e-3):
        found = solve(problem, budget)
        assert found is not None
        made = apply_recipe(model, recipe_of(Outline(), problem, found.choice), VNNI, calibration=DATA)
        sizes.append(len(made.content))
        costs.append(found.cost)
    for size, cost in zip(sizes[1:], costs[1:], strict=True):
        assert size - sizes[0] == pytest.approx(cost - costs[0], rel=0.25, abs=250)


def test_measured_times_are_taken_and_borders_are_counted() -> None:
    times = {"stem": 10.0, "first": 20.0, "second": 20.0, "sum": 1.0, "narrow": 5.0, "head": 2.0}
    problem = costs("latency", profile=Profile(times, {name: time / 2 for name, time in times.items()}))
    assert problem.unit("first").offer("float32").cost == 20.0
    assert problem.unit("first").offer("int8").cost == 10.0
    between, end = border(problem, "first"), border(problem, "narrow")
    assert between.to_integers > end.to_integers > 0  # 800 numbers, 200 numbers
    assert border(problem, "").to_integers < between.to_integers
    slow = {**{name: time / 2 for name, time in times.items()}, "stem": 30.0}
    found = solve(costs("latency", profile=Profile(times, slow)))
    assert found is not None
    assert {name for name, way in found.choice.items() if way == "float32"} == {"stem"}


def test_elsewhere_the_table_of_the_target_tells() -> None:
    problem = costs("latency", target("pi5"))
    layers = {layer.name: layer for layer in inspect(network().folded()).layers}
    assert problem.unit("first").offer("float32").cost == layers["first"].macs
    assert problem.unit("first").offer("int8").cost < layers["first"].macs  # type: ignore[operator]


def test_what_the_profiler_adds_is_taken_off() -> None:
    run = [OperatorTime(name, "Conv", "", mean, 0.5) for name, mean in (("a", 9.0), ("b", 3.0), ("c", 4.0))]

    def times(whole: float) -> list[float]:
        return [kernel.mean_us for kernel in times_of(run, whole)]

    assert times(7.0) == pytest.approx([6.0, 0.3, 1.0], abs=0.31)  # 3 off each would leave b nothing
    assert sum(times(7.0)) == pytest.approx(7.0)
    assert min(times(7.0)) == pytest.approx(0.3)
    assert times(13.0) == pytest.approx([8.0, 2.0, 3.0])
    assert times(16.0) == times(99.0) == pytest.approx([9.0, 3.0, 4.0])  # a profile that adds nothing
    assert times_of([], 1.0) == ()


# -- harms ------------------------------------------------------------------------------------------------------------------------------


def harms(model: GraphModel) -> tuple[Harms, Harms]:
    ready = prepare(model.folded(), {}, VNNI, DATA)
    problem = structure(ready.model, ready.found, VNNI)
    every = {layer.name: ways_for(layer, layer.op == "Add", VNNI, "size", {}) for layer in ready.model.plain_layers()}
    found = roundings(ready, priced(problem, ready.model, every, VNNI, "size"), VNNI)
    return fisher(ready.model, found, DATA, draws=4), measured(ready.model, found, DATA)


@pytest.mark.parametrize("scores", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_one_backward_pass_tells_what_trying_tells(scores: bool) -> None:
    from scipy.stats import spearmanr

    quick, slow = harms(network(scores=scores))
    assert quick.weights.keys() == slow.weights.keys()
    assert quick.tensors.keys() == slow.tensors.keys()
    assert {way for _, way in quick.weights} == {"int8", "W4A8"}
    small = [key for key in slow.weights if key[1] == "int8"]  # 4 bits are no small change on a network of three layers
    for found, expected in [(quick.weights[key], slow.weights[key]) for key in small] + [
            (quick.tensors[name], slow.tensors[name]) for name in slow.tensors if slow.tensors[name] > 0]:
        assert expected / 3 < found < 3 * expected
    order = [[*each.weights.values(), *each.tensors.values()] for each in (quick, slow)]
    assert spearmanr(*order).statistic > 0.9


@pytest.mark.slow
def test_the_sum_of_the_harms_is_about_the_harm_of_the_whole() -> None:
    model, problem = network(), plain()
    expected = outputs_of(model, DATA)
    for choice in (all_integers(problem), {unit.name: "W4A8" if not unit.follows else "int8" for unit in problem.units}):
        made = apply_recipe(model, recipe_of(Outline(), problem, choice), VNNI, calibration=DATA)
        assert harm_of(problem, choice) == pytest.approx(divergence(expected, outputs_of(made, DATA)), rel=0.7)


@pytest.mark.slow
def test_a_layer_with_one_enormous_channel_is_the_first_to_stay_gentle() -> None:
    problem = whole(network(scaled="first"))
    worst = max((unit for unit in problem.units if not unit.follows), key=lambda unit: unit.offer("W4A8").harm)
    assert worst.name in ("first", "second")  # its own rounding, or that of the layer which reads the wide channel


def test_the_front_of_a_model_runs_as_it_says() -> None:
    model, problem = network(), plain()
    points = front(problem)
    assert cost_of(problem, points[0].choice) < cost_of(problem, all_integers(problem))
    assert set(points[0].choice.values()) <= {"W4A8", "int8"}
    made = apply_recipe(model, recipe_of(Outline(), problem, points[0].choice), VNNI, calibration=DATA)
    kernels = executed(made)
    assert kernels["QLinearConv"] == 4
    assert "Conv" not in kernels
    dtypes = {layer.name: layer.weight_dtype for layer in inspect(made).layers if layer.weight_shape}
    assert dtypes == {name: "int4" if way == "W4A8" else "int8" for name, way in points[0].choice.items() if name != "sum"}


@pytest.mark.slow
def test_what_the_mirror_does_not_know_is_measured() -> None:
    g = Sketch(opset=17)
    x = g.input("x", ["N", 3, 10, 10])
    y = g.node("Relu", g.conv(x, (3, 4), name="one"))
    y = g.node("NonZero", g.node("Relu", g.conv(y, (4, 4), name="two")), name="odd")
    g.output(g.node("Shape", y), TensorProto.INT64)
    g.output(g.conv("two:0", (4, 2), name="three"))
    problem = table(g.model().folded(), {}, VNNI, "size", DATA.take(range(4))).harmed(DATA.take(range(4))).problem
    assert problem.unit("three").offer("W4A8").harm > 0
