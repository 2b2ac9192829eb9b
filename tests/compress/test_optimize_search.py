"""What is tried, in which order, and what is left out with which reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.compress.small_graphs import Sketch

from whet.compress.graph import GraphModel
from whet.compress.inspect import inspect
from whet.compress.optimize.search import INTEGER, WORTHWHILE_SHARE, Idea, faster_in_float, gentler, other_ideas, range_ideas
from whet.compress.plan import plan
from whet.compress.technique import technique
from whet.core.inventory import Inventory, Layer
from whet.core.outcome import GOALS
from whet.core.recipe import Recipe, matched
from whet.core.target import Speed, Target
from whet.device.targets import built_in_names, target

VNNI = target("x86-vnni")
TARGETS = [target(name) for name in built_in_names()]
LAYERS = st.dictionaries(st.sampled_from([*"abcdef", "g" * 300, "serving_default_input_1:0"]), st.floats(0, 1e3), max_size=8)


def inventory(*layers: tuple[str, int, int]) -> Inventory:
    """Layers as (operator, multiply-accumulates, weights); those of 0 weights have none."""
    return Inventory(tuple(Layer(f"{op}_{at}", op, (weights,) if weights else (), "float32" if weights else "", weights, 4 * weights, macs)
                           for at, (op, macs, weights) in enumerate(layers)))


def named(ideas: tuple[Idea, ...]) -> dict[str, Idea]:
    assert len({idea.name for idea in ideas}) == len(ideas)
    return {idea.name: idea for idea in ideas}


def excluded(idea: Idea) -> tuple[str, ...]:
    (step,) = idea.recipe.steps
    return step.exclude


# -- every idea ---------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(["Conv", "MatMul", "Gemm", "LSTM", "GRU", "Add", "Softmax"]), st.integers(0, 10**9),
                          st.sampled_from([0, 100, 1 << 16])), max_size=6),
       st.sampled_from(sorted(GOALS)), st.sampled_from(TARGETS), LAYERS)
def test_every_idea_is_a_recipe_that_the_techniques_know(layers: list[tuple[str, int, int]], goal: str, place: Target,
                                                        losses: dict[str, float]) -> None:
    ideas = (INTEGER, *range_ideas(()), *range_ideas(("a", "b")), *other_ideas(inventory(*layers), place, goal),
             *faster_in_float(dict.fromkeys(losses, 1.0), losses, list(losses)))
    recipes = [idea.recipe.steps for idea in ideas]
    assert len(set(map(str, recipes))) == len(recipes)  # nothing is tried twice
    ideas += gentler(losses)
    assert named(ideas)
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
    ideas = (INTEGER, *range_ideas(()), *other_ideas(inspect(model), where, goal), *gentler({"one": 3.0, "two": 2.0, "three": 1.0}))
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


# -- the layers that stay in float --------------------------------------------------------------------------------------------------------


def test_layers_that_are_slower_in_integers_stay_in_float_the_worst_first() -> None:
    before = {"a": 10.0, "b": 10.0, "c": 10.0, "d": 100.0, "e": 10.0}
    after = {"a": 12.0, "b": 50.0, "c": 5.0, "d": 109.0, "e": 30.0}
    ideas = faster_in_float(before, after, list(before))
    assert [excluded(idea) for idea in ideas] == [("b",), ("b", "e"), ("b", "e", "a")]
    assert ideas[0].name == "int8, b in float"
    assert ideas[2].name == "int8, b and 2 more in float"


def test_a_tenth_more_is_noise() -> None:
    assert faster_in_float({"a": 10.0}, {"a": 11.0}, ["a"]) == ()
    assert faster_in_float({"a": 10.0}, {"a": 11.2}, ["a"])


def test_only_layers_that_have_both_times_and_may_stay_are_looked_at() -> None:
    assert faster_in_float({"a": 1.0}, {"b": 9.0}, ["a", "b"]) == ()
    assert faster_in_float({"a": 1.0}, {"a": 9.0}, ["b"]) == ()
    assert faster_in_float({}, {}, []) == ()


@given(LAYERS, LAYERS, st.integers(1, 4))
def test_each_idea_keeps_one_layer_more_in_float(before: dict[str, float], after: dict[str, float], most: int) -> None:
    ideas = faster_in_float(before, after, list(before), most=most)
    assert len(ideas) <= most
    for count, idea in enumerate(ideas, 1):
        assert len(set(excluded(idea))) == count
        assert excluded(idea)[: count - 1] == (excluded(ideas[count - 2]) if count > 1 else ())
        assert after[excluded(idea)[-1]] > before[excluded(idea)[-1]]
    losses = [after[idea.recipe.steps[0].exclude[-1]] - before[idea.recipe.steps[0].exclude[-1]] for idea in ideas]
    assert losses == sorted(losses, reverse=True)


@given(LAYERS, st.lists(st.sampled_from(["a", "b", "c", "z"]), unique=True))
def test_gentler_recipes_keep_the_most_harmful_layers_in_float_and_one_in_integers(damage: dict[str, float], exclude: list[str]) -> None:
    left = [name for name in damage if name not in exclude]
    ideas = gentler(damage, exclude, {"ranges": "mse"})
    assert [len(excluded(idea)) - len(exclude) for idea in ideas] == [count for count in (1, 2, 4) if count < len(left)]
    for idea in ideas:
        assert excluded(idea)[: len(exclude)] == tuple(exclude)
        new = excluded(idea)[len(exclude) :]
        assert len(set(excluded(idea))) == len(excluded(idea))
        assert min((damage[name] for name in new), default=0.0) >= max((damage[name] for name in left if name not in new), default=0.0)
        assert idea.recipe.steps[0].options["ranges"] == "mse"


def test_other_ranges_are_tried_on_the_structure_that_won() -> None:
    ideas = range_ideas(("head", "tail"))
    assert {idea.recipe.steps[0].options["ranges"] for idea in ideas} == {"mse", "percentile"}
    assert all(excluded(idea) == ("head", "tail") for idea in ideas)
    assert [idea.name for idea in ideas] == [f"int8, head and 1 more in float, range by {name}" for name in ("mse", "percentile")]


def test_a_long_name_keeps_its_end_which_tells_layers_apart() -> None:
    (idea,) = faster_in_float({"m" * 200 + "conv9": 1.0}, {"m" * 200 + "conv9": 9.0}, ["m" * 200 + "conv9"])
    assert len(idea.name) < 60
    assert "conv9" in idea.name
