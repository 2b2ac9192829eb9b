"""AWQ on the blocks of models: factors moved into norms and layers change nothing, and what is rounded comes nearer for them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoint.conftest import HOST, Models
from tests.checkpoint.made_up_models import ROWS, WIDTH, of_transformers, saved_tokens, tokens, with_weights_of

from whet.compress.checkpoint import open_checkpoint
from whet.compress.checkpoint.apply import apply_to_checkpoint
from whet.compress.checkpoint.block import BlockAtWork
from whet.compress.checkpoint.shows import movable, move
from whet.compress.checkpoint.skeleton import Skeleton
from whet.core.document import FrozenMap
from whet.core.recipe import Recipe, Step

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def awq(**options: Any) -> Step:
    return Step("awq", options=FrozenMap({"bits": 4, "block": 16, **options}))


@pytest.mark.parametrize("kind", ["llama", "gemma", "gemma2", "qwen3", "gpt2", "phi"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_moving_factors_changes_nothing_however_norms_are_stored(models: Models, kind: str, dtype: torch.dtype) -> None:
    checkpoint = open_checkpoint(models(kind, dtype=dtype))
    random, skeleton = torch.Generator().manual_seed(0), Skeleton(checkpoint)
    skeleton.block(0)
    block, hidden = BlockAtWork(skeleton, 0), torch.randn(2, 9, WIDTH, generator=random)
    moved = [readers for readers in block.readers if movable(checkpoint, readers)]
    assert moved
    for readers in moved:
        before, weight = block.run(hidden), block.weight(readers.layers[0])
        move(block, readers, torch.rand(weight.shape[1], generator=random) * 3 + 0.3)
        # A norm's bias is rounded to 16 bits too, and nothing makes up for that.
        bound = 5e-3 if dtype == torch.bfloat16 and (kind in ("gpt2", "phi") or not readers.norm) else 2e-6
        assert float((block.run(hidden) - before).norm() / before.norm()) < bound, readers
        assert not torch.allclose(block.weight(readers.layers[0]), weight, rtol=0.1)


def test_a_norm_that_would_vanish_stays(models: Models) -> None:
    """Gemma stores what is added to 1: in 16 bits, 0.001 of it is nothing."""
    skeleton = Skeleton(open_checkpoint(models("gemma", dtype=torch.bfloat16)))
    skeleton.block(0)
    block, hidden = BlockAtWork(skeleton, 0), torch.randn(2, 9, WIDTH)
    before = block.run(hidden)
    move(block, block.readers[0], torch.full((WIDTH,), 1e6))
    assert float((block.run(hidden) - before).norm() / before.norm()) < 2e-6


def outlying_table(folder: Path) -> None:
    """Make a few channels of what flows between the blocks far larger than the others."""
    from safetensors.torch import load_file, save_file

    held = load_file(folder / "model.safetensors")
    for name in held:
        if name.endswith("layernorm.weight"):
            held[name][::8] *= 20.0
    save_file(held, folder / "model.safetensors", {"format": "pt"})


def test_it_comes_nearer_than_plain_rounding_and_gptq_goes_on_from_it(models: Models, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models("llama"), folder)
    outlying_table(folder)
    checkpoint, text, ids = open_checkpoint(folder), saved_tokens(tmp_path, 40), tokens(4, rows=ROWS, seed=5)
    with torch.no_grad():
        wanted = of_transformers(folder)(ids).logits
    errors = {}
    gptq = Step("gptq", options=FrozenMap({"bits": 8, "block": 16}))
    for name, steps in {"rtn": (Step("rtn", options=FrozenMap({"bits": 4, "block": 16})),), "awq": (awq(),), "gptq": (gptq,),
                        "awq and gptq": (awq(bits=2), gptq)}.items():
        made = apply_to_checkpoint(checkpoint, Recipe(steps), HOST, out=tmp_path / name, calibration=text)
        assert set(made.layouts) == {layer for index in range(3) for layer in checkpoint.block_layers(index)}
        with torch.no_grad():
            errors[name] = float((with_weights_of(made, folder)(ids).logits - wanted).norm() / wanted.norm())
        norm = "model.layers.1.input_layernorm.weight"
        assert torch.equal(made.tensor(norm), checkpoint.tensor(norm)) == ("awq" not in name)
    assert errors["awq"] < 0.8 * errors["rtn"]
    assert errors["awq and gptq"] < 0.3 * errors["awq"]  # from the scaled weights, not from the 2 bits that awq made of them


def test_layers_that_read_one_tensor_may_have_different_bits(models: Models, tmp_path: Path) -> None:
    steps = (Step("awq", ("*.q_proj",), options=FrozenMap({"bits": 8, "block": 16})),
             Step("awq", ("*.k_proj", "*.v_proj"), options=FrozenMap({"bits": 3, "block": 16})))
    made = apply_to_checkpoint(open_checkpoint(models("qwen3")), Recipe(steps), HOST, out=tmp_path / "out",
                               calibration=saved_tokens(tmp_path))
    assert {name.rpartition(".")[2]: layout.bits for name, layout in made.layouts.items()} == {"q_proj": 8, "k_proj": 3, "v_proj": 3}


@pytest.mark.parametrize("at_once", [True, False])
def test_a_layer_that_is_rounded_already_takes_no_factors(models: Models, tmp_path: Path, at_once: bool) -> None:
    """They would be lost: its codes are written, and it is not rounded again."""
    up = Step("rtn", ("*.up_proj",), options=FrozenMap({"bits": 8}))
    down = Step("awq", ("*.down_proj",), options=FrozenMap({"bits": 8, "block": 16}))
    text, checkpoint = saved_tokens(tmp_path), open_checkpoint(models("llama"))
    half = apply_to_checkpoint(checkpoint, Recipe((up,)), HOST, out=tmp_path / "half")
    made = (apply_to_checkpoint(checkpoint, Recipe((up, down)), HOST, out=tmp_path / "made", calibration=text) if at_once else
            apply_to_checkpoint(half, Recipe((down,)), HOST, out=tmp_path / "made", calibration=text))
    assert len(made.layouts) == 6
    for name in half.layouts:
        assert torch.equal(made.weight(name), half.weight(name))
    ids = tokens(4, rows=ROWS, seed=5)
    with torch.no_grad():
        wanted, found = (with_weights_of(model, checkpoint.folder)(ids).logits for model in (half, made))
    assert float((found - wanted).norm() / wanted.norm()) < 0.02
