"""Estimates: what a recipe will cost and bring, from shapes and the target's table, before any work. Never shown as measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from whet.compress.technique import Foresight
from whet.core.document import FrozenMap
from whet.core.inventory import Inventory, Layer
from whet.core.measurement import Measurement
from whet.core.target import Target

# Bytes that one QuantizeLinear/DequantizeLinear pair, and one DequantizeLinear of a weight, take in an ONNX file: nodes, names,
# scale and zero point (measured on the files that Whet writes; tests/compress/test_plan.py holds the estimate to 15 %).
PAIR_BYTES, WEIGHT_NODE_BYTES = 130, 150


def weight_bytes(layer: Layer, found: Foresight) -> int:
    """Bytes of a layer's constants once its weights have ``found.bits``: codes, scales, zero points and biases."""
    if not layer.weight_shape or found.bits >= 32:
        return layer.weight_bytes
    weights = 1
    for size in layer.weight_shape:
        weights *= size
    rest = max(layer.parameters - weights, 0) * 4
    codes = -(-weights * found.bits // 8)
    if found.bits == 16:
        return codes + rest
    rows = layer.weight_shape[0]
    scales = -(-weights // found.block) if found.block else rows
    return codes + scales * 5 + rest


def size_measurement(inventory: Inventory, after: Mapping[str, Foresight]) -> Measurement:
    """"size_bytes" of the model's file."""
    constants = sum(weight_bytes(layer, after[layer.name]) if layer.name in after else layer.weight_bytes for layer in inventory.layers)
    structure = max((inventory.file_bytes or inventory.weight_bytes) - inventory.weight_bytes, 0)
    added = sum(PAIR_BYTES + (WEIGHT_NODE_BYTES if layer.weight_shape else 0) for layer in inventory.layers
                if layer.name in after and after[layer.name].bits <= 8)
    return Measurement("size_bytes", float(constants + structure + added), " B", source="estimated",
                       method="weights at their new width, scales, and the nodes that are added")


def latency_measurement(inventory: Inventory, techniques: Mapping[str, str], target: Target) -> Measurement:
    """"latency_ratio" on the target: each layer's share of the multiply-accumulates, divided by the target's stated speed-up.

    techniques: the technique of each layer that changes. Layers of other kinds are taken to be free, as they mostly are.
    """
    total = inventory.macs
    if not total:
        return Measurement("latency_ratio", None, why="the model has no layer whose multiply-accumulates are known", source="estimated")
    new, unknown = 0.0, set()
    for layer in inventory.layers:
        speed = target.speed(techniques[layer.name], layer.op) if layer.name in techniques else None
        if layer.name in techniques and layer.macs and speed is None:
            unknown.add(f"{techniques[layer.name]} {layer.op}")
        new += (layer.macs or 0) / (speed.ratio if speed else 1.0)
    if unknown:
        return Measurement("latency_ratio", None, source="estimated",
                           why=f"the table of {target.name} has no speed for {', '.join(sorted(unknown))}")
    return Measurement("latency_ratio", new / total, source="estimated", n=len(techniques),
                       method=f"multiply-accumulates of each layer / speed-up of its operator in the table of {target.name}")


def latency_ms(inventory: Inventory, kinds: Mapping[str, str], target: Target) -> Measurement:
    """"latency_ms" of one sample by the roofline: each layer takes the longer of its arithmetic and its reading.

    kinds: "int8" for the layers that compute in integers; the others are float32. 0 in the target's table is unknown.
    """
    rates = target.macs_per_s or FrozenMap()
    if not rates.get("float32") or not target.bandwidth_bytes_per_s or not inventory.macs:
        return Measurement("latency_ms", None, " ms", source="estimated", why=f"the table of {target.name} has no rates")
    seconds = 0.0
    for layer in inventory.layers:
        kind = kinds.get(layer.name, "float32")
        width = 1 if kind == "int8" else 4
        moved = layer.parameters * width + (layer.output_bytes or 0) * width / 4
        seconds += max((layer.macs or 0) / rates.get(kind, rates["float32"]), moved / target.bandwidth_bytes_per_s)
    return Measurement("latency_ms", seconds * 1e3, " ms", source="estimated",
                       method=f"roofline: per layer the longer of MACs / peak rate and bytes / bandwidth of {target.name}; a lower bound")


def working_memory(inventory: Inventory, needs_calibration: bool, batch: int) -> Measurement:
    """"peak_bytes" of doing the work: the model twice, its largest layer, and one calibration batch of all activations."""
    largest = max((layer.weight_bytes for layer in inventory.layers), default=0)
    activations = sum(layer.output_bytes or 0 for layer in inventory.layers) * batch if needs_calibration else 0
    return Measurement("working_bytes", float(3 * inventory.weight_bytes + 4 * largest + activations), " B", source="estimated",
                       method="graph, copy and session; one layer in float64; one batch of all observed tensors; without libraries")


def working_seconds(inventory: Inventory, samples: int, rate: float) -> Measurement:
    """"working_s": the forward passes of calibration at ``rate`` multiply-accumulates a second, and one pass over the weights."""
    if not rate:
        return Measurement("working_s", None, " s", source="estimated", why="the speed of this machine is not known")
    passes = inventory.macs * samples / (rate * 0.5)  # small layers reach about half of a large product's rate
    return Measurement("working_s", passes + inventory.weight_bytes / 200e6, " s", source="estimated", n=samples,
                       method=f"{samples} forward passes at half of the measured product rate, weights at 200 MB/s")


def by_name(measurements: Iterable[Measurement]) -> dict[str, Measurement]:
    return {each.name: each for each in measurements}
