"""Families of language models, one row each: where their blocks are, which layers read one tensor, and what gives it to them.

Names are those of transformers' modules. A new family is a new row; what a model is built of comes from transformers itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from whet.core.document import FrozenMap
from whet.core.errors import Unsupported


@dataclass(frozen=True)
class Readers:
    """Linear layers of a block that read the same tensor.

    layers: their names inside the block. norm: the norm whose output they read, "" where none stands right before them. maker: the layer
    whose output channels, through multiplications and sums with weights over positions alone, are their input channels; "" where there
    is none: a factor of a channel may be moved into it.
    """

    layers: tuple[str, ...]
    norm: str = ""
    maker: str = ""


@dataclass(frozen=True)
class Family:
    """Where things stand in a checkpoint.

    model_types: as config.json names them. blocks: the list of blocks; block 3 is "blocks.3". readers: in order of execution.
    embedding, norm, head: modules before and behind the blocks; head "" for an encoder. prefix: what some checkpoints leave out of all
    names. transposed: weights are [in, out] (GPT-2's Conv1D). norm_offset: what the norms add to their weight before they multiply.
    positions: learned tables of positions. fused: modules whose output is cut into several, by name, with the names of the parts. values:
    the layer whose last outputs are the values of the attention heads, and the one that reads what the heads make of them.
    """

    name: str
    model_types: tuple[str, ...]
    blocks: str
    readers: tuple[Readers, ...]
    embedding: str
    norm: str = ""
    head: str = "lm_head"
    prefix: str = ""
    transposed: bool = False
    norm_offset: float = 0.0
    positions: tuple[str, ...] = ()
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=FrozenMap)
    values: tuple[str, ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """The linear layers of a block, in order of execution."""
        return tuple(name for each in self.readers for name in each.layers)

    @property
    def encoder(self) -> bool:
        return not self.head


_ATTENTION = Readers(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), norm="input_layernorm")
_OUT = Readers(("self_attn.o_proj",), maker="self_attn.v_proj")
_VALUES = ("self_attn.v_proj", "self_attn.o_proj")
_DOWN = Readers(("mlp.down_proj",), maker="mlp.up_proj")


def _gated(norm: str) -> tuple[Readers, ...]:
    return (_ATTENTION, _OUT, Readers(("mlp.gate_proj", "mlp.up_proj"), norm=norm), _DOWN)


FAMILIES = (
    Family("llama", ("llama", "mistral", "qwen2", "qwen3", "smollm3"), "model.layers", _gated("post_attention_layernorm"),
           "model.embed_tokens", "model.norm", values=_VALUES),
    Family("gemma", ("gemma",), "model.layers", _gated("post_attention_layernorm"), "model.embed_tokens", "model.norm", norm_offset=1.0,
           values=_VALUES),
    # Norms behind attention and feed-forward too: those do not feed a layer.
    Family("gemma2", ("gemma2", "gemma3_text"), "model.layers", _gated("pre_feedforward_layernorm"), "model.embed_tokens", "model.norm",
           norm_offset=1.0, values=_VALUES),
    Family("phi3", ("phi3",), "model.layers",
           (Readers(("self_attn.qkv_proj",), norm="input_layernorm"), Readers(("self_attn.o_proj",)),
            Readers(("mlp.gate_up_proj",), norm="post_attention_layernorm"), Readers(("mlp.down_proj",))),
           "model.embed_tokens", "model.norm",
           fused=FrozenMap({"self_attn.qkv_proj": ("q", "k", "v"), "mlp.gate_up_proj": ("gate", "up")}),
           values=("self_attn.qkv_proj", "self_attn.o_proj")),
    # One norm feeds attention and feed-forward, which run side by side.
    Family("phi", ("phi",), "model.layers",
           (Readers(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1"), norm="input_layernorm"),
            Readers(("self_attn.dense",), maker="self_attn.v_proj"), Readers(("mlp.fc2",))),
           "model.embed_tokens", "model.final_layernorm", values=("self_attn.v_proj", "self_attn.dense")),
    Family("gpt2", ("gpt2",), "transformer.h",
           (Readers(("attn.c_attn",), norm="ln_1"), Readers(("attn.c_proj",)), Readers(("mlp.c_fc",), norm="ln_2"),
            Readers(("mlp.c_proj",))),
           "transformer.wte", "transformer.ln_f", prefix="transformer.", transposed=True, positions=("transformer.wpe",),
           fused=FrozenMap({"attn.c_attn": ("q", "k", "v")})),
    Family("bert", ("bert",), "encoder.layer",
           (Readers(("attention.self.query", "attention.self.key", "attention.self.value")),
            Readers(("attention.output.dense",), maker="attention.self.value"), Readers(("intermediate.dense",)),
            Readers(("output.dense",))),
           "embeddings.word_embeddings", head="", prefix="bert.", positions=("embeddings.position_embeddings",),
           values=("attention.self.value", "attention.output.dense")),
)


def family_of(config: Mapping[str, Any]) -> Family:
    """The row for a config.json. Raises Unsupported where there is none."""
    kind = str(config.get("model_type", ""))
    for family in FAMILIES:
        if kind in family.model_types:
            return family
    known = ", ".join(sorted(name for family in FAMILIES for name in family.model_types))
    found = f'model_type "{kind}" in its config.json' if kind else "no model_type in its config.json"
    raise Unsupported("open this checkpoint", found=found,
                      do=f"use one of {known}; or export it to ONNX and give that")
