"""Doing a recipe to a checkpoint: layer by layer where nothing is known of what they read, block by block where that is."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import whet
from whet.compress.artifacts import check_free, described_file, tool_versions
from whet.compress.checkpoint import stored
from whet.compress.checkpoint.block import SCALES, BlockAtWork
from whet.compress.checkpoint.checkpoint import CONFIG_NAME, Checkpoint, open_checkpoint
from whet.compress.checkpoint.destination import Destination, filling
from whet.compress.checkpoint.hidden import Hidden
from whet.compress.checkpoint.mixed import allotted
from whet.compress.checkpoint.resolve import Resolved, resolve, stored_as, tensors_of, windows_wanted
from whet.compress.checkpoint.rows import rounded_by_rows
from whet.compress.checkpoint.shows import SHOWS, Flow
from whet.compress.checkpoint.skeleton import Skeleton
from whet.compress.checkpoint.stored import Layout
from whet.compress.checkpoint.text import Windows, windows_of
from whet.compress.checkpoint.tuning import tune_whole, written
from whet.compress.checkpoint.turned import turned
from whet.compress.codebook import Coded
from whet.compress.grid import Array, Quantised
from whet.compress.technique import LayerView
from whet.compress.threads import one_thread
from whet.compress.views import Block, Whole
from whet.core.artifact import MANIFEST_NAME, Artifact, TensorSpec
from whet.core.document import FrozenMap, canonical_json, digest
from whet.core.errors import Refused
from whet.core.progress import task
from whet.core.recipe import Recipe
from whet.core.target import Target
from whet.device.files import write_file

PIECE = 1 << 22  # numbers that are looked at together

# What belongs to a checkpoint beside its weights.
SMALL_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "generation_config.json",
               "chat_template*", "spiece.model", "LICENSE*")


def apply_to_checkpoint(checkpoint: Checkpoint, recipe: Recipe, target: Target, *, out: Path, calibration: Any = None) -> Checkpoint:
    """The checkpoint after all steps of the recipe, in the folder ``out``, which is written whole or not at all.

    calibration: text as ``windows_of`` takes it, where a technique needs some. A run that is stopped goes on where it was when it is
    asked for again. Raises Refused where calibration is missing or another run writes there, and as ``resolve``.
    """
    asked = recipe
    checkpoint, recipe = turned(checkpoint, recipe, target)
    recipe = allotted(checkpoint, recipe, target, calibration)
    steps = resolve(checkpoint, recipe, target)
    needy = [each.used.name for each in steps if each.used.needs != "nothing"]
    if needy and calibration is None:
        raise Refused(f"apply {needy[0]} without calibration data", do="give text with --calibration; 128 windows of 2048 tokens are usual")
    windows = windows_of(checkpoint, calibration, most=windows_wanted(recipe)) if needy else None
    layouts = stored_as(checkpoint, steps)
    key = _key(checkpoint, (asked, recipe), target, windows)
    check_free(out)
    with filling(out, key) as folder:
        destination = Destination(folder, key, tensors_of(checkpoint, layouts))
        try:
            _outside_blocks(checkpoint, steps, layouts, target, destination)
            if windows is None:
                _layer_by_layer(checkpoint, steps, layouts, target, destination)
            else:
                of_blocks = [each for each in steps if each.used.view is not Whole]
                table = written(checkpoint, layouts, folder)
                _block_by_block(checkpoint, of_blocks, layouts, target, windows, destination, table)
                tune_whole(checkpoint, steps, layouts, target, windows, destination)
        finally:
            destination.close()
        _complete(checkpoint, folder, layouts, asked, target)
    return open_checkpoint(out)


def _layer_by_layer(checkpoint: Checkpoint, steps: Sequence[Resolved], layouts: Mapping[str, Layout | str], target: Target,
                    destination: Destination) -> None:
    """Each layer on its own; nothing of the model runs."""
    with task("rounding", checkpoint.block_count) as progress:
        for index in range(checkpoint.block_count):
            name = checkpoint.block_name(index)
            if index >= destination.done:
                if index + 1 < checkpoint.block_count:
                    checkpoint.expect(checkpoint.block_name(index + 1))
                with _told_by_name(checkpoint, name):
                    _module(checkpoint, name, steps, layouts, target, destination)
                destination.finished(index + 1)
                checkpoint.forget(name)
            progress.advance(note=name)


def _outside_blocks(checkpoint: Checkpoint, steps: Sequence[Resolved], layouts: Mapping[str, Layout | str], target: Target,
                    destination: Destination) -> None:
    """Tables, norms, head and whatever else is there, of which nothing is known but their numbers."""
    inside = tuple(f"{checkpoint.block_name(index)}." for index in range(checkpoint.block_count))
    taken: set[str] = set()
    for layer in (name for name in layouts if not name.startswith(inside)):
        with _told_by_name(checkpoint, layer):
            destination.put(_stored(checkpoint, layer, _rounded(checkpoint, layer, steps, target), layouts[layer]))
        checkpoint.forget(layer)
        taken |= _owned(checkpoint, layer)
    for name in checkpoint.entries:
        if name not in taken and not name.startswith(inside):
            _check_numbers(checkpoint, name)
            destination.put({name: checkpoint.tensor(name)}, then=partial(checkpoint.forget, name.rpartition(".")[0]))


def _module(checkpoint: Checkpoint, module: str, steps: Sequence[Resolved], layouts: Mapping[str, Layout | str], target: Target,
            destination: Destination) -> None:
    """The tensors of a module as the steps leave them."""
    names = checkpoint.names_under(module)
    owners = {layer: _owned(checkpoint, layer) for layer in layouts if layer == module or layer.startswith(f"{module}.")}
    for layer in owners:
        destination.put(_stored(checkpoint, layer, _rounded(checkpoint, layer, steps, target), layouts[layer]))
        checkpoint.forget(layer)
    taken = {name for own in owners.values() for name in own}
    for name in (kept := [name for name in names if name not in taken]):
        _check_numbers(checkpoint, name)
    destination.put({name: checkpoint.tensor(name) for name in kept})


@contextmanager
def _told_by_name(checkpoint: Checkpoint, module: str) -> Iterator[None]:
    """Who refuses numbers does not know whose they are: it is said here."""
    try:
        yield
    except Refused:
        _check_finite(checkpoint, module)
        raise


def _check_finite(checkpoint: Checkpoint, module: str) -> None:
    """Raises Refused with the name of a tensor of a module that holds NaN or infinity."""
    for name in checkpoint.names_under(module):
        _check_numbers(checkpoint, name)


def _check_numbers(checkpoint: Checkpoint, name: str) -> None:
    """Raises Refused where a tensor holds NaN or infinity, a piece at a time: a table of tokens is large."""
    tensor = checkpoint.tensor(name)
    if tensor.is_floating_point() and not all(bool(torch.isfinite(piece).all()) for piece in tensor.reshape(-1).split(PIECE)):
        raise Refused(f"round {name}", found="NaN or infinity in it", do="repair or retrain the model")


def _owned(checkpoint: Checkpoint, layer: str) -> set[str]:
    """The tensors that the weight of a layer is stored in now."""
    if layer not in checkpoint.layouts:
        return {f"{layer}.weight"}
    return {shape.name for shape in stored.shapes(layer, checkpoint.size(layer), checkpoint.layouts[layer])}


def _rounded(checkpoint: Checkpoint, layer: str, steps: Sequence[Resolved], target: Target) -> Quantised | Coded | Array:
    """What the last step that rounds the layer makes of it."""
    used, options = [(each.used, each.options[layer]) for each in steps if layer in each.options][-1]

    def made(numbers: Array) -> Quantised | Coded | Array:
        weight = used.apply(LayerView(layer, "Linear", numbers, scales=SCALES, either_sign=True), target, **options).weight
        assert weight is not None
        return weight

    if used.by_rows and layer not in checkpoint.layouts and not checkpoint.is_transposed(layer):
        return rounded_by_rows(checkpoint.tensor(f"{layer}.weight"), made)  # type: ignore[arg-type]
    return made(checkpoint.weight(layer).numpy())


def _stored(checkpoint: Checkpoint, layer: str, made: Quantised | Coded | Array, layout: Layout | str) -> dict[str, Tensor]:
    if isinstance(made, Quantised | Coded):
        return stored.tensors(layer, made, layout.activations if isinstance(layout, Layout) else 0)
    plain = torch.from_numpy(made)
    return {f"{layer}.weight": plain.t().contiguous() if checkpoint.is_transposed(layer) else plain}


def _block_by_block(checkpoint: Checkpoint, steps: Sequence[Resolved], layouts: Mapping[str, Layout | str], target: Target,
                    windows: Windows, destination: Destination, table: Checkpoint) -> None:
    """Each block with what the blocks before it, as they are now, make of the calibration text, and those of the ``table`` of tokens as it
    is now.
    """
    skeleton = Skeleton(checkpoint)
    shape = (len(windows), windows.length, checkpoint.size(checkpoint.family.embedding)[1])
    flows = [Hidden(destination.folder / f"hidden-{parity}", shape) for parity in (0, 1)]
    exact = [Hidden(destination.folder / f"exact-{parity}", shape) for parity in (0, 1)] if _looks_back(steps) else []
    if destination.done == 0:
        destination.settle()  # the table has to be there
        _enter(skeleton, windows, flows[0], table)
        for file in exact[:1]:
            _enter(skeleton, windows, file, checkpoint)
    with task("rounding", checkpoint.block_count) as progress, one_thread(flows[0].work):
        progress.advance(min(destination.done, checkpoint.block_count))
        for index in range(destination.done, checkpoint.block_count):
            now, then = flows[index % 2], flows[(index + 1) % 2]
            _check_finite(checkpoint, checkpoint.block_name(index))
            skeleton.block(index, late=not exact)
            block = BlockAtWork(skeleton, index, more=len(steps) > 1, late=not exact)
            flow = Flow(now)
            if exact:
                flow = Flow(now, exact[index % 2], exact[(index + 1) % 2])
                _through(block, exact[index % 2], exact[(index + 1) % 2])
            before = block.run(now.read(0, 1))
            for each in steps:
                own = {name: options for name, options in each.options.items() if name.startswith(f"{block.name}.")}
                SHOWS[each.used.view.__name__](block, each.used, own, target, flow)
            destination.put(_of_block(block, layouts))
            _through(block, now, then)
            destination.finished(index + 1)
            destination.settle()  # the next block writes over what this one has read
            block.close()
            skeleton.empty(index)
            progress.advance(note=f"{block.name}, error {_decibels(before, then.read(0, 1)):.1f} dB")
    for file in (*flows, *exact):
        file.close()
        file.path.unlink()


def _enter(skeleton: Skeleton, windows: Windows, flow: Hidden, table: Checkpoint) -> None:
    """What enters the first block, on the disk."""
    for begin, end in flow.parts:
        flow.write(begin, skeleton.embed(windows.tokens[begin:end], table))


def _through(block: BlockAtWork, before: Hidden, after: Hidden) -> None:
    """What the block makes of everything, on the disk."""
    for begin, end in before.parts:
        after.write(begin, block.run(before.read(begin, end)))
    after.flush()


def _decibels(exact: Tensor, found: Tensor) -> float:
    """The energy of what rounding a block did to its output on one window, relative to the output itself."""
    return 10.0 * math.log10(max(float((found - exact).square().sum() / exact.square().sum().clamp_min(1e-30)), 1e-12))


def _looks_back(steps: Sequence[Resolved]) -> bool:
    """Whether a technique compares with what the model gave in float."""
    return any(each.used.view is Block for each in steps)


def _of_block(block: BlockAtWork, layouts: Mapping[str, Layout | str]) -> dict[str, Tensor]:
    """The tensors of a block as they are to be stored."""
    checkpoint = block.skeleton.checkpoint
    taken = {name for layer in block.rounded for name in _owned(checkpoint, layer)}
    made = {name: block.plain.get(name, checkpoint.tensor(name)) for name in checkpoint.names_under(block.name) if name not in taken}
    for layer, weight in block.rounded.items():
        made |= _stored(checkpoint, layer, weight, layouts[layer])
    return made


def _key(checkpoint: Checkpoint, recipes: Sequence[Recipe], target: Target, windows: Windows | None) -> str:
    """The hash of all that goes in; the recipe as it was asked for, and with the bits that were allotted by the text."""
    tokens = windows.content_hash if windows else ""
    return digest([whet.__version__, checkpoint.identity, [recipe.to_plain() for recipe in recipes], target.digest, tokens])


def _complete(checkpoint: Checkpoint, folder: Path, layouts: Mapping[str, Layout | str], recipe: Recipe, target: Target) -> None:
    """Everything beside the weights: config.json, the tokenizer, the manifest."""
    copy_small_files(checkpoint, folder)
    kept = {name: layout for name, layout in checkpoint.layouts.items() if name not in layouts}
    rounded = kept | {name: layout for name, layout in layouts.items() if isinstance(layout, Layout)}
    config = {name: value for name, value in checkpoint.config.items() if name != "quantization_config"}
    if rounded:
        config["quantization_config"] = stored.described(rounded, plain_layers(checkpoint, rounded))
    write_file(folder / CONFIG_NAME, json.dumps(config, indent=1))
    write_file(folder / MANIFEST_NAME, manifest(folder, checkpoint, recipe, target).to_json())


def copy_small_files(checkpoint: Checkpoint, folder: Path) -> None:
    """The tokenizer and whatever else belongs to a checkpoint beside its weights and config.json."""
    for pattern in SMALL_FILES:
        for path in checkpoint.folder.glob(pattern):
            shutil.copyfile(path, folder / path.name)


def plain_layers(checkpoint: Checkpoint, rounded: Mapping[str, Layout]) -> tuple[str, ...]:
    """The linear layers that stay as they were."""
    linear = [name for index in range(checkpoint.block_count) for name in checkpoint.block_layers(index)]
    return tuple(name for name in (*linear, *([checkpoint.family.head] if checkpoint.family.head else ())) if name not in rounded)


def manifest(folder: Path, parent: Checkpoint, recipe: Recipe, target: Target) -> Artifact:
    """What describes the folder. The parent is known by its own manifest, or by its config where it has none."""
    from concurrent.futures import ThreadPoolExecutor

    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name not in (MANIFEST_NAME, "journal.json", "lock"))
    with ThreadPoolExecutor(2) as pool:
        files = tuple(pool.map(lambda path: described_file(path, folder), paths))
    ids = TensorSpec("input_ids", "int64", ("batch", "length"))
    name, width = ("last_hidden_state", "hidden_size") if parent.family.encoder else ("logits", "vocab_size")
    given = TensorSpec(name, "float32", ("batch", "length", int(parent.config.get(width, 0))))
    return Artifact("checkpoint", (ids,), (given,), files, parent=_parent_id(parent), recipe=recipe, target=target.name,
                    tools=FrozenMap(tool_versions()))


def _parent_id(parent: Checkpoint) -> str:
    path = parent.folder / MANIFEST_NAME
    if path.is_file():
        return Artifact.from_json(path.read_bytes()).artifact_id
    return hashlib.sha256(canonical_json(dict(parent.config))).hexdigest()
