"""The model that is filled block by block computes what transformers' own model computes, number for number."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoint.conftest import Models
from tests.checkpoint.made_up_models import KINDS, changed_copy, of_transformers, tokens
from torch import Tensor, nn

from whet.compress.checkpoint import open_checkpoint
from whet.compress.checkpoint.families import FAMILIES
from whet.compress.checkpoint.skeleton import Skeleton
from whet.core.errors import Refused

pytestmark = pytest.mark.usefixtures("one_torch_thread")
VARIANTS: dict[str, tuple[str, Mapping[str, Any]]] = {
    **{kind: (kind, {}) for kind in KINDS},
    "tied": ("llama", {"tie_word_embeddings": True}),
    "shards": ("qwen3", {"shard": "20KB"}),
    "names without the prefix": ("gpt2", {"bare": True}),
    "bfloat16": ("qwen3", {"dtype": torch.bfloat16}),
    "float16": ("gpt2", {"dtype": torch.float16}),
    "scaled rotary positions": ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0,
                                                              "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                                              "original_max_position_embeddings": 32}}),
}


def streamed(skeleton: Skeleton, ids: Tensor) -> Tensor:
    """What the head gives, one block being in memory at a time."""
    with torch.no_grad():
        hidden = skeleton.embed(ids)
        for index in range(skeleton.checkpoint.block_count):
            skeleton.block(index)
            held = in_memory(skeleton.model)
            assert held
            assert all(name.startswith(f"{skeleton.checkpoint.block_name(index)}.") for name in held)
            hidden = skeleton.run(index, hidden)
            skeleton.empty(index)
        with skeleton.head() as head:
            return head(hidden)


def in_memory(model: nn.Module) -> list[str]:
    """The names of the parameters that are not on the meta device."""
    return [name for name, each in model.named_parameters(remove_duplicate=False) if each.device.type != "meta"]


def test_every_model_type_of_the_table_is_tried() -> None:
    assert set(KINDS) == {kind for family in FAMILIES for kind in family.model_types}


@pytest.mark.parametrize("name", VARIANTS)
def test_blocks_one_by_one_give_what_transformers_gives(models: Models, name: str) -> None:
    kind, changed = VARIANTS[name]
    folder = models(kind, **changed)
    checkpoint, ids = open_checkpoint(folder), tokens()
    skeleton = Skeleton(checkpoint)
    got = streamed(skeleton, ids)
    with torch.no_grad():
        found = of_transformers(folder)(ids)
    wanted = found.last_hidden_state if checkpoint.family.encoder else found.logits
    assert float(wanted.std()) > 0.1
    assert torch.equal(got, wanted)
    assert in_memory(skeleton.model) == []


def test_an_encoder_needs_no_pooler(models: Models, tmp_path: Path) -> None:
    """What was made of a masked language model has none in its files."""
    bare = changed_copy(models("bert"), tmp_path / "x", tensors={"pooler.dense.weight": None, "pooler.dense.bias": None})
    with torch.no_grad():
        wanted = of_transformers(models("bert"))(tokens()).last_hidden_state
    assert torch.equal(streamed(Skeleton(open_checkpoint(bare)), tokens()), wanted)


def test_another_length_and_another_number_of_windows(models: Models) -> None:
    """What blocks are called with is kept by length, for a batch of one."""
    folder = models("gemma3_text")
    skeleton, model = Skeleton(open_checkpoint(folder)), of_transformers(folder)
    for count, length in ((4, 9), (1, 30), (2, 9)):
        ids = tokens(count, length)
        with torch.no_grad():
            assert torch.equal(streamed(skeleton, ids), model(ids).logits)


def test_the_files_stay_as_they_are_and_so_do_the_numbers_in_memory(models: Models) -> None:
    """float32 weights are views of the file; nobody may write into them."""
    checkpoint = open_checkpoint(models("llama"))
    before = {name: checkpoint.tensor(name).clone() for name in checkpoint.entries}
    streamed(Skeleton(checkpoint), tokens())
    assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in before.items())


def test_parameters_of_other_modules_are_made_as_ever(models: Models) -> None:
    Skeleton(open_checkpoint(models("llama")))
    assert nn.Linear(2, 2).weight.device.type == "cpu"


@pytest.mark.parametrize(("kind", "config", "word"), [
    ("llama", {"num_attention_heads": 8}, "q_proj"),
    ("llama", {"num_key_value_heads": 1}, "k_proj"),
    ("llama", {"intermediate_size": 48}, "mlp"),
    ("qwen3", {"head_dim": 8}, "self_attn"),
    ("gpt2", {"n_inner": 48}, "mlp.c_fc"),
    ("bert", {"intermediate_size": 40}, "intermediate.dense"),
])
def test_a_config_that_contradicts_the_tensors_is_refused(models: Models, tmp_path: Path, kind: str, config: dict[str, Any],
                                                          word: str) -> None:
    folder = changed_copy(models(kind), tmp_path / "x", config=config)
    with pytest.raises(Refused, match=word) as told:
        Skeleton(open_checkpoint(folder))
    assert "config.json asks for" in str(told.value)


def test_a_missing_norm_is_refused(models: Models, tmp_path: Path) -> None:
    folder = changed_copy(models("llama"), tmp_path / "x", tensors={"model.norm.weight": None})
    with pytest.raises(Refused, match=r"model\.norm\.weight missing"):
        Skeleton(open_checkpoint(folder))
