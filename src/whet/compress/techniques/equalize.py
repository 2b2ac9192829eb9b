"""Weight ranges of neighbouring layers made equal, and high biases moved on into the next layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from whet.compress.grid import Array
from whet.compress.statistics import Statistics
from whet.compress.technique import Foresight, Search
from whet.compress.views import Chain, Rescaled
from whet.core.inventory import Layer
from whet.core.target import Target

OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
SETTLED = 1e-4  # a round that changes no factor by more than this share is the last one
Doubles = NDArray[np.float64]


def equalize(view: Chain, target: Target, *,
             iterations: Annotated[int, Search(20, 1, 5, help="most rounds over the layers of a chain", only=False, least=1,
                                               most=1000)] = 20,
             absorb: Annotated[bool, Search(True, False, help="move high biases on into the next layer")] = True) -> Rescaled:
    """Give each channel between two layers the factor that makes its ranges in both weights equal.

    Paper: Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias Correction", section 4.1 (equations 8 to 11) and
    4.1.3 (high biases, equations 12 and 13).
    Needs: calibration.
    Cost: ``iterations`` passes over the weights; with ``absorb`` one pass of the calibration data, with statistics of channels.
    Limits: before the step that rounds. Chains of layers with nothing between them but Relu, LeakyRelu, PRelu, pooling, padding with 0 and
    flattening; whatever else (Clip at 6, residual Add, several readers) ends a chain. It helps where a whole weight has one scale,
    and activations whose channels differ; with one scale an output channel the weights need it less.

    Layers W1 [out, ...] and W2 [.., in, ..], out = in; channel i: r1_i = max|W1_i|, r2_i = max|W2_.i|;
    s_i = sqrt(r1_i r2_i) / r2_i; W1_i / s_i, b1_i / s_i, W2_.i s_i. Both ranges are sqrt(r1_i r2_i) then. A dead channel keeps s = 1.
    Absorption, behind a Relu where the next layer sees no padding: c_i = max(0, mean_i - 3 std_i) of the channel before the Relu, but no
    more than the lowest value seen, so that nothing changes on the samples; b1 - c, b2 + W2 c.
    """
    weights = [link.layer.weight.astype(np.float64) for link in view.links if link.layer.weight is not None]
    biases = [None if link.layer.bias is None else link.layer.bias.astype(np.float64) for link in view.links]
    groups = [link.group for link in view.links]
    total = [np.ones(len(weight)) for weight in weights]  # [out] by what each channel was divided, all in all
    for _ in range(iterations):
        changes = [_equalise_pair(weights, biases, total, groups, index) for index in range(len(weights) - 1)]
        if max(changes) < SETTLED:
            break
    if absorb:
        for index, link in enumerate(view.links[:-1]):
            if view.rectified[index] and link.outputs is not None:
                _absorb(weights, biases, groups, index, _high_part(link.outputs) / total[index])
    names = [link.layer.name for link in view.links]
    return Rescaled({name: weight.astype(np.float32) for name, weight in zip(names, weights, strict=True)},
                    {name: bias.astype(np.float32) for name, bias in zip(names, biases, strict=True) if bias is not None})


def _equalise_pair(weights: list[Doubles], biases: list[Doubles | None], total: list[Doubles], groups: Sequence[int], index: int) -> float:
    """One step of equation 11 between the layers ``index`` and ``index`` + 1; the largest |log s|."""
    first, second = weights[index], weights[index + 1]
    before = np.abs(first).reshape(len(first), -1).max(axis=1)  # r1 [channels]
    after = np.abs(_by_input(second, groups[index + 1])).max(axis=(1, 3)).ravel()  # r2 [channels]
    live = (before > 0) & (after > 0)
    scale = np.sqrt(np.where(live, before, 1.0) / np.where(live, after, 1.0))  # = sqrt(r1 r2) / r2
    weights[index] = first / scale.reshape(-1, *[1] * (first.ndim - 1))
    bias = biases[index]
    biases[index] = None if bias is None else bias / scale
    spread = scale.reshape(groups[index + 1], 1, -1, 1)
    weights[index + 1] = (_by_input(second, groups[index + 1]) * spread).reshape(second.shape)
    total[index] = total[index] * scale
    return float(np.abs(np.log(scale)).max())


def _absorb(weights: list[Doubles], biases: list[Doubles | None], groups: Sequence[int], index: int, amount: Doubles) -> None:
    """b1 - c, b2 + W2 c (equation 13). amount: [channels] c."""
    own, following = biases[index], biases[index + 1]
    if own is None or following is None:  # a layer that has no bias would get one: left as it is
        return
    moved = _by_input(weights[index + 1], groups[index + 1]) * amount.reshape(groups[index + 1], 1, -1, 1)
    biases[index], biases[index + 1] = own - amount, following + moved.sum(axis=(2, 3)).ravel()


def _high_part(outputs: Statistics) -> Doubles:
    """[channels] c = max(0, mean - 3 std), and no more than the lowest value seen."""
    mean, spread, low = outputs.channel_mean, outputs.channel_std, outputs.channel_low
    if mean is None or spread is None or low is None:
        return np.zeros(1)
    found: Doubles = np.clip(np.minimum(mean - 3 * spread, low), 0, None)
    return found


def _by_input(weight: Array, group: int) -> Array:
    """[out, in / group, ...] -> [group, out / group, in / group, rest]: the input channel is the first and the third axis."""
    return weight.reshape(group, len(weight) // group, weight.shape[1], -1)


def foresee(layer: Layer, target: Target, *, iterations: int = 20, absorb: bool = True) -> Foresight:
    """Layers with weights; which of them stand in a chain shows in the graph only. Nothing of their types or sizes changes."""
    if layer.op not in OPS or not layer.weight_shape:
        return Foresight(False, note="it has no weights between channels")
    return Foresight(True, layer.weight_dtype or "float32", note="its weights change where it stands in a chain", adjusts=True)


