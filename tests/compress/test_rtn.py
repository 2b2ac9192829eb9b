"""Plain rounding: the grids and codes of the specification, of whatever body and with whatever scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.compress.operators_with_weights import CASES, on_grid
from tests.compress.small_graphs import feeds_of, noise_ratio, outputs
from tests.slow_papers import affine

from whet.compress.apply import apply_recipe
from whet.compress.grid import Quantised, quantise
from whet.compress.technique import LayerView
from whet.compress.techniques.rtn import foresee, rtn
from whet.compress.weight_search import searched_grid
from whet.core.inventory import Layer
from whet.core.recipe import Recipe, Step
from whet.device.targets import target

Array = np.ndarray[Any, Any]
VNNI = target("x86-vnni")


def weights(rows: int = 6, columns: int = 70) -> Array:
    return np.random.default_rng(4).standard_normal((rows, columns)).astype(np.float32)


def made_of(weight: Array, op: str = "MatMul", scales: str = "float32", either_sign: bool = False, **options: Any) -> Quantised:
    found = rtn(LayerView("fc", op, weight, scales=scales, either_sign=either_sign), VNNI, **options)
    assert (found.compute, dict(found.kernel)) == ("float32", {})
    assert isinstance(found.weight, Quantised)
    return found.weight


@pytest.mark.parametrize(("symmetric", "either_sign"), [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize("block", [0, 16, 32])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("op", ["MatMul", "Gather", "Linear"])
def test_codes_are_those_of_the_specification(op: str, bits: int, block: int, symmetric: bool, either_sign: bool) -> None:
    weight, axis = weights(), 1 if block else 0
    found = made_of(weight, op, either_sign=either_sign, bits=bits, block=block, symmetric=symmetric)
    scales, zeros = affine.weight_grid(weight, bits, symmetric, axis, block, either_sign)
    assert all(float(found.grid.scale[key]) == pytest.approx(scale, rel=1e-6) for key, scale in scales.items())
    assert all(int(found.grid.zero_point[key]) == zero for key, zero in zeros.items())
    low, high = affine.ends(bits, symmetric)
    assert np.array_equal(found.codes, affine.quantize_linear(weight, found.grid.scale, found.grid.zero_point, low, high, axis, block))


@pytest.mark.parametrize("symmetric", [True, False])
def test_what_is_stored_as_float16_is_what_was_rounded_with(symmetric: bool) -> None:
    for factor in (1.0, 1e-9, 1e7):  # scales that are subnormal, or that float16 cannot hold
        weight = weights() * np.float32(factor)
        for search in (False, True):
            found = made_of(weight, scales="float16", bits=4, block=16, symmetric=symmetric, search=search)
            assert np.array_equal(found.grid.scale.astype(np.float16).astype(np.float32), found.grid.scale)
            assert np.array_equal(found.codes, quantise(weight, found.grid).codes)
    found = made_of(weights(), scales="float16", bits=4, symmetric=False)
    low = np.minimum(weights().min(1), 0)
    assert np.array_equal(found.grid.zero_point, np.rint(-low / found.grid.scale).astype(int))


def test_search_finds_the_grid_that_gptq_has() -> None:
    for either_sign in (True, False):
        found = made_of(weights(), either_sign=either_sign, bits=3, block=32, search=True)
        wanted = searched_grid(weights(), bits=3, axis=1, block=32, either_sign=either_sign)
        assert np.array_equal(found.grid.scale, wanted.scale)
    plain = made_of(weights(), bits=3, block=32)
    assert np.square(found.values - weights()).sum() < 0.9 * np.square(plain.values - weights()).sum()


def test_what_is_no_matrix_has_no_blocks() -> None:
    kernel = np.random.default_rng(1).standard_normal((8, 6, 3, 3)).astype(np.float32)
    assert made_of(kernel, "Conv", block=16).grid.scale.shape == (8,)
    assert made_of(kernel.reshape(8, 6, 9), block=16).grid.scale.shape == (8,)  # a stack of matrices
    assert foresee(Layer("c", "Conv", weight_shape=kernel.shape), VNNI, block=16).block == 0
    assert foresee(Layer("t", "Gather", weight_shape=(20, 32)), VNNI, block=16).block == 16
    assert foresee(Layer("m", "MatMul", weight_shape=(32, 20)), VNNI, block=16).runs_as.startswith("MatMulNBits")
    assert not foresee(Layer("r", "Relu"), VNNI).applies


@pytest.mark.parametrize("block", [0, 16])
@pytest.mark.parametrize("name", ["Gemm transB", "MatMul", "Gather", "Conv 2-D", "LSTM"])
def test_graphs_compute_with_the_rounded_weights(name: str, block: int) -> None:
    case = CASES[name]()
    made = apply_recipe(case.model(), Recipe((Step("rtn", options={"bits": 3, "block": block}),)), VNNI)
    blocked = block if name in ("Gemm transB", "MatMul", "Gather") else 0
    wanted = outputs(case.with_weights(lambda _, weight, axis: on_grid(weight, axis, 3, block=blocked)), feeds_of(case.data))
    assert all(noise_ratio(found, wanted[output]) < 2e-6 for output, found in outputs(made, feeds_of(case.data)).items())
