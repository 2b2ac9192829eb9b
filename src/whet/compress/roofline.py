"""Roofline of a model, layer by layer: the least time that a machine's limits allow, and which limit binds.

Williams, Waterman, Patterson: "Roofline", CACM 52(4), 2009.
"""

from __future__ import annotations

from dataclasses import dataclass

from whet.core.document import Document
from whet.core.inventory import Inventory, Layer
from whet.device.machine_limits import MachineLimits

_WHOLE = ("int8", "uint8", "int4", "uint4", "int2", "uint2")  # fewer than 8 bits are widened to 8 by the kernels


@dataclass(frozen=True)
class LayerTime(Document):
    """least_us: the longer of its arithmetic and its reading and writing, for one sample. bound: "products", "memory" or "" where
    the layer has nothing that could be counted."""

    name: str
    least_us: float = 0.0
    bound: str = ""


def least_times(found: Inventory, limits: MachineLimits) -> tuple[LayerTime, ...]:
    """An estimate for every layer, in order: multiply-accumulates at the machine's best rate for the weights' dtype; weights read, and
    the output written, at its memory bandwidth. Caches make the second pessimistic for small layers."""
    return tuple(_least(layer, limits) for layer in found.layers)


def _least(layer: Layer, limits: MachineLimits) -> LayerTime:
    rate = limits.int8_macs_per_s if layer.weight_dtype in _WHOLE else limits.float32_macs_per_s
    products = 1e6 * (layer.macs or 0) / rate
    memory = 1e6 * (layer.weight_bytes + (layer.output_bytes or 0)) / limits.bandwidth_bytes_per_s
    least = max(products, memory)
    return LayerTime(layer.name, least, "" if not least else "products" if products >= memory else "memory")
