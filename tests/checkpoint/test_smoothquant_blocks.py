"""SmoothQuant on the blocks of models: the function stays, the factors are the paper's, and int8 inputs lose their outliers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.checkpoint.conftest import HOST, Models
from tests.checkpoint.made_up_models import of_transformers, saved_tokens, tokens
from tests.checkpoint.test_apply_checkpoint import applied, linear, raw, step
from tests.checkpoint.test_rounded_inputs import EIGHT, given
from tests.checkpoint.test_skeleton import streamed
from tests.slow_papers import smoothquant as paper
from torch import Tensor, nn

from whet.compress.checkpoint import Checkpoint, open_checkpoint
from whet.compress.checkpoint.shows import movable
from whet.compress.checkpoint.skeleton import Skeleton
from whet.compress.plan import plan
from whet.core.errors import Refused, Unsupported
from whet.core.recipe import Recipe, Step

pytestmark = pytest.mark.usefixtures("one_torch_thread", "known_machine")


def scaled(checkpoint: Checkpoint) -> set[str]:
    """The layers that factors can be given to."""
    return {f"{checkpoint.block_name(index)}.{layer}" for index in range(checkpoint.block_count) for readers in checkpoint.family.readers
            if movable(checkpoint, readers) for layer in readers.layers}


@pytest.mark.parametrize(("kind", "changed"), [
    ("llama", {}), ("llama", {"num_key_value_heads": 4}), ("gemma", {}), ("gemma3_text", {}), ("qwen3", {"dtype": torch.bfloat16}),
    ("gpt2", {}), ("phi", {}), ("phi3", {}), ("bert", {})])
def test_the_function_stays_and_only_what_takes_factors_changes(models: Models, tmp_path: Path, kind: str, changed: dict[str, Any]) -> None:
    before, ids = open_checkpoint(models(kind, **changed)), tokens()
    made = applied(before.folder, tmp_path / "out", step("smoothquant", alpha=0.65), calibration=tokens(12, seed=1))
    assert not made.layouts
    chosen = scaled(before)
    assert chosen
    for layer in linear(before):
        assert (raw(made, f"{layer}.weight") == raw(before, f"{layer}.weight")) is (layer not in chosen | makers(before)), layer
    wanted, found = streamed(Skeleton(before), ids), streamed(Skeleton(made), ids)
    assert float((found - wanted).norm() / wanted.norm()) < (2e-2 if changed.get("dtype") else 2e-6)
    assert torch.equal(given(of_transformers(made.folder), ids), found)


def makers(checkpoint: Checkpoint) -> set[str]:
    """The layers that factors are taken out of."""
    return {f"{checkpoint.block_name(index)}.{readers.maker}" for index in range(checkpoint.block_count)
            for readers in checkpoint.family.readers if readers.maker and movable(checkpoint, readers)}


def inputs_of(model: nn.Module, layer: str, ids: Tensor) -> np.ndarray[Any, Any]:
    """[tokens, in] what a layer reads."""
    seen: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(lambda module, read: seen.append(read[0]))
    given(model, ids)
    hook.remove()
    return seen[0].reshape(-1, seen[0].shape[-1]).numpy()


@pytest.mark.parametrize("kind", ["llama", "gemma", "gpt2"])
@pytest.mark.parametrize("alpha", [0.5, 0.8])
def test_factors_are_those_of_the_paper(models: Models, tmp_path: Path, kind: str, alpha: float) -> None:
    """In every block, for what an earlier one gives is the same with factors or without."""
    before, text = open_checkpoint(models(kind)), tokens(7, seed=1)
    made = applied(before.folder, tmp_path / "out", step("smoothquant", alpha=alpha), calibration=text)
    model = of_transformers(before.folder)
    for block in map(before.block_name, range(before.block_count)):
        for readers in (each for each in before.family.readers if movable(before, each)):
            names = [f"{block}.{layer}" for layer in readers.layers]
            wanted = paper.factors(inputs_of(model, names[0], text), [before.weight(name).numpy() for name in names], alpha)
            for name in names:
                found = (made.weight(name) / before.weight(name)).numpy()
                if name in makers(before):  # its rows are divided by the factors of what reads them
                    found, wanted = found / found[:, :1], wanted / wanted[0]
                np.testing.assert_allclose(found, np.broadcast_to(wanted, found.shape), rtol=1e-3, err_msg=name)
            if readers.norm:
                norm, offset = f"{block}.{readers.norm}.weight", before.family.norm_offset
                ratio = (before.tensor(norm) + offset) / (made.tensor(norm) + offset)
                np.testing.assert_allclose(ratio / ratio[0], wanted / wanted[0], rtol=1e-3)


def with_outliers(source: Path, folder: Path, factor: float) -> Path:
    """A copy that computes the same, with a few channels of what norms give ``factor`` times as large."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    checkpoint, held = open_checkpoint(source), load_file(folder / "model.safetensors")
    for index in range(checkpoint.block_count):
        for readers in (each for each in checkpoint.family.readers if each.norm):
            channels = [3 + index, 17 + index]
            held[f"{checkpoint.block_name(index)}.{readers.norm}.weight"][channels] *= factor
            for layer in readers.layers:
                held[f"{checkpoint.block_name(index)}.{layer}.weight"][:, channels] /= factor
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_int8_inputs_with_outliers_get_back_what_they_lost(models: Models, tmp_path: Path) -> None:
    folder, text, ids = with_outliers(models("llama"), tmp_path / "model", 50.0), saved_tokens(tmp_path), tokens(seed=5)
    wanted, errors = given(of_transformers(folder), ids), {}
    np.testing.assert_allclose(wanted, given(of_transformers(models("llama")), ids), atol=1e-4)
    weights, both = step("rtn", bits=8), step("rtn", **EIGHT)
    for name, steps in {"weights": (weights,), "both": (both,), "smoothed": (step("smoothquant"), both),
                        "smoothed, gptq": (step("smoothquant"), step("gptq", enough=0.0, **EIGHT))}.items():
        made = applied(folder, tmp_path / name, *steps, calibration=text)
        errors[name] = float((streamed(Skeleton(made), ids) - wanted).norm() / wanted.norm())
    even = applied(models("llama"), tmp_path / "even", both)
    without = float((streamed(Skeleton(even), ids) - wanted).norm() / wanted.norm())
    assert errors["both"] > 8 * without
    assert errors["smoothed"] < 1.5 * without
    assert errors["smoothed, gptq"] < 1.5 * without


