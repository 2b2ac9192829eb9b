"""A folder is opened as it is, or refused with what is wrong in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoint.conftest import Models
from tests.checkpoint.made_up_models import KINDS, changed_copy, config_of, of_transformers

from whet.compress.bodies import checkpoint_in
from whet.compress.checkpoint import Checkpoint, is_checkpoint, open_checkpoint
from whet.compress.checkpoint.families import FAMILIES, family_of
from whet.compress.checkpoint.layers import inventory, weighted
from whet.compress.checkpoint.tensor_writer import INDEX_NAME
from whet.core.errors import Refused, Unsupported, WhetError

pytestmark = pytest.mark.usefixtures("one_torch_thread")


# -- what is in it ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_those_of_the_model_and_weights_lie_out_by_in(models: Models, kind: str) -> None:
    folder = models(kind)
    found, model = open_checkpoint(folder), of_transformers(folder)
    names = [name for index in range(found.block_count) for name in found.block_layers(index)]
    linear = {name for name, module in model.named_modules() if type(module).__name__ in ("Linear", "Conv1D")}
    assert set(names) == {name for name in linear if name.startswith(f"{found.family.blocks}.")}
    assert len(names) == len(set(names))
    for name in names:
        weight: torch.Tensor = model.get_submodule(name).weight  # type: ignore[assignment]
        wanted = weight.t() if kind == "gpt2" else weight
        assert torch.equal(found.weight(name), wanted)
        assert found.size(name) == tuple(wanted.shape)
        assert found.rounded(name) is None
    modules = dict(model.named_modules())
    known = (found.family.embedding, found.family.norm, found.family.head, *found.family.positions)
    assert all(name in modules for name in known if name)
    norms = [each.norm for each in found.family.readers if each.norm]
    assert all(f"{found.block_name(0)}.{norm}" in modules for norm in norms)


@pytest.mark.parametrize(("kind", "changed", "tied"), [
    ("llama", {"tie_word_embeddings": False}, False), ("llama", {"tie_word_embeddings": True}, True), ("gemma", {}, True),
    ("gpt2", {}, True), ("gpt2", {"tie_word_embeddings": False}, False), ("bert", {}, False),
])
def test_a_head_is_tied_where_there_is_none(models: Models, kind: str, changed: dict[str, Any], tied: bool) -> None:
    assert open_checkpoint(models(kind, **changed)).tied == tied


def test_names_without_the_prefix_get_it(models: Models) -> None:
    with_it, without = open_checkpoint(models("gpt2")), open_checkpoint(models("gpt2", bare=True))
    assert with_it.entries.keys() == without.entries.keys()
    assert {entry.name.split(".")[0] for _, entry in without.entries.values()} == {"h", "wte", "wpe", "ln_f"}


def test_an_encoder_with_a_prefix_loses_it(models: Models, tmp_path: Path) -> None:
    folder = models("bert")
    shutil.copytree(folder, tmp_path / "x")
    tensors = {f"bert.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file({**tensors, "cls.predictions.bias": torch.zeros(3)}, tmp_path / "x" / "model.safetensors")
    found = open_checkpoint(tmp_path / "x")
    assert found.entries.keys() == {*open_checkpoint(folder).entries, "cls.predictions.bias"}


def test_norms_of_the_first_encoders_have_other_names(models: Models, tmp_path: Path) -> None:
    """transformers reads gamma and beta as weight and bias, and so do we."""
    folder = models("bert")
    shutil.copytree(folder, tmp_path / "x")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = {next((name.replace(new, was) for new, was in old.items() if new in name), name): tensor
               for name, tensor in load_file(folder / "model.safetensors").items()}
    assert sum(name.endswith(("gamma", "beta")) for name in tensors) == 2 * (1 + 2 * 3)
    save_file({f"bert.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "x" / "model.safetensors")
    found, whole = open_checkpoint(tmp_path / "x"), open_checkpoint(folder)
    assert found.entries.keys() == whole.entries.keys()
    assert all(torch.equal(found.tensor(name), whole.tensor(name)) for name in whole.entries)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_dtype_is_that_of_the_weights(models: Models, dtype: torch.dtype) -> None:
    found = open_checkpoint(models("qwen3", dtype=dtype))
    assert found.dtype == dtype
    assert found.weight("model.layers.0.mlp.up_proj").dtype == torch.float32


def test_shards_are_one_model(models: Models) -> None:
    whole, cut = open_checkpoint(models("llama")), open_checkpoint(models("llama", shard="20KB"))
    assert len(cut.files) > 3
    assert cut.entries.keys() == whole.entries.keys()
    assert all(torch.equal(cut.tensor(name), whole.tensor(name)) for name in whole.entries)


def test_a_folder_an_open_one_and_nothing_else_is_a_checkpoint(models: Models, tmp_path: Path) -> None:
    folder = models("llama")
    found = open_checkpoint(folder)
    assert open_checkpoint(found) is found
    assert is_checkpoint(folder)
    assert is_checkpoint(str(folder))
    assert is_checkpoint(found)
    assert not is_checkpoint(tmp_path)
    assert not is_checkpoint(3)
    assert checkpoint_in(found) is found
    assert isinstance(checkpoint_in(str(folder)), Checkpoint)
    assert checkpoint_in(tmp_path) is None
    assert checkpoint_in(object()) is None


def test_the_inventory_counts_every_parameter_once(models: Models) -> None:
    for kind in ("llama", "gpt2", "gemma", "bert"):
        folder = models(kind)
        found = inventory(open_checkpoint(folder))
        assert found.parameters == sum(each.numel() for each in of_transformers(folder).parameters())
        assert found.weight_bytes == 4 * found.parameters
        assert found.file_bytes == (folder / "model.safetensors").stat().st_size
        assert len({layer.name for layer in found.layers}) == len(found.layers)


def test_tables_heads_and_linear_layers_may_be_rounded(models: Models) -> None:
    ops = {kind: [layer.op for layer in weighted(open_checkpoint(models(kind)))] for kind in ("llama", "gemma", "bert")}
    assert {kind: ops[kind].count("Linear") for kind in ops} == {"llama": 21, "gemma": 21, "bert": 18}
    assert {kind: (ops[kind].count("Embedding"), ops[kind].count("Head")) for kind in ops} == {
        "llama": (1, 1), "gemma": (1, 0), "bert": (1, 0)}


# -- what is wrong with it -------------------------------------------------------------------------------------------------------------


def refused(folder: Path, word: str, kind: type[WhetError] = Refused) -> str:
    with pytest.raises(kind, match=word) as told:
        open_checkpoint(folder)
    return str(told.value)


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    refused(tmp_path, r"no config\.json in it")


@pytest.mark.parametrize(("text", "word"), [("{", "is no JSON"), ("[]", "is no table"), ("3", "is no table"), ("\xff", "is no JSON")])
def test_a_config_that_is_none(models: Models, tmp_path: Path, text: str, word: str) -> None:
    shutil.copytree(models("llama"), tmp_path / "x")
    (tmp_path / "x" / "config.json").write_bytes(text.encode("latin-1"))
    refused(tmp_path / "x", word)


@pytest.mark.parametrize(("config", "word"), [
    ({"model_type": "mamba"}, 'model_type "mamba"'), ({"model_type": None}, "model_type"), ({"model_type": ""}, "no model_type"),
])
def test_an_unknown_family(models: Models, tmp_path: Path, config: dict[str, Any], word: str) -> None:
    told = refused(changed_copy(models("llama"), tmp_path / "x", config=config), word, Unsupported)
    assert "llama" in told
    assert "export it to ONNX" in told


def test_every_model_type_has_one_row() -> None:
    for family in FAMILIES:
        assert all(family_of({"model_type": kind}) is family for kind in family.model_types)


def test_no_safetensors(models: Models, tmp_path: Path) -> None:
    shutil.copytree(models("llama"), tmp_path / "x")
    (tmp_path / "x" / "model.safetensors").rename(tmp_path / "x" / "pytorch_model.bin")
    assert "save_pretrained" in refused(tmp_path / "x", "no safetensors files")


def test_a_missing_shard(models: Models, tmp_path: Path) -> None:
    shutil.copytree(models("llama", shard="20KB"), tmp_path / "x")
    first = sorted((tmp_path / "x").glob("*.safetensors"))[1]
    first.unlink()
    refused(tmp_path / "x", rf"1 of \d+ files missing, first {first.name}")


def test_a_shard_cut_short(models: Models, tmp_path: Path) -> None:
    shutil.copytree(models("llama", shard="20KB"), tmp_path / "x")
    last = sorted((tmp_path / "x").glob("*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-1])
    assert last.name in refused(tmp_path / "x", "cut short")


@pytest.mark.parametrize("index", ["{", "{}", "[]", "3", '{"weight_map": 3}', '{"weight_map": {"a": 3}}',
                                   '{"weight_map": {"a": [], "b": "c"}}', '{"weight_map": {"a": "../../x.safetensors"}}'])
def test_a_broken_index(models: Models, tmp_path: Path, index: str) -> None:
    shutil.copytree(models("llama"), tmp_path / "x")
    (tmp_path / "x" / INDEX_NAME).write_text(index)
    refused(tmp_path / "x", f"a broken {INDEX_NAME}")


def test_a_tensor_in_two_files(models: Models, tmp_path: Path) -> None:
    shutil.copytree(models("llama"), tmp_path / "x")
    save_file({"model.norm.weight": torch.ones(32)}, tmp_path / "x" / "other.safetensors")
    assert "model.norm.weight in model.safetensors and in other.safetensors" in refused(tmp_path / "x", "download the checkpoint again")


@pytest.mark.parametrize(("config", "word"), [
    ({"num_hidden_layers": 4}, "no tensors of block 3.*speaks of 4 blocks"), ({"num_hidden_layers": 2}, "tensors of block 2.*2 blocks"),
    ({"vocab_size": 100}, "a table of 96 tokens of 32 numbers, and config.json says 100 and 32"), ({"hidden_size": 64}, "says 96 and 64"),
    ({"num_hidden_layers": "three"}, "num_hidden_layers"), ({"num_hidden_layers": None}, "num_hidden_layers"),
    ({"num_hidden_layers": 0}, "tensors of block 2"),
])
def test_a_config_of_another_model(models: Models, tmp_path: Path, config: dict[str, Any], word: str) -> None:
    assert "config.json" in refused(changed_copy(models("llama"), tmp_path / "x", config=config), word)


@pytest.mark.parametrize("table", [None, torch.ones(96), torch.ones(2, 3, 4)])
def test_a_table_that_is_missing_or_none(models: Models, tmp_path: Path, table: torch.Tensor | None) -> None:
    refused(changed_copy(models("llama"), tmp_path / "x", tensors={"model.embed_tokens.weight": table}),
            r"no table model\.embed_tokens")


def test_a_hole_between_blocks(models: Models, tmp_path: Path) -> None:
    names = [name for name in open_checkpoint(models("llama")).entries if ".1." in name]
    refused(changed_copy(models("llama"), tmp_path / "x", tensors=dict.fromkeys(names)), "no tensors of block 1")


@pytest.mark.parametrize("words", [
    {"quant_method": "gptq", "bits": 4, "group_size": 128}, {"quant_method": "awq", "bits": 4}, {"quant_method": "fp8"}, {}, 3,
    {"quant_method": "bitsandbytes", "load_in_4bit": True}, {"quant_method": "compressed-tensors", "config_groups": {"group_0": {}}},
    {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": {
        "targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 128, "symmetric": True, "strategy": "group", "type": "int"}}}},
    {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"targets": ["model.layers.0.mlp.up_proj"], "weights": {
        "num_bits": 4, "symmetric": True}}}},
])
def test_weights_that_another_tool_rounded(models: Models, tmp_path: Path, words: Any) -> None:
    folder = changed_copy(models("llama"), tmp_path / "x", config={"quantization_config": words})
    with pytest.raises(WhetError, match=r"rounded|quantization_config") as told:
        open_checkpoint(folder)
    assert "original" in str(told.value)


def test_a_tensor_that_is_not_there(models: Models) -> None:
    with pytest.raises(Refused, match=r"read nothing\.weight"):
        open_checkpoint(models("llama")).tensor("nothing.weight")


def test_config_is_read_as_it_is(models: Models) -> None:
    folder = models("llama")
    assert dict(open_checkpoint(folder).config) == config_of(folder) == json.loads((folder / "config.json").read_text())
