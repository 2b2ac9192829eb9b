"""What techniques see when one layer with its statistics is not enough, and what they give back for it.

The class of a technique's first parameter says what it is shown; ``walks/`` has one file for each, which goes through the model
and puts back what came of it. LayerView itself stands in ``technique.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from whet.compress.grid import Array, Floats, Grid, Quantised
from whet.compress.statistics import Statistics
from whet.compress.technique import Change, LayerView
from whet.core.document import FrozenMap

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class GramView:
    """A layer and the second moments of its inputs, as the layers before it give them once they are rounded.

    gram: [groups, in, in] float32, the mean of x x^T over ``rows`` input vectors x (a convolution's are its patches, laid out as the
    weight flattened to [out, in]); groups is 1 but for grouped convolutions, whose output channels belong to the groups in order.
    With fewer rows than the option ``enough`` asks for it is [groups, 0, 0].
    """

    layer: LayerView
    gram: Floats
    rows: int


@dataclass(frozen=True, eq=False)
class SampleView:
    """A layer with samples to learn on.

    inputs: [n, ...] as the layers before it give them once they are rounded. targets: what the layer, and the activation right
    behind it, gave in float. product(x, weight): the same from inputs and a weight [out, ...], with the layer's bias.
    """

    layer: LayerView
    inputs: Tensor
    targets: Tensor
    product: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class ErrorView:
    """A layer whose model was quantised. error: [out] mean of its output now minus that in float, over samples and positions."""

    layer: LayerView
    error: Floats


@dataclass(frozen=True, eq=False)
class Link:
    """A layer of a chain. weight: [out, in / group, ...] float32. outputs: statistics of its output before the activation, with
    channels; None where they were not collected.
    """

    layer: LayerView
    group: int = 1
    outputs: Statistics | None = None


@dataclass(frozen=True, eq=False)
class Chain:
    """Layers of which each one's output channels are the next one's input channels, with nothing between them but what lets a
    positive factor of a channel through (Relu, pooling, padding with 0). ``rectified[i]``: whether a Relu follows link i and no padding
    lies between it and link i + 1, so that a constant may move from one bias into the other.
    """

    links: tuple[Link, ...]
    rectified: tuple[bool, ...]


@dataclass(frozen=True, eq=False)
class Rescaled:
    """New weights and biases of some layers, in float; the model computes what it did before."""

    weights: Mapping[str, Floats] = field(default_factory=FrozenMap)
    biases: Mapping[str, Floats] = field(default_factory=FrozenMap)


@dataclass(frozen=True, eq=False)
class SharedInput:
    """Layers with weights that all read one tensor. peaks: [in] the largest |x| of each of its channels over the samples."""

    name: str
    layers: tuple[LayerView, ...]
    peaks: Floats


@dataclass(frozen=True, eq=False)
class SharedGram:
    """Layers with weights that all read one tensor, and the second moments of that tensor.

    gram: [in, in] float32, the mean of x x^T over ``rows`` vectors x, as the layers before give them once they are rounded.
    magnitudes: [in] the mean |x| of each channel. movable: whether what makes the tensor can take a factor for each channel; then factors
    are all that is asked for, and the layers are shown again to be rounded.
    """

    name: str
    layers: tuple[LayerView, ...]
    gram: Floats
    rows: int
    magnitudes: Floats
    movable: bool


@dataclass(frozen=True, eq=False)
class Scaled:
    """What came of such layers. factors: [in] the tensor is to be divided by them, and the weights multiplied; None for none. changes: the
    rounded weights by layer, empty where factors were asked for.
    """

    factors: Floats | None
    changes: Mapping[str, Change]


@dataclass(frozen=True, eq=False)
class Stream:
    """Something that reads or writes a vector of ``width`` channels. weights: [..., width] float32, by name, the vector's channels last.
    All that touches one vector is shown, part after part, so what comes of a part may hang on its width alone. The gains of norms
    between the vector and its readers are in the readers already. What comes of it: the same names, and numbers in the same shapes.
    """

    name: str
    width: int
    weights: Mapping[str, Floats]


@dataclass(frozen=True, eq=False)
class Sensitivities:
    """What rounding each layer alone costs. harms: by layer and bits, nats of KL divergence of the answers; numbers: of each layer's
    weight. What comes of it: the bits of each layer.
    """

    harms: Mapping[str, Mapping[int, float]]
    numbers: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class TensorView:
    """An activation that will lie on a grid.

    values: some of its numbers, float32 of any shape. error(fake): mean squared error at the outputs of the layers that read it, or of
    the tensor itself where none of them has weights, when ``fake`` stands in the place of ``values``.
    """

    statistics: Statistics
    values: Floats
    error: Callable[[Floats], float]


class Samples(Protocol):
    """A tensor [n, ...] of samples that may lie in a file: a Tensor, or what gives the samples of an index as one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Block:
    """A part of the model between two places where just one tensor is alive, to be learned as a whole.

    layers: its layers with weights, by name. tensors: the activations read in it that will lie on a grid, with their statistics.
    inputs, exact_inputs: the tensors that enter, [n, ...] each, as the blocks before give them once they are quantised, and as they
    did in float. targets: [n, ...] the block's output in float; several outputs side by side as [n, numbers].
    run(inputs, weights, place): the output, with weights [out, ...] by layer, and place(name, tensor) in the place of each tensor of
    ``tensors``. rounded: what an earlier step has rounded its layers to, by layer; ``layers`` hold the weights in float. fixed: how many
    samples ``run`` takes at a time, where it does not take any number.
    """

    name: str
    layers: Mapping[str, LayerView]
    tensors: Mapping[str, Statistics]
    inputs: tuple[Samples, ...]
    exact_inputs: tuple[Samples, ...]
    targets: Samples
    run: Callable[[Sequence[Tensor], Mapping[str, Tensor], Callable[[str, Tensor], Tensor]], Tensor]
    rounded: Mapping[str, Quantised] = field(default_factory=FrozenMap)
    fixed: int = 0


@dataclass(frozen=True, eq=False)
class Learned:
    """What came of a block: weights on grids by layer ([out, in], in the order of its layers), and grids of activations by tensor."""

    weights: Mapping[str, Quantised] = field(default_factory=FrozenMap)
    activations: Mapping[str, Grid] = field(default_factory=FrozenMap)


@dataclass(frozen=True, eq=False)
class Whole:
    """A language model whose layers are rounded, all of it in memory, to be tuned from end to end.

    rounded: by layer, what the steps before made of its weight [out, in]. scales: the dtype that scales are stored in. weight(layer): [out,
    in] the float weight that it was rounded from. tokens: [windows, length] int64, the calibration text. run(chosen, weights): logits [n,
    length, vocabulary] for the windows [n] chosen, with weights [out, in] by layer; gradients flow to those. parent(chosen): what the
    model gave in float. What comes of it is ``Learned``.
    """

    rounded: Mapping[str, Quantised]
    scales: str
    weight: Callable[[str], Floats]
    tokens: Tensor
    run: Callable[[Tensor, Mapping[str, Tensor]], Tensor]
    parent: Callable[[Tensor], Tensor]

    @property
    def windows(self) -> int:
        return len(self.tokens)


Range = tuple[float, float]
"""Lowest and highest value that a grid shall hold."""

Scales = Array
"""[in] a positive factor for each channel: the input is divided by it, the weights are multiplied."""
