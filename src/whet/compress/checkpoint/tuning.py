"""The last stage: a model whose blocks are all rounded is put into memory, tuned as a whole, and written over what was there.

What a run finds when it goes on must be what the blocks gave. So the tuned tensors are first a file of their own, which is whole or
not there; only then are they written over the old ones, which may be done again as often as a run is killed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from whet.compress.checkpoint import stored
from whet.compress.checkpoint.block import SCALES, BlockAtWork
from whet.compress.checkpoint.checkpoint import Checkpoint
from whet.compress.checkpoint.destination import Destination
from whet.compress.checkpoint.hidden import Hidden
from whet.compress.checkpoint.resolve import Resolved
from whet.compress.checkpoint.skeleton import Skeleton
from whet.compress.checkpoint.stored import Layout
from whet.compress.checkpoint.tensor_files import TensorFile
from whet.compress.checkpoint.tensor_writer import TensorWriter, shape_of, shards_of
from whet.compress.checkpoint.text import Windows
from whet.compress.grid import Floats, Quantised
from whet.compress.views import Learned, SharedGram, SharedInput, Whole
from whet.core.target import Target

TUNED = "tuned"  # the folder in which tuned tensors wait for their places


def tune_whole(checkpoint: Checkpoint, steps: Sequence[Resolved], layouts: Mapping[str, Layout | str], target: Target, windows: Windows,
               destination: Destination) -> None:
    """Do the step that sees the whole model, if there is one, once all blocks are finished, and write what changed in its place."""
    step = next((each for each in steps if each.used.view is Whole), None)
    if step is None:
        return
    folder = destination.folder / TUNED
    if destination.done <= checkpoint.block_count:
        destination.settle()
        if not folder.is_dir():
            moved = any(each.used.view in (SharedGram, SharedInput) for each in steps)
            now = written(checkpoint, layouts, destination.folder)
            _keep(folder, _tuned(checkpoint, now, step, target, windows, destination.folder, moved))
        for file in map(TensorFile, sorted(folder.glob("*.safetensors"))):
            destination.put({name: file.read(name) for name in file.entries})
        destination.finished(checkpoint.block_count + 1)
        destination.settle()
    shutil.rmtree(folder, ignore_errors=True)


def written(checkpoint: Checkpoint, layouts: Mapping[str, Layout | str], folder: Path) -> Checkpoint:
    """The checkpoint that lies in ``folder`` but for its config."""
    found = {name: layout for name, layout in {**checkpoint.layouts, **layouts}.items() if isinstance(layout, Layout)}
    files = tuple(TensorFile(path) for path in sorted(folder.glob("*.safetensors")))
    return Checkpoint(folder, checkpoint.config, checkpoint.family, files, found)


def _tuned(parent: Checkpoint, now: Checkpoint, step: Resolved, target: Target, windows: Windows, folder: Path,
           moved: bool) -> dict[str, Tensor]:
    """The tensors that the step has changed, by name."""
    names = [name for index in range(now.block_count) for name in now.block_layers(index) if name in step.options]
    rounded = {name: made for name in names if isinstance(made := now.rounded(name), Quantised)}
    with in_memory(parent, now, windows, rounded, folder, moved=moved) as view:
        learned: Learned = step.used.apply(view, target, **step.options[names[0]])
    return {name: tensor for layer, made in learned.weights.items()
            for name, tensor in stored.tensors(layer, made, now.layouts[layer].activations).items()}


@contextmanager
def in_memory(parent: Checkpoint, now: Checkpoint, windows: Windows, rounded: Mapping[str, Quantised], folder: Path, *,
              moved: bool = False) -> Iterator[Whole]:
    """The model ``now`` as a whole beside its parent, of which only what left its last block for each window is kept, in a file. moved:
    whether factors went from layer to layer, so that the parent's weights are not those that were rounded.
    """
    teacher, student = Skeleton(parent), Skeleton(now)
    shape = (len(windows), windows.length, parent.size(parent.family.embedding)[1])
    leaves, enters = (Hidden(folder / name, shape) for name in ("parent-leaves", "enters"))
    _run_parent(teacher, windows, leaves)
    for begin, end in enters.parts:
        enters.write(begin, student.embed(windows.tokens[begin:end]))
    blocks = _filled(student, rounded)
    leaving, entering = leaves.mapped(), enters.mapped()
    student.calls(windows.length)  # before the head is there: making them empties it

    def weight(layer: str) -> Floats:
        return rounded[layer].values if moved else parent.weight(layer).numpy()

    with teacher.head() as answers, student.head() as head:
        def run(chosen: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
            hidden = entering[chosen]
            for block in blocks:
                hidden = block.computed(hidden, {layer: weights[whole] for layer in now.family.layers
                                                 if (whole := block.whole(layer)) in weights})
            return head(hidden)

        def given(chosen: Tensor) -> Tensor:
            with torch.no_grad():
                return answers(leaving[chosen])

        try:
            yield Whole(rounded, SCALES, weight, windows.tokens, run, given)
        finally:
            for file in (leaves, enters):
                file.close()
                file.path.unlink()


def _run_parent(teacher: Skeleton, windows: Windows, leaves: Hidden) -> None:
    """What leaves the last block of the float model, a block in memory at a time."""
    for begin, end in leaves.parts:
        leaves.write(begin, teacher.embed(windows.tokens[begin:end]))
    for index in range(teacher.checkpoint.block_count):
        teacher.block(index)
        block = BlockAtWork(teacher, index)
        for begin, end in leaves.parts:
            leaves.write(begin, block.run(leaves.read(begin, end)))
        teacher.empty(index)


def _filled(student: Skeleton, rounded: Mapping[str, Quantised]) -> list[BlockAtWork]:
    """All blocks with their weights, but for those that will be given when they run."""
    blocks = [BlockAtWork(student, index) for index in range(student.checkpoint.block_count)]
    for block in blocks:
        student.block(block.index)
        for layer in student.checkpoint.family.layers:
            if block.whole(layer) in rounded:
                module = block.module.get_submodule(layer)
                module.weight = nn.Parameter(module.weight.to("meta"), requires_grad=False)  # type: ignore[arg-type]
    return blocks


def _keep(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """The tensors in a folder, which is there once they are on the disk."""
    begun = folder.with_name(f"{folder.name}-begun")
    begun.mkdir(exist_ok=True)
    with TensorWriter(begun, shards_of(shape_of(name, tensor) for name, tensor in tensors.items())) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
        writer.flush()
    begun.replace(folder)
