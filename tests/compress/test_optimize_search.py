"""What is tried, in which order, and what is left out with which reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.compress.small_graphs import Sketch

from whet.compress.graph import GraphModel
from whet.compress.inspect import inspect
from whet.compress.mixed.allotted import Outline
from whet.compress.mixed.problem import FLOAT, Offer, Problem, Unit, Way
from whet.compress.optimize.search import (
    INTEGER,
    PLAIN,
    WORTHWHILE_SHARE,
    Idea,
    Start,
    corrected,
    finely_rounded,
    other_ideas,
    other_ranges,
    rounded,
)
from whet.compress.plan import plan
from whet.compress.technique import technique, technique_names
from whet.core.document import FrozenMap
from whet.core.inventory import Inventory, Layer
from whet.core.outcome import GOALS
from whet.core.recipe import Recipe, Step, matched
from whet.core.target import Speed, Target
from whet.device.targets import built_in_names, target

VNNI = target("x86-vnni")
TARGETS = [target(name) for name in built_in_names()]
EVERY = ("bias_correct", "clip", "equalize", "gptq", "adaround", "reconstruct", "smoothquant", "static")


def inventory(*layers: tuple[str, int, int]) -> Inventory:
    """Layers as (operator, multiply-accumulates, weights); those of 0 weights have none."""
    return Inventory(tuple(Layer(f"{op}_{at}", op, (weights,) if weights else (), "float32" if weights else "", weights, 4 * weights, macs)
                           for at, (op, macs, weights) in enumerate(layers)))


def named(ideas: tuple[Idea, ...]) -> dict[str, Idea]:
    assert len({idea.name for idea in ideas}) == len(ideas)
    return {idea.name: idea for idea in ideas}


# -- every idea ---------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(["Conv", "MatMul", "Gemm", "LSTM", "GRU", "Add", "Softmax"]), st.integers(0, 10**9),
                          st.sampled_from([0, 100, 1 << 16])), max_size=6),
       st.sampled_from(sorted(GOALS)), st.sampled_from(TARGETS), st.booleans())
def test_every_idea_is_a_recipe_that_the_techniques_know(layers: list[tuple[str, int, int]], goal: str, place: Target,
                                                        passed: bool) -> None:
    known = technique_names()
    starts, others = other_ranges(known), other_ideas(inventory(*layers), place, goal, integer_passed=passed)
    stages = ((PLAIN, *starts), *(corrected(start, known) for start in (PLAIN, *starts)))
    for stage in stages:  # what an earlier stage had is known by its steps
        recipes = [start.idea.recipe.steps for start in stage]
        assert len(set(map(str, recipes))) == len(recipes)  # nothing is tried twice
        assert named((*(start.idea for start in stage), *others))
    ideas = (*(start.idea for stage in stages for start in stage), *others)
    for idea in ideas:
        assert idea.recipe.steps
        assert len(idea.name) < 110
        for step in idea.recipe.steps:
            technique(step.technique).checked(step.options)
        assert Recipe.from_text(idea.recipe.to_text()) == idea.recipe


def small_network() -> GraphModel:
    sketch = Sketch()
    y = sketch.node("Relu", sketch.conv(sketch.input("x", ["N", 3, 16, 16]), (3, 8), name="one"))
    y = sketch.gemm(sketch.node("Flatten", y), 2048, 64, name="two")
    sketch.output(sketch.matmul(sketch.node("Relu", y), 64, 10, name="three"))
    return sketch.model()


@pytest.mark.parametrize("place", built_in_names())
@pytest.mark.parametrize("goal", sorted(GOALS))
def test_what_is_not_skipped_can_be_done(place: str, goal: str) -> None:
    model, where = small_network(), target(place)
    ideas = (INTEGER, *(start.idea for start in other_ranges(technique_names())), *other_ideas(inspect(model), where, goal))
    for idea in ideas:
        if not idea.skip:
            assert plan(model, idea.recipe, target=where).layers, idea.name
            assert all(matched(step, model.nodes) for step in idea.recipe.steps)


# -- dynamic, packed, smaller -----------------------------------------------------------------------------------------------------------


def dynamic(found: Inventory, place: str = "pi5") -> Idea:
    return named(other_ideas(found, target(place), "latency"))["dynamic int8"]


def test_dynamic_is_for_models_of_matrix_products() -> None:
    assert "a dynamic convolution is slower" in dynamic(inventory(("Conv", 1000, 10), ("Gemm", 10, 10))).skip
    assert "1.0% of the model's arithmetic" in dynamic(inventory(("Conv", 990, 10), ("Gemm", 10, 10))).skip
    assert not dynamic(inventory(("Conv", 10, 10), ("Gemm", 1000, 10))).skip
    assert not dynamic(inventory(("LSTM", 1000, 10))).skip
    just = int(1000 * WORTHWHILE_SHARE)
    assert not dynamic(inventory(("Conv", 1000 - just, 10), ("MatMul", just, 10))).skip
    assert dynamic(inventory(("Conv", 1001 - just, 10), ("MatMul", just - 1, 10))).skip


def test_products_without_weights_and_operators_without_a_dynamic_kernel_do_not_count() -> None:
    assert dynamic(inventory(("Conv", 100, 10), ("MatMul", 1000, 0))).skip
    assert dynamic(inventory(("Conv", 100, 10), ("GRU", 1000, 10))).skip
    assert dynamic(inventory()).skip


def test_dynamic_is_left_out_where_the_table_says_that_the_models_own_products_become_slower() -> None:
    slow = replace(VNNI, speeds=(Speed("dynamic", "Gemm", 0.5, "made up"), Speed("dynamic", "MatMul", 4.0, "made up")))
    for layers, skipped in (((("Gemm", 1000, 10),), True), ((("MatMul", 1000, 10),), False), ((("LSTM", 1000, 10),), False),
                            ((("MatMul", 1000, 10), ("Gemm", 100, 10)), False), ((("MatMul", 100, 10), ("Gemm", 1000, 10)), True)):
        idea = named(other_ideas(inventory(*layers), slow, "latency"))["dynamic int8"]
        assert bool(idea.skip) == skipped, layers
        assert not skipped or "slower than float on x86-vnni" in idea.skip


def test_packed_products_need_a_large_product_and_a_kernel() -> None:
    def packed(found: Inventory, where: str = "x86-vnni") -> Idea:
        return named(other_ideas(found, target(where), "latency"))["4-bit packed products"]

    assert "no matrix product" in packed(inventory(("Conv", 10, 1 << 20))).skip
    assert "no matrix product" in packed(inventory(("MatMul", 10, (1 << 16) - 1))).skip
    assert not packed(inventory(("MatMul", 10, 1 << 16))).skip
    assert "no kernel" in packed(inventory(("MatMul", 10, 1 << 16)), "mcu").skip


def test_packed_products_leave_convolutions_alone() -> None:
    idea = named(other_ideas(inspect(small_network()), VNNI, "latency"))["4-bit packed products"]
    assert not idea.skip
    (step,) = idea.recipe.steps
    assert set(matched(step, small_network().nodes)) == {"two"}


@pytest.mark.parametrize("goal", sorted(GOALS))
def test_four_bits_everywhere_are_only_tried_where_size_is_what_counts(goal: str) -> None:
    names = named(other_ideas(inventory(("Conv", 10, 10)), VNNI, goal))
    assert ("4-bit weights" in names) == (goal == "size")
    assert {"float16", "int8 weights"} <= set(names)


def test_smaller_files_are_left_out_where_time_counts_and_an_integer_model_passed() -> None:
    for goal, passed, skipped in (("latency", True, True), ("energy", True, True), ("latency", False, False), ("size", True, False),
                                  ("memory", True, False)):
        names = named(other_ideas(inventory(("Conv", 10, 10)), VNNI, goal, integer_passed=passed))
        assert bool(names["float16"].skip) == bool(names["int8 weights"].skip) == skipped, goal


# -- better starts ------------------------------------------------------------------------------------------------------------------------


def techniques_of(start: Start) -> tuple[str, ...]:
    return tuple(step.technique for step in start.idea.recipe.steps)


def test_ranges_are_found_in_other_ways_and_by_the_layers_where_that_is_known() -> None:
    assert [start.base.options.get("ranges") for start in other_ranges(())] == ["mse", "percentile"]
    assert [techniques_of(start) for start in other_ranges(EVERY)[2:]] == [
        ("clip", "static"), ("static", "bias_correct"), ("static", "bias_correct")]
    assert [start.base.options.get("ranges") for start in other_ranges(EVERY)[3:]] == [None, "percentile"]


def test_a_start_with_corrected_biases_keeps_them_and_does_not_correct_them_twice() -> None:
    start = next(start for start in other_ranges(EVERY) if start.label == "biases corrected")
    found = corrected(start, EVERY)
    assert {techniques_of(each) for each in found} == {("equalize", "static", "bias_correct"), ("smoothquant", "static", "bias_correct")}
    assert {each.label for each in found} == {"biases corrected, equalised", "biases corrected, smoothed"}


def test_corrections_stand_around_the_integer_step_and_keep_its_ranges() -> None:
    start = Start("range by mse", Outline(options=FrozenMap({"ranges": "mse"})))
    found = corrected(start, EVERY)
    assert {techniques_of(each) for each in found} == {
        ("static", "bias_correct"), ("equalize", "static"), ("smoothquant", "static"),
        ("equalize", "static", "bias_correct"), ("smoothquant", "static", "bias_correct")}
    assert all(each.base.options["ranges"] == "mse" and each.label.startswith("range by mse, ") for each in found)
    assert len({each.idea.name for each in found}) == len(found)
    assert corrected(start, ("static",)) == ()
    assert [techniques_of(each) for each in corrected(PLAIN, ("equalize",))] == [("equalize", "static")]


def test_rounding_is_learned_for_the_layers_of_fewest_bits_before_static() -> None:
    int8, int4 = Way("int8", "static", FrozenMap(), True), Way("W4A8", "static", FrozenMap({"bits": 4}), True)
    problem = Problem(tuple(Unit(name, (name,), (Offer(FLOAT), Offer(int8), Offer(int4))) for name in "abc"))
    start = Start("equalised", Outline((Step("equalize"),)))
    found = rounded(start, problem, {"a": "W4A8", "b": "int8", "c": "W4A8"}, EVERY)
    assert [techniques_of(each) for each in found] == [
        ("equalize", name, "static", *after) for name in ("gptq", "adaround", "reconstruct") for after in ((), ("bias_correct",))]
    assert all(each.base.before[-1].layers == ("a", "c") and each.base.before[-1].options["bits"] == 4 for each in found)
    (eight, *_) = rounded(start, problem, {"a": "int8", "b": "float32", "c": "int8"}, EVERY)
    assert eight.base.before[-1].layers == ("a", "c")
    assert eight.base.before[-1].options == {"bits": 8}
    assert rounded(start, problem, dict.fromkeys("abc", "float32"), EVERY) == ()


def test_all_weights_are_rounded_finely_before_static_on_the_ranges_of_the_start() -> None:
    start = other_ranges(EVERY)[4]
    found = finely_rounded(start, EVERY, ("a", "b"))
    assert [techniques_of(each) for each in found] == [("gptq", "static", "bias_correct"), ("adaround", "static", "bias_correct")]
    for each in found:
        first, second, _ = each.idea.recipe.steps
        assert (first.layers, first.options["bits"], second.options["ranges"]) == (("a", "b"), 8, "percentile")
        assert each.label.startswith(start.label)
    assert finely_rounded(start, ("static",)) == ()
    assert finely_rounded(start, EVERY)[0].idea.recipe.steps[0].layers == ("*",)


def test_what_stands_on_a_start_is_named_after_it() -> None:
    start = Start("range by mse", Outline(options=FrozenMap({"ranges": "mse"})))
    assert start.named("int8, a in float", start.base.recipe).name == "int8, a in float, range by mse"
    assert PLAIN.named("int8, a in float", start.base.recipe).name == "int8, a in float"
    assert INTEGER.name == INTEGER.recipe.name == "int8"
