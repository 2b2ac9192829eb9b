"""Inventory: what is inside a model."""

from __future__ import annotations

from dataclasses import dataclass

from whet.core.document import Document


@dataclass(frozen=True)
class Layer(Document):
    """One operator of the graph.

    weight_shape: as stored, () where the layer has no weights. weight_dtype: as stored ("float32", "int8", "int4").
    parameters: elements of all its constant operands (weights, biases, norms), each counted where it is first used.
    weight_bytes: what those take on disk. macs: multiply-accumulates of one sample (batch 1); None where the shapes are unknown.
    output_bytes: its activations for one sample, likewise.
    """

    name: str
    op: str
    weight_shape: tuple[int, ...] = ()
    weight_dtype: str = ""
    parameters: int = 0
    weight_bytes: int = 0
    macs: int | None = None
    output_shape: tuple[int | str, ...] = ()
    output_bytes: int | None = None


@dataclass(frozen=True)
class Inventory(Document):
    """All layers in the order of execution, and what only shows from above.

    peak_activation_bytes: most bytes of activations alive at one time for one sample, inputs and outputs included, each tensor
    freed after its last use; None where shapes are unknown. peak_layers: the layers alive at that moment, largest first.
    notes: what could not be told, and why.
    """

    layers: tuple[Layer, ...]
    file_bytes: int | None = None
    peak_activation_bytes: int | None = None
    peak_layers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def weight_bytes(self) -> int:
        return sum(layer.weight_bytes for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample over all layers whose shapes are known."""
        return sum(layer.macs or 0 for layer in self.layers)
