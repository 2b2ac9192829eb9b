"""What a decoder's graph is made of, told by its config.json: heads, norms, activations, windows, and the names of a block's parts.

Families are rows of a table; what config.json may say and the graph cannot do is Unsupported here, by name, before anything is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from whet.compress.checkpoint.checkpoint import Checkpoint
from whet.compress.checkpoint.onnx_export.angles import Angles, angles_of
from whet.compress.checkpoint.onnx_export.norms import ACTIVATIONS
from whet.core.errors import Unsupported


@dataclass(frozen=True)
class Parts:
    """The modules of a block by what they do; "" or () where it has none.

    qkv, widen: one layer, or as many as there are parts. before: the norm in front of attention; between: the one in front of the
    feed-forward, "" where both read the same; after_attention, after_feed_forward: norms of what is added. gated: act(gate) * up.
    """

    qkv: tuple[str, ...]
    out: str
    before: str
    between: str
    widen: tuple[str, ...]
    narrow: str
    gated: bool = True
    after_attention: str = ""
    after_feed_forward: str = ""
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATED = ("mlp.gate_proj", "mlp.up_proj")
PARTS = {
    "llama": Parts(_QKV, "self_attn.o_proj", "input_layernorm", "post_attention_layernorm", _GATED, "mlp.down_proj"),
    "gemma": Parts(_QKV, "self_attn.o_proj", "input_layernorm", "post_attention_layernorm", _GATED, "mlp.down_proj"),
    "gemma2": Parts(_QKV, "self_attn.o_proj", "input_layernorm", "pre_feedforward_layernorm", _GATED, "mlp.down_proj",
                    after_attention="post_attention_layernorm", after_feed_forward="post_feedforward_layernorm"),
    "phi3": Parts(("self_attn.qkv_proj",), "self_attn.o_proj", "input_layernorm", "post_attention_layernorm", ("mlp.gate_up_proj",),
                  "mlp.down_proj"),
    "phi": Parts(_QKV, "self_attn.dense", "input_layernorm", "", ("mlp.fc1",), "mlp.fc2", gated=False),
    "gpt2": Parts(("attn.c_attn",), "attn.c_proj", "ln_1", "ln_2", ("mlp.c_fc",), "mlp.c_proj", gated=False),
}  # fmt: skip
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "gpt2")
# What some config.json turn on and the graph has no nodes for.
_SWITCHES = ("scale_attn_by_inverse_layer_idx", "add_cross_attention", "use_bidirectional_attention", "qk_layernorm")


@dataclass(frozen=True)
class Attention:
    """Of one block. angles: the name of its table, "" for none. window: how many tokens it sees, its own included, 0 for all."""

    angles: str
    window: int


@dataclass(frozen=True)
class Decoder:
    """heads, kv_heads: of head_dim numbers each. scale: of attention's scores; softcap: tanh of them, 0 for none.

    norm: "rms" or "layer", its weight with norm_offset added. tables: angles by name. context: the most positions.
    """

    parts: Parts
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocabulary: int
    context: int
    norm: str
    norm_offset: float
    epsilon: float
    activation: str
    scale: float
    softcap: float
    logits_softcap: float
    embedding_scale: float
    tables: Mapping[str, Angles]
    blocks: tuple[Attention, ...]

    @property
    def rotates_inside(self) -> bool:
        """Whether GroupQueryAttention can rotate: its kernel wants heads of a multiple of 16 and half-angles of a multiple of 8."""
        return self.head_dim % 16 == 0 and all(table.half % 8 == 0 for table in self.tables.values())

    @property
    def reads_positions(self) -> bool:
        """Whether the graph has the input position_ids."""
        return not self.tables or not self.rotates_inside


def decoder_of(checkpoint: Checkpoint) -> Decoder:
    """The graph's make-up. Raises Unsupported for an encoder, and by name for what the graph cannot do."""
    config, kind = _settled(checkpoint), str(checkpoint.config.get("model_type", ""))
    _check(config, kind)
    gpt2 = kind == "gpt2"
    heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
    if head_dim % 8:
        raise _unsupported(f"attention heads of {head_dim} numbers, and onnxruntime's GroupQueryAttention takes multiples of 8")
    epsilon = next(config[name] for name in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon") if name in config)
    wanted = config.get("query_pre_attn_scalar") or head_dim
    tables = {} if gpt2 else angles_of(config, head_dim)
    return Decoder(
        parts=PARTS[checkpoint.family.name], heads=heads, kv_heads=int(config.get("num_key_value_heads") or heads), head_dim=head_dim,
        hidden=int(config["hidden_size"]), vocabulary=int(config["vocab_size"]), context=int(config["max_position_embeddings"]),
        norm="layer" if gpt2 or kind == "phi" else "rms", norm_offset=checkpoint.family.norm_offset, epsilon=float(epsilon),
        activation=_activation(config), scale=1.0 if config.get("scale_attn_weights") is False else float(wanted) ** -0.5,
        softcap=float(config.get("attn_logit_softcapping") or 0), logits_softcap=float(config.get("final_logit_softcapping") or 0),
        embedding_scale=float(config["hidden_size"]) ** 0.5 if kind.startswith("gemma") else 1.0, tables=tables,
        blocks=tuple(_attention(config, kind, index, tables) for index in range(checkpoint.block_count)),
    )  # fmt: skip


def _settled(checkpoint: Checkpoint) -> dict[str, Any]:
    """config.json with what it leaves out filled in, by transformers; GPT-2's own names beside the usual ones."""
    from transformers import CONFIG_MAPPING

    kind = checkpoint.config.get("model_type")
    if kind not in MODEL_TYPES:
        raise _unsupported(f'model_type "{kind}"')
    given = {name: value for name, value in checkpoint.config.items() if name not in ("quantization_config", "model_type")}
    made = CONFIG_MAPPING[kind](**given)
    usual = ("hidden_size", "num_attention_heads", "max_position_embeddings", "num_hidden_layers")
    return {**made.to_dict(), **{name: getattr(made, name) for name in usual}}


def _check(config: Mapping[str, Any], kind: str) -> None:
    for name in _SWITCHES:
        if config.get(name):
            raise _unsupported(f"{name} in the config.json of this {kind}")


def _activation(config: Mapping[str, Any]) -> str:
    name = next(config[key] for key in ("hidden_activation", "hidden_act", "activation_function") if config.get(key))
    if name not in ACTIVATIONS:
        raise _unsupported(f'the activation "{name}"')
    return ACTIVATIONS[name]


def _attention(config: Mapping[str, Any], kind: str, index: int, tables: Mapping[str, Angles]) -> Attention:
    """Which table of angles and which window: where config.json has layer_types they tell, else one window holds for all blocks."""
    types = config.get("layer_types")
    slides = types[index] == "sliding_attention" if types else True
    if types and types[index] not in ("sliding_attention", "full_attention"):
        raise _unsupported(f'the layer type "{types[index]}"')
    window = int(config.get("sliding_window") or 0) if slides and config.get("use_sliding_window", True) else 0
    angles = next((name for name in (types[index] if types else "", "") if name in tables), "none")
    rotates = bool(tables) and (config.get("no_rope_layers") or [1] * (index + 1))[index]
    return Attention(angles if rotates else "none", window)


def _unsupported(found: str) -> Unsupported:
    do = f"use one of {', '.join(MODEL_TYPES)} as it usually is; or --to hf"
    return Unsupported("export this checkpoint to ONNX", found=found, do=do)
