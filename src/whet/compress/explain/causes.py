"""Why a layer is hurt, told from its numbers: a table of signs, each a sentence with what was counted. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whet.compress.explain.differences import BiasCodes
from whet.compress.grid import BIAS_LIMIT, Array, Grid
from whet.compress.statistics import Statistics
from whet.core.explanation import Cause

# From where on a number is out of the ordinary. Normal weights of 9 to 4608 inputs reach 3 to 5 times their standard deviation, and the
# ranges of trained channels differ by 2 to 3.
UNEQUAL = 6.0  # the widest channel, of the median one
OUTLYING = 4.0  # the largest number, of the 99.99th percentile
HEAVY = 12.0  # the largest weight of the median channel, of its standard deviation
SHARED = 10.0  # the median channel's relative rounding error, of that of the widest one
COMPARABLE = 0.3  # the damage of one part, of that of the other
FEW_CODES = 24  # distinct numbers that are left to a channel


@dataclass(frozen=True, eq=False)
class Weights:
    """A layer's weights, [out, in, ...] before and after rounding. inputs: [in] how far each channel that it reads goes; None where
    that is not known. bias: [out] in float, with its codes on the grid of the layer's sums; None where it has none."""

    exact: Array
    rounded: Array
    inputs: NDArray[np.float64] | None = None
    bias: tuple[Array, BiasCodes] | None = None


@dataclass(frozen=True, eq=False)
class Activation:
    """A tensor on a grid. joined: how far each of the tensors reaches that an Add or Concat made it of. is_input: of the model."""

    name: str
    statistics: Statistics
    grid: Grid
    joined: tuple[float, ...] = ()
    is_input: bool = False

    @property
    def low(self) -> float:
        """The lowest number of the grid."""
        return float((self.grid.lowest - int(self.grid.zero_point)) * float(self.grid.scale))

    @property
    def high(self) -> float:
        return float((self.grid.highest - int(self.grid.zero_point)) * float(self.grid.scale))


def causes(weights: Weights | None, activations: Sequence[Activation], damages: tuple[float, float]) -> tuple[Cause, ...]:
    """The causes, those of the part that does more damage first. damages: of the weights and of the activations.

    Where a part does its share of the damage and shows no sign, the cause is rounding itself.
    """
    parts: dict[str, list[Cause]] = {"weights": [], "activations": []}
    if weights is not None:
        parts["weights"] = _signs(_OF_WEIGHTS, weights) or [_plain_weights(weights)]
    for each in activations:
        parts["activations"] += _signs(_OF_ACTIVATIONS, each)
    if activations and not parts["activations"]:
        parts["activations"] = [_plain_activation(activations[0])]
    first, second = ("weights", "activations") if damages[0] >= damages[1] else ("activations", "weights")
    lesser = parts[second] if min(damages) > 0.1 * max(damages) else [each for each in parts[second] if each.kind != "rounding"]
    found = [*parts[first], *lesser]
    if min(damages) > COMPARABLE * max(damages):  # what can be told comes before what is nothing unusual
        found.sort(key=lambda cause: cause.kind == "rounding")
    once: dict[tuple[str, str], Cause] = {}
    for cause in found:  # of several tensors of one layer, the first speaks
        once.setdefault((cause.kind, cause.part), cause)
    return tuple(once.values())


def _signs(table: Sequence[Callable[..., Cause | None]], about: Weights | Activation) -> list[Cause]:
    return [cause for sign in table if (cause := sign(about)) is not None]


# -- weights ------------------------------------------------------------------------------------------------------------------------


def _bias_overflow(weights: Weights) -> Cause | None:
    """A bias that is so large beside the products that its int32 codes ask for coarser steps, and so coarser weights."""
    if weights.bias is None:
        return None
    codes, shared = weights.bias[1].codes, weights.bias[1].shared
    exact = np.broadcast_to(weights.bias[0], codes.shape)  # a Gemm may have one number for all rows
    alive = _reach(weights.exact) > 0
    full = (np.abs(codes.astype(np.int64)) >= 0.999 * BIAS_LIMIT) & (shared or alive)  # a dead channel's steps are its bias's anyway
    if not full.any():
        return None
    channel = int(np.where(full, np.abs(exact), 0).argmax())
    kept = _median_codes(weights, alive if shared else full)
    whose = "all channels, which share its steps," if shared else f"{int(full.sum())} of {len(full)} channels"
    text = (f"the bias of channel {channel}, {exact[channel]:.3g}, does not fit the int32 sums beside its products: with the coarser steps "
            f"that it needs, the weights of {whose} keep {kept} codes")
    return Cause("bias_overflow", "weights", text, {"channel": channel, "bias": float(exact[channel]), "codes": kept,
                                                    "channels": int(full.sum())})


