"""Grids with searched ends: as good as trying every share, in the places where the scales are, and of numbers that can be stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.slow_papers import affine, search

from whet.compress.grid import Grid, fake_quantise, weight_grid
from whet.compress.weight_search import searched_grid

Array = np.ndarray[Any, Any]


def heavy(rows: int, columns: int, seed: int = 0) -> Array:
    """Weights with a few that are far larger than the others."""
    return np.random.default_rng(seed).standard_t(4, (rows, columns)).astype(np.float32)


def errors(weight: Array, grid: Grid) -> Array:
    return np.asarray(np.abs(fake_quantise(weight, grid).astype(np.float64) - weight) ** 2.5)


@pytest.mark.parametrize(("symmetric", "either_sign"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize(("axis", "block"), [(0, 0), (None, 0), (1, 16), (1, 7)])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_it_is_nearly_as_good_as_the_best_share_of_all(bits: int, axis: int | None, block: int, symmetric: bool, either_sign: bool) -> None:
    weight = heavy(9, 53)
    full = weight_grid(weight, bits=bits, symmetric=symmetric, axis=axis, block=block, either_sign=either_sign)
    found = searched_grid(weight, bits=bits, symmetric=symmetric, axis=axis, block=block, either_sign=either_sign)
    others = [2 ** (bits - 1) / (2 ** (bits - 1) - 1)] if symmetric and either_sign and bits > 2 else []
    assert found.scale.shape == full.scale.shape
    assert np.array_equal(found.zero_point, full.zero_point)
    ours, best, plain = [], [], []
    for key, places in affine.parts(weight.shape, axis, block).items():
        numbers, zero = [float(weight[place]) for place in places], int(full.zero_point[key])
        ours.append(search.error(numbers, float(found.scale[key]), zero, found.lowest, found.highest))
        best.append(search.least_error(numbers, float(full.scale[key]), zero, found.lowest, found.highest, *others))
        plain.append(search.error(numbers, float(full.scale[key]), zero, found.lowest, found.highest))
    assert all(one <= other * (1 + 1e-4) + 1e-9 for one, other in zip(ours, plain, strict=True))
    assert sum(ours) <= (1.01 if block != 7 else 1.02) * sum(best)
    assert sum(best) <= 0.97 * sum(plain)


def test_the_lowest_code_of_a_symmetric_grid_is_used() -> None:
    weight = -np.abs(heavy(4, 64))
    grid = searched_grid(weight, bits=2, axis=0)
    assert (fake_quantise(weight, grid) / grid.scale[:, None]).min() == -2  # min-max alone knows -1, 0 and 1


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_with_either_sign_it_is_never_worse_than_without_that_code(bits: int) -> None:
    """Ends that are equally far, on both sides: nothing need be cut off."""
    weight = heavy(40, 64)
    weight[:, :2] = [6, -6]
    weight[20:] *= -1
    either, narrow = searched_grid(weight, bits=bits, either_sign=True), weight_grid(weight, bits=bits, axis=0)
    assert (errors(weight, either).sum(1) <= errors(weight, narrow).sum(1) * (1 + 1e-4)).all()
    assert (np.sign(either.scale) == np.sign(weight_grid(weight, bits=bits, axis=0, either_sign=True).scale)).all()


def test_large_weights_are_searched_as_small_ones_are() -> None:
    """Pieces and threads: what is searched together does not matter."""
    weight = heavy(1100, 1030)
    found = searched_grid(weight, bits=4, axis=1, block=64)
    for some in (slice(0, 3), slice(500, 503), slice(1097, 1100)):
        assert np.array_equal(found.scale[some], searched_grid(weight[some], bits=4, axis=1, block=64).scale)


def test_scales_that_are_tried_can_be_stored() -> None:
    weight = heavy(20, 64) * np.float32(1e-3)
    found = searched_grid(weight, bits=4, axis=1, block=16, scales="float16")
    exact = searched_grid(weight, bits=4, axis=1, block=16)
    assert np.array_equal(found.scale, found.scale.astype(np.float16))
    assert errors(weight, found).sum() < 1.01 * errors(weight, exact).sum()


@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_of_zero_and_huge_ones_get_grids(symmetric: bool) -> None:
    weight = np.zeros((3, 8), np.float32)
    weight[1] = np.linspace(-1e38, 1e38, 8)
    with np.errstate(over="ignore"):
        found = searched_grid(weight, bits=4, symmetric=symmetric, axis=0)
    assert np.isfinite(found.scale).all()
    assert not fake_quantise(weight, found)[[0, 2]].any()
