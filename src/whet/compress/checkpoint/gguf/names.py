"""What a checkpoint's tensors are called in a GGUF file, and what happens to them on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whet.compress.checkpoint.checkpoint import Checkpoint
from whet.compress.checkpoint.gguf.mixes import Place
from whet.compress.checkpoint.gguf.package import gguf_package
from whet.core.errors import Unsupported

# Tables that old files hold and models compute themselves: masks of GPT-2, frequencies of Llama.
_COMPUTED = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp calls a family, and where it differs from transformers. pairs: rotary embeddings turn neighbours (2i, 2i + 1) and not
    (i, i + half), so that the rows of queries and keys change places. activations: those that its code has, as config.json names them.
    """

    name: str
    pairs: bool = False
    activations: tuple[str, ...] = ("silu", "swish")


ARCHITECTURES = {
    "llama": Architecture("llama", pairs=True), "mistral": Architecture("llama", pairs=True),
    "qwen2": Architecture("qwen2"), "qwen3": Architecture("qwen3"), "phi3": Architecture("phi3"),
    "gemma": Architecture("gemma", activations=("gelu", "gelu_pytorch_tanh")),
    "gpt2": Architecture("gpt2", activations=("gelu_new", "gelu_pytorch_tanh"))}


@dataclass(frozen=True)
class Part:
    """A tensor of the file. layer: the linear layer or table whose weight it is, "" for another tensor, which ``source`` names.
    heads: as many runs of rows have their halves interleaved; 0: none. add: what is added to the numbers.
    """

    name: str
    source: str
    layer: str = ""
    heads: int = 0
    add: float = 0.0

    @property
    def is_matrix(self) -> bool:
        """Whether it may be stored rounded. Tables of positions are not: they are small, and llama.cpp wants them in float."""
        return bool(self.layer) and self.name != "position_embd.weight"

    def order(self, rows: int) -> NDArray[np.intp] | None:
        """Which row of the checkpoint each row of the file is, None where they stay."""
        if not self.heads:
            return None
        return np.arange(rows).reshape(self.heads, 2, -1).swapaxes(1, 2).ravel()


def architecture_of(checkpoint: Checkpoint) -> Architecture:
    """Raises Unsupported where the family cannot be written, or computes what llama.cpp's code for it does not."""
    config = checkpoint.config
    asked, kind = f"export {checkpoint.folder} to GGUF", str(config.get("model_type", ""))
    if kind not in ARCHITECTURES:
        raise Unsupported(asked, found=f'the family "{kind}"', do=f"use one of {', '.join(sorted(ARCHITECTURES))}; or export to onnx or hf")
    found = ARCHITECTURES[kind]
    act = config.get("hidden_activation") or config.get("hidden_act") or config.get("activation_function")
    if act is not None and act not in found.activations:
        raise Unsupported(asked, found=f'the activation "{act}", and llama.cpp computes {found.activations[0]} for {kind}',
                          do="export to onnx or hf")
    if config.get("scale_attn_by_inverse_layer_idx") or config.get("add_cross_attention"):
        raise Unsupported(asked, found="attention that llama.cpp's GPT-2 does not have", do="export to onnx or hf")
    return found


def parts_of(checkpoint: Checkpoint) -> tuple[Part, ...]:
    """Every tensor that the file gets, in the order of the checkpoint. Raises Unsupported where one has no name in GGUF."""
    gguf = gguf_package()
    architecture = architecture_of(checkpoint)
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = gguf.get_tensor_name_map(kind, checkpoint.block_count)
    parts = []
    for source, layer in _sources(checkpoint):
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise Unsupported(f"export {checkpoint.folder} to GGUF", found=f"{source}, which has no name there for {architecture.name}",
                              do="export to onnx or hf")
        add = checkpoint.family.norm_offset if source.endswith("norm.weight") else 0.0
        parts.append(Part(name, source, layer, _heads(checkpoint, source) if architecture.pairs else 0, add))
    return tuple(parts)


def place_of(part: Part, checkpoint: Checkpoint) -> Place:
    """Where a matrix stands among the others."""
    words = part.name.removesuffix(".weight").split(".")
    role = "output" if words[0] == "token_embd" and checkpoint.tied else words[-1]
    heads, readers = head_counts(checkpoint)
    return Place(role, int(words[1]) if words[0] == "blk" else 0, checkpoint.block_count, heads // readers)


def head_counts(checkpoint: Checkpoint) -> tuple[int, int]:
    """Heads of queries, and heads of keys and values."""
    heads = int(checkpoint.config.get("num_attention_heads", checkpoint.config.get("n_head", 0)))
    return heads, int(checkpoint.config.get("num_key_value_heads") or heads)


def _sources(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """The name of each tensor in transformers' model, and the layer or table whose weight it is ("" for another)."""
    family = checkpoint.family
    tables = {family.embedding, family.head, *family.positions}
    layers = {name for index in range(checkpoint.block_count) for name in checkpoint.block_layers(index)} | tables | set(checkpoint.layouts)
    done: set[str] = set()
    for name in checkpoint.entries:
        if name.endswith(_COMPUTED):
            continue
        owner = next((layer for layer in _beginnings(name) if layer in layers), "")
        if not owner or name == f"{owner}.bias":
            yield name, ""
        elif owner not in done:  # a rounded weight is several tensors of the checkpoint and one of the file
            done.add(owner)
            yield f"{owner}.weight", owner


def _beginnings(name: str) -> Iterator[str]:
    """ "a.b.c" gives "a.b", then "a"."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _heads(checkpoint: Checkpoint, source: str) -> int:
    heads, readers = head_counts(checkpoint)
    module = source.split(".")[-2]
    return heads if module == "q_proj" else readers if module == "k_proj" else 0
