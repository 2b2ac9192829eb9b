"""Exported files in llama.cpp itself, where llama-cpp-python is installed (it builds from source; see docs/gguf.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.compress.gguf_checkpoints import (
    FAMILIES,
    LLAMA3,
    QWEN,
    ROWS,
    TEKKEN,
    TEXT,
    all_rounded,
    byte_level,
    divergence,
    logits,
    pieces,
    random_checkpoint,
    save_tokenizer,
)
from tokenizers import AddedToken, Tokenizer

from whet.compress.checkpoint import Checkpoint, open_checkpoint
from whet.compress.checkpoint.gguf import export_gguf, weights_in

llama_cpp = pytest.importorskip("llama_cpp")
IDS = [1, *np.random.default_rng(0).integers(3, ROWS - 20, 40).tolist()]


def by_llama_cpp(path: Path, ids: list[int]) -> torch.Tensor:
    """float64 log-probabilities [tokens, rows]."""
    model = llama_cpp.Llama(str(path), n_ctx=512, logits_all=True, verbose=False, n_threads=1)
    model.eval(ids)
    return torch.log_softmax(torch.from_numpy(model.scores[: len(ids)].copy()).double(), -1)


def compared(checkpoint: Checkpoint, path: Path, ids: list[int]) -> float:
    """Mean KL divergence between transformers' model with the weights of the file and llama.cpp's."""
    torch.set_num_threads(1)
    return divergence(logits(checkpoint, dict(weights_in(path, checkpoint)), ids), by_llama_cpp(path, ids))


# llama.cpp keeps keys and values in float16, and computes with activations of 8 bits where weights are rounded.
@pytest.mark.parametrize(("kind", "most"), [("auto", 2e-5), ("q8_0", 3e-3), ("q4_k_m", 3e-3)])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_the_same(tmp_path: Path, family: str, kind: str, most: float) -> None:
    checkpoint = random_checkpoint(tmp_path, family)
    export_gguf(checkpoint, tmp_path / "m.gguf", kind=kind)
    assert compared(checkpoint, tmp_path / "m.gguf", IDS) < most


def test_llama_3_scaling(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
            "rope_theta": 10000.0}
    checkpoint = random_checkpoint(tmp_path, "llama", rope_parameters=rope)
    export_gguf(checkpoint, tmp_path / "m.gguf")
    assert compared(checkpoint, tmp_path / "m.gguf", IDS) < 2e-5


def test_linear_scaling(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path, "llama", rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0})
    export_gguf(checkpoint, tmp_path / "m.gguf")
    assert compared(checkpoint, tmp_path / "m.gguf", IDS) < 2e-5


@pytest.mark.parametrize("kind", ["q2_k", "q3_k_m", "q4_k_s", "q5_k_m", "q6_k", "q4_0", "q4_1", "q5_0", "q5_1", "f16", "bf16"])
def test_every_kind_computes_the_same(tmp_path: Path, kind: str) -> None:
    checkpoint = random_checkpoint(tmp_path, "llama", intermediate_size=512)
    export_gguf(checkpoint, tmp_path / "m.gguf", kind=kind)
    assert compared(checkpoint, tmp_path / "m.gguf", IDS) < 3e-3


@pytest.mark.parametrize(("bits", "group", "symmetric"), [(4, 32, True), (4, 64, False), (2, 256, False), (3, 256, True), (4, 0, False)])
def test_codes_compute_the_same(tmp_path: Path, bits: int, group: int, symmetric: bool) -> None:
    checkpoint = all_rounded(random_checkpoint(tmp_path / "f", "llama", intermediate_size=512), tmp_path / "q", bits=bits, group=group,
                             symmetric=symmetric)
    assert export_gguf(checkpoint, tmp_path / "m.gguf").exact
    assert compared(checkpoint, tmp_path / "m.gguf", IDS) < 3e-3


@pytest.mark.parametrize("tokenizer", [
    pieces(), pieces(""), byte_level(None), byte_level(None, digits=True), byte_level(QWEN), byte_level(LLAMA3), byte_level(TEKKEN)],
    ids=["pieces", "pieces without a space", "gpt-2", "smollm", "qwen2", "llama-bpe", "tekken"])
def test_text_is_cut_as_by_transformers(tmp_path: Path, tokenizer: Tokenizer) -> None:
    checkpoint = random_checkpoint(tmp_path, "llama")
    tokenizer.add_tokens([AddedToken("<also>", normalized=False)])
    save_tokenizer(tmp_path, tokenizer)
    export_gguf(checkpoint, tmp_path / "m.gguf")
    model = llama_cpp.Llama(str(tmp_path / "m.gguf"), vocab_only=True, verbose=False)
    for text in (TEXT, "Ünïcode — 日本 🙂", "a<also>b </s>"):
        assert model.tokenize(text.encode(), add_bos=False, special=True) == tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(("kind", "most"), [("f16", 1e-5), ("q8_0", 1e-3), ("q4_0", 1e-3), ("q4_k_m", 1e-3)])
def test_stories(assets: Path, tmp_path: Path, kind: str, most: float) -> None:
    checkpoint = open_checkpoint(assets / "stories260K")
    export_gguf(checkpoint, tmp_path / "m.gguf", kind=kind)
    text = (assets / "stories260K/tinystories_val.txt").read_text()[:2000]
    ids = llama_cpp.Llama(str(tmp_path / "m.gguf"), vocab_only=True, verbose=False).tokenize(text.encode(), add_bos=True)
    assert compared(checkpoint, tmp_path / "m.gguf", ids[:256]) < most
