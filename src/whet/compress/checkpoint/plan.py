"""What a recipe would do to a checkpoint and cost: the size to the byte, memory and time from shapes and what this machine can do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from whet.compress.checkpoint.checkpoint import Checkpoint
from whet.compress.checkpoint.hidden import TOKENS_AT_ONCE
from whet.compress.checkpoint.layers import inventory
from whet.compress.checkpoint.mixed import foreseen
from whet.compress.checkpoint.resolve import Resolved, resolve, stored_as, tensors_of, windows_wanted
from whet.compress.checkpoint.rows import PIECE
from whet.compress.checkpoint.stored import Layout, shapes
from whet.compress.checkpoint.tensor_writer import shards_of
from whet.compress.checkpoint.text import LONGEST_WINDOW
from whet.compress.checkpoint.turned import turned
from whet.compress.views import Block, GramView, SharedGram, SharedInput, Whole
from whet.core.inventory import Layer
from whet.core.measurement import Measurement
from whet.core.plan import Plan, PlannedLayer
from whet.core.recipe import Recipe
from whet.core.target import Target

# Measured on a 2-core machine with AVX-512 by benchmarks/llm_shapes.py; they hold as ratios to its limits.
READ_BYTES_PER_S, ROUND_WEIGHTS_PER_S = 1.5e9, 0.4e9
LIBRARIES = 550e6  # bytes that torch and transformers take before a model is looked at; torch alone 300e6
TORCH_ALONE = 300e6
ROUNDING_LIBRARIES, PIECE_BYTES_A_WEIGHT = 320e6, 64  # where layers are rounded a few rows at a time: libraries, and each of two pieces
COPIED, COPYING_BYTES = 1.3, 40e6  # what copying a tensor takes, as a multiple of it, and besides
LEARNING_BYTES_A_WEIGHT = 34  # weights, what is learned, its gradients and moments: measured by docs/techniques/autoround.md
TUNING_BYTES_A_WEIGHT = (18, 35)  # of the whole model, while scales are tuned, and while the weights move too


def plan_checkpoint(checkpoint: Checkpoint, recipe: Recipe, target: Target, *, windows: int | None = None) -> Plan:
    """The recipe resolved against the checkpoint. windows: of calibration text, default: as many as the recipe takes, of 2048 tokens."""
    asked = recipe
    checkpoint, recipe = turned(checkpoint, recipe, target)
    recipe = foreseen(checkpoint, recipe)
    steps = resolve(checkpoint, recipe, target)
    layouts = stored_as(checkpoint, steps)
    layers = tuple(_planned(checkpoint, layer, steps, layouts) for layer in inventory(checkpoint).layers)
    costs = (_size(checkpoint, layouts), _memory(checkpoint, steps), _time(checkpoint, steps, windows or windows_wanted(recipe)))
    return Plan(str(checkpoint.folder), asked, target.name, layers, costs)


def _planned(checkpoint: Checkpoint, layer: Layer, steps: Sequence[Resolved], layouts: Mapping[str, Layout | str]) -> PlannedLayer:
    """What the last step that rounds the layer makes of it, or the last one that adjusts its numbers; notes of all steps that name it."""
    own = [each for each in steps if layer.name in each.options]
    resolved = next((each for each in reversed(own) if not each.foresights[layer.name].adjusts), None)
    said = dict.fromkeys(each.foresights[layer.name].note for each in steps if layer.name in each.foresights)
    note = "; ".join(each for each in said if each)
    if resolved is None or layer.name not in layouts:
        technique, size = own[-1].used.name if own else "", layer.weight_bytes
        return PlannedLayer(layer.name, layer.op, technique, layer.weight_dtype, "float32", "", size, size, note)
    foresight, layout = resolved.foresights[layer.name], layouts[layer.name]
    weight = math.prod(layer.weight_shape)
    rest = _rest(checkpoint, layer)
    after = rest + (sum(shape.size_bytes for shape in shapes(layer.name, checkpoint.size(layer.name), layout))
                    if isinstance(layout, Layout) else weight * (4 if layout == "float32" else 2))
    return PlannedLayer(layer.name, layer.op, resolved.used.name, foresight.weights, foresight.activations, foresight.runs_as,
                        layer.weight_bytes, after, note)


def _rest(checkpoint: Checkpoint, layer: Layer) -> int:
    """Bytes of a layer beside its weight: the bias."""
    bias = f"{layer.name}.bias"
    return checkpoint.entries[bias][1].size_bytes if bias in checkpoint.entries else 0


def _size(checkpoint: Checkpoint, layouts: Mapping[str, Layout | str]) -> Measurement:
    size = sum(shard.size_bytes for shard in shards_of(tensors_of(checkpoint, layouts)))
    return Measurement("size_bytes", float(size), " B", source="estimated", method="the safetensors files, to the byte")


def _memory(checkpoint: Checkpoint, steps: Sequence[Resolved]) -> Measurement:
    """The largest layer while it is worked on; with calibration a block in float32, its largest Gram matrix and what solving takes; where
    the model is tuned as a whole, all of it.
    """
    whole = next((each for each in steps if each.used.view is Whole), None)
    if whole is not None:
        return _tuning_memory(checkpoint, whole)
    sizes = [checkpoint.size(name) for each in steps for name in each.options]
    largest = max((rows * columns for rows, columns in sizes), default=math.prod(checkpoint.size(checkpoint.family.embedding)))
    if all(each.used.by_rows for each in steps):
        return _rounding_memory(checkpoint, {name for each in steps for name in each.options}, largest)
    if all(each.used.needs == "nothing" for each in steps):
        found = TORCH_ALONE + 4 * largest * 3
        return Measurement("working_bytes", found, " B", source="estimated", method="three of the largest layer in float32, and torch")
    block = sum(rows * columns for rows, columns in (checkpoint.size(name) for name in checkpoint.block_layers(0)))
    widest = max(columns for _, columns in sizes)
    if any(each.used.view is Block for each in steps):
        return Measurement("working_bytes", LIBRARIES + LEARNING_BYTES_A_WEIGHT * block, " B", source="estimated",
                           method=f"{LEARNING_BYTES_A_WEIGHT} bytes for each weight of a block while it learns, and libraries")
    tokens = TOKENS_AT_ONCE * (checkpoint.size(checkpoint.family.embedding)[1] * 4 + widest * 3)
    views = {each.used.view for each in steps}
    grams = 2 * widest**2 if views & {GramView, SharedGram} else 0
    scaled = bool(views & {SharedGram, SharedInput})  # factors make float32 numbers of a block's weights, until they are rounded
    found = LIBRARIES + (4 * block if scaled else block) + 4 * (3 * largest + grams + tokens)
    told = ("a block in float32" if scaled else "codes of a block", "three of its largest layer in float32",
            *(["two Gram matrices"] if grams else []), "activations of 4096 tokens, libraries")
    return Measurement("working_bytes", found, " B", source="estimated", method=", ".join(told))


def _rounding_memory(checkpoint: Checkpoint, rounded: set[str], largest: int) -> Measurement:
    """A few rows at a time: what takes most is the largest layer as it is stored with its codes, or a table that is copied as it is.

    Measured: 0.38 GB for a Llama of 0.4 GB, 0.70 for 13.5 GB, 0.80 for 26 GB (benchmarks/llm_shapes.py, tests/checkpoint).
    """
    copied = max((entry.size_bytes for name, (_, entry) in checkpoint.entries.items() if name.removesuffix(".weight") not in rounded),
                 default=0)
    layer = 2 * PIECE_BYTES_A_WEIGHT * min(PIECE, largest) + (checkpoint.dtype.itemsize + 2) * largest  # its codes, and those joined
    found = ROUNDING_LIBRARIES + max(COPIED * copied + COPYING_BYTES, layer)
    return Measurement("working_bytes", found, " B", source="estimated",
                       method="the largest layer as it is stored and its codes, or the largest tensor that is copied; libraries")


def _tuning_memory(checkpoint: Checkpoint, step: Resolved) -> Measurement:
    """All weights that are tuned, with what Adam keeps of them; both heads; the answers of a batch and what their divergence takes."""
    options = next(iter(step.options.values()))
    each = TUNING_BYTES_A_WEIGHT[bool(options.get("codes"))]
    weights = sum(math.prod(checkpoint.size(name)) for name in step.options)
    rows, width = checkpoint.size(checkpoint.family.embedding)
    length = min(LONGEST_WINDOW, int(checkpoint.config.get("max_position_embeddings", LONGEST_WINDOW)))
    answers = int(options.get("batch", 1)) * length * rows
    return Measurement("working_bytes", LIBRARIES + each * weights + 4.0 * (2 * rows * width + 6 * answers), " B", source="estimated",
                       method=f"{each} bytes for each weight that is tuned, heads, the answers of a batch six times, libraries; without "
                              "the activations in between")


def _time(checkpoint: Checkpoint, steps: Sequence[Resolved], windows: int) -> Measurement:
    from whet.device.machine_limits import machine_limits

    rate = machine_limits().float32_macs_per_s * 0.8
    weights = sum(math.prod(checkpoint.size(name)) for name in {name for each in steps for name in each.options})
    read = sum(entry.size_bytes for _, entry in checkpoint.entries.values()) / READ_BYTES_PER_S
    seconds = read + weights / ROUND_WEIGHTS_PER_S
    if any(each.used.needs != "nothing" for each in steps):
        tokens = windows * min(LONGEST_WINDOW, int(checkpoint.config.get("max_position_embeddings", LONGEST_WINDOW)))
        length = tokens // max(windows, 1)
        seconds += sum(_learned(checkpoint, each, length) if each.used.view in (Block, Whole) else _calibrated(checkpoint, each, tokens)
                       for each in steps if each.used.needs != "nothing") / rate
    return Measurement("working_s", seconds, " s", source="estimated", n=windows,
                       method="reading, rounding and the products of calibration, at this machine's measured rates")


def _learned(checkpoint: Checkpoint, step: Resolved, length: int) -> float:
    """Multiply-accumulates of learning: forward, and twice that back, for each window of each step."""
    options = next(iter(step.options.values()))
    weights = sum(math.prod(checkpoint.size(name)) for name in step.options)
    return 3.0 * weights * length * int(options.get("steps", 0)) * int(options.get("batch", 1))


def _calibrated(checkpoint: Checkpoint, step: Resolved, tokens: int) -> float:
    """Multiply-accumulates: passes through the blocks, Gram matrices, factors and columns."""
    found = 0.0
    for index in range(checkpoint.block_count):
        names = [name for name in checkpoint.block_layers(index) if name in step.options]
        sizes: list[tuple[int, int]] = [checkpoint.size(name) for name in names]
        passes = sum(rows * columns for rows, columns in sizes)
        widths = {columns for _, columns in sizes}
        found += 3.3 * tokens * passes
        if step.used.view is not SharedInput:  # that one looks at peaks alone
            solving = sum(rows * columns**2 / 2 for rows, columns in sizes) + sum(width**3 / 6 for width in widths)
            found += tokens * sum(width**2 for width in widths) + solving
    return found
