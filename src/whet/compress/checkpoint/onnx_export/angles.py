"""Rotary positions: the tables of cosines and sines that GroupQueryAttention and RotaryEmbedding read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from whet.compress.grid import Floats
from whet.core.errors import Unsupported


@dataclass(frozen=True, eq=False)
class Angles:
    """frequencies: float32 [half], radians a position. half: pairs of numbers of a head that are rotated; the rest stays."""

    frequencies: Floats

    @property
    def half(self) -> int:
        return len(self.frequencies)

    def tables(self, positions: int) -> tuple[Floats, Floats]:
        """(cosines, sines), float32 [positions, half]. In float32 as transformers computes them, so that far positions agree too."""
        turned = np.arange(positions, dtype=np.float32)[:, None] * self.frequencies
        return np.cos(turned), np.sin(turned)


def angles_of(config: Mapping[str, Any], head_dim: int) -> dict[str, Angles]:
    """The tables by layer type; one by the name "" where all blocks share it. Raises Unsupported for a scaling it does not know."""
    told = config["rope_parameters"]
    if "rope_type" in told:
        return {"": _angles(told, head_dim)}
    return {kind: _angles(each, head_dim) for kind, each in told.items() if kind in config["layer_types"]}


def _angles(told: Mapping[str, Any], head_dim: int) -> Angles:
    rotated = int(head_dim * told.get("partial_rotary_factor", 1.0))
    plain = (1.0 / np.float32(told["rope_theta"]) ** (np.arange(0, rotated, 2, dtype=np.float32) / np.float32(rotated))).astype(np.float32)
    kind = told["rope_type"]
    if kind == "default":
        return Angles(plain)
    if kind == "linear":
        return Angles((plain / np.float32(told["factor"])).astype(np.float32))
    if kind == "llama3":
        return Angles(_llama3(plain, told))
    raise Unsupported("export this checkpoint to ONNX", found=f'the rotary scaling "{kind}"',
                      do="default, linear and llama3 are known; or use --to hf")  # fmt: skip


def _llama3(plain: Floats, told: Mapping[str, Any]) -> Floats:
    """Long waves slower by the factor, short ones as they are, between them a blend (transformers' modeling_rope_utils.py)."""
    factor, low, high = (float(told[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    waves_in_context = float(told["original_max_position_embeddings"]) * plain / (2 * math.pi)
    blend = np.clip((waves_in_context - low) / (high - low), 0.0, 1.0)
    return ((1 - blend) * plain / factor + blend * plain).astype(np.float32)
