"""Bits by layer: harms against what rounding one layer really does, the allotment against trying everything, and what comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.checkpoint.conftest import HOST, Models
from tests.checkpoint.made_up_models import of_transformers, saved_tokens, tokens
from tests.slow_papers import states
from tests.slow_papers import widths as slow

from whet.compress.checkpoint import open_checkpoint
from whet.compress.checkpoint.apply import apply_to_checkpoint
from whet.compress.checkpoint.mixed import allotted, foreseen, sensitivities
from whet.compress.checkpoint.resolve import resolve
from whet.compress.checkpoint.sensitivity import LENGTH, harms, short
from whet.compress.checkpoint.text import Windows
from whet.compress.techniques.mixed import foresee, mixed
from whet.compress.views import Sensitivities
from whet.core.document import FrozenMap
from whet.core.errors import Refused
from whet.core.inventory import Layer
from whet.core.recipe import Recipe, Step

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def step(**options: Any) -> Recipe:
    return Recipe((Step("mixed", options=FrozenMap({"block": 16, "samples": 12, **options})),))


# -- harms ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "phi"])
def test_harms_are_what_changing_one_layer_does(models: Models, kind: str) -> None:
    folder, ids = models(kind), tokens(16, 8)
    checkpoint = open_checkpoint(folder)
    random = torch.Generator().manual_seed(0)
    chosen = [checkpoint.block_layers(0)[0], checkpoint.block_layers(1)[-1], checkpoint.block_layers(2)[1]]
    added = {(name, way): size * torch.randn(checkpoint.size(name), generator=random)
             for name in chosen for way, size in (("small", 0.003), ("large", 0.01))}
    found = harms(checkpoint, Windows(ids, False, ""), lambda layer, weight: {way: each for (name, way), each in added.items()
                                                                              if name == layer}, draws=8)
    model = of_transformers(folder)
    assert set(found) == set(added)
    for (name, way), change in added.items():
        wanted = slow.divergence(model, name, change.t() if checkpoint.is_transposed(name) else change, ids)
        assert found[name, way] == pytest.approx(wanted, rel=0.35), (name, way)


def test_harms_of_an_encoder_are_cosines_lost(models: Models) -> None:
    checkpoint, ids, random = open_checkpoint(models("bert")), tokens(16, 8), torch.Generator().manual_seed(0)
    chosen = [checkpoint.block_layers(0)[0], checkpoint.block_layers(1)[-1], checkpoint.block_layers(2)[3]]
    added = {name: 0.01 * torch.randn(checkpoint.size(name), generator=random) for name in chosen}
    found = harms(checkpoint, Windows(ids, False, ""), lambda layer, weight: {"so": added[layer]} if layer in added else {}, draws=16)
    model = of_transformers(models("bert"))
    for name, change in added.items():
        assert found[name, "so"] == pytest.approx(states.drop(model, name, change, ids), rel=0.35), name


def test_a_few_short_windows_are_looked_at() -> None:
    found = short(Windows(tokens(100, 200), True, "a text"))
    assert found.tokens.shape == (32, LENGTH)
    assert (found.starts, found.source) == (True, "a text")
    assert torch.equal(found.tokens[-1], tokens(100, 200)[-1, :LENGTH])


def test_layers_that_are_not_named_are_not_looked_at(models: Models) -> None:
    checkpoint = open_checkpoint(models("llama"))
    names = checkpoint.block_layers(1)[:2]
    found = sensitivities(checkpoint, names, [2, 4], tokens(8, 16).numpy(), block=16, symmetric=True)
    assert set(found.harms) == set(found.numbers) == set(names)
    for name in names:
        assert found.harms[name][2] > 4 * found.harms[name][4] > 0
        assert found.numbers[name] == np.prod(checkpoint.size(name))


# -- the allotment --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", [2.0, 2.5, 3.3, 4.0, 6.0, 8.0])
def test_no_other_choice_does_less_harm(average: float) -> None:
    for seed in range(4):
        random = np.random.default_rng(seed)
        numbers = {f"layer {at}": int(random.integers(100, 5000)) for at in range(6)}
        found_harms = {name: {bits: float(random.uniform(0.001, 1) * 4.0**-bits) for bits in (2, 3, 4, 8)} for name in numbers}
        chosen = mixed(Sensitivities(found_harms, numbers), HOST, average=average)
        least, _ = slow.least_harm(found_harms, numbers, average)
        assert sum(bits * numbers[name] for name, bits in chosen.items()) <= average * sum(numbers.values()) + 1e-6
        assert sum(found_harms[name][bits] for name, bits in chosen.items()) == pytest.approx(least, rel=1e-4)


def test_only_the_widths_that_are_allowed_are_given() -> None:
    view = Sensitivities({"a": {3: 1.0, 4: 0.5}, "b": {3: 2.0, 4: 0.1}}, {"a": 10, "b": 10})
    assert mixed(view, HOST, average=3.5, widths="3,4") == {"a": 3, "b": 4}
    with pytest.raises(Refused, match="at least 3"):
        mixed(view, HOST, average=2.5, widths="3,4")


# -- through a checkpoint -------------------------------------------------------------------------------------------------------


def test_the_step_becomes_a_step_for_each_width(models: Models, tmp_path: Path) -> None:
    checkpoint, text = open_checkpoint(models("llama")), saved_tokens(tmp_path)
    table = Step("rtn", layers=("model.embed_tokens",), options=FrozenMap({"bits": 8}))
    steps = allotted(checkpoint, Recipe((table, *step(average=3.0).steps)), HOST, text).steps
    assert steps[0] == table
    assert {each.technique for each in steps[1:]} == {"gptq"}
    assert all(each.options == {"bits": each.options["bits"], "block": 16, "symmetric": True, "samples": 12} for each in steps[1:])
    names = [name for each in steps[1:] for name in each.layers]
    assert sorted(names) == sorted(name for index in range(3) for name in checkpoint.block_layers(index))
    bits = {name: each.options["bits"] for each in steps[1:] for name in each.layers}
    assert len(set(bits.values())) > 1
    total = sum(np.prod(checkpoint.size(name)) * bits[name] for name in names) / sum(np.prod(checkpoint.size(name)) for name in names)
    assert 2.8 < total <= 3.0


@pytest.mark.parametrize(("average", "widths"), [(3.5, {3, 4}), (4.0, {4}), (5.0, {4, 8}), (8.0, {8})])
def test_a_plan_has_the_average_before_any_text_is_read(models: Models, average: float, widths: set[int]) -> None:
    checkpoint = open_checkpoint(models("llama"))
    steps = foreseen(checkpoint, step(average=average)).steps
    bits = {name: each.options["bits"] for each in steps for name in each.layers}
    assert set(bits.values()) == widths
    sizes = {name: np.prod(checkpoint.size(name)) for index in range(3) for name in checkpoint.block_layers(index)}
    assert set(bits) == set(sizes)
    assert average - 0.3 < sum(bits[name] * size for name, size in sizes.items()) / sum(sizes.values()) <= average


def test_layers_are_rounded_with_their_bits(models: Models, tmp_path: Path) -> None:
    checkpoint, text = open_checkpoint(models("qwen3")), saved_tokens(tmp_path)
    bits = {name: each.options["bits"] for each in allotted(checkpoint, step(average=3.5), HOST, text).steps for name in each.layers}
    for by in ("rtn", "awq"):
        made = apply_to_checkpoint(checkpoint, step(average=3.5, by=by), HOST, out=tmp_path / by, calibration=text)
        assert {name: layout.bits for name, layout in made.layouts.items()} == bits
        for name, width in bits.items() if by == "rtn" else ():  # awq's factors are in the weights
            error = float((made.weight(name) - checkpoint.weight(name)).norm() / checkpoint.weight(name).norm())
            assert error < 2.5 * 2.0**-width, name


def test_steps_of_one_technique_that_follow_each_other_are_one(models: Models) -> None:
    checkpoint = open_checkpoint(models("llama"))
    last, first = ("*.down_proj",), ("*.q_proj",)
    steps = resolve(checkpoint, Recipe((Step("gptq", last, options=FrozenMap({"bits": 3})), Step("gptq", first))), HOST)
    assert len(steps) == 1
    bits = {name.rpartition(".")[2]: options["bits"] for name, options in steps[0].options.items()}
    assert bits == {"down_proj": 3, "q_proj": 4}
    assert set(steps[0].foresights) == set(steps[0].options)
    twice = resolve(checkpoint, Recipe((Step("gptq", first), Step("gptq", first))), HOST)
    assert len(twice) == 2


def test_the_same_text_gives_the_same_recipe(models: Models, tmp_path: Path) -> None:
    checkpoint, text = open_checkpoint(models("gemma")), saved_tokens(tmp_path)
    assert allotted(checkpoint, step(), HOST, text) == allotted(checkpoint, step(), HOST, text)


def test_without_text_it_is_refused(models: Models) -> None:
    with pytest.raises(Refused, match="--calibration"):
        allotted(open_checkpoint(models("llama")), step(), HOST)


def test_it_foresees_the_average() -> None:
    found = foresee(Layer("x", "Linear", weight_shape=(8, 6)), HOST, average=3.5, block=32)
    assert "3.5 on average" in found.note
    assert found.block == 32
    assert not foresee(Layer("x", "Embedding", weight_shape=(8, 6)), HOST).applies
