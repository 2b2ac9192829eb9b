"""Code books: the papers, written slowly; what bitsandbytes makes of the same numbers; and what holds for all weights."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.slow_papers import codebooks as slow

from whet.compress.codebook import OUTER_BLOCK, Coded, RoundedScales, coded, dynamic_map, levels, rounded, thresholds, where_misread
from whet.compress.grid import quantise, weight_grid
from whet.compress.technique import LayerView, technique
from whet.core.errors import Refused
from whet.core.inventory import Layer
from whet.device.targets import target

Array = np.ndarray[Any, Any]
PI5 = target("pi5")
BOOKS = ("nf4", "fp4")
SLOW = {"nf4": slow.nf4_levels, "fp4": slow.fp4_levels}


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def digest(numbers: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(numbers).tobytes()).hexdigest()[:16]


def in_bytes(codes: Array) -> Array:
    """Two codes in a byte, the first in the upper half."""
    return codes.reshape(-1)[0::2] << np.uint8(4) | codes.reshape(-1)[1::2]


def scales_of(weight: Coded) -> Array:
    return weight.scales.values if isinstance(weight.scales, RoundedScales) else weight.scales


# -- levels --------------------------------------------------------------------------------------------------------------------


def test_the_levels_are_those_of_the_papers() -> None:
    assert np.allclose(levels("nf4"), slow.nf4_levels(), rtol=0, atol=3e-7)
    assert np.allclose(levels("fp4"), slow.fp4_levels(), rtol=0, atol=1e-7)
    assert np.allclose(dynamic_map(), slow.dynamic_levels(), rtol=3e-7, atol=0)
    assert np.array_equal(np.sort(dynamic_map()), dynamic_map())


def test_the_levels_are_those_of_bitsandbytes_to_the_bit() -> None:
    """bitsandbytes 0.50.2: get_4bit_type("nf4" and "fp4", device="cpu"), create_dynamic_map()."""
    assert digest(dynamic_map()) == "e732639a65f497b4"
    assert levels("nf4").tolist() == [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434,
        0.5626170039176941, 0.7229568362236023, 1.0]
    assert levels("fp4").tolist() == [
        0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408, 0.5, 0.1666666716337204, 0.25, -0.0,
        -0.0052083334885537624, -0.6666666865348816, -1.0, -0.3333333432674408, -0.5, -0.1666666716337204, -0.25]


def test_there_are_no_other_books() -> None:
    with pytest.raises(Refused, match="nf4 or fp4"):
        coded(normal(2, 64), "af4", block=64, double=False)


# -- the papers ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("shape", [(3, 64), (5, 50), (3, 51), (1, 7), (4, 172)])
@pytest.mark.parametrize("book", BOOKS)
def test_it_agrees_with_the_paper(book: str, shape: tuple[int, int], block: int) -> None:
    weight = normal(*shape)
    made = coded(weight, book, block=block, double=False)
    assert made.codes.shape == shape
    assert made.codes.dtype == np.uint8
    assert np.allclose(made.values, slow.values(weight, SLOW[book](), block), rtol=1e-6, atol=1e-6)
    assert np.array_equal(scales_of(made), np.array(slow.scales(weight, block), np.float32))


def test_large_weights_are_coded_in_pieces_as_small_ones_are() -> None:
    weight = normal(700, 200)
    made = coded(weight, "nf4", block=64, double=False)
    blocks = np.pad(weight.reshape(-1), (0, -weight.size % 64)).reshape(-1, 64)
    peaks = np.abs(blocks).max(axis=1, keepdims=True)
    order = np.abs(blocks[..., None] / peaks[..., None] - levels("nf4")).argmin(axis=-1)
    assert np.mean(order.reshape(-1)[: weight.size] != made.codes.reshape(-1)) < 1e-5
    of_each = np.repeat(peaks.reshape(-1), 64)[: weight.size].reshape(weight.shape)
    assert np.array_equal(made.values, levels("nf4")[made.codes] * of_each)


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 700])
def test_double_quantisation_agrees_with_the_paper(count: int) -> None:
    scales = np.abs(normal(count)) + np.float32(0.1)
    made = rounded(scales)
    wanted, gaps = slow.rounded_scales([float(scale) for scale in scales])
    assert made.codes.dtype == np.uint8
    assert made.peaks.shape == (-(-count // OUTER_BLOCK),)
    # bitsandbytes finds the nearest level to 1/65535 of the range, so the next level may be taken where both are as near as that.
    lost = np.abs(made.values - scales)
    assert np.all(lost <= np.array(gaps) + np.repeat(made.peaks, OUTER_BLOCK)[:count] * 2 / 65535 + 1e-6)
    assert np.mean(np.abs(made.values - wanted) < 2e-6) > 0.98


def test_double_quantisation_rounds_scales_and_leaves_codes() -> None:
    weight = normal(300, 256)
    plain, double = coded(weight, "nf4", block=64, double=False), coded(weight, "nf4", block=64, double=True)
    assert (plain.double, double.double) == (False, True)
    assert np.array_equal(plain.codes, double.codes)
    assert np.allclose(scales_of(plain), scales_of(double), rtol=0.02)
    wanted = slow.values(weight[:3], slow.nf4_levels(), 64, of_blocks=[float(scale) for scale in scales_of(double)[:12]])
    assert np.allclose(double.values[:3], wanted, atol=1e-6)


# -- bitsandbytes --------------------------------------------------------------------------------------------------------------------


def ties() -> Array:
    """[5, 30]: a block with every threshold of both books, both zeros and both ends; one of zeros; and a ragged one below zero."""
    flat = np.zeros(150, np.float32)
    flat[:15], flat[15:30] = thresholds("nf4")[0], thresholds("fp4")[0]
    flat[30:62] = (np.arange(32) - 16) / 16
    flat[62], flat[63] = -0.0, 1
    flat[128:] = (-np.arange(22) - 1) / 32
    return flat.reshape(5, 30)


def many_blocks() -> Array:
    """[95, 202]: 300 blocks of 64, the last of them ragged, with scales that are multiples of 1/64."""
    count = 300 * 64 - 10
    at = np.arange(count, dtype=np.int64)
    scales = (1 + (np.arange(300) * 37) % 101).astype(np.float32) / np.float32(64)
    flat = ((at * at * 7919 + at * 104729) % 65521 - 32760).astype(np.float32) / np.float32(32768) * np.repeat(scales, 64)[:count]
    flat[::64] = scales
    return flat.reshape(95, 202)


# What bitsandbytes 0.50.2's quantize_4bit(..., blocksize=64) gave on a CPU for ``ties``, in its bytes.
TIES = {
    "nf4": "0123456789abcde1234567778aacde00011112233445667899abbccddeeeff7f" + "77" * 32 + "7665544333222111110000",
    "fp4": "badcfe916644523badcfe908167452bbbaaaadddccfee9016674455522223303" + "00" * 32 + "9eeeffcccdddaaaaaabbbb",
}


@pytest.mark.parametrize("book", BOOKS)
def test_ties_zeros_and_ragged_blocks_are_coded_as_bitsandbytes_does(book: str) -> None:
    plain, double = (coded(ties(), book, block=64, double=double) for double in (False, True))
    assert in_bytes(plain.codes).tobytes().hex() == in_bytes(double.codes).tobytes().hex() == TIES[book]
    assert scales_of(plain).tolist() == [1.0, 0.0, 0.6875]
    assert isinstance(double.scales, RoundedScales)
    assert double.scales.codes.tolist() == [239, 0, 199]
    assert (double.scales.peaks.tolist(), double.scales.offset) == ([0.5625], 0.5625)


def test_many_blocks_are_coded_as_bitsandbytes_does() -> None:
    """The same with 300 scales, of which 256 are rounded together."""
    assert digest(in_bytes(coded(many_blocks(), "nf4", block=64, double=True).codes)) == "df2b6ffa12a1481a"
    made = coded(many_blocks(), "fp4", block=64, double=True)
    assert digest(in_bytes(made.codes)) == "7c8a4a2c0c6a7d05"
    assert isinstance(made.scales, RoundedScales)
    assert digest(made.scales.codes) == "251609bab55d0cbb"
    assert (made.scales.peaks.tolist(), made.scales.offset) == ([0.7829166650772095, 0.7672916650772095], 0.7952083349227905)
    assert digest(made.scales.values) == "1934d6dd1555b8cc"


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("book", BOOKS)
def test_bitsandbytes_itself_gives_the_same(book: str, double: bool) -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    import torch

    for seed, (rows, columns, block) in enumerate([(3, 50, 64), (64, 172, 64), (40, 128, 128), (33, 66, 512), (256, 256, 64)]):
        weight = normal(rows, columns, seed=seed) * np.float32(0.02)
        made = coded(weight, book, block=block, double=double)
        theirs, state = functional.quantize_4bit(torch.from_numpy(weight), blocksize=block, quant_type=book, compress_statistics=double)
        assert np.array_equal(theirs.numpy().reshape(-1), in_bytes(made.codes))
        if isinstance(made.scales, RoundedScales):
            assert math.isclose(state.offset.item(), made.scales.offset, rel_tol=1e-6)
            assert np.mean(state.absmax.numpy() != made.scales.codes) < 0.01  # the mean is summed in another order
            assert np.allclose(state.state2.absmax.numpy(), made.scales.peaks, rtol=1e-5)
        else:
            assert np.array_equal(state.absmax.numpy(), made.scales)
        if not where_misread(rows=32, columns=columns, block=block):
            assert np.allclose(functional.dequantize_4bit(theirs, state).numpy(), made.values, rtol=0, atol=2e-7 + 1e-3 * double * 0.02)


# -- what holds for all ------------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(1, 90), st.sampled_from([64, 128, 256]), st.sampled_from(BOOKS), st.integers(0, 99))
def test_no_number_is_further_off_than_half_the_widest_gap(rows: int, columns: int, block: int, book: str, seed: int) -> None:
    weight = normal(rows, columns, seed=seed)
    made = coded(weight, book, block=block, double=False)
    half = np.diff(np.sort(levels(book))).max() / 2
    of_each = np.repeat(scales_of(made), block)[: weight.size].reshape(weight.shape)
    assert np.all(np.abs(made.values - weight) <= half * of_each * (1 + 1e-5))
    again = coded(made.values, book, block=block, double=False)
    assert np.array_equal(again.values, made.values)  # what lies on the levels stays


@pytest.mark.parametrize("book", BOOKS)
@pytest.mark.parametrize("double", [False, True])
def test_weights_of_zero_stay_zero(book: str, double: bool) -> None:
    assert not np.any(coded(np.zeros((3, 50), np.float32), book, block=64, double=double).values)
    weight = normal(4, 128)
    weight[1:3] = 0
    assert not np.any(coded(weight, book, block=64, double=double).values[1:3])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [3, 99])
def test_weights_that_are_no_numbers_are_refused(bad: float, place: int) -> None:
    weight = normal(2, 50)
    weight.reshape(-1)[place] = bad
    with pytest.raises(Refused, match="NaN or infinity"):
        coded(weight, "nf4", block=64, double=True)


def test_normal_weights_lose_least_with_nf4_and_small_blocks() -> None:
    weight = normal(256, 512)

    def error(book: str, block: int, double: bool = False) -> float:
        return float(np.square(coded(weight, book, block=block, double=double).values - weight).mean())

    assert error("nf4", 64) < error("nf4", 128) < error("nf4", 512)
    assert error("nf4", 64) < 0.7 * error("fp4", 64)
    assert error("nf4", 64) < error("nf4", 64, double=True) < 1.01 * error("nf4", 64)
    integers = quantise(weight, weight_grid(weight, bits=4, axis=1, block=64)).values
    assert error("nf4", 64) < 0.8 * float(np.square(integers - weight).mean())


# -- the techniques ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOOKS)
def test_a_technique_codes_the_weight_of_a_layer(name: str) -> None:
    used, weight = technique(name), normal(3, 200)
    found = used.apply(LayerView("layer", "MatMul", weight), PI5, **used.checked({})).weight
    assert (found.book, found.block, found.double) == (name, 64, True)
    assert np.array_equal(found.codes, coded(weight, name, block=64, double=True).codes)
    found = used.apply(LayerView("layer", "MatMul", weight), PI5, **used.checked({"group": 128, "double": False})).weight
    assert (found.block, found.double) == (128, False)
    assert scales_of(found).shape == (5,)
    with pytest.raises(Refused, match="it has none"):
        used.apply(LayerView("layer", "MatMul"), PI5, **used.checked({}))
    with pytest.raises(Refused, match="64, 128, 256, 512"):
        used.checked({"block": 100})


@pytest.mark.parametrize("name", BOOKS)
def test_a_technique_foresees_linear_layers_of_language_models_alone(name: str) -> None:
    foresee = technique(name).foresee
    for op in ("Linear", "Head"):
        found = foresee(Layer("layer", op, weight_shape=(64, 128)), PI5, block=128)
        assert (found.applies, found.weights, found.bits, found.block, found.note) == (True, name, 4, 128, "")
    for op, shape in (("Embedding", (512, 64)), ("Norm", (64,)), ("MatMul", (64, 64)), ("Linear", ())):
        found = foresee(Layer("layer", op, weight_shape=shape), PI5)
        assert not found.applies
        assert "language models" in found.note
    assert "rows of 96 are not whole blocks of 64" in foresee(Layer("layer", "Linear", weight_shape=(64, 96)), PI5).note
    assert "172 outputs" in foresee(Layer("layer", "Linear", weight_shape=(172, 64)), PI5).note
