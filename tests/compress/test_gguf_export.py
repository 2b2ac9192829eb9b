"""A checkpoint as a GGUF file: exact where it can be, said where it is not, and read back as the same model."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.compress.gguf_checkpoints import (
    FAMILIES,
    TEXT,
    all_rounded,
    divergence,
    logits,
    pieces,
    random_checkpoint,
    rounded_copy,
    rounded_weight,
    save_tokenizer,
)

from whet.compress.checkpoint import Checkpoint, open_checkpoint
from whet.compress.checkpoint.apply import apply_to_checkpoint
from whet.compress.checkpoint.gguf import export_gguf, weights_in
from whet.compress.checkpoint.gguf.mixes import MIXES, Place, fitting, type_chosen
from whet.compress.checkpoint.gguf.settings import llama3_divisors
from whet.compress.codebook import coded
from whet.core.document import FrozenMap
from whet.core.errors import Refused, Unsupported
from whet.core.recipe import Recipe, Step
from whet.device.targets import target


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Checkpoint]:
    """A random checkpoint of each family."""
    return {kind: random_checkpoint(tmp_path_factory.mktemp(kind), kind) for kind in FAMILIES}


@pytest.fixture(scope="module")
def stories(assets: Path) -> Checkpoint:
    return open_checkpoint(assets / "stories260K")


def settings(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


# -- the numbers ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_keeps_a_plain_checkpoint_as_it_is(models: Mapping[str, Checkpoint], tmp_path: Path, family: str) -> None:
    report = export_gguf(models[family], tmp_path / "m.gguf")
    assert report.exact
    assert {tensor.type for tensor in report.tensors} == {"F32"}
    found = dict(weights_in(report.path, models[family]))
    assert set(found) == set(models[family].entries)
    for name, weight in found.items():  # gemma's norms are stored with 1 added
        torch.testing.assert_close(weight, models[family].tensor(name), rtol=0, atol=2e-7 if family == "gemma" else 0)


@pytest.mark.parametrize(("bits", "symmetric", "kind"), [(4, True, "Q4_0"), (4, False, "Q5_0"), (8, True, "Q8_0"), (3, False, "Q4_0")])
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_codes_are_kept_bit_for_bit(models: Mapping[str, Checkpoint], tmp_path: Path, family: str, bits: int, symmetric: bool,
                                    kind: str) -> None:
    checkpoint = all_rounded(models[family], tmp_path / "q", bits=bits, group=32, symmetric=symmetric)
    report = export_gguf(checkpoint, tmp_path / "m.gguf")
    assert report.exact
    rounded = [tensor for tensor in report.tensors if tensor.layer in checkpoint.layouts]
    assert {tensor.type for tensor in rounded} == {kind}
    assert len(rounded) == 3 * len(checkpoint.family.layers)
    found = dict(weights_in(report.path, checkpoint))
    for layer in checkpoint.layouts:
        weight = found[f"{layer}.weight"]
        assert torch.equal(weight.t() if checkpoint.is_transposed(layer) else weight, checkpoint.weight(layer))


def test_queries_and_keys_change_places_with_their_scales(models: Mapping[str, Checkpoint], tmp_path: Path) -> None:
    """llama.cpp turns neighbours; transformers turns a row and the one half a head further."""
    checkpoint = all_rounded(models["llama"], tmp_path / "q", bits=4, group=32)
    export_gguf(checkpoint, tmp_path / "m.gguf")
    there = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    for name, layer, heads in (("attn_q", "q_proj", 8), ("attn_k", "k_proj", 2)):
        weight = checkpoint.weight(f"model.layers.1.self_attn.{layer}").numpy()
        bias = checkpoint.tensor(f"model.layers.1.self_attn.{layer}.bias").numpy()
        found = gguf.quants.dequantize(there[f"blk.1.{name}.weight"].data, gguf.GGMLQuantizationType.Q4_0)
        size = len(weight) // heads
        for row in range(len(weight)):
            head, place = divmod(row, size)
            source = head * size + place // 2 + (size // 2 if place % 2 else 0)
            np.testing.assert_array_equal(found[row], weight[source])
            assert there[f"blk.1.{name}.bias"].data[row] == bias[source]
    values = gguf.quants.dequantize(there["blk.1.attn_v.weight"].data, gguf.GGMLQuantizationType.Q4_0)
    np.testing.assert_array_equal(values, checkpoint.weight("model.layers.1.self_attn.v_proj").numpy())


def test_norms_of_gemma_have_one_added(models: Mapping[str, Checkpoint], tmp_path: Path) -> None:
    export_gguf(models["gemma"], tmp_path / "m.gguf")
    there = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    for name, source in (("output_norm", "model.norm"), ("blk.0.ffn_norm", "model.layers.0.post_attention_layernorm")):
        np.testing.assert_array_equal(there[f"{name}.weight"], models["gemma"].tensor(f"{source}.weight").numpy() + np.float32(1))


def test_stories_rounded_computes_the_same(stories: Checkpoint, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    checkpoint = all_rounded(stories, tmp_path / "q", bits=4, group=32)
    report = export_gguf(checkpoint, tmp_path / "m.gguf")
    for tensor in report.tensors:  # 172 columns are no multiple of 32
        assert tensor.exact == ("ffn_down" not in tensor.name), tensor
        assert tensor.type == ("F16" if "ffn_down" in tensor.name else "Q4_0" if tensor.layer in checkpoint.layouts else "F32")
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(stories.folder / "tokenizer.json")).encode(TEXT).ids[:128]
    own = {name: checkpoint.tensor(name) for name in checkpoint.entries if "weight_" not in name}
    own |= {f"{layer}.weight": checkpoint.weight(layer) for layer in checkpoint.layouts}
    wanted = logits(checkpoint, own, ids)
    assert divergence(wanted, logits(checkpoint, dict(weights_in(report.path, checkpoint)), ids)) < 1e-6
    lossy = export_gguf(checkpoint, tmp_path / "k.gguf", kind="q2_k")
    # The embedding in Q8_0, the rest kept.
    assert divergence(wanted, logits(checkpoint, dict(weights_in(lossy.path, checkpoint)), ids)) < 0.01


def test_tables_and_heads_from_codes(models: Mapping[str, Checkpoint], tmp_path: Path) -> None:
    source = models["qwen3"]
    table = rounded_weight(source.weight("model.embed_tokens").numpy(), bits=8, group=0)
    checkpoint = rounded_copy(source, tmp_path / "q", {"model.embed_tokens": table})
    report = export_gguf(checkpoint, tmp_path / "m.gguf")
    assert next(tensor for tensor in report.tensors if tensor.name == "token_embd.weight").type == "Q8_0"
    assert report.exact
    assert "output.weight" not in {tensor.name for tensor in report.tensors}


@pytest.mark.parametrize(("dtype", "kind"), [(torch.bfloat16, "BF16"), (torch.float16, "F16"), (torch.float64, "F32")])
def test_plain_types_are_kept(models: Mapping[str, Checkpoint], tmp_path: Path, dtype: torch.dtype, kind: str) -> None:
    source = models["llama"]
    for file in source.folder.glob("*.json"):
        (tmp_path / file.name).write_text(file.read_text())
    save_file({name: source.tensor(name).to(dtype) for name in source.entries}, tmp_path / "model.safetensors")
    report = export_gguf(tmp_path, tmp_path / "m.gguf")
    assert {tensor.type for tensor in report.tensors if tensor.layer} == {kind}
    assert report.exact  # in float32, as Checkpoint.weight has it


def test_the_report_says_what_was_lost(models: Mapping[str, Checkpoint], tmp_path: Path) -> None:
    checkpoint = models["llama"]
    report = export_gguf(checkpoint, tmp_path / "m.gguf", kind="q4_k_m")
    found = dict(weights_in(report.path, checkpoint))
    for tensor in report.tensors:
        if tensor.layer:
            wanted = checkpoint.weight(tensor.layer)
            lost = float((found[f"{tensor.layer}.weight"] - wanted).norm() / wanted.norm())
            assert tensor.relative_error == pytest.approx(lost, rel=1e-4)
            assert not tensor.exact
        else:
            assert tensor.exact
            assert tensor.relative_error == 0
    assert report.size_bytes == report.path.stat().st_size
    assert sum(tensor.size_bytes for tensor in report.tensors) < report.size_bytes
    assert [tensor.n_bytes for tensor in gguf.GGUFReader(report.path).tensors] == [tensor.size_bytes for tensor in report.tensors]


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path, "llama", intermediate_size=4096, num_hidden_layers=6)
    layer = 4 * 4096 * 256
    tracemalloc.start()
    try:
        export_gguf(checkpoint, tmp_path / "m.gguf", kind="q8_0")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert checkpoint.files[0].path.stat().st_size > 18 * layer
    assert peak < 8 * layer


# -- which type -------------------------------------------------------------------------------------------------------------------


def test_a_mix_gives_more_bits_where_they_count(models: Mapping[str, Checkpoint], tmp_path: Path) -> None:
    types = {tensor.name: tensor.type for tensor in export_gguf(models["llama"], tmp_path / "m.gguf", kind="q4_k_m").tensors}
    assert types["output.weight"] == "Q6_K"
    assert types["token_embd.weight"] == types["blk.0.attn_q.weight"] == types["blk.0.attn_v.weight"] == "Q4_K"
    assert types["blk.2.attn_v.weight"] == "Q6_K"
    assert (types["blk.0.ffn_down.weight"], types["blk.2.ffn_down.weight"]) == ("Q5_0", "Q8_0")  # rows of 288
    assert types["blk.0.attn_q.bias"] == types["output_norm.weight"] == "F32"
    tied = {tensor.name: tensor.type for tensor in export_gguf(models["qwen2"], tmp_path / "t.gguf", kind="q4_k_m").tensors}
    assert tied["token_embd.weight"] == "Q6_K"
    fused = {tensor.name: tensor.type for tensor in export_gguf(models["gpt2"], tmp_path / "f.gguf", kind="q4_k_m").tensors}
    assert (fused["blk.0.attn_qkv.weight"], fused["position_embd.weight"]) == ("Q5_K", "F32")


@pytest.mark.parametrize(("kind", "role", "index", "shared", "wanted"), [
    ("q4_k_m", "ffn_down", 0, 1, "Q6_K"), ("q4_k_m", "ffn_down", 4, 1, "Q4_K"), ("q4_k_m", "ffn_down", 6, 1, "Q6_K"),
    ("q4_k_m", "ffn_down", 28, 1, "Q6_K"), ("q4_k_m", "ffn_up", 0, 1, "Q4_K"), ("q4_k_s", "attn_v", 3, 1, "Q5_K"),
    ("q4_k_s", "attn_v", 4, 1, "Q4_K"), ("q4_k_s", "ffn_down", 3, 1, "Q5_K"), ("q3_k_m", "attn_v", 1, 1, "Q5_K"),
    ("q3_k_m", "attn_v", 2, 1, "Q4_K"), ("q3_k_m", "ffn_down", 1, 1, "Q5_K"), ("q3_k_m", "ffn_down", 2, 1, "Q4_K"),
    ("q2_k", "attn_v", 0, 1, "Q3_K"), ("q2_k", "attn_v", 0, 4, "Q4_K"), ("q2_k", "ffn_gate", 0, 1, "Q2_K"),
    ("q8_0", "output", 0, 1, "Q8_0"), ("q4_0", "output", 0, 1, "Q6_K")])
def test_the_rules_of_mixes(kind: str, role: str, index: int, shared: int, wanted: str) -> None:
    assert MIXES[kind].type_of(Place(role, index, 32, shared)) == wanted


@pytest.mark.parametrize(("kind", "columns", "wanted"), [
    ("Q4_K", 512, "Q4_K"), ("Q4_K", 288, "Q5_0"), ("Q5_K", 288, "Q5_1"), ("Q6_K", 288, "Q8_0"), ("Q2_K", 288, "Q4_0"),
    ("Q3_K", 288, "Q4_0"), ("Q4_K", 172, "F16"), ("Q8_0", 172, "F16"), ("F32", 172, "F32")])
def test_what_stands_in(kind: str, columns: int, wanted: str) -> None:
    assert fitting(kind, columns) == wanted


def test_codes_are_not_rounded_again_where_that_saves_nothing() -> None:
    place = Place("ffn_up", 0, 32, 1)
    assert type_chosen(MIXES["q4_k_m"], place, 512, exact="Q4_0", dtype="") == "Q4_0"
    assert type_chosen(MIXES["q2_k"], place, 512, exact="Q4_0", dtype="") == "Q2_K"
    assert type_chosen(None, place, 512, exact=None, dtype="") == "Q8_0"
    assert type_chosen(None, place, 172, exact=None, dtype="") == "F16"
    assert type_chosen(None, place, 172, exact=None, dtype="BF16") == "BF16"


def test_q4_1_by_name_takes_the_codes(models: Mapping[str, Checkpoint], tmp_path: Path) -> None:
    checkpoint = all_rounded(models["llama"], tmp_path / "q", bits=4, group=32, symmetric=False)
    report = export_gguf(checkpoint, tmp_path / "m.gguf", kind="q4_1")
    rounded = [tensor for tensor in report.tensors if tensor.layer in checkpoint.layouts]
    assert {tensor.type for tensor in rounded} == {"Q4_1"}
    assert max(tensor.relative_error for tensor in rounded) < 1e-3  # only the offsets are rounded, to 11 bits


# -- what else the file says ------------------------------------------------------------------------------------------------------


def test_settings(models: Mapping[str, Checkpoint], tmp_path: Path) -> None:
    export_gguf(models["llama"], tmp_path / "m.gguf", kind="q4_k_m")
    said = settings(tmp_path / "m.gguf")
    wanted = {"general.architecture": "llama", "general.file_type": 15, "general.quantization_version": 2, "llama.block_count": 3,
              "llama.embedding_length": 256, "llama.feed_forward_length": 288, "llama.attention.head_count": 8,
              "llama.attention.head_count_kv": 2, "llama.context_length": 128, "llama.vocab_size": 320, "llama.rope.dimension_count": 32,
              "llama.rope.freq_base": 10000.0, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
              "tokenizer.chat_template": "{{ messages[0]['content'] }}"}
    assert {name: said.get(name) for name in wanted} == wanted
    assert said["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    export_gguf(models["qwen3"], tmp_path / "q.gguf")
    said = settings(tmp_path / "q.gguf")
    assert (said["qwen3.attention.key_length"], said["qwen3.attention.value_length"], said["general.file_type"]) == (64, 64, 0)


def test_a_window_that_llama_cpp_has_not_is_told(models: Mapping[str, Checkpoint], tmp_path: Path) -> None:
    assert "the last 64" in export_gguf(models["mistral"], tmp_path / "m.gguf").notes[0]
    assert export_gguf(models["llama"], tmp_path / "l.gguf").notes == ()


def test_int8_inputs_become_those_of_llama_cpp_from_the_same_codes(models: Mapping[str, Checkpoint], tmp_path: Path) -> None:
    both = Recipe((Step("rtn", options=FrozenMap({"bits": 8, "activations": 8})),))
    made = apply_to_checkpoint(models["llama"], both, target("x86-vnni"), out=tmp_path / "made")
    report = export_gguf(made, tmp_path / "m.gguf")
    assert "for each 32 numbers" in report.notes[0]
    rounded = [tensor for tensor in report.tensors if tensor.layer in made.layouts]
    assert rounded
    assert {(tensor.type, tensor.exact) for tensor in rounded} == {("Q8_0", True)}


def test_llama_3_divisors_are_those_of_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            "rope_theta": 500000.0}
    config = LlamaConfig(hidden_size=512, num_attention_heads=4, rope_parameters=rope, max_position_embeddings=131072)
    scaled = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0].numpy()
    plain = 500000.0 ** -(np.arange(0, 128, 2) / 128)
    divisors = llama3_divisors(plain, 8.0, 1.0, 4.0, 8192)
    np.testing.assert_allclose(plain / divisors, scaled, rtol=1e-5)
    assert divisors[(divisors > 1.01) & (divisors < 7.9)].size > 1


# -- refusals ---------------------------------------------------------------------------------------------------------------------


def changed_copy(source: Checkpoint, folder: Path, **config: Any) -> Path:
    folder.mkdir()
    for file in source.folder.iterdir():
        os.symlink(file, folder / file.name)
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**source.config, **config}))
    return folder


@pytest.mark.parametrize(("config", "found"), [
    ({"model_type": "smollm3"}, 'the family "smollm3"'), ({"hidden_act": "relu"}, 'the activation "relu"'),
    ({"rope_parameters": {"rope_type": "longrope"}}, 'in the way "longrope"')])
def test_what_llama_cpp_does_not_compute(models: Mapping[str, Checkpoint], tmp_path: Path, config: dict[str, Any], found: str) -> None:
    with pytest.raises(Unsupported, match=found):
        export_gguf(changed_copy(models["llama"], tmp_path / "c", **config), tmp_path / "out" / "m.gguf")
    assert not list(tmp_path.glob("out/*"))
    assert not list(tmp_path.glob("out/.*"))


def test_wrong_requests(models: Mapping[str, Checkpoint], tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"end it in \.gguf"):
        export_gguf(models["llama"], tmp_path / "m.bin")
    with pytest.raises(Refused, match=r"no such kind\. use one of auto, f32"):
        export_gguf(models["llama"], tmp_path / "m.gguf", kind="q7")
    without = changed_copy(models["llama"], tmp_path / "c")
    (without / "tokenizer.json").unlink()
    with pytest.raises(Refused, match=r"no tokenizer\.json"):
        export_gguf(without, tmp_path / "m.gguf")
    (tmp_path / "no.gguf").write_bytes(b"nothing of the kind")
    with pytest.raises(Refused, match="no GGUF file"):
        dict(weights_in(tmp_path / "no.gguf", models["llama"]))
    export_gguf(models["gpt2"], tmp_path / "g.gguf")
    with pytest.raises(Refused, match=r"no .* in it"):
        dict(weights_in(tmp_path / "g.gguf", models["llama"]))


def test_nan_is_refused_and_the_old_file_stays(models: Mapping[str, Checkpoint], tmp_path: Path) -> None:
    source = models["llama"]
    folder = changed_copy(source, tmp_path / "c")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors")
    (tmp_path / "m.gguf").write_bytes(b"old")
    with pytest.raises(Refused, match=r"layers\.1\.mlp\.up_proj.*NaN"):
        export_gguf(folder, tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == b"old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["c", "m.gguf"]


def test_more_tokens_than_rows(models: Mapping[str, Checkpoint], tmp_path: Path) -> None:
    folder = changed_copy(models["llama"], tmp_path / "c")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    tokenizer = pieces()
    tokenizer.add_tokens([f"<extra{number}>" for number in range(60)])
    save_tokenizer(folder, tokenizer)
    with pytest.raises(Refused, match="and an embedding of 320"):
        export_gguf(folder, tmp_path / "m.gguf")


def test_large_tensors_go_a_few_rows_at_a_time(models: Mapping[str, Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from whet.compress.checkpoint.gguf import export

    checkpoint = all_rounded(models["llama"], tmp_path / "q", bits=4, group=32)
    whole = export_gguf(checkpoint, tmp_path / "a.gguf", kind="q8_0")
    monkeypatch.setattr(export, "_AT_ONCE", 256 * 7)
    parts = export_gguf(checkpoint, tmp_path / "b.gguf", kind="q8_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    for one, other in zip(parts.tensors, whole.tensors, strict=True):
        assert one.exact == other.exact
        assert one.relative_error == pytest.approx(other.relative_error, rel=1e-6)


def test_code_books_get_eight_bits_and_an_error(models: Mapping[str, Checkpoint], tmp_path: Path) -> None:
    layer = "model.layers.0.mlp.up_proj"
    weight = coded(models["llama"].weight(layer).numpy(), "nf4", block=64, double=True)
    checkpoint = rounded_copy(models["llama"], tmp_path / "q", {layer: weight})
    report = export_gguf(checkpoint, tmp_path / "m.gguf")
    found = next(tensor for tensor in report.tensors if tensor.layer == layer)
    assert (found.type, found.exact) == ("Q8_0", False)
    assert 0 < found.relative_error < 0.01
    kept = dict(weights_in(report.path, checkpoint))[f"{layer}.weight"]
    assert (kept - torch.from_numpy(weight.values)).norm() < 0.01 * kept.norm()
