"""How a technique is found and described, and what is done with its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from onnx import TensorProto
from tests.compress.small_graphs import Sketch, feeds_of, noise_ratio, outputs

from whet.compress import technique as module
from whet.compress import techniques
from whet.compress.apply import apply_recipe
from whet.compress.data import Dataset
from whet.compress.technique import Foresight, Search, technique, technique_names
from whet.core.errors import Refused
from whet.core.inventory import Layer
from whet.core.recipe import Recipe, Step
from whet.device.targets import target, targets


def test_every_file_in_the_folder_is_a_technique() -> None:
    folder = Path(techniques.__path__[0])
    assert technique_names() == tuple(sorted(file.stem for file in folder.glob("[!_]*.py")))
    assert {"static", "gptq", "smoothquant"} <= set(technique_names())


def test_an_unknown_technique_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(Refused, match="static"):
        technique("statik")


def test_the_sections_of_a_docstring_are_found_and_unwrapped() -> None:
    text = (
        "One sentence,\non two lines.\n\nPaper: A 2020,\n  section 3.\nNeeds: nothing.\nCost: one pass.\nLimits: few.\n\nq = round(W / s)\n"
    )
    assert module._sections(text) == {
        "": "One sentence, on two lines.",
        "Paper": "A 2020, section 3.",
        "Needs": "nothing.",
        "Cost": "one pass.",
        "Limits": "few.",
    }


def example(
    layer: Any,
    place: Any,
    *,
    bits: Annotated[int, Search(8, 4)] = 8,
    share: Annotated[float, Search(0.5, only=False, least=0, most=1)] = 0.5,
    how: Annotated[str, Search("a", "b")] = "a",
    twice: Annotated[bool, Search(True, False)] = True,
) -> Any:
    """Nothing."""


EXAMPLE = module.Technique("example", "", "", "nothing", "", "", module._options(example), example, example)


def test_defaults_are_filled_in() -> None:
    assert EXAMPLE.checked({}) == {"bits": 8, "share": 0.5, "how": "a", "twice": True}
    assert EXAMPLE.checked({"bits": 4, "twice": False}) == {"bits": 4, "share": 0.5, "how": "a", "twice": False}


def test_a_whole_number_is_a_number() -> None:
    found = EXAMPLE.checked({"share": 1})["share"]
    assert (found, type(found)) == (1.0, float)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bits", 3),
        ("bits", True),
        ("bits", 8.0),
        ("bits", "8"),
        ("how", "c"),
        ("how", 1),
        ("twice", 1),
        ("twice", "true"),
        ("share", 1.5),
        ("share", -0.1),
        ("share", float("nan")),
        ("share", float("inf")),
        ("share", True),
        ("share", "1"),
        ("bits", None),
    ],
)
def test_a_value_of_another_type_or_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(Refused, match=name):
        EXAMPLE.checked({name: value})


def test_an_unknown_option_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(Refused, match="bits, share, how, twice"):
        EXAMPLE.checked({"bitz": 4})


def foreseen(name: str, layer: Layer, where: str = "x86-vnni", **options: Any) -> Foresight:
    found = technique(name)
    return found.foresee(layer, target(where), **found.checked(options))


CONV, PRODUCT = (
    Layer("c", "Conv", weight_shape=(8, 3, 3, 3), weight_dtype="float32"),
    Layer("m", "MatMul", weight_shape=(64, 32), weight_dtype="float32"),
)


@pytest.mark.parametrize(
    ("name", "layer", "options", "wanted"),
    [
        ("static", CONV, {}, (True, "int8", "uint8", 8)),
        ("static", Layer("a", "Add"), {}, (True, "", "uint8", 8)),
        ("static", Layer("t", "Tanh"), {}, (False, "float32", "float32", 32)),
        ("static", Layer("p", "AveragePool"), {}, (False, "float32", "float32", 32)),
        ("weight_only", CONV, {"bits": 4}, (True, "int4", "float32", 4)),
        ("weight_only", PRODUCT, {"symmetric": False}, (True, "uint8", "float32", 8)),
        ("weight_only", Layer("a", "Add"), {}, (False, "float32", "float32", 32)),
        ("dynamic", PRODUCT, {}, (True, "int8", "uint8 (dynamic)", 8)),
        ("dynamic", CONV, {}, (False, "float32", "float32", 32)),
        ("dynamic", CONV, {"convolutions": True}, (True, "int8", "uint8 (dynamic)", 8)),
        ("float16", CONV, {}, (True, "float16", "float32", 16)),
        ("float16", Layer("a", "Add"), {}, (False, "float32", "float32", 32)),
    ],
)
def test_what_is_foreseen(name: str, layer: Layer, options: dict[str, Any], wanted: tuple[bool, str, str, int]) -> None:
    found = foreseen(name, layer, **options)
    assert (found.applies, found.weights, found.activations, found.bits) == wanted
    assert found.runs_as if found.applies else found.note


@pytest.mark.parametrize(
    ("layer", "block", "runs_as", "kept"),
    [
        (PRODUCT, 32, "MatMulNBits", 32),
        (PRODUCT, 0, "float32 MatMul", 0),
        (CONV, 32, "float32 Conv", 0),
        (Layer("m", "MatMul", weight_shape=(3, 64, 32)), 32, "float32 MatMul", 0),
    ],
)
def test_blocks_are_foreseen_where_there_is_one_summed_dimension(layer: Layer, block: int, runs_as: str, kept: int) -> None:
    found = foreseen("weight_only", layer, block=block)
    assert found.runs_as.startswith(runs_as)
    assert found.block == kept


def test_float16_arithmetic_is_foreseen_where_the_target_has_it() -> None:
    assert foreseen("float16", CONV, "jetson").activations == "float16"
    assert foreseen("float16", CONV, "jetson", compute="storage").activations == "float32"


@pytest.mark.parametrize("name", technique_names())
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_weights_are_left_alone_but_by_what_changes_weights_alone(name: str, dtype: str) -> None:
    layer = Layer("m", "MatMul", weight_shape=(64, 32), weight_dtype=dtype)
    assert foreseen(name, layer).applies is (name in ("weight_only", "rtn", "hqq", "gptq", "adaround", "equalize", "smoothquant"))


@pytest.mark.parametrize(("name", "options"), [
    ("weight_only", {}), ("rtn", {"bits": 8}), ("hqq", {"bits": 8}), ("gptq", {"bits": 8}),
    ("adaround", {"bits": 8, "iterations": 5}), ("equalize", {}), ("smoothquant", {}),
])
def test_a_half_precision_model_goes_on_computing_in_half_precision(name: str, options: dict[str, Any]) -> None:
    g = Sketch()
    half = [g.constant(values, np.float16) for values in (g.random.uniform(0.1, 5, 32), g.random.standard_normal(32))]
    y = g.node("LayerNormalization", g.input("x", ["N", 6, 32], TensorProto.FLOAT16), *half, axis=-1)
    for inside, out in ((32, 64), (64, 16)):
        y = g.node("MatMul", g.node("Relu", y), g.constant(g.random.standard_normal((inside, out)) / inside**0.5, np.float16))
    g.output(y, TensorProto.FLOAT16)
    data = Dataset.of({"x": g.random.standard_normal((24, 6, 32)).astype(np.float16)})
    made = apply_recipe(g.model(), Recipe((Step(name, options=options),)), target("x86-vnni"), calibration=data)
    wanted, found = outputs(g.model(), feeds_of(data))[y], outputs(made, feeds_of(data))[y]
    assert found.dtype == np.float16
    assert 0 < noise_ratio(found.astype(np.float32), wanted.astype(np.float32)) < 0.02


@pytest.mark.parametrize("name", technique_names())
@pytest.mark.parametrize("where", [each.name for each in targets()])
def test_foresee_answers_for_every_operator_on_every_target(name: str, where: str) -> None:
    for op in ("Conv", "MatMul", "Gemm", "LSTM", "Gather", "Add", "Softmax", "MaxPool", "If", "NoSuchOperator"):
        for shape in ((), (4, 4)):
            found = foreseen(name, Layer("l", op, weight_shape=shape, weight_dtype="float32" if shape else ""), where)
            assert found.applies or found.note
