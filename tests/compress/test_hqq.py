"""Half-quadratic quantization against its paper, written slowly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.slow_papers import affine
from tests.slow_papers import hqq as slow

from whet.compress.grid import Quantised, quantise, weight_grid
from whet.compress.technique import LayerView
from whet.compress.techniques.hqq import foresee, hqq
from whet.core.inventory import Layer
from whet.device.targets import target

Array = np.ndarray[Any, Any]
VNNI = target("x86-vnni")


def weights(rows: int = 7, columns: int = 70) -> Array:
    """Large ones among small ones, and not around 0."""
    return (np.random.default_rng(4).standard_t(4, (rows, columns)) * 0.5 + 0.2).astype(np.float32)


def made_of(weight: Array, op: str = "MatMul", scales: str = "float32", either_sign: bool = False, **options: Any) -> Quantised:
    found = hqq(LayerView("fc", op, weight, scales=scales, either_sign=either_sign), VNNI, **options).weight
    assert isinstance(found, Quantised)
    return found


def cost(weight: Array, values: Array, norm: float = 0.7) -> float:
    return float((np.abs(weight.astype(np.float64) - values) ** norm).sum())


@pytest.mark.parametrize(("symmetric", "either_sign"), [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize("block", [0, 16, 32])
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("norm", [0.7, 1.0])
def test_scales_and_zero_points_are_those_of_the_paper(bits: int, block: int, symmetric: bool, norm: float, either_sign: bool) -> None:
    weight, axis = weights(), 1 if block else 0
    found = made_of(weight, either_sign=either_sign, bits=bits, block=block, symmetric=symmetric, norm=norm)
    start = weight_grid(weight, bits=bits, symmetric=symmetric, axis=axis, block=block, either_sign=either_sign)
    assert (np.sign(found.grid.scale) == np.sign(start.scale)).all()
    assert (start.scale < 0).any() == either_sign
    low, high = affine.ends(bits, symmetric)
    near = []
    for key, places in affine.parts(weight.shape, axis, block).items():
        numbers = [float(weight[place]) for place in places]
        scale, zero = slow.fitted(numbers, float(start.scale[key]), int(start.zero_point[key]), low, high, moves=not symmetric, norm=norm)
        near.append(float(found.grid.scale[key]) == pytest.approx(scale, rel=1e-3) and int(found.grid.zero_point[key]) == zero)
    assert np.mean(near) > 0.85  # a number at a tie may fall to the other code in float32, and the grid goes another way
    assert np.array_equal(found.codes, quantise(weight, found.grid).codes)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_error_is_less_than_that_of_plain_rounding(bits: int, symmetric: bool) -> None:
    weight = weights(40, 256)
    found = made_of(weight, bits=bits, symmetric=symmetric)
    plain = quantise(weight, weight_grid(weight, bits=bits, symmetric=symmetric, axis=1, block=64)).values
    assert cost(weight, found.values) < 0.97 * cost(weight, plain)
    parts = [slice(first, first + 64) for first in range(0, 256, 64)]
    assert all(cost(weight[r, part], found.values[r, part]) <= cost(weight[r, part], plain[r, part]) * 1.0001
               for r in range(40) for part in parts)


def test_what_is_stored_as_float16_is_what_was_rounded_with() -> None:
    found = made_of(weights(), scales="float16", bits=3, block=16)
    assert np.array_equal(found.grid.scale, found.grid.scale.astype(np.float16))
    assert cost(weights(), found.values) == pytest.approx(cost(weights(), made_of(weights(), bits=3, block=16).values), rel=0.01)


def test_zeros_stay_and_a_table_has_blocks() -> None:
    weight = weights()
    weight[2] = 0
    found = made_of(weight, "Gather", block=32)
    assert found.grid.scale.shape == (7, 3)
    assert not found.values[2].any()
    assert made_of(np.ones((4, 3, 2, 2), np.float32), "Conv", block=32).grid.scale.shape == (4,)
    assert foresee(Layer("m", "MatMul", weight_shape=(64, 20)), VNNI).weights == "uint4"