def _one_channel(weights: Weights) -> Cause | None:
    """Channels of different reach that share a scale."""
    reach = _reach(weights.exact)
    alive = reach[reach > 0]
    if alive.size < 2 or alive.max() < UNEQUAL * np.median(alive):
        return None
    widest, median = int(reach.argmax()), float(np.median(alive))
    others, error = (reach > 0) & (np.arange(len(reach)) != widest), _relative_rows(weights)
    if np.median(error[others]) < SHARED * error[widest]:  # each channel has a scale of its own
        return None
    codes = _median_codes(weights, others)
    text = (f"channel {widest}'s weights reach {reach[widest]:.3g}, the median channel's {median:.3g}: with one scale for all of them "
            f"half of the channels keep {codes} codes or fewer")
    return Cause("weight_channel", "weights", text, {"channel": widest, "reach": float(reach[widest]), "median": median, "codes": codes})


def _one_column(weights: Weights) -> Cause | None:
    """An input channel whose weights are small, because what it multiplies is large: few codes are left to it."""
    if weights.inputs is None or weights.exact.ndim < 2 or len(weights.inputs) != weights.exact.shape[1] or len(weights.inputs) < 2:
        return None
    columns = Weights(np.moveaxis(weights.exact, 1, 0), np.moveaxis(weights.rounded, 1, 0))
    reach, error = _reach(columns.exact), _relative_rows(columns)
    alive = reach > 0
    least = int((weights.inputs * error).argmax())  # where most is lost of what comes in
    if not alive[least] or reach[least] * UNEQUAL > np.median(reach[alive]) or weights.inputs[least] < UNEQUAL * np.median(weights.inputs):
        return None
    median = float(np.median(reach[alive]))
    usual = float(np.median(weights.inputs))
    text = (f"input channel {least} reaches {weights.inputs[least]:.3g}, the median one {usual:.3g}, so its weights are small, "
            f"{reach[least]:.3g} beside {median:.3g}: on a scale that they share, {error[least]:.1%} of their energy is rounding error")
    return Cause("weight_column", "weights", text, {"channel": least, "reach": float(reach[least]), "median": median,
                                                    "error": float(error[least])})


def _heavy_tails(weights: Weights) -> Cause | None:
    rows = weights.exact.reshape(len(weights.exact), -1).astype(np.float64)
    deviation = rows.std(axis=1)
    alive = deviation > 0
    if not alive.any() or rows.shape[1] < 8:
        return None
    ratio = float(np.median(np.abs(rows[alive]).max(axis=1) / deviation[alive]))
    if ratio < HEAVY:
        return None
    centred = (rows[alive] - rows[alive].mean(axis=1, keepdims=True)) / deviation[alive, None]
    kurtosis = float(np.median((centred**4).mean(axis=1)))
    text = (f"a few weights stand far out: the largest of a channel is {ratio:.1f} standard deviations (kurtosis {kurtosis:.0f}; "
            f"3 is normal), so most weights share few codes")
    return Cause("weight_outliers", "weights", text, {"ratio": ratio, "kurtosis": kurtosis})


def _few_bits(weights: Weights) -> Cause | None:
    codes = _median_codes(weights, _reach(weights.exact) > 0)
    size = weights.exact[0].size
    if codes > FEW_CODES or size < 2 * codes or _one_channel(weights) is not None:
        return None
    error = _energy(weights.exact, weights.rounded)
    text = f"half of its channels keep {codes} codes or fewer for {size} weights: {_of_signal(error)}"
    return Cause("few_codes", "weights", text, {"codes": codes, "error": error})


def _dead(weights: Weights) -> Cause | None:
    reach = _reach(weights.exact)
    dead = int((reach <= 1e-6 * reach.max(initial=0.0)).sum())
    if not dead or dead < 0.05 * len(reach):
        return None
    text = f"{dead} of its {len(reach)} channels are dead: their weights are 0, or a millionth of the largest"
    return Cause("dead_channels", "weights", text, {"dead": dead, "channels": len(reach)})


