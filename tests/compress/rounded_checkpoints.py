"""Small checkpoints for tests: random ones of many families, and copies whose layers are rounded by plain rounding."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from whet.compress.checkpoint import Checkpoint, open_checkpoint, stored
from whet.compress.checkpoint.tensor_writer import TensorWriter, shape_of, shards_of
from whet.compress.grid import Quantised, quantise, weight_grid

TINY = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 88, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TINY_GPT2 = {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 64, "vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2}


def random_checkpoint(folder: Path, kind: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
    """A tiny checkpoint of a family with random weights, norms and biases included, as save_pretrained writes it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **{**(TINY_GPT2 if kind == "gpt2" else TINY), **settings})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
    model.to(dtype).save_pretrained(folder)
    return folder


def plain_rounding(bits: int, block: int, *, symmetric: bool = True) -> Callable[[torch.Tensor], Quantised]:
    """Rounds to the nearest number of a grid of float16 scales; block 0 is one scale a row."""

    def rounded(weight: torch.Tensor) -> Quantised:
        grid = weight_grid(weight.numpy(), bits=bits, symmetric=symmetric, axis=1 if block else 0, block=block, either_sign=True)
        return quantise(weight.numpy(), replace(grid, scale=grid.scale.astype(np.float16).astype(np.float32)))

    return rounded


def rounded_checkpoint(source: Path, folder: Path, ways: Mapping[str, Callable[[torch.Tensor], Any]], activations: int = 0) -> Checkpoint:
    """A copy of ``source`` in ``folder``. ways: how a layer is rounded, by the end of its name; the others stay as they are. activations:
    how the rounded ones read their inputs.
    """
    plain = open_checkpoint(source)
    tensors, layouts = {}, {}
    for name in plain.entries:
        layer = name.removesuffix(".weight")
        way = next((way for end, way in ways.items() if layer.endswith(end) and name.endswith(".weight")), None)
        if way is None:
            tensors[name] = plain.tensor(name)
        else:
            weight = way(plain.weight(layer))
            layouts[layer] = stored.layout_of(weight, activations)
            tensors |= stored.tensors(layer, weight, activations)
    folder.mkdir(parents=True)
    shards = shards_of([shape_of(name, tensor) for name, tensor in tensors.items()])
    with TensorWriter(folder, shards) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    config = {**plain.config, "quantization_config": stored.described(layouts, ())}
    (folder / "config.json").write_text(json.dumps(config))
    for file in source.glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)
    return open_checkpoint(folder)


def torch_model(checkpoint: Checkpoint, plain: Path) -> torch.nn.Module:
    """transformers' own model of the checkpoint ``plain``, with the numbers that the codes of ``checkpoint`` stand for in its layers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    for layer in checkpoint.layouts:
        weight = checkpoint.weight(layer)
        model.get_submodule(layer).weight.data = weight.t().contiguous() if checkpoint.is_transposed(layer) else weight
    model.tie_weights()
    return model
