"""Layers that read their inputs in int8, a scale for each token: simulated as they are stored, and read by others as simulated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.checkpoint.conftest import HOST, Models
from tests.checkpoint.made_up_models import WIDTH, changed_copy, config_of, of_transformers, tokens, with_weights_of
from tests.checkpoint.test_apply_checkpoint import applied, linear, step
from tests.checkpoint.test_skeleton import streamed
from tests.slow_papers import int8_inputs as paper
from torch import Tensor, nn

from whet.compress.checkpoint import Checkpoint, open_checkpoint
from whet.compress.checkpoint.block import BlockAtWork
from whet.compress.checkpoint.compare import compare_checkpoints
from whet.compress.checkpoint.hf_export import export_hf
from whet.compress.checkpoint.sensitivity import harms
from whet.compress.checkpoint.skeleton import Skeleton
from whet.compress.checkpoint.stored import Layout
from whet.compress.checkpoint.text import Windows
from whet.compress.fake import by_token
from whet.compress.grid import Quantised, quantise, token_grid, weight_grid
from whet.compress.technique import LayerView, technique
from whet.core.errors import Refused, Unsupported
from whet.core.recipe import Step

pytestmark = pytest.mark.usefixtures("one_torch_thread")
EIGHT = {"bits": 8, "activations": 8}
W8A8 = Layout("int", 8, activations=8)


def gptq(*layers: str, **options: Any) -> Step:
    return step("gptq", *layers, enough=0.0, **options)


def reading_slowly(model: nn.Module, layers: list[str]) -> nn.Module:
    """The model with what these layers read rounded by the slow paper."""
    def hook(module: nn.Module, read: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        flat = read[0].reshape(-1, read[0].shape[-1]).numpy()
        return (torch.from_numpy(paper.rounded(flat)).reshape(read[0].shape),)

    for layer in layers:
        model.get_submodule(layer).register_forward_pre_hook(hook)
    return model


def given(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found = model(ids)
    return found.logits if "logits" in found else found.last_hidden_state


# -- the numbers -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "width"), [(1, 1), (7, 64), (300, 129)])  # the last one in more than one piece
def test_every_token_lies_on_the_grid_of_the_slow_paper(count: int, width: int) -> None:
    random = np.random.default_rng(0)
    inputs = (random.standard_normal((count, width)) * np.exp(random.uniform(-9, 9, (count, 1)))).astype(np.float32)
    inputs[count // 2] = 0.0
    inputs[0, 0] = 127.5 * 4  # the scale of that token is 4 and half a step is 2
    inputs[0, 1:] = np.linspace(-510, 510, width - 1).round() // 2 * 2
    found = by_token(torch.from_numpy(inputs))
    assert np.array_equal(found.numpy(), paper.rounded(inputs))
    shaped = by_token(torch.from_numpy(inputs).reshape(1, count, width))
    assert torch.equal(shaped[0], found)


def test_the_product_is_that_of_integers() -> None:
    random = np.random.default_rng(1)
    inputs, weight = random.standard_normal((9, 40)).astype(np.float32), random.standard_normal((6, 40)).astype(np.float32)
    made = technique("rtn").apply(LayerView("x", "Linear", weight, scales="float16"), HOST, **technique("rtn").checked(EIGHT))
    assert made.compute == "dynamic"
    assert isinstance(made.weight, Quantised)
    found = by_token(torch.from_numpy(inputs)).double() @ torch.from_numpy(made.weight.values).double().t()
    np.testing.assert_allclose(found, paper.product(inputs, made.weight.codes, made.weight.grid.scale), rtol=1e-6, atol=1e-6)


def test_gradients_pass_as_if_nothing_was_rounded() -> None:
    inputs = torch.randn(3, 5, requires_grad=True)
    (by_token(inputs) * torch.arange(5.0)).sum().backward()
    assert torch.equal(inputs.grad, torch.arange(5.0).expand(3, 5))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused(wrong: float) -> None:
    with pytest.raises(Refused, match="NaN or infinity"):
        token_grid(np.array([[1.0, wrong]], np.float32))


# -- the model -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rtn", "gptq"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma", "phi3", "bert"])
def test_it_computes_what_the_slow_paper_computes(models: Models, tmp_path: Path, kind: str, name: str) -> None:
    before = open_checkpoint(models(kind))
    made = applied(before.folder, tmp_path / "out", gptq(**EIGHT) if name == "gptq" else step("rtn", **EIGHT),
                   calibration=tokens(12, seed=1) if name == "gptq" else None)
    assert made.layouts == dict.fromkeys(linear(before), W8A8)
    ids = tokens()
    wanted = given(reading_slowly(with_weights_of(made, before.folder), linear(before)), ids)
    assert torch.equal(streamed(Skeleton(made), ids), wanted)
    assert not torch.allclose(given(with_weights_of(made, before.folder), ids), wanted, rtol=1e-3, atol=1e-4)


def test_layers_of_a_model_differ_in_what_they_read(models: Models, tmp_path: Path) -> None:
    """Two formats in one folder, and a step in groups."""
    folder, ids = models("qwen3"), tokens()
    made = applied(folder, tmp_path / "out", step("rtn", "*.0.*", **EIGHT), step("rtn", "*.1.*", bits=4, block=16),
                   step("rtn", "*.2.mlp.gate_proj", block=16, **EIGHT))
    assert set(made.layouts.values()) == {W8A8, Layout("int", 4, 16), Layout("int", 8, 16, activations=8)}
    slow = reading_slowly(with_weights_of(made, folder), [name for name, layout in made.layouts.items() if layout.activations])
    assert torch.equal(streamed(Skeleton(made), ids), given(slow, ids))
    groups = config_of(made.folder)["quantization_config"]["config_groups"].values()
    assert [group["format"] for group in groups] == ["int-quantized", "pack-quantized", "int-quantized"]


def test_later_blocks_see_what_rounded_inputs_leave(models: Models, tmp_path: Path) -> None:
    """One recipe gives what two runs give, of which the second opens what the first has stored."""
    folder, text = models("llama"), tokens(12, seed=1)
    first = applied(folder, tmp_path / "first", step("rtn", "*.0.*", **EIGHT))
    second = applied(first.folder, tmp_path / "second", gptq("*.1.*"), calibration=text)
    whole = applied(folder, tmp_path / "whole", step("rtn", "*.0.*", **EIGHT), gptq("*.1.*"), calibration=text)
    floats = applied(folder, tmp_path / "floats", step("rtn", "*.0.*", bits=8), gptq("*.1.*"), calibration=text)
    names = second.names_under("model.layers.1")
    assert all(torch.equal(second.tensor(name), whole.tensor(name)) for name in names)
    assert not all(torch.equal(second.tensor(name), floats.tensor(name)) for name in names)


def test_a_later_step_without_it_reads_floats_again(models: Models) -> None:
    checkpoint = open_checkpoint(models("llama"))
    skeleton, layer = Skeleton(checkpoint), "mlp.down_proj"
    hidden = torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(0))
    for late in (False, True):
        skeleton.block(1, late=late)
        block = BlockAtWork(skeleton, 1, late=late)
        weight = block.weight(layer).numpy()
        made = quantise(weight, weight_grid(weight, bits=8, axis=0, scales="float16"))
        block.put(layer, made)
        floats = block.run(hidden)
        for rounds_again in (True, False):
            block.put(layer, made, 8)
            assert not torch.equal(block.run(hidden), floats)
            block.put(layer, made) if rounds_again else block.set_weight(layer, torch.from_numpy(made.values))
            assert torch.equal(block.run(hidden), floats)
        block.put(layer, made, 8)
        block.close()
        skeleton.empty(1)
    assert not skeleton.model.get_submodule(f"model.layers.1.{layer}")._forward_pre_hooks


def test_comparing_and_sensitivities_run_it_as_it_is(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, ids = models("llama"), tokens(6)
    made = applied(folder, tmp_path / "out", step("rtn", **EIGHT))

    def looked() -> tuple[float, float]:
        seen = harms(made, Windows(ids, (), "made up"), lambda layer, weight: {"all": weight * 0.01}, draws=1)
        return compare_checkpoints(folder, made, ids).kl.value or 0.0, sum(seen.values())

    real = looked()
    monkeypatch.setattr(Skeleton, "round_inputs", lambda *_: None)
    floats = looked()
    assert real[0] > 1.2 * floats[0]
    assert real[1] > 0
    assert real[1] != floats[1]


def test_tuning_keeps_it(models: Models, tmp_path: Path) -> None:
    made = applied(models("llama"), tmp_path / "out", gptq(**EIGHT), step("tune", steps=2), calibration=tokens(24, seed=1))
    assert set(made.layouts.values()) == {W8A8}
    assert torch.isfinite(streamed(Skeleton(made), tokens())).all()


# -- on disk ---------------------------------------------------------------------------------------------------------------------------


def test_transformers_gives_the_same_logits(models: Models, tmp_path: Path) -> None:
    """With compressed-tensors, where it is installed."""
    pytest.importorskip("compressed_tensors")
    ids = tokens()
    for name, steps in {"rows": (step("rtn", **EIGHT),), "mixed": (step("rtn", "*.0.*", **EIGHT), step("rtn", "*.1.*", bits=4)),
                        "smoothed": (step("smoothquant"), gptq(**EIGHT))}.items():
        made = applied(models("qwen3"), tmp_path / name, *steps, calibration=tokens(12, seed=1))
        assert torch.equal(given(of_transformers(made.folder), ids), streamed(Skeleton(made), ids)), name


def test_the_words_are_those_of_the_format(models: Models, tmp_path: Path) -> None:
    made = applied(models("llama"), tmp_path / "out", step("rtn", **EIGHT))
    said = config_of(made.folder)["quantization_config"]
    (group,) = said["config_groups"].values()
    assert (said["quant_method"], said["format"]) == ("compressed-tensors", "int-quantized")
    assert group["input_activations"] == {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    assert (group["weights"]["num_bits"], group["weights"]["strategy"]) == (8, "channel")
    layer = "model.layers.0.mlp.down_proj"
    assert (made.entries[f"{layer}.weight"][1].dtype, made.entries[f"{layer}.weight"][1].shape) == ("I8", (32, 44))
    assert (made.entries[f"{layer}.weight_scale"][1].dtype, made.entries[f"{layer}.weight_scale"][1].shape) == ("F16", (32, 1))


def wrong_words(change: Callable[[dict[str, Any]], object]) -> Callable[[Checkpoint, Path], Path]:
    def broken(made: Checkpoint, folder: Path) -> Path:
        said = config_of(made.folder)["quantization_config"]
        change(said)
        return changed_copy(made.folder, folder, config={"quantization_config": said})

    return broken


def wrong_tensor(part: str, tensor: Tensor) -> Callable[[Checkpoint, Path], Path]:
    return lambda made, folder: changed_copy(made.folder, folder, tensors={f"model.layers.1.mlp.down_proj.{part}": tensor})


def group_of(said: dict[str, Any]) -> Any:
    return said["config_groups"]["group_0"]


BROKEN: dict[str, tuple[Callable[[Checkpoint, Path], Path], str]] = {
    "static inputs": (wrong_words(lambda said: group_of(said)["input_activations"].update(dynamic=False)), "another tool"),
    "another format": (wrong_words(lambda said: said.update(format="float-quantized")), "another tool"),
    "four bits": (wrong_words(lambda said: group_of(said)["weights"].update(num_bits=4)), "another tool"),
    "floats": (wrong_tensor("weight", torch.zeros(32, 44)), "of F32"),
    "no matrix": (wrong_tensor("weight", torch.zeros(32, dtype=torch.int8)), r"I8 \[32\]"),
    "one scale for all": (wrong_tensor("weight_scale", torch.ones(1, dtype=torch.float16)), r"F16 \[1\]"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_whet_does_not_write_is_not_opened(models: Models, tmp_path: Path, name: str) -> None:
    make, word = BROKEN[name]
    made = applied(models("llama"), tmp_path / "out", step("rtn", **EIGHT))
    with pytest.raises(Unsupported, match=word):
        open_checkpoint(make(made, tmp_path / "broken"))


def test_the_export_for_transformers_passes_it_on(models: Models, tmp_path: Path) -> None:
    made = applied(models("llama"), tmp_path / "out", step("rtn", **EIGHT))
    assert not export_hf(made, tmp_path / "hf").opened
    back = open_checkpoint(tmp_path / "hf")
    assert back.layouts == made.layouts
    assert torch.equal(streamed(Skeleton(back), tokens()), streamed(Skeleton(made), tokens()))
    gpt2 = applied(models("gpt2"), tmp_path / "gpt2", step("rtn", **EIGHT))
    assert all("reads floats again" in why for why in export_hf(gpt2, tmp_path / "opened").opened.values())


@pytest.mark.parametrize(("options", "layers", "word"), [
    ({"bits": 4, "activations": 8}, (), "8 symmetric bits"), ({"bits": 8, "activations": 8, "symmetric": False}, (), "8 symmetric bits"),
    (EIGHT, ("op:Embedding",), "linear layers in the blocks")])
@pytest.mark.parametrize("name", ["rtn", "gptq"])
def test_what_no_format_holds_is_refused_with_the_reason(models: Models, tmp_path: Path, name: str, options: dict[str, Any],
                                                         layers: tuple[str, ...], word: str) -> None:
    with pytest.raises(Unsupported, match=word):
        applied(models("llama"), tmp_path / "out", step(name, *layers, **options), calibration=tokens(12))
