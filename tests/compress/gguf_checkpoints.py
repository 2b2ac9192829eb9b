"""Small checkpoints for the tests of GGUF: of each family with random weights and a tokenizer, and copies with rounded layers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from whet.compress.checkpoint import Checkpoint, open_checkpoint, stored
from whet.compress.checkpoint.tensor_writer import TensorWriter, shape_of, shards_of
from whet.compress.codebook import Coded
from whet.compress.grid import Floats, Grid, Quantised, quantise, weight_grid

ROWS = 320
TEXT = ("The quick brown fox jumps over 12 lazy dogs; isn't that what they'd say?\n  Once upon a time, there was a little girl named Lily."
        " She loved to play in the park.\n\n\tTom's dog ran 3456 metres.") * 3
QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
          r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")

_SMALL = {"hidden_size": 256, "intermediate_size": 288, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2,
          "vocab_size": ROWS, "max_position_embeddings": 128, "initializer_range": 0.08, "bos_token_id": 1, "eos_token_id": 2,
          "pad_token_id": None}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**_SMALL, "tie_word_embeddings": False, "attention_bias": True},
    "mistral": {**_SMALL, "sliding_window": 64},
    "qwen2": {**_SMALL, "tie_word_embeddings": True},
    "qwen3": {**_SMALL, "head_dim": 64, "tie_word_embeddings": True},
    "gemma": {**_SMALL, "head_dim": 64},
    "phi3": {**_SMALL},
    "gpt2": {"n_embd": 256, "n_layer": 3, "n_head": 8, "vocab_size": ROWS, "n_positions": 128, "initializer_range": 0.08,
             "bos_token_id": 1, "eos_token_id": 2},
}


def random_checkpoint(folder: Path, kind: str, **changed: Any) -> Checkpoint:
    """A model of the family with random weights, norms and biases, as transformers saves it, and a tokenizer of its kind."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**FAMILIES[kind], **changed}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    save_tokenizer(folder, pieces() if kind in ("llama", "mistral", "gemma", "phi3") else byte_level(
        {"gpt2": None, "qwen2": QWEN, "qwen3": QWEN}[kind]))
    return open_checkpoint(folder)


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    words = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": "{{ messages[0]['content'] }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))


def byte_level(pattern: str | None, *, digits: bool = False) -> Tokenizer:
    """Byte-level BPE that cuts words by the pattern, or as GPT-2 does."""
    tokenizer = Tokenizer(models.BPE())
    cuts: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if pattern is None:
        cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    else:
        cuts += [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    tokenizer.pre_tokenizer = cuts[0] if len(cuts) == 1 else pre_tokenizers.Sequence(cuts)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=ROWS - 10, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_tokens(["<tool>"])
    return tokenizer


def pieces(first: str = "▁") -> Tokenizer:
    """BPE with bytes to fall back to, as converted from sentencepiece. first: what is put before a text."""
    content: dict[str, int] = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>"])}
    content |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    merges: list[tuple[str, str]] = []
    for letter in "▁etaohnisr":
        content[letter] = len(content)
    for left, right in (("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "a"), ("i", "n"), ("▁", "s"), ("▁t", "o")):
        merges.append((left, right))
        content[left + right] = len(content)
    tokenizer = Tokenizer(models.BPE(content, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps: list[Any] = [normalizers.Prepend(first)] if first else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def half_grid(weight: Floats, *, bits: int, group: int, symmetric: bool) -> Grid:
    """The min-max grid of a weight [out, in] with float16 scales, as checkpoints store them. group 0: the row."""
    found = weight_grid(weight, bits=bits, symmetric=symmetric, axis=1 if group else 0, block=group, either_sign=True)
    return Grid(bits, symmetric, found.scale.astype(np.float16).astype(np.float32), found.zero_point, found.axis, found.block)


def rounded_weight(weight: Floats, *, bits: int, group: int, symmetric: bool = True) -> Quantised:
    return quantise(weight, half_grid(weight, bits=bits, group=group, symmetric=symmetric))


def rounded_copy(source: Checkpoint, folder: Path, rounded: Mapping[str, Quantised | Coded]) -> Checkpoint:
    """The checkpoint with these layers stored rounded."""
    folder.mkdir()
    for file in source.folder.glob("tok*.json"):
        shutil.copy(file, folder)
    tensors: dict[str, torch.Tensor] = {}
    for name in source.entries:
        layer = name.removesuffix(".weight")
        tensors |= stored.tensors(layer, rounded[layer]) if layer in rounded else {name: source.tensor(name)}
    with TensorWriter(folder, shards_of(shape_of(name, tensor) for name, tensor in tensors.items())) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    layouts = {name: stored.layout_of(weight) for name, weight in rounded.items()}
    (folder / "config.json").write_text(json.dumps({**source.config, "quantization_config": stored.described(layouts, ())}))
    return open_checkpoint(folder)


def all_rounded(source: Checkpoint, folder: Path, *, bits: int, group: int, symmetric: bool = True) -> Checkpoint:
    """The checkpoint with every linear layer of its blocks rounded."""
    names = [name for index in range(source.block_count) for name in source.block_layers(index)]
    return rounded_copy(source, folder, {
        name: rounded_weight(source.weight(name).numpy(), bits=bits, group=group, symmetric=symmetric) for name in names})


def logits(checkpoint: Checkpoint, weights: Mapping[str, torch.Tensor], ids: list[int]) -> torch.Tensor:
    """float64 log-probabilities [tokens, rows] of transformers' model with these weights, by name."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).float().eval()
    found = model.load_state_dict(dict(weights), strict=False)
    assert not found.unexpected_keys
    assert set(found.missing_keys) <= {"lm_head.weight"}
    model.tie_weights()
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)


def divergence(of: torch.Tensor, against: torch.Tensor) -> float:
    """Mean KL divergence in nats."""
    return float((of.exp() * (of - against)).sum(-1).mean())
