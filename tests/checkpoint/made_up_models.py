"""Made-up language models: of every family, random to the last norm and bias, small enough for a test, as transformers saves them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whet.compress.checkpoint import Checkpoint
from whet.compress.checkpoint.tensor_writer import TensorWriter, shape_of, shards_of

ROWS, WIDTH, LENGTH = 96, 32, 24
# 44 inputs of the second feed-forward layer: no group size divides them. Two heads of keys for four of queries.
_SMALL = {"vocab_size": ROWS, "hidden_size": WIDTH, "intermediate_size": 44, "num_hidden_layers": 3, "num_attention_heads": 4,
          "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GPT2 = {"vocab_size": ROWS, "n_embd": WIDTH, "n_inner": 44, "n_head": 4, "n_layer": 3, "n_positions": 64, "bos_token_id": 1,
         "eos_token_id": 2}
KINDS: Mapping[str, Mapping[str, Any]] = {
    "llama": {**_SMALL, "attention_bias": True, "mlp_bias": True},
    "mistral": {**_SMALL, "sliding_window": 8},
    "qwen2": {**_SMALL, "tie_word_embeddings": True},
    "qwen3": {**_SMALL, "head_dim": 12},
    "smollm3": {**_SMALL, "no_rope_layers": [1, 0, 1]},
    "gemma": {**_SMALL, "head_dim": 16},
    "gemma2": {**_SMALL, "head_dim": 16, "sliding_window": 8},
    "gemma3_text": {**_SMALL, "head_dim": 16, "sliding_window": 8},
    "phi3": _SMALL,
    "phi": {**_SMALL, "num_key_value_heads": 4},
    "gpt2": _GPT2,
    "bert": {**_SMALL, "num_key_value_heads": 4},
}


def made_up(folder: Path, kind: str, *, dtype: torch.dtype = torch.float32, shard: str = "50GB", bare: bool = False,
            **changed: Any) -> Path:
    """The model in ``folder``. shard: the most that a file holds. bare: saved without its head, whose names have no prefix then."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**KINDS[kind], **changed})
    model = (AutoModel if bare or kind == "bert" else AutoModelForCausalLM).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2) if parameter.ndim > 1 else parameter.normal_(0.5, 0.2)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def of_transformers(folder: Path) -> nn.Module:
    """The model as transformers loads it, float32."""
    from transformers import AutoModel, AutoModelForCausalLM

    encoder = config_of(folder)["model_type"] == "bert"
    return (AutoModel if encoder else AutoModelForCausalLM).from_pretrained(folder, dtype=torch.float32).eval()


def with_weights_of(made: Checkpoint, original: Path) -> nn.Module:
    """transformers' model of ``original`` with all numbers that ``made`` stands for in it."""
    model = of_transformers(original)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            layer = name.removesuffix(".weight")
            if layer in made.layouts:
                weight = made.weight(layer)
                parameter.copy_(weight.t() if made.is_transposed(layer) else weight)
            elif name in made.entries:
                parameter.copy_(made.tensor(name).float())
    return model


def tokens(count: int = 3, length: int = LENGTH, *, rows: int = ROWS, seed: int = 0) -> Tensor:
    """[count, length] int64"""
    return torch.randint(3, rows, (count, length), generator=torch.Generator().manual_seed(seed))


def saved_tokens(folder: Path, count: int = 12, length: int = LENGTH) -> Path:
    """A .npy file of tokens."""
    np.save(folder / "tokens.npy", tokens(count, length, seed=1).numpy())
    return folder / "tokens.npy"


def config_of(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "config.json").read_text())
    assert isinstance(found, dict)
    return found


def changed_copy(source: Path, folder: Path, *, config: Mapping[str, Any] | None = None, tensors: Mapping[str, Tensor | None] | None = None,
                 ) -> Path:
    """A copy with other words in config.json, and other tensors by name in its one file (None: without it)."""
    from safetensors.torch import load_file

    shutil.copytree(source, folder)
    (folder / "config.json").write_text(json.dumps({**config_of(source), **(config or {})}))
    if tensors:
        held = {**load_file(source / "model.safetensors"), **tensors}
        kept = {name: tensor for name, tensor in held.items() if tensor is not None}
        (folder / "model.safetensors").unlink()
        with TensorWriter(folder, shards_of(shape_of(name, tensor) for name, tensor in kept.items())) as writer:
            for name, tensor in kept.items():
                writer.write(name, tensor)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """What a folder holds."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
