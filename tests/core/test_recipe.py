"""Recipes: what a selector matches, what is refused, and the file that people edit."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.words import NAMES, RECIPES, TEXT

from whet.core.document import Document
from whet.core.errors import Refused
from whet.core.inventory import Layer
from whet.core.recipe import Recipe, Step, matched
from whet.core.toml import to_toml


@dataclass(frozen=True)
class Operator:
    name: str
    op: str


LAYERS = (
    Operator("conv1", "Conv"), Operator("conv2", "Conv"), Operator("layers[0].mlp", "MatMul"), Operator("layers[1].mlp", "MatMul"),
    Operator("layers0.mlp", "Gemm"), Operator("serving_default_input_1:0", "Conv"), Operator("op:odd", "Softmax"), Operator("a*b", "Add"),
)


@pytest.mark.parametrize(("selector", "names"), [
    ("conv1", ["conv1"]),
    ("conv?", ["conv1", "conv2"]),
    ("*", [layer.name for layer in LAYERS]),
    ("layers[0].mlp", ["layers[0].mlp"]),  # brackets are letters, not a set of letters
    ("layers[?].mlp", ["layers[0].mlp", "layers[1].mlp"]),
    ("layers[0]*", ["layers[0].mlp"]),
    ("*.mlp", ["layers[0].mlp", "layers[1].mlp", "layers0.mlp"]),
    ("serving_default_input_1:0", ["serving_default_input_1:0"]),
    ("op:Conv", ["conv1", "conv2", "serving_default_input_1:0"]),
    ("op:*M*", ["layers[0].mlp", "layers[1].mlp", "layers0.mlp"][:2]),
    ("op:odd", ["op:odd"]),  # a name that looks like an operator
    ("a*b", ["a*b"]),
])
def test_selectors(selector: str, names: list[str]) -> None:
    assert list(matched(Step("static", (selector,)), LAYERS)) == names


@pytest.mark.parametrize("selector", ["CONV1", "conv", "onv1", "op:conv", "Conv", "layers[!1].mlp", "layers[01].mlp", "", "conv1\n", "op:"])
def test_a_selector_that_matches_nothing_is_refused(selector: str) -> None:
    with pytest.raises(Refused, match="matches no layer") as caught:
        matched(Step("static", ("*", selector)), LAYERS)
    assert repr(selector) in str(caught.value)
    assert "conv1" in str(caught.value)
    with pytest.raises(Refused, match="matches no layer"):
        matched(Step("static", ("*",), (selector,)), LAYERS)


def test_except_takes_away_and_may_not_take_all() -> None:
    assert matched(Step("static", ("op:Conv",), ("conv2", "op:Softmax")), LAYERS) == ("conv1", "serving_default_input_1:0")
    with pytest.raises(Refused, match="takes away every layer"):
        matched(Step("static", ("conv?",), ("op:Conv",)), LAYERS)


def test_a_model_without_layers_matches_nothing() -> None:
    with pytest.raises(Refused, match="there are: none"):
        matched(Step("static"), ())


def test_a_step_without_selectors_matches_nothing() -> None:
    with pytest.raises(Refused):
        matched(Step("static", ()), LAYERS)


def test_layers_may_come_once() -> None:
    assert matched(Step("static", ("conv?", "op:Conv")), (layer for layer in LAYERS)) == ("conv1", "conv2", "serving_default_input_1:0")


@given(st.lists(st.builds(Layer, name=NAMES, op=TEXT), min_size=1))
def test_every_name_and_operator_selects_its_own_layer(layers: list[Layer]) -> None:
    assert matched(Step("x"), layers) == tuple(layer.name for layer in layers)
    for layer in layers:
        assert layer.name in matched(Step("x", (layer.name,)), layers)
        assert Step("x", (f"op:{layer.op}",)).selects(layer)
        assert not Step("x", exclude=(layer.name,)).selects(layer)


def holds_extra(word: Document) -> bool:
    return bool(word.extra) or any(step.extra for step in getattr(word, "steps", ()))


@given(RECIPES.filter(lambda recipe: not holds_extra(recipe)))
def test_the_file_round_trips(recipe: Recipe) -> None:
    try:
        text = recipe.to_text()
    except Refused:  # a null among the options: TOML has none
        assert "null" in recipe.to_json()
        return
    assert Recipe.from_text(text) == recipe


def test_the_docstring_is_true() -> None:
    text = '[[step]]\napply = "static"\nto = ["*"]\nexcept = ["conv1", "op:Softmax"]\nwith = {ranges = "percentile"}\n'
    assert Recipe.from_text(text) == Recipe((Step("static", ("*",), ("conv1", "op:Softmax"), {"ranges": "percentile"}),))
    assert Recipe.from_text("") == Recipe()


@pytest.mark.parametrize(("text", "message"), [
    ('[[step]]\napply = "static"\nexcpt = ["conv1"]', "unknown key 'excpt'"),
    ('[[steps]]\napply = "static"', "unknown key 'steps'"),
    ('[[step]]\nto = ["*"]', "'apply' is missing"),
    ('[[step]]\napply = "static"\nto = "*"', "where a list was expected"),
    ('[step]\napply = "static"', "where a list was expected"),
    ('step = ["static"]', "where a table was expected"),
    ("step = 1", "where a list was expected"),
    ('[[step]]\napply = "static"\nwith = {day = 1979-05-27}', "JSON cannot hold"),
    ('[[step]]\napply = "static"\nwith = {x = inf}', "the number inf"),
    ("step = [", "not valid TOML"),
])
def test_mistakes_are_refused(text: str, message: str) -> None:
    with pytest.raises(Refused) as caught:
        Recipe.from_text(text, what="r.toml")
    assert message in str(caught.value)


def test_a_recipe_read_from_a_manifest_keeps_what_a_file_may_not_hold() -> None:
    """Unknown keys are refused in the file that people edit, and kept in what programs wrote."""
    plain = {"step": [{"apply": "static", "later": 1}]}
    assert Recipe.from_plain(plain).to_plain() == plain
    with pytest.raises(Refused, match="unknown key 'later'"):
        Recipe.from_text(to_toml(plain))