# -- what it is asked of ---------------------------------------------------------------------------------------------------------------


def test_the_plan_says_what_is_left_alone(models: Models) -> None:
    """Two heads of keys for four of queries: no factor of an input of o_proj has one output of v_proj for itself."""
    found = plan(models("llama"), Recipe((step("smoothquant"), step("rtn", **EIGHT))), target=HOST)
    notes = {layer.name: layer.note for layer in found.layers}
    assert "nothing in front of it" in notes["model.layers.1.self_attn.o_proj"]
    assert notes["model.layers.1.self_attn.q_proj"] == notes["model.layers.1.mlp.down_proj"] == "its input's channels get more equal ranges"
    assert {(layer.technique, layer.activations) for layer in found.layers if layer.op == "Linear"} == {("rtn", "int8")}
    alone = plan(models("llama"), Recipe((step("smoothquant"),)), target=HOST)
    named = {layer.name for layer in alone.layers if layer.technique == "smoothquant"}
    assert named == scaled(open_checkpoint(models("llama")))
    assert alone.bytes_after == alone.bytes_before


@pytest.mark.parametrize(("steps", "kind", "word"), [
    ((step("rtn"), step("smoothquant")), Refused, "before rtn"), ((step("float16"), step("smoothquant")), Refused, "before float16"),
    ((step("smoothquant", insert=True),), Unsupported, "leave insert out"),
    ((step("smoothquant", "*.q_proj"),), Unsupported, "k_proj reads the same tensor"),
    ((step("smoothquant", "*.o_proj"),), Unsupported, "nothing in front of it"),
    ((step("smoothquant", "op:Embedding"),), Unsupported, "does not sum"),
])
def test_what_could_not_be_done_is_refused(models: Models, tmp_path: Path, steps: tuple[Step, ...], kind: type[Exception],
                                           word: str) -> None:
    with pytest.raises(kind, match=word):
        applied(models("llama"), tmp_path / "out", *steps, calibration=tokens(12))


def test_rounded_weights_are_not_multiplied(models: Models, tmp_path: Path) -> None:
    made = applied(models("llama"), tmp_path / "out", step("rtn", "*.0.mlp.down_proj"))
    with pytest.raises(Refused, match="float model"):
        applied(made.folder, tmp_path / "again", step("smoothquant"), calibration=tokens(12))


def test_some_layers_may_be_left_out(models: Models, tmp_path: Path) -> None:
    before = open_checkpoint(models("llama"))
    made = applied(before.folder, tmp_path / "out", step("smoothquant", "*.gate_proj", "*.up_proj"), calibration=tokens(12))
    changed = {name for name in before.entries if raw(made, name) != raw(before, name)}
    assert changed == {f"model.layers.{index}.{name}.weight" for index in range(3)
                       for name in ("mlp.gate_proj", "mlp.up_proj", "post_attention_layernorm")}
