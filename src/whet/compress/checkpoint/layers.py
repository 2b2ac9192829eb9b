"""The inventory of a checkpoint: its layers in the order of execution, from the headers of its files alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

from whet.compress.checkpoint.checkpoint import Checkpoint
from whet.compress.checkpoint.stored import shapes
from whet.compress.checkpoint.tensor_files import DTYPES
from whet.core.inventory import Inventory, Layer

LINEAR, TABLE, HEAD = "Linear", "Embedding", "Head"


def inventory(checkpoint: Checkpoint) -> Inventory:
    """Tables, linear layers of the blocks, norms and head. macs: of one token; a table looks up and multiplies nothing."""
    layers = tuple(_layers(checkpoint))
    return Inventory(layers, file_bytes=checkpoint.size_bytes)


def weighted(checkpoint: Checkpoint) -> list[Layer]:
    """The layers that a technique may round."""
    return [layer for layer in _layers(checkpoint) if layer.op in (LINEAR, TABLE, HEAD)]


def _layers(checkpoint: Checkpoint) -> Iterator[Layer]:
    family = checkpoint.family
    yield _matrix(checkpoint, family.embedding, TABLE)
    linear = {name for index in range(checkpoint.block_count) for name in checkpoint.block_layers(index)}
    head = set() if checkpoint.tied or family.encoder else {family.head}
    known = {family.embedding, *linear, *head}
    seen = {family.embedding}
    for name in checkpoint.entries:
        owner = next((layer for layer in _owners(name) if layer in known), None)
        if owner is None:
            yield _plain(checkpoint, name)
        elif owner not in seen:
            seen.add(owner)
            yield _matrix(checkpoint, owner, LINEAR if owner in linear else HEAD)


def _owners(name: str) -> Iterator[str]:
    """The modules that a tensor may belong to: "a.b.weight.absmax" to "a.b" as "a.b.weight"."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _matrix(checkpoint: Checkpoint, name: str, op: str) -> Layer:
    rows, columns = checkpoint.size(name)
    own = [entry for whole, (_, entry) in checkpoint.entries.items() if whole.startswith(f"{name}.")]
    bias = next((entry for entry in own if entry.name.endswith(".bias")), None)
    layout = checkpoint.layouts.get(name)
    dtype = str(DTYPES[checkpoint.entries[f"{name}.weight"][1].dtype]).removeprefix("torch.") if layout is None else (
        f"{'' if layout.symmetric else 'u'}int{layout.bits}" if layout.kind == "int" else layout.kind)
    size = sum(shape.size_bytes for shape in shapes(name, (rows, columns), layout)) if layout else 0
    return Layer(name, op, weight_shape=(rows, columns), weight_dtype=dtype,
                 parameters=rows * columns + (bias.shape[0] if bias else 0),
                 weight_bytes=size + (bias.size_bytes if bias else 0) if layout else sum(entry.size_bytes for entry in own),
                 macs=0 if op == TABLE else rows * columns, output_shape=(rows if op != TABLE else columns,))


def _plain(checkpoint: Checkpoint, name: str) -> Layer:
    entry = checkpoint.entries[name][1]
    dtype = str(DTYPES[entry.dtype]).removeprefix("torch.")
    kind = "Norm" if "norm" in name.lower() or ".ln_" in name else "Parameter"
    return Layer(name, kind, weight_shape=entry.shape, weight_dtype=dtype, parameters=math.prod(entry.shape),
                 weight_bytes=entry.size_bytes, macs=0)