def _plain_weights(weights: Weights) -> Cause:
    error = _energy(weights.exact, weights.rounded)
    return Cause("rounding", "weights", f"nothing unusual in its weights: {_of_signal(error)}", {"error": error})


# -- activations --------------------------------------------------------------------------------------------------------------------


def _clipped(tensor: Activation) -> Cause | None:
    """More is lost by cutting off than by rounding."""
    share, cut, rounded = _clipping(tensor)
    if share <= 0 or cut <= rounded:
        return None
    text = (f"{share:.2%} of the values lie outside the range {tensor.low:.3g} to {tensor.high:.3g} and are cut off (they go from "
            f"{tensor.statistics.low:.3g} to {tensor.statistics.high:.3g}), which costs {_times(cut, rounded)} the error of rounding")
    return Cause("saturation", "activations", text, {"share": share, "cut": cut, "rounded": rounded})


def _wide_channel(tensor: Activation) -> Cause | None:
    """One channel takes the range, and the others share a few codes."""
    low, high = tensor.statistics.channel_low, tensor.statistics.channel_high
    if low is None or high is None:
        return None
    reach = np.maximum(np.abs(low), np.abs(high)).astype(np.float64)
    alive = reach[reach > 0]
    if alive.size < 2 or alive.max() < UNEQUAL * np.median(alive):
        return None
    widest, median = int(reach.argmax()), float(np.median(alive))
    span = float(np.median((np.maximum(high, 0) - np.minimum(low, 0))[reach > 0]))
    codes, of = int(span / float(tensor.grid.scale)) + 1, 1 << tensor.grid.bits
    if tensor.is_input:
        text = (f"channel {widest} of the input reaches {reach[widest]:.3g}, the median channel {median:.3g}: in one range the "
                f"median channel gets {codes} of {of} codes")
    else:
        text = (f"channel {widest} of its output reaches {reach[widest]:.3g}, the median channel {median:.3g}: activations have one "
                f"range a tensor, which leaves the median channel {codes} of {of} codes")
    kind = "input_channels" if tensor.is_input else "activation_channel"
    return Cause(kind, "activations", text, {"channel": widest, "reach": float(reach[widest]), "median": median, "codes": codes})


def _outliers(tensor: Activation) -> Cause | None:
    """A few values far away from all others."""
    far = max(abs(tensor.low), abs(tensor.high))
    usual = _percentile(tensor.statistics, 0.9999)
    if usual <= 0 or far < OUTLYING * usual or _wide_channel(tensor) is not None:
        return None
    codes = int(usual / float(tensor.grid.scale)) + 1
    text = (f"its range reaches {far:.3g}, and 99.99 % of the values lie within {usual:.3g}: they share {codes} of "
            f"{1 << tensor.grid.bits} codes")
    return Cause("activation_outliers", "activations", text, {"reach": far, "usual": usual, "codes": codes})


def _joined(tensor: Activation) -> Cause | None:
    """What an Add or Concat puts together spans unequal ranges."""
    reach = [each for each in tensor.joined if each > 0]
    if len(reach) < 2 or max(reach) < UNEQUAL * min(reach):
        return None
    codes = int(min(reach) / float(tensor.grid.scale)) + 1
    text = (f"it joins tensors of unequal range, {min(reach):.3g} and {max(reach):.3g}: in the range of both the smaller one has {codes} "
            f"of {1 << tensor.grid.bits} codes")
    return Cause("unequal_join", "activations", text, {"smaller": min(reach), "larger": max(reach), "codes": codes})


def _coarse(tensor: Activation) -> Cause | None:
    used = _codes_used(tensor)
    if tensor.is_input:
        return None  # data may well have few values
    if tensor.grid.bits < 8:
        error = f"{1 << tensor.grid.bits} codes are all that {tensor.grid.bits} bits have"
    elif used <= FEW_CODES and _outliers(tensor) is None and _wide_channel(tensor) is None:
        error = f"99.9 % of the values are in {used} of {1 << tensor.grid.bits} codes"
    else:
        return None
    return Cause("few_codes", "activations", error, {"codes": used})


def _tiny(tensor: Activation) -> Cause | None:
    reach = max(abs(tensor.statistics.low), abs(tensor.statistics.high))
    if reach >= 1e-6 or reach == 0:
        return None
    return Cause("tiny_range", "activations", f"its values reach {reach:.2g} only: check that the layer is alive", {"reach": reach})


