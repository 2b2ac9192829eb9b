"""Estimates: what a recipe will cost and bring, from shapes and the target's table, before any work. Never shown as measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from whet.compress.technique import Foresight
from whet.core.document import FrozenMap
from whet.core.inventory import Inventory, Layer
from whet.core.measurement import Measurement
from whet.core.target import Target

# Bytes that the operators take which a technique adds for one layer: nodes, names, and constants that are no arrays (measured on the
# files that Whet writes for ../shared/assets; tests/compress/test_plan.py holds the estimate to 15 %).
_STATIC, _STATIC_WITHOUT_WEIGHTS, _DYNAMIC, _FLOAT16, _RESCALED, _WITH_ZERO_POINT = 300, 110, 170, 33, 95, 180


def weight_bytes(layer: Layer, found: Foresight) -> int:
    """Bytes of a layer's constants once its weights have ``found.bits``: codes, scales, zero points and biases."""
    if not layer.weight_shape or found.bits >= 32:
        return layer.weight_bytes
    weights, rows = _weights_and_rows(layer)
    codes = -(-weights * found.bits // 8)
    rest = max(layer.parameters - weights, 0) * 4
    if found.weights.startswith("float"):
        return codes + rest
    scales = -(-weights // found.block) if found.block else rows
    return codes + scales * _bytes_a_scale(found) + rest


def size_measurement(inventory: Inventory, after: Mapping[str, Foresight], bare_bytes: int) -> Measurement:
    """"size_bytes" of the model's file. bare_bytes: what it would be with its weights as they are, but folded and slimmed."""
    changed = [(layer, after[layer.name]) for layer in inventory.layers if layer.name in after]
    saved = sum(layer.weight_bytes - weight_bytes(layer, found) for layer, found in changed)
    added = sum(added_bytes(layer, found) for layer, found in changed)
    return Measurement("size_bytes", float(max(bare_bytes - saved + added, 0)), " B", source="estimated",
                       method="weights at their new width, scales, and the nodes that are added")


def _weights_and_rows(layer: Layer) -> tuple[int, int]:
    """How many weights a layer has, and how many output channels with a scale of their own."""
    shape = layer.weight_shape
    weights = math.prod(shape)
    if layer.op in ("LSTM", "GRU") and len(shape) == 3:  # beside W [directions, gates * hidden, in] there is R [.., .., hidden]
        hidden = shape[1] // (4 if layer.op == "LSTM" else 3)
        return weights + shape[0] * shape[1] * hidden, 2 * shape[1]
    if layer.op == "Gemm" and layer.output_shape and layer.output_shape[-1] in shape:
        return weights, int(layer.output_shape[-1])  # either axis, by transB
    return weights, shape[-1] if layer.op == "MatMul" else shape[1] if layer.op == "ConvTranspose" else shape[0]


def _bytes_a_scale(found: Foresight) -> int:
    if found.activations in ("uint8", "int8", "uint16", "int16"):
        return 9  # of the weight and of the bias, and a zero point of one byte
    return 5 if found.block else 8 if found.weights.startswith("u") else 4  # a packed zero point, one in float32, none


def added_bytes(layer: Layer, found: Foresight) -> int:
    """Bytes of the operators that come with the layer's change."""
    if found.activations in ("uint8", "int8", "uint16", "int16"):
        return _STATIC if layer.weight_shape else _STATIC_WITHOUT_WEIGHTS
    if found.weights.startswith("float"):
        return _FLOAT16
    if "dynamic" in found.activations:
        return _DYNAMIC
    return _WITH_ZERO_POINT if found.weights.startswith("u") and not found.block else _RESCALED


@dataclass(frozen=True)
class Planned:
    """What a recipe does to a layer: by which technique, and what that foresees."""

    technique: str
    foresight: Foresight

    @property
    def in_integers(self) -> bool:
        """Whether the layer's arithmetic is done in integers, from its inputs on."""
        return self.foresight.activations.startswith(("int", "uint")) and not self.foresight.runs_as.startswith("float32 ")


def gain(planned: Planned, op: str, target: Target) -> float | None:
    """Time in float / time after, of an operator on the target: 1 where only its storage changes, the ratio of the target's table,
    else the ratio of its peak rates; None where none of these is known.
    """
    if planned.foresight.runs_as.startswith("float32 "):
        return 1.0
    speed = target.speed(planned.technique, op)
    if speed is not None:
        return speed.ratio
    kind = "int8" if planned.in_integers else "float16"
    rates = target.macs_per_s
    return rates[kind] / rates["float32"] if rates.get(kind) and rates.get("float32") and planned.technique != "dynamic" else None


def latency_measurement(inventory: Inventory, changes: Mapping[str, Planned], target: Target) -> Measurement:
    """"latency_ratio" on the target: each layer's share of the multiply-accumulates, divided by what it gains there.

    changes: of each layer that changes. Layers without multiply-accumulates are taken to be free, as they mostly are.
    """
    total = inventory.macs
    if not total:
        return Measurement("latency_ratio", None, why="the model has no layer whose multiply-accumulates are known", source="estimated")
    new, unknown = 0.0, set()
    for layer in inventory.layers:
        found = gain(changes[layer.name], layer.op, target) if layer.name in changes else 1.0
        if layer.macs and found is None:
            unknown.add(f"{changes[layer.name].technique} {layer.op}")
        new += (layer.macs or 0) / (found or 1.0)
    if unknown:
        return Measurement("latency_ratio", None, source="estimated",
                           why=f"the table of {target.name} has neither a speed nor rates for {', '.join(sorted(unknown))}")
    return Measurement("latency_ratio", new / total, source="estimated", n=len(changes),
                       method=f"multiply-accumulates of each layer / its speed-up, or ratio of peak rates, in the table of {target.name}")


def memory_measurement(inventory: Inventory, changes: Mapping[str, Planned], target: Target) -> Measurement:
    """"model_rss_bytes": weights as the runtime holds them, and the peak of activations.

    Weights that are only stored small come back as float32 at load. Activations of integer layers take a quarter. A target that reads
    weights where they are stored holds none of them.
    """
    weights = 0
    for layer in inventory.layers:
        planned = changes.get(layer.name)
        small = planned is not None and not planned.foresight.runs_as.startswith("float32 ")
        weights += weight_bytes(layer, planned.foresight) if planned is not None and small else layer.weight_bytes
    peak = inventory.peak_activation_bytes or 0
    ops = {layer.name: layer.op for layer in inventory.layers}
    followers = {"Relu", "Clip", *target.moving_ops}  # they vanish in a grid, or run on the codes of their neighbours
    integers = [name in changes and changes[name].in_integers for name in inventory.peak_layers if ops.get(name) not in followers]
    if integers and all(integers):
        peak //= 4
    held = 0 if target.weights_in_place else weights
    return Measurement("model_rss_bytes", float(held + peak), " B", source="estimated",
                       method="weights as the runtime holds them and the planned peak of activations; without the runtime itself")


def latency_ms(inventory: Inventory, changes: Mapping[str, Planned], target: Target) -> Measurement:
    """"latency_ms" of one sample by the roofline: each layer takes the longer of its arithmetic and its reading.

    A rate of 0 is unknown: integers then get that of float32, which is too slow, and without that there is no value.
    """
    rates = target.macs_per_s or FrozenMap()
    if not rates.get("float32") or not target.bandwidth_bytes_per_s or not inventory.macs:
        return Measurement("latency_ms", None, " ms", source="estimated", why=f"the table of {target.name} has no rates")
    seconds = 0.0
    for layer in inventory.layers:
        kind = "int8" if layer.name in changes and changes[layer.name].in_integers else "float32"
        width = 1 if kind == "int8" else 4
        moved = layer.parameters * width + (layer.output_bytes or 0) * width / 4
        seconds += max((layer.macs or 0) / (rates.get(kind) or rates["float32"]), moved / target.bandwidth_bytes_per_s)
    return Measurement("latency_ms", seconds * 1e3, " ms", source="estimated",
                       method=f"roofline: per layer the longer of MACs / peak rate and bytes / bandwidth of {target.name}; a lower bound")


def working_memory(inventory: Inventory, needs_calibration: bool, batch: int) -> Measurement:
    """"working_bytes" of doing the work: the model three times, its largest layer, and one calibration batch of all activations."""
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
