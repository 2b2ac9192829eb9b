"""What rounding each layer would do to the answers, for many ways of rounding it, from one pass through the model and back.

    KL(p || p') ~ 1/2 E[(grad_W . E)^2],   E = W' - W,   grad_W what a backward pass leaves at W from the direction g at the logits,
    g = s * (v - s (s . v)),  s = sqrt(p),  v of random signs, so that E[g g^T] is the Fisher information of the logits

as in ``mixed/fisher.py``, block by block: one way forward, which leaves what enters each block on the disk, and one way back.

An encoder has no p. Of the states h that leave it

    1 - cos(h, h + d) ~ |P d|^2 / (2 |h|^2),   P = 1 - h h^T / |h|^2,   and so g = P v / |h|
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from whet.compress.checkpoint.checkpoint import Checkpoint
from whet.compress.checkpoint.hidden import Hidden
from whet.compress.checkpoint.skeleton import Skeleton
from whet.compress.checkpoint.text import Windows
from whet.core.progress import task

DRAWS, SEED = 4, 0
# Short windows and many: each one and each draw is one look at the square whose mean is wanted.
LENGTH, COUNT = 128, 32

Changes = Callable[[str, Tensor], Mapping[str, Tensor]]
"""By way, what rounding a layer that way would add to its weight [out, in]."""


def short(windows: Windows) -> Windows:
    """The beginnings of some windows, spread over the text."""
    chosen = torch.linspace(0, len(windows) - 1, min(COUNT, len(windows))).round().long()
    return Windows(windows.tokens[chosen, :LENGTH], windows.starts, windows.source)


def harms(checkpoint: Checkpoint, windows: Windows, changes: Changes, *, draws: int = DRAWS) -> dict[tuple[str, str], float]:
    """By (whole name of a linear layer, way), nats of KL divergence a token that rounding this layer alone would cost; of an encoder,
    1 - cosine similarity of a token's states.

    Memory: a block, what its ways add to its weights, and its activations for one window.
    """
    skeleton = Skeleton(checkpoint)
    shape = (len(windows), windows.length, checkpoint.size(checkpoint.family.embedding)[1])
    with (tempfile.TemporaryDirectory(prefix="whet-") as folder,
          task("estimating what each rounding does", checkpoint.block_count) as progress):
        entering = [Hidden(Path(folder) / f"{index}", shape) for index in range(checkpoint.block_count + 1)]
        _forward(skeleton, windows, entering)
        random = torch.Generator().manual_seed(SEED)
        back = [Hidden(Path(folder) / f"back-{draw}", shape) for draw in range(draws)]
        _from_answers(skeleton, entering[-1], back, random)
        found: dict[tuple[str, str], float] = {}
        for index in reversed(range(checkpoint.block_count)):
            found |= _of_block(skeleton, index, entering[index], back, changes)
            progress.advance(note=checkpoint.block_name(index))
        for file in (*entering, *back):
            file.close()
    tokens = windows.tokens.numel()
    return {key: total / (2 * draws * tokens) for key, total in found.items()}


def _forward(skeleton: Skeleton, windows: Windows, entering: Sequence[Hidden]) -> None:
    for begin, end in entering[0].parts:
        entering[0].write(begin, skeleton.embed(windows.tokens[begin:end]))
    for index, (before, after) in enumerate(pairwise(entering)):
        skeleton.block(index)
        with torch.no_grad():
            for begin, end in before.parts:
                after.write(begin, skeleton.run(index, before.read(begin, end)))
        skeleton.empty(index)


def _from_answers(skeleton: Skeleton, last: Hidden, back: Sequence[Hidden], random: torch.Generator) -> None:
    """What the directions at the logits, or at the states, leave at the output of the last block."""
    with skeleton.head() as head, torch.enable_grad():
        for at in range(last.shape[0]):
            hidden = last.read(at, at + 1).requires_grad_()
            given = head(hidden)
            for file in back:
                signs = torch.randint(0, 2, given.shape, generator=random).float() * 2 - 1
                direction = (_at_states if skeleton.checkpoint.family.encoder else _at_logits)(given.detach(), signs)
                file.write(at, torch.autograd.grad(given, hidden, direction, retain_graph=True)[0])


def _at_logits(logits: Tensor, signs: Tensor) -> Tensor:
    root = torch.softmax(logits, -1).sqrt()
    return root * (signs - root * (root * signs).sum(-1, keepdim=True))


def _at_states(states: Tensor, signs: Tensor) -> Tensor:
    size = states.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    unit = states / size
    return (signs - unit * (unit * signs).sum(-1, keepdim=True)) / size


def _of_block(skeleton: Skeleton, index: int, entering: Hidden, back: Sequence[Hidden], changes: Changes) -> dict[tuple[str, str], float]:
    """The sums of squares of the block's layers; ``back`` goes on to the block before."""
    checkpoint = skeleton.checkpoint
    block, name, transposed = skeleton.block(index), checkpoint.block_name(index), checkpoint.family.transposed
    weights: dict[str, Tensor] = {layer: block.get_submodule(layer).weight for layer in checkpoint.family.layers}  # type: ignore[misc]
    added = {(f"{name}.{layer}", way): change for layer, weight in weights.items()
             for way, change in changes(f"{name}.{layer}", weight.t() if transposed else weight).items()}
    found = dict.fromkeys(added, 0.0)
    for weight in weights.values():
        weight.requires_grad_()
    with torch.enable_grad():
        for at in range(entering.shape[0]):
            hidden = entering.read(at, at + 1).requires_grad_()
            output = skeleton.run(index, hidden)
            for file in back:
                first, *rest = torch.autograd.grad(output, [hidden, *weights.values()], file.read(at, at + 1), retain_graph=True)
                file.write(at, first)
                gradients = {f"{name}.{layer}": part.t() if transposed else part for layer, part in zip(weights, rest, strict=True)}
                for (layer, way), change in added.items():
                    found[layer, way] += float((gradients[layer] * change).sum()) ** 2
    skeleton.empty(index)
    return found
