"""Norms, alone and joined with the sums in front of them, and activations: the nodes that decoders and encoders share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from whet.compress.checkpoint.checkpoint import Checkpoint
from whet.compress.checkpoint.onnx_export.drawing import MICROSOFT, Drawing

ACTIVATIONS: Mapping[str, str] = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "relu": "relu"}  # fmt: skip
"""What config.json calls an activation, and which of those below computes it."""


class Norms:
    """Draws the norms of a checkpoint. kind: "rms" or "layer"; offset: what is added to their weights before they multiply."""

    def __init__(self, checkpoint: Checkpoint, drawing: Drawing, *, kind: str, epsilon: float, offset: float = 0.0) -> None:
        self._checkpoint, self._drawing, self._offset = checkpoint, drawing, offset
        self._op = "SimplifiedLayerNormalization" if kind == "rms" else "LayerNormalization"
        self._options: Mapping[str, Any] = {"epsilon": epsilon}

    def norm(self, value: ir.Value, module: str) -> ir.Value:
        return self._drawing.one(self._op, [value, *self._factors(module)], module, axis=-1, **self._options)

    def added(self, hidden: ir.Value, more: ir.Value, module: str) -> tuple[ir.Value, ir.Value]:
        """(norm of hidden + more, hidden + more) in one operator."""
        normed, mean, deviation, total = self._drawing.add(f"Skip{self._op}", [hidden, more, *self._factors(module)], module, count=4,
                                                           domain=MICROSOFT, **self._options)  # fmt: skip
        self._drawing.unused(mean)
        self._drawing.unused(deviation)
        return normed, total

    def _factors(self, module: str) -> list[ir.Value]:
        """The norm's weight, what the family adds to it added, and its bias where it has one."""
        weight = self._checkpoint.tensor(f"{module}.weight").float() + self._offset
        bias = f"{module}.bias"
        rest = [self._drawing.weight(bias, self._checkpoint.tensor(bias).float())] if bias in self._checkpoint.entries else []
        return [self._drawing.weight(f"{module}.weight", weight), *rest]


def activated(drawing: Drawing, kind: str, value: ir.Value, name: str) -> ir.Value:
    """The activation of that kind, one of the values of ``ACTIVATIONS``."""
    if kind == "silu":  # x * sigmoid(1 * x)
        return drawing.one("QuickGelu", [value], name, domain=MICROSOFT, alpha=1.0)
    if kind == "gelu_tanh":
        return drawing.one("Gelu", [value], name, approximate="tanh")
    return drawing.one("Relu" if kind == "relu" else "Gelu", [value], name)
