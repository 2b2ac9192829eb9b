"""How each kind of technique is shown the layers of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from whet.compress.checkpoint.block import BlockAtWork
from whet.compress.checkpoint.checkpoint import Checkpoint
from whet.compress.checkpoint.families import Readers
from whet.compress.checkpoint.hidden import Hidden
from whet.compress.column_rounding import add_moments, mirrored
from whet.compress.grid import Quantised
from whet.compress.technique import Change, Technique
from whet.compress.views import Block, GramView, Learned, Scaled, Scales, SharedGram, SharedInput
from whet.core.target import Target

Options = Mapping[str, Mapping[str, Any]]
"""By whole name of a layer, the options that the technique is applied with."""

Show = Callable[[BlockAtWork, Technique, Options, Target, "Flow"], None]


@dataclass(frozen=True, eq=False)
class Flow:
    """What enters a block. now: as the blocks before it, rounded, give it. exact: as they gave it in float; wanted: what the block made of
    that in float; both None where no technique looks at them.
    """

    now: Hidden
    exact: Hidden | None = None
    wanted: Hidden | None = None


def layer_by_layer(block: BlockAtWork, used: Technique, options: Options, target: Target, flow: Flow) -> None:
    """Each layer on its own, nothing known of what it reads."""
    for layer in block.skeleton.checkpoint.family.layers:
        if block.whole(layer) in options:
            _put(block, layer, used.apply(block.view(layer), target, **options[block.whole(layer)]))


def with_moments(block: BlockAtWork, used: Technique, options: Options, target: Target, flow: Flow) -> None:
    """Layers with the second moments of what they read, those before them in the block being rounded already."""
    for readers, chosen in _chosen(block, options):
        moments = Moments(block, readers, flow.now)
        for layer in chosen:
            view = GramView(block.view(layer), moments.gram.numpy()[None], moments.rows)
            _put(block, layer, used.apply(view, target, **options[block.whole(layer)]))


def together(block: BlockAtWork, used: Technique, options: Options, target: Target, flow: Flow) -> None:
    """Layers that read one tensor, together. First the factors for all of them, which go into what makes the tensor and so into weights
    that are rounded too; then each is rounded as it stands.
    """
    for readers, chosen in _chosen(block, options):
        if chosen == list(readers.layers) and movable(block.skeleton.checkpoint, readers) and _may_change(block, readers.maker, options):
            found: Scaled = used.apply(_shared(block, readers, chosen, flow, True), target, **options[block.whole(chosen[0])])
            if found.factors is not None:
                move(block, readers, torch.from_numpy(found.factors))
    for readers, chosen in _chosen(block, options):
        while chosen:
            own = options[block.whole(chosen[0])]
            alike = [layer for layer in chosen if options[block.whole(layer)] == own]
            found = used.apply(_shared(block, readers, alike, flow, False), target, **own)
            for layer in alike:
                _put(block, layer, found.changes[block.whole(layer)])
            chosen = [layer for layer in chosen if layer not in alike]


def _may_change(block: BlockAtWork, maker: str, options: Options) -> bool:
    """Whether the numbers of a layer in front may become others: it is not rounded, or will be again. "": a norm is in front."""
    name = block.whole(maker)
    return not maker or name in options or (name not in block.rounded and name not in block.skeleton.checkpoint.layouts)


def _chosen(block: BlockAtWork, options: Options) -> Iterator[tuple[Readers, list[str]]]:
    """The layers that the technique is applied to, by what they read."""
    for readers in block.readers:
        chosen = [layer for layer in readers.layers if block.whole(layer) in options]
        if chosen:
            yield readers, chosen


def _shared(block: BlockAtWork, readers: Readers, layers: Sequence[str], flow: Flow, can_move: bool) -> SharedGram:
    moments = Moments(block, readers, flow.now)
    return SharedGram(block.whole(layers[0]), tuple(block.view(layer) for layer in layers), moments.gram.numpy(), moments.rows,
                      moments.magnitudes.numpy(), can_move)


def as_a_whole(block: BlockAtWork, used: Technique, options: Options, target: Target, flow: Flow) -> None:
    """The block with what enters it and what it should give, to be learned as a whole."""
    chosen = [layer for layer in block.skeleton.checkpoint.family.layers if block.whole(layer) in options]
    if not chosen:
        return
    assert flow.exact is not None
    assert flow.wanted is not None
    for layer in chosen:  # an earlier step may have had it read int8; what is learned here reads floats
        block.skeleton.round_inputs(block.whole(layer), 0)

    def run(inputs: Sequence[Tensor], weights: Mapping[str, Tensor], place: Callable[[str, Tensor], Tensor]) -> Tensor:
        return block.computed(inputs[0], {layer: weights[block.whole(layer)] for layer in chosen if block.whole(layer) in weights})

    views = {block.whole(layer): block.view(layer) for layer in chosen}
    before = {name: made for name in views if isinstance(made := block.rounded.get(name), Quantised)}
    view = Block(block.name, views, {}, (flow.now.mapped(),), (flow.exact.mapped(),), flow.wanted.mapped(), run, before)
    learned: Learned = used.apply(view, target, **options[block.whole(chosen[0])])
    for layer in chosen:
        block.put(layer, learned.weights[block.whole(layer)])


def evened(block: BlockAtWork, used: Technique, options: Options, target: Target, flow: Flow) -> None:
    """Layers that read one tensor, together, with the peaks of its channels: factors for them go into what makes the tensor. ``resolve``
    chose all layers of each tensor, and those alone whose tensor takes factors.
    """
    for readers, chosen in _chosen(block, options):
        peaks = _peaks(block, readers, flow.now)
        view = SharedInput(block.whole(chosen[0]), tuple(block.view(layer) for layer in chosen), peaks.numpy())
        factors: Scales = used.apply(view, target, **options[block.whole(chosen[0])])
        move(block, readers, torch.from_numpy(factors))


def _peaks(block: BlockAtWork, readers: Readers, hidden: Iterable[Tensor]) -> Tensor:
    """[in] the largest |x| of each channel of what the readers read."""
    found = torch.zeros(block.weight(readers.layers[0]).shape[1])

    def widen(inputs: Tensor) -> None:
        torch.maximum(found, inputs.abs().amax(0), out=found)

    block.inputs(readers.layers[0], hidden, widen)
    return found


SHOWS: Mapping[str, Show] = MappingProxyType({"LayerView": layer_by_layer, "GramView": with_moments, "SharedGram": together,
                                              "SharedInput": evened, "Block": as_a_whole})


class Moments:
    """gram: [in, in] float32 the mean of x x^T over ``rows`` vectors x that the readers read. magnitudes: [in] the mean |x|."""

    def __init__(self, block: BlockAtWork, readers: Readers, hidden: Iterable[Tensor]) -> None:
        width = block.weight(readers.layers[0]).shape[1]
        self.gram, self.magnitudes, self.rows = torch.zeros(width, width), torch.zeros(width), 0
        block.inputs(readers.layers[0], hidden, self._add)
        mirrored(self.gram).div_(max(self.rows, 1))
        self.magnitudes /= max(self.rows, 1)

    def _add(self, inputs: Tensor) -> None:
        add_moments(self.gram, inputs)
        self.magnitudes += inputs.abs().sum(0)
        self.rows += len(inputs)


def movable(checkpoint: Checkpoint, readers: Readers) -> bool:
    """Whether factors for the channels of what the readers read can go into what makes it: a norm that feeds nobody else, or a layer with
    as many outputs.
    """
    if readers.norm:
        return sum(readers.norm == each.norm for each in checkpoint.family.readers) == 1
    first = checkpoint.block_name(0)
    return bool(readers.maker) and (
        checkpoint.size(f"{first}.{readers.maker}")[0] == checkpoint.size(f"{first}.{readers.layers[0]}")[1])


def move(block: BlockAtWork, readers: Readers, factors: Tensor) -> None:
    """Divide what the readers read by [in] factors, in the norm or layer that makes it, and multiply their weights."""
    if readers.norm:
        factors = _into_norm(block, readers.norm, factors)
    else:
        block.set_weight(readers.maker, block.weight(readers.maker) / factors[:, None])
        _divide_bias(block, readers.maker, factors)
    for layer in readers.layers:
        block.set_weight(layer, block.weight(layer) * factors)


def _into_norm(block: BlockAtWork, name: str, factors: Tensor) -> Tensor:
    """Divide what a norm gives by factors. Returns those that its numbers stand for as they are stored: often in 16 bits, and the layers
    behind it can make up for that.
    """
    offset, dtype = block.skeleton.checkpoint.family.norm_offset, block.skeleton.checkpoint.tensor(f"{block.whole(name)}.weight").dtype
    weight: Tensor = block.module.get_submodule(name).weight  # type: ignore[assignment]
    stored = ((weight + offset) / factors - offset).to(dtype).float()
    stored = torch.where(stored + offset == 0, weight, stored)  # what became too small stays as it was
    block.set_plain(f"{name}.weight", stored)
    real = torch.where(weight + offset == 0, 1.0, (weight + offset) / (stored + offset))
    _divide_bias(block, name, real)
    return real


def _divide_bias(block: BlockAtWork, name: str, factors: Tensor) -> None:
    bias = getattr(block.module.get_submodule(name), "bias", None)
    if bias is not None:
        block.set_plain(f"{name}.bias", bias / factors)


def _put(block: BlockAtWork, layer: str, change: Change) -> None:
    if change.weight is not None:
        block.put(layer, change.weight, activations=8 if change.compute == "dynamic" else 0)