def _plain_activation(tensor: Activation) -> Cause:
    used, of = _codes_used(tensor), 1 << tensor.grid.bits
    text = f"nothing unusual in what it gives: 99.9 % of the values are in {used} of {of} codes"
    return Cause("rounding", "activations", text, {"codes": used})


_OF_WEIGHTS = (_bias_overflow, _one_channel, _one_column, _heavy_tails, _few_bits, _dead)
_OF_ACTIVATIONS = (_clipped, _wide_channel, _outliers, _joined, _coarse, _tiny)


# -- counting -----------------------------------------------------------------------------------------------------------------------


def _reach(weight: Array) -> NDArray[np.float64]:
    """[out] the largest absolute weight of each channel."""
    found: NDArray[np.float64] = np.abs(weight.reshape(len(weight), -1)).max(axis=1, initial=0.0).astype(np.float64)
    return found


def _median_codes(weights: Weights, channels: NDArray[np.bool_]) -> int:
    """How many different numbers the median channel keeps."""
    rows = weights.rounded.reshape(len(weights.rounded), -1)[channels]
    return int(np.median([np.unique(row).size for row in rows])) if len(rows) else 0


def _relative_rows(weights: Weights) -> NDArray[np.float64]:
    """[rows] error energy of each row over its energy."""
    exact, rounded = (each.reshape(len(each), -1).astype(np.float64) for each in (weights.exact, weights.rounded))
    return np.asarray(((rounded - exact) ** 2).sum(axis=1) / np.maximum((exact**2).sum(axis=1), 1e-30))


def _energy(exact: Array, rounded: Array) -> float:
    wide = exact.astype(np.float64)
    return float(((rounded - wide) ** 2).sum() / max((wide**2).sum(), 1e-30))


def _of_signal(error: float) -> str:
    return "they lie on their grid already" if error <= 0 else f"rounding leaves {-10 * np.log10(error):.1f} dB signal to noise"


def _times(one: float, other: float) -> str:
    return f"{one / other:.1f} times" if other > 0 else "more than"


def _middle(statistics: Statistics) -> NDArray[np.float64]:
    """Where the values of each bin are taken to lie; those of the bin that holds 0 at 0."""
    centres = np.clip(statistics.edges[:-1] + statistics.width / 2, statistics.low, statistics.high)
    zero = (statistics.edges[:-1] <= 0.0) & (statistics.edges[1:] > 0.0)
    return np.where(zero, 0.0, centres)


def _clipping(tensor: Activation) -> tuple[float, float, float]:
    """(share of the values outside the range, error energy of cutting them, error energy of rounding the others)."""
    centres, counts = _middle(tensor.statistics), tensor.statistics.counts
    half = float(tensor.grid.scale) / 2
    outside = np.maximum(tensor.low - half - centres, 0.0) + np.maximum(centres - tensor.high - half, 0.0)
    inside = (outside == 0) & (centres != 0)
    rounded = float(counts[inside].sum()) * float(tensor.grid.scale) ** 2 / 12.0
    return float(counts[outside > 0].sum() / max(counts.sum(), 1)), float((counts * outside**2).sum()), rounded


def _percentile(statistics: Statistics, share: float) -> float:
    """The least |x| that ``share`` of the numbers do not exceed."""
    size = np.abs(_middle(statistics)) + statistics.width / 2
    order = np.argsort(size)
    reached = np.cumsum(statistics.counts[order]) >= share * statistics.counts.sum()
    return float(size[order][int(np.argmax(reached))])


def _codes_used(tensor: Activation) -> int:
    """The fewest codes that hold 99.9 % of the values, as far as 2048 bins tell."""
    codes = np.rint(_middle(tensor.statistics) / float(tensor.grid.scale)) + int(tensor.grid.zero_point)
    codes = np.clip(codes, tensor.grid.lowest, tensor.grid.highest).astype(np.int64)
    _, place = np.unique(codes, return_inverse=True)
    mass = np.sort(np.bincount(place, tensor.statistics.counts))[::-1]
    return int(np.argmax(np.cumsum(mass) >= 0.999 * mass.sum())) + 1


def reach_of(statistics: Mapping[str, Statistics], name: str) -> float:
    """How far a tensor reaches; 0 where it was not looked at."""
    found = statistics.get(name)
    return 0.0 if found is None or not found.count else max(abs(found.low), abs(found.high))
