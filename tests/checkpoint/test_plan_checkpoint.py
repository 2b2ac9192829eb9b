"""Plans of checkpoints: the size is that of the files that come out, to the byte."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoint.conftest import HOST, Models
from tests.checkpoint.made_up_models import KINDS, tokens
from tests.checkpoint.test_apply_checkpoint import applied, linear, step

from whet.compress.checkpoint import open_checkpoint
from whet.compress.checkpoint.layers import inventory
from whet.compress.plan import plan
from whet.core.errors import Refused, Unsupported
from whet.core.plan import Plan
from whet.core.recipe import Recipe, Step

pytestmark = pytest.mark.usefixtures("one_torch_thread", "known_machine")
Options = Mapping[str, Any]


def planned(folder: Path, *steps: Step, **more: Any) -> Plan:
    return plan(folder, Recipe(steps), target=HOST, **more)


def cost(found: Plan, name: str) -> float:
    return next(each.value for each in found.costs if each.name == name) or 0.0


RECIPES: list[tuple[str, tuple[Step, ...]]] = [
    ("rows", (step("rtn", bits=4),)), ("groups", (step("rtn", bits=3, block=16, symmetric=False),)),
    ("wide", (step("rtn", bits=8, block=128),)),
    ("five bits", (step("rtn", bits=5, block=32),)), ("nf4", (step("nf4"),)), ("fp4", (step("fp4", double=False, block=128),)),
    ("hqq", (step("hqq", bits=2, block=32),)), ("gptq", (step("gptq", bits=3, symmetric=False, enough=0.0),)),
    ("awq", (step("awq", bits=4, block=32),)), ("awq then gptq", (step("awq", block=16), step("gptq", block=16, enough=0.0))),
    ("half of them", (step("rtn", "*.1.*", bits=2),)),
    ("int8 inputs", (step("rtn", bits=8, activations=8),)),
    ("int8 inputs of some", (step("rtn", "*.0.*", bits=8, activations=8), step("rtn", "*.1.*", bits=3))),
    ("smoothed", (step("smoothquant"), step("gptq", bits=8, activations=8, enough=0.0))),
]


@pytest.mark.parametrize(("kind", "changed"), [("llama", {}), ("gpt2", {"dtype": torch.bfloat16}), ("bert", {})])
@pytest.mark.parametrize("steps", [steps for _, steps in RECIPES], ids=[name for name, _ in RECIPES])
def test_the_size_is_exact(models: Models, tmp_path: Path, kind: str, changed: Options, steps: tuple[Step, ...]) -> None:
    folder = models(kind, **changed)
    found = planned(folder, *steps)
    made = applied(folder, tmp_path / "out", *steps, calibration=tokens(12, seed=1))
    assert cost(found, "size_bytes") == sum(file.path.stat().st_size for file in made.files)
    after = {layer.name: layer.weight_bytes for layer in inventory(made).layers}
    assert {layer.name: layer.bytes_after for layer in found.layers} == after
    before = {layer.name: layer.weight_bytes for layer in inventory(open_checkpoint(folder)).layers}
    assert {layer.name: layer.bytes_before for layer in found.layers} == before
    assert {layer.name for layer in found.layers if layer.technique} == set(made.layouts)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_size_of_sixteen_bits(models: Models, tmp_path: Path, kind: str) -> None:
    steps = (step("float16", "*.1.*"), step("rtn", "*.0.*"))
    found, made = planned(models(kind), *steps), applied(models(kind), tmp_path / "out", *steps)
    assert cost(found, "size_bytes") == sum(file.path.stat().st_size for file in made.files)
    assert {layer.name: layer.bytes_after for layer in found.layers} == {layer.name: layer.weight_bytes for layer in inventory(made).layers}


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_tables_and_heads_too(models: Models, tmp_path: Path, kind: str) -> None:
    before = open_checkpoint(models(kind))
    names = [before.family.embedding, *([] if before.tied or before.family.encoder else [before.family.head])]
    steps = (step("rtn", *names, bits=8), step("rtn", "op:Linear", bits=4, block=16))
    made = applied(before.folder, tmp_path / "out", *steps)
    assert cost(planned(before.folder, *steps), "size_bytes") == sum(file.path.stat().st_size for file in made.files)
    assert set(made.layouts) == {*names, *linear(before)}


def test_shards_have_headers_too(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whet.compress.checkpoint.tensor_writer.shards_of.__defaults__", (6_000,))
    made = applied(models("llama"), tmp_path / "out", step("rtn"))
    assert len(made.files) > 2
    assert cost(planned(models("llama"), step("rtn")), "size_bytes") == sum(file.path.stat().st_size for file in made.files)


def test_what_an_earlier_recipe_rounded_is_planned_as_it_lies(models: Models, tmp_path: Path) -> None:
    before = applied(models("gpt2"), tmp_path / "first", step("rtn", bits=8))
    made = applied(before.folder, tmp_path / "out", step("rtn", "*.c_fc", bits=3, block=16))
    found = planned(before.folder, step("rtn", "*.c_fc", bits=3, block=16))
    assert cost(found, "size_bytes") == sum(file.path.stat().st_size for file in made.files)


def test_memory_grows_with_the_largest_layer_and_time_with_calibration(models: Models) -> None:
    small, large = models("llama"), models("llama", intermediate_size=4400)
    for name in ("rtn", "gptq"):
        assert cost(planned(large, step(name)), "working_bytes") > cost(planned(small, step(name)), "working_bytes")
    assert cost(planned(small, step("gptq")), "working_bytes") > cost(planned(small, step("rtn")), "working_bytes")
    few, many, free = planned(small, step("gptq", samples=16)), planned(small, step("gptq", samples=256)), planned(small, step("rtn"))
    assert cost(free, "working_s") < cost(few, "working_s") < cost(many, "working_s")
    assert cost(planned(small, step("gptq"), samples=16), "working_s") == cost(few, "working_s")
    assert {each.source for each in few.costs} == {"estimated"}


def test_a_table_that_is_copied_counts_where_nothing_else_is_large(models: Models) -> None:
    small, large = models("llama"), models("llama", vocab_size=5000)
    copied, rounded = ([cost(planned(each, recipe), "working_bytes") for each in (small, large)]
                       for recipe in (step("rtn"), step("rtn", "op:Linear", "op:Embedding", "op:Head")))
    assert copied[1] - copied[0] == pytest.approx(1.3 * (5000 - 96) * 32 * 4)
    assert rounded[1] < copied[1]


def test_nothing_is_worked_on(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    from whet.compress.checkpoint.tensor_files import TensorFile

    monkeypatch.setattr(TensorFile, "read", lambda *_: pytest.fail("a tensor was read"))
    planned(models("llama"), step("gptq"))


@pytest.mark.parametrize(("steps", "kind", "word"), [
    ((step("rtn", "nothing"),), Refused, "matches no layer"), ((step("equalize"),), Unsupported, "works on graphs"),
    ((step("gptq", "model.embed_tokens"),), Unsupported, "rtn rounds it"), ((step("rtn"), step("nf4", "*.up_proj")), Refused, "holds both"),
])
def test_what_could_not_be_applied_is_not_planned(models: Models, steps: tuple[Step, ...], kind: type[Exception], word: str) -> None:
    with pytest.raises(kind, match=word):
        planned(models("llama"), *steps)
