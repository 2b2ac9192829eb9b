"""The numbers of config.json as a GGUF file says them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from whet.compress.checkpoint.checkpoint import Checkpoint
from whet.compress.checkpoint.gguf.names import head_counts
from whet.compress.checkpoint.gguf.package import gguf_package
from whet.compress.grid import Floats
from whet.core.errors import Refused, Unsupported

ROPE_FACTORS = "rope_freqs.weight"


def add_settings(writer: Any, checkpoint: Checkpoint, architecture: str) -> None:
    """Put what the model is built of into the writer. Raises Refused where config.json lacks a number, Unsupported for a way of scaling
    positions that is not written here.
    """
    config, (heads, readers) = checkpoint.config, head_counts(checkpoint)
    width = _number(checkpoint, "hidden_size", "n_embd")
    writer.add_name(checkpoint.folder.resolve().name)
    writer.add_vocab_size(checkpoint.size(checkpoint.family.embedding)[0])
    writer.add_context_length(_number(checkpoint, "max_position_embeddings", "n_positions"))
    writer.add_embedding_length(width)
    writer.add_block_count(checkpoint.block_count)
    writer.add_head_count(heads)
    writer.add_head_count_kv(readers)
    if architecture == "gpt2":
        writer.add_feed_forward_length(int(config.get("n_inner") or 4 * width))
        writer.add_layer_norm_eps(float(config.get("layer_norm_epsilon", 1e-5)))
        return
    writer.add_feed_forward_length(_number(checkpoint, "intermediate_size"))
    writer.add_layer_norm_rms_eps(float(config.get("rms_norm_eps", 1e-6)))
    size = _head_size(checkpoint)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(int(size * float(_rope(checkpoint).get("partial_rotary_factor", 1.0))))
    if architecture == "phi3":
        writer.add_sliding_window(int(config.get("sliding_window") or 0))
        writer.add_rope_scaling_orig_ctx_len(
            int(config.get("original_max_position_embeddings") or _number(checkpoint, "max_position_embeddings")))
    _add_positions(writer, checkpoint)


def extra_tensors(checkpoint: Checkpoint) -> dict[str, Floats]:
    """Tensors that the checkpoint does not hold: what each frequency of the rotary embedding is divided by, for Llama 3's scaling."""
    if _scaling(checkpoint) != "llama3":
        return {}
    rope, size = _rope(checkpoint), _head_size(checkpoint)
    frequencies = _theta(checkpoint) ** -(np.arange(0, size, 2, dtype=np.float64) / size)
    return {ROPE_FACTORS: llama3_divisors(frequencies, float(rope["factor"]), float(rope["low_freq_factor"]),
                                          float(rope["high_freq_factor"]), float(rope["original_max_position_embeddings"]))}


def llama3_divisors(frequencies: Any, factor: float, low: float, high: float, context: float) -> Floats:
    """What frequencies are divided by: waves longer than context / low by ``factor``, those shorter than context / high by 1, and
    in between the inverse of a straight line in the number of waves that the context holds (Llama 3.1; transformers' rope utilities).
    """
    waves = context * np.asarray(frequencies) / (2 * math.pi)
    share = np.clip((waves - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / ((1 - share) / factor + share), np.float32)


def notes_on(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Where llama.cpp computes something else than transformers."""
    found, window = [], checkpoint.config.get("sliding_window")
    if window and checkpoint.config.get("use_sliding_window", True) and window < checkpoint.config.get("max_position_embeddings", 0):
        found.append(f"llama.cpp lets every token see all before it, and this model only the last {window}: beyond that the two differ")
    if any(layout.activations for layout in checkpoint.layouts.values()):
        found.append("llama.cpp rounds what a Q8_0 layer reads to int8 with a scale for each 32 numbers, not for each token")
    return tuple(found)


def _add_positions(writer: Any, checkpoint: Checkpoint) -> None:
    writer.add_rope_freq_base(_theta(checkpoint))
    scaling = _scaling(checkpoint)
    if scaling == "linear":
        writer.add_rope_scaling_type(gguf_package().RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(_rope(checkpoint)["factor"]))


def _rope(checkpoint: Checkpoint) -> dict[str, Any]:
    """What config.json says of rotary embeddings: "rope_parameters" since transformers 5, before in two places."""
    config = checkpoint.config
    own = {key: config[key] for key in ("rope_theta", "partial_rotary_factor") if key in config}
    return {**own, **(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}


def _theta(checkpoint: Checkpoint) -> float:
    return float(_rope(checkpoint).get("rope_theta", 10000.0))


def _scaling(checkpoint: Checkpoint) -> str:
    rope = _rope(checkpoint)
    found = str(rope.get("rope_type", rope.get("type", "default")))
    if found not in ("default", "linear", "llama3"):
        raise Unsupported(f"export {checkpoint.folder} to GGUF", found=f'positions scaled in the way "{found}"', do="export to onnx or hf")
    return found


def _head_size(checkpoint: Checkpoint) -> int:
    found = checkpoint.config.get("head_dim")
    return int(found) if found else _number(checkpoint, "hidden_size") // head_counts(checkpoint)[0]


def _number(checkpoint: Checkpoint, *names: str) -> int:
    for name in names:
        if checkpoint.config.get(name) is not None:
            return int(checkpoint.config[name])
    raise Refused(f"export {checkpoint.folder} to GGUF", found=f"no {names[0]} in its config.json", do="use the config.json of these files")
