"""AWQ: factors and clipping against the paper, computed from the inputs themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.slow_papers import awq as slow

from whet.compress.grid import Quantised, weight_grid
from whet.compress.technique import LayerView
from whet.compress.techniques import awq as module
from whet.compress.techniques.awq import awq, foresee
from whet.compress.views import SharedGram
from whet.core.inventory import Layer
from whet.device.targets import target

Array = np.ndarray[Any, Any]
HOST = target("x86-vnni")


def outlying(rows: int = 200, width: int = 44, seed: int = 0) -> Array:
    """Inputs of which a few channels are far larger, and which go together."""
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((rows, width)) @ (np.eye(width) + 0.1 * random.standard_normal((width, width)))
    inputs[:, ::11] *= 12.0
    return inputs.astype(np.float32)


def matrices(*rows: int, width: int = 44) -> list[Array]:
    random = np.random.default_rng(7)
    return [random.standard_normal((count, width)).astype(np.float32) for count in rows]


def view(inputs: Array, weights: list[Array], movable: bool, either_sign: bool = False) -> SharedGram:
    layers = tuple(LayerView(f"layer {at}", "Linear", weight, scales="float16", either_sign=either_sign)
                   for at, weight in enumerate(weights))
    gram = (inputs.T.astype(np.float64) @ inputs / len(inputs)).astype(np.float32)
    return SharedGram("x", layers, gram, len(inputs), np.abs(inputs).mean(0), movable)


@pytest.mark.parametrize(("bits", "block", "points"), [(4, 16, 20), (3, 32, 10), (2, 44, 20)])
def test_factors_agree_with_the_paper(bits: int, block: int, points: int) -> None:
    inputs, weights = outlying(), matrices(6, 9)
    tried = slow.errors(inputs.astype(np.float64), [weight.astype(np.float64) for weight in weights], bits, block, points)
    error, wanted = min(tried, key=lambda each: each[0])
    assert error < 0.8 * tried[0][0]
    found = awq(view(inputs, weights, True), HOST, bits=bits, block=0 if block == 44 else block, points=points, clip=False)
    assert found.factors is not None
    np.testing.assert_allclose(found.factors, wanted, rtol=1e-4)
    assert not found.changes


def test_every_error_is_that_of_the_outputs() -> None:
    inputs, weights = outlying(), matrices(6)
    shown = view(inputs, weights, True)
    for point, (wanted, factors) in enumerate(slow.errors(inputs.astype(np.float64), [weights[0].astype(np.float64)], 4, 16, 20)):
        np.testing.assert_allclose(module.candidate(shown.magnitudes, point / 20), factors, rtol=1e-4)
        found = module._error(weights[0], factors.astype(np.float32), shown.gram, bits=4, block=16, symmetric=True, scales="float16",
                              clip=False)
        assert found == pytest.approx(wanted, rel=0.02)  # a number at a tie falls to either side


def test_factors_are_chosen_for_the_ends_that_grids_will_have() -> None:
    inputs, weights = outlying(), matrices(24)
    factors = {clip: awq(view(inputs, weights, True), HOST, bits=2, block=16, clip=clip).factors for clip in (True, False)}
    errors = {}
    for clip, found in factors.items():
        assert found is not None
        made = awq(view(inputs / found, [weights[0] * found], False), HOST, bits=2, block=16).changes["layer 0"].weight
        assert isinstance(made, Quantised)
        errors[clip] = float(np.square(inputs @ (made.values / found - weights[0]).T).sum(1).mean())
        seen = module._error(weights[0], found, view(inputs, weights, True).gram, bits=2, block=16, symmetric=True, scales="float16",
                             clip=True)
        assert seen == pytest.approx(errors[clip], rel=0.01)
    assert errors[True] < errors[False]


@pytest.mark.parametrize("either_sign", [True, False])
def test_grids_end_where_the_paper_ends_them(either_sign: bool) -> None:
    inputs, weights = outlying(), matrices(6, 9)
    for bits, block in ((4, 16), (3, 32)):
        found = awq(view(inputs, weights, False, either_sign), HOST, bits=bits, block=block)
        assert found.factors is None
        for at, weight in enumerate(weights):
            made = found.changes[f"layer {at}"].weight
            assert isinstance(made, Quantised)
            full = weight_grid(weight, bits=bits, axis=1, block=block, scales="float16", either_sign=either_sign)
            wanted = slow.shares(inputs.astype(np.float64), weight.astype(np.float64), bits, block, either_sign)
            assert (np.abs(made.grid.scale / full.scale - wanted) < 2e-3).mean() > 0.97
            assert wanted.min() < 1
            assert (wanted.max() > 1) == either_sign
            assert np.array_equal(made.grid.scale, made.grid.scale.astype(np.float16))


def test_without_clipping_it_rounds_plainly() -> None:
    inputs, weights = outlying(), matrices(6)
    made = awq(view(inputs, weights, False), HOST, bits=4, block=16, clip=False).changes["layer 0"].weight
    assert isinstance(made, Quantised)
    np.testing.assert_allclose(made.values, slow.rounded(weights[0].astype(np.float64), 4, 16), atol=1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [0, 16])
def test_the_error_falls_as_bits_rise_and_clipping_helps(symmetric: bool, block: int) -> None:
    inputs, (weight,) = outlying(), matrices(12)
    errors = {}
    for clip in (True, False):
        for bits in range(2, 9):
            found = awq(view(inputs, [weight], False), HOST, bits=bits, block=block, symmetric=symmetric, clip=clip)
            made = found.changes["layer 0"].weight
            assert isinstance(made, Quantised)
            errors[clip, bits] = float(np.square(inputs @ (made.values - weight).T).mean())
    for bits in range(2, 8):
        assert errors[True, bits + 1] < errors[True, bits]
        assert errors[True, bits] < 1.1 * errors[False, bits]
    assert errors[True, 2] < 0.9 * errors[False, 2]


def test_inputs_of_one_size_get_no_factors() -> None:
    inputs, weights = np.random.default_rng(0).choice([-1.0, 1.0], (300, 44)).astype(np.float32), matrices(6)
    assert awq(view(inputs, weights, True), HOST, bits=4, block=16).factors is None


@pytest.mark.parametrize("helps", [True, False])
def test_factors_that_only_help_the_rows_that_were_looked_at_are_dropped(helps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 5)
    assert list(module._spread_over(40)) == [0, 10, 20, 29, 39]
    assert list(module._spread_over(3)) == [0, 1, 2]

    def error(weight: Array, factors: Array, *_: Any, **__: Any) -> float:
        return -float(factors.max()) if len(weight) == 5 or helps else float(factors.max())

    monkeypatch.setattr(module, "_error", error)
    assert (awq(view(outlying(), matrices(40), True), HOST, bits=4, block=16).factors is not None) == helps


def test_what_it_is_given_stays_as_it_is() -> None:
    inputs, weights = outlying(), matrices(6)
    shown = view(inputs, weights, False)
    weights[0].flags.writeable = False
    before = shown.gram.copy()
    awq(shown, HOST, bits=4, block=16)
    awq(view(inputs, weights, True), HOST, bits=4, block=16)
    assert np.array_equal(shown.gram, before)


def test_it_is_for_the_linear_layers_of_language_models() -> None:
    assert foresee(Layer("x", "Linear", weight_shape=(8, 6)), HOST, bits=3, block=32, symmetric=False).weights == "uint3"
    assert "rtn" in foresee(Layer("x", "Embedding", weight_shape=(8, 6)), HOST).note
    assert not foresee(Layer("x", "Embedding", weight_shape=(8, 6)), HOST).applies
    assert "graphs" in foresee(Layer("x", "Conv", weight_shape=(8, 6, 3, 3)), HOST).note
