"""The cause that is told is the one that was put there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from whet.compress.explain.causes import Activation, Weights, causes
from whet.compress.explain.differences import BiasCodes
from whet.compress.grid import BIAS_LIMIT, Grid, fake_quantise, from_range, weight_grid
from whet.compress.statistics import Statistics
from whet.core.explanation import Cause

NORMAL = np.random.default_rng(0).standard_normal((16, 8, 3, 3)).astype(np.float32)


def weights(exact: np.ndarray, *, per_channel: bool = True, bits: int = 8, inputs: np.ndarray | None = None) -> Weights:
    rows = exact.reshape(len(exact), -1)
    rounded = fake_quantise(rows, weight_grid(rows, bits=bits, axis=0 if per_channel else None)).reshape(exact.shape)
    return Weights(exact, rounded, inputs)


def activation(values: np.ndarray, *, low: float | None = None, high: float | None = None, bits: int = 8, axis: int | None = 1,
               **about: object) -> Activation:
    seen = Statistics("x", True, axis)
    seen.update(values.astype(np.float32))
    ends = (seen.low if low is None else low, seen.high if high is None else high)
    scale, zero = from_range(*ends, bits=bits, signed=False, symmetric=False)
    return Activation("x", seen, Grid(bits, False, scale, zero), **about)  # type: ignore[arg-type]


def of_weights(given: Weights) -> Cause:
    return causes(given, (), (1.0, 0.0))[0]


def of_activation(given: Activation) -> Cause:
    return causes(None, (given,), (0.0, 1.0))[0]


def test_a_wide_channel_hurts_where_the_channels_share_a_scale() -> None:
    wide = NORMAL.copy()
    wide[5] *= 100
    found = of_weights(weights(wide, per_channel=False))
    assert (found.kind, found.numbers["channel"]) == ("weight_channel", 5)
    assert f"{np.abs(wide[5]).max():.3g}" in found.text
    assert found.numbers["codes"] <= 5
    assert of_weights(weights(wide)).kind == "rounding"  # each channel has its own scale
    assert of_weights(weights(NORMAL, per_channel=False)).kind == "rounding"


def test_few_input_channels_do_not_pass_for_a_shared_scale() -> None:
    wide = NORMAL[:, :1].copy()  # nine weights a channel can have no more than nine codes
    wide[5] *= 100
    assert of_weights(weights(wide)).kind == "rounding"


def test_small_weights_of_a_large_input_are_lost() -> None:
    uneven, reach = NORMAL.copy(), np.ones(8)
    uneven[:, 3] /= 100
    reach[3] = 100.0
    found = of_weights(weights(uneven, inputs=reach))
    assert (found.kind, found.numbers["channel"]) == ("weight_column", 3)
    assert of_weights(weights(uneven, inputs=np.ones(8))).kind == "rounding"  # what is lost is not read by much
    assert of_weights(weights(uneven)).kind == "rounding"


def test_a_bias_without_room_in_int32_makes_the_weights_coarse() -> None:
    codes, exact = np.full(16, 1000, np.int32), np.full(16, 0.5, np.float32)
    codes[[3, 9]], exact[[3, 9]] = (-BIAS_LIMIT, BIAS_LIMIT), (-7000.0, 8000.0)

    def found(given: Weights, *, shared: bool) -> Cause:
        return of_weights(replace(given, bias=(exact, BiasCodes(codes, shared))))

    coarse = NORMAL.copy()
    coarse[[3, 9]] = np.rint(coarse[[3, 9]])
    own = found(Weights(NORMAL, coarse), shared=False)
    assert (own.kind, own.numbers["channel"], own.numbers["channels"]) == ("bias_overflow", 9, 2)
    assert own.numbers["codes"] <= 9
    assert "2 of 16 channels keep" in own.text
    assert "all channels" in found(Weights(NORMAL, np.rint(NORMAL)), shared=True).text
    dead = NORMAL.copy()
    dead[[3, 9]] = 0  # whose step is made for the bias, so that it takes all codes there are
    assert found(weights(dead), shared=False).kind == "dead_channels"
    codes[[3, 9]] //= 2
    assert found(weights(NORMAL), shared=False).kind == "rounding"


def test_heavy_tails() -> None:
    spiked = np.random.default_rng(0).standard_normal((16, 64, 3, 3)).astype(np.float32)
    spiked[:, 0, 0, 0] = 60.0
    assert of_weights(weights(spiked)).kind == "weight_outliers"


def test_few_bits_and_dead_channels() -> None:
    assert of_weights(weights(NORMAL, bits=3)).kind == "few_codes"
    dead = NORMAL.copy()
    dead[[1, 4]] = 0
    found = of_weights(weights(dead))
    assert (found.kind, found.numbers["dead"]) == ("dead_channels", 2)


def test_one_channel_of_the_activations_takes_the_range() -> None:
    values = np.abs(np.random.default_rng(1).standard_normal((8, 6, 5, 5)))
    assert of_activation(activation(values)).kind == "rounding"
    values[:, 2] *= 50
    found = of_activation(activation(values))
    assert (found.kind, found.numbers["channel"]) == ("activation_channel", 2)
    assert 4 <= found.numbers["codes"] <= 10
    assert of_activation(activation(values, is_input=True)).kind == "input_channels"


def test_a_few_outliers_take_the_range() -> None:
    values = np.random.default_rng(1).standard_normal((64, 6, 16, 16))
    values[0, :, 0, 0] = 400.0
    found = of_activation(activation(values))
    assert found.kind == "activation_outliers"
    assert found.numbers["usual"] == pytest.approx(3.9, abs=0.6)


def test_more_is_cut_off_than_rounded() -> None:
    values = np.random.default_rng(1).standard_normal((16, 6, 8, 8))
    found = of_activation(activation(values, low=-1.0, high=1.0))
    assert found.kind == "saturation"
    assert found.numbers["share"] == pytest.approx(0.317, abs=0.03)
    assert of_activation(activation(values, low=-3.6, high=3.6)).kind == "rounding"


def test_unequal_ranges_that_are_joined() -> None:
    values = np.random.default_rng(1).standard_normal((16, 6, 8, 8))
    assert of_activation(activation(values, joined=(0.1, 4.0))).kind == "unequal_join"
    assert of_activation(activation(values, joined=(2.0, 4.0))).kind == "rounding"


def test_narrow_and_tiny_activations() -> None:
    values = np.random.default_rng(1).standard_normal((16, 6, 8, 8))
    assert of_activation(activation(values, bits=4)).kind == "few_codes"
    kinds = [cause.kind for cause in causes(None, (activation(values * 1e-9),), (0.0, 1.0))]
    assert "tiny_range" in kinds


def test_the_part_that_does_more_speaks_first() -> None:
    wide = NORMAL.copy()
    wide[5] *= 100
    uneven = np.moveaxis(wide, 0, 1)  # channel 5 of 16 reaches far
    both = weights(wide, per_channel=False), (activation(uneven),)
    assert [causes(*both, damages)[0].part for damages in ((1.0, 0.5), (0.5, 1.0))] == ["weights", "activations"]
    plain = weights(NORMAL), (activation(np.concatenate([NORMAL, 50 * NORMAL[:, :1]], 1)),)
    assert causes(*plain, (1.0, 0.5))[0].kind == "activation_channel"  # a sign before nothing unusual, where both do much
    assert causes(*plain, (1.0, 0.01))[0].kind == "rounding"
