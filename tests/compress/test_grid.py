"""The one file that rounds, against the operators' specifications written slowly, and against onnxruntime itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from tests.compress.small_graphs import Sketch, outputs
from tests.slow_papers import affine

from whet.compress.grid import (
    SMALLEST_SCALE,
    Grid,
    block_count,
    dequantise,
    fake_quantise,
    from_range,
    quantise,
    quantise_bias,
    scale_for_bias,
    storable,
    weight_grid,
)
from whet.core.errors import Refused

Array = np.ndarray[Any, Any]
NUMBERS = st.floats(-1e4, 1e4, width=32)
BITS = st.integers(2, 16)


def grid_of(scale: Any, zero: Any, *, bits: int = 8, signed: bool = False, axis: int | None = None, block: int = 0) -> Grid:
    return Grid(bits, signed, np.asarray(scale, np.float32), np.asarray(zero, np.int32), axis, block)


def layouts(shape: tuple[int, ...]) -> list[tuple[int | None, int]]:
    """(axis, block): per tensor, per axis, and blocks that end on and off the border."""
    return [(None, 0)] + [(axis, block) for axis in range(len(shape)) for block in (0, 1, 2, 3, shape[axis], shape[axis] + 1)]


def scales_shape(shape: tuple[int, ...], axis: int | None, block: int) -> tuple[int, ...]:
    if axis is None:
        return ()
    if not block:
        return (shape[axis],)
    return tuple(block_count(size, block) if at == axis else size for at, size in enumerate(shape))


# -- quantise and dequantise ---------------------------------------------------------------------------------------------------


@given(st.data())
def test_codes_and_values_are_those_of_the_specification(data: st.DataObject) -> None:
    values = data.draw(arrays(np.float32, array_shapes(min_dims=1, max_dims=3, max_side=5), elements=NUMBERS))
    axis, block = data.draw(st.sampled_from(layouts(values.shape)))
    bits, signed = data.draw(BITS), data.draw(st.booleans())
    low, high = affine.ends(bits, signed)
    shape = scales_shape(values.shape, axis, block)
    scale = data.draw(arrays(np.float32, shape, elements=st.floats(np.float32(2.0**-20), 4096, width=32)))
    if signed:  # such scales may be below 0
        scale = scale * data.draw(arrays(np.float32, shape, elements=st.sampled_from([np.float32(-1), np.float32(1)])))
    zero = data.draw(arrays(np.int32, shape, elements=st.integers(low, high)))
    grid = grid_of(scale, zero, bits=bits, signed=signed, axis=axis, block=block)
    codes = quantise(values, grid).codes
    assert np.array_equal(codes, affine.quantize_linear(values, scale, zero, low, high, axis, block))
    assert np.array_equal(dequantise(codes, grid), affine.dequantize_linear(codes, scale, zero, axis, block))
    assert np.array_equal(fake_quantise(values, grid), dequantise(codes, grid))


@pytest.mark.parametrize(
    ("value", "code"), [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (-2.5, -2), (3.49, 3), (126.5, 126), (127.5, 127)]
)
def test_halves_go_to_even_codes_and_the_ends_hold(value: float, code: int) -> None:
    assert int(quantise(np.array([value]), grid_of(1.0, 0, signed=True)).codes[0]) == code


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(2, 17))
def test_codes_are_kept_in_the_narrowest_type_that_holds_them(bits: int, signed: bool) -> None:
    grid = grid_of(1.0, 0, bits=bits, signed=signed)
    assert (grid.lowest, grid.highest) == affine.ends(bits, signed)
    codes = quantise(np.array([-1e9, 1e9], np.float32), grid).codes
    assert codes.tolist() == [grid.lowest, grid.highest]
    assert codes.dtype.itemsize == (2 if bits > 8 else 1)
    width = int(grid.dtype.removeprefix("u").removeprefix("int"))
    assert grid.dtype.startswith("u") is not signed
    assert width >= bits
    assert width // 2 < bits or width == 2


@pytest.mark.parametrize(("bits", "scale"), [(1, 1.0), (17, 1.0), (8, 0.0), (8, -1.0), (8, np.nan), (8, np.inf)])
def test_a_grid_that_is_none_is_refused(bits: int, scale: float) -> None:
    with pytest.raises(Refused):
        grid_of(scale, 0, bits=bits)


def test_only_signed_grids_may_be_turned_round() -> None:
    assert grid_of(-0.5, 0, signed=True).scale == -0.5
    for scale in (0.0, -0.0, np.nan, -np.inf):
        with pytest.raises(Refused):
            grid_of(scale, 0, signed=True)


@given(arrays(np.float32, (3, 7), elements=st.floats(-(2.0**100), 2.0**100, width=32)), st.booleans(), st.booleans())
def test_the_error_inside_the_range_is_at_most_half_a_step(values: Array, signed: bool, symmetric: bool) -> None:
    scale, zero = from_range(values.min(), values.max(), bits=8, signed=signed, symmetric=symmetric)
    back = fake_quantise(values, grid_of(scale, zero, signed=signed))
    assume(np.abs(values).max() > 255 * SMALLEST_SCALE)
    # Half a step, one more half at an end that the rounding of the zero point cuts off, and float32.
    assert np.all(np.abs(back.astype(np.float64) - values) <= float(scale) * (1.0 + 1e-4))


def test_numbers_from_a_grid_stay_as_they_are() -> None:
    grid = grid_of(0.1, 100)
    back = dequantise(np.arange(256, dtype=np.uint8), grid)
    assert np.array_equal(fake_quantise(back, grid), back)


def test_nothing_overflows_on_the_way() -> None:
    extremes = np.array([np.finfo(np.float32).max, -np.finfo(np.float32).max, 1e-45, -1e-45, 0.0], np.float32)
    with np.errstate(over="ignore"):  # x / scale is infinite, and clipped
        codes = quantise(extremes, grid_of(1e-3, 7)).codes
    assert codes.tolist() == [255, 0, 7, 7, 7]


@pytest.mark.parametrize(("axis", "block"), [(None, 0), (0, 0), (1, 0), (1, 7), (0, 7)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_large_arrays_are_rounded_as_small_ones_are(axis: int | None, block: int, symmetric: bool) -> None:
    """Pieces and threads change nothing: against the same written in one go."""
    values = np.random.default_rng(1).standard_normal((1150, 1000)).astype(np.float32)
    grid = weight_grid(values, bits=4, symmetric=symmetric, axis=axis, block=block)
    scale, zero = grid.scale, grid.zero_point
    if axis is not None:
        index = np.arange(values.shape[axis]) // max(block, 1)
        scale, zero = (part.take(index, axis) if block else part[:, None] if axis == 0 else part for part in (scale, zero))
    codes = np.clip(np.rint(values / scale) + zero, grid.lowest, grid.highest).astype(np.int8 if symmetric else np.uint8)
    found = quantise(values, grid)
    assert found.codes.dtype == codes.dtype
    assert np.array_equal(found.codes, codes)
    assert np.array_equal(found.values, (codes.astype(np.int32) - zero).astype(np.float32) * scale)
    if block and axis == 1:
        for key in [(0, 0), (600, 3), (1149, 142)]:
            some = values[key[0], key[1] * 7 : key[1] * 7 + 7]
            assert grid.scale[key] == weight_grid(some[None], bits=4, symmetric=symmetric, axis=0).scale[0]


def test_a_single_number_is_rounded_too() -> None:
    found = quantise(np.array(0.26, np.float32), grid_of(0.1, 3))
    assert (found.codes.shape, int(found.codes), float(found.values)) == ((), 6, pytest.approx(0.3))


# -- scales that are stored -----------------------------------------------------------------------------------------------------


@given(arrays(np.float32, 5, elements=st.floats(np.float32(2.0**-100), np.float32(2.0**100), width=32)))
def test_scales_come_back_as_they_were_stored(scale: Array) -> None:
    found = storable(scale, "float16")
    assert found.dtype == np.float32
    assert np.array_equal(found.astype(np.float16).astype(np.float32), found)
    assert np.isfinite(found).all()
    assert (found > 0).all()
    inside = (scale >= 2.0**-14) & (scale <= 65504)
    assert np.all(np.abs(found[inside] / scale[inside] - 1) <= 2.0**-11)
    assert np.array_equal(storable(scale, "float32"), scale)
    assert np.array_equal(storable(-scale, "float16"), -found)


def test_the_zero_point_is_that_of_the_scale_that_is_stored() -> None:
    low = -np.linspace(0.5, 3, 400)
    scale, zero = from_range(low, low + 5e-4 * np.arange(400) + 4, bits=8, signed=False, symmetric=False, scales="float16")
    assert np.array_equal(scale, scale.astype(np.float16))
    assert np.array_equal(zero, np.rint(-low / scale))
    before = from_range(low, low + 5e-4 * np.arange(400) + 4, bits=8, signed=False, symmetric=False)[1]
    assert not np.array_equal(zero, before)


# -- scales of either sign ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("axis", "block"), [(None, 0), (0, 0), (1, 0), (1, 7), (0, 4)])
def test_the_number_farthest_from_zero_lies_on_the_lowest_code(axis: int | None, block: int, bits: int) -> None:
    weight = np.random.default_rng(3).standard_normal((9, 53)).astype(np.float32)
    grid = weight_grid(weight, bits=bits, axis=axis, block=block, either_sign=True)
    found, (scales, _) = quantise(weight, grid), affine.weight_grid(weight, bits, True, axis, block, either_sign=True)
    assert grid.signed
    assert not grid.zero_point.any()
    for key, places in affine.parts(weight.shape, axis, block).items():
        assert float(grid.scale[key]) == scales[key]  # a power of 2 divides exactly
        farthest = max(places, key=lambda place: abs(weight[place]))
        assert found.codes[farthest] == grid.lowest
        assert found.values[farthest] == weight[farthest]
    assert len(np.unique(grid.scale > 0)) == 2 or axis is None
    assert found.codes.max() == grid.highest or (axis is None and bits == 8)


def test_ends_that_are_equal_zero_tiny_or_huge_get_a_scale() -> None:
    rows = np.array([[-2, 2], [2, -2], [0, 0], [0, 3], [-3, 0], [1e-38, 0], [3e38, 1], [1, -3e38]], np.float32)
    found = weight_grid(rows, bits=4, axis=0, either_sign=True)
    assert found.scale[:6].tolist() == [0.25, 0.25, 1, -0.375, 0.375, 1]
    assert (found.scale[6] < 0, found.scale[7] > 0, bool(np.isfinite(found.scale).all())) == (True, True, True)
    stored = weight_grid(rows, bits=4, axis=0, scales="float16", either_sign=True).scale
    assert stored.tolist() == [0.25, 0.25, 1, -0.375, 0.375, 1, -65504, 65504]
    with pytest.raises(Refused, match="NaN"):
        weight_grid(np.array([[1, np.nan]], np.float32), bits=4, axis=0, either_sign=True)


@pytest.mark.parametrize("either_sign", [True, False])
def test_asymmetric_grids_have_no_signs(either_sign: bool) -> None:
    weight = np.random.default_rng(3).standard_normal((5, 40)).astype(np.float32)
    found = weight_grid(weight, bits=4, symmetric=False, axis=1, block=8, either_sign=either_sign)
    assert np.array_equal(found.scale, weight_grid(weight, bits=4, symmetric=False, axis=1, block=8).scale)
    assert (found.scale > 0).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_code_is_better_than_all_but_one(bits: int) -> None:
    weight = np.random.default_rng(5).standard_normal((50, 256)).astype(np.float32)
    narrow, whole = (fake_quantise(weight, weight_grid(weight, bits=bits, axis=1, block=32, scales="float16", either_sign=each))
                     for each in (False, True))
    share = np.square(whole - weight).sum() / np.square(narrow - weight).sum()
    assert share < {2: 0.4, 3: 0.65, 4: 0.85, 8: 0.995}[bits]


# -- from_range -----------------------------------------------------------------------------------------------------------------


@given(
    st.floats(-(2.0**100), 2.0**100, width=32), st.floats(-(2.0**100), 2.0**100, width=32), st.integers(2, 16), st.booleans(), st.booleans()
)
def test_zero_lies_on_every_grid_and_the_range_inside_it(a: float, b: float, bits: int, signed: bool, symmetric: bool) -> None:
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    assume(max(-low, high) > 2**16 * SMALLEST_SCALE)
    scale, zero = from_range(a if a < b else b, max(a, b), bits=bits, signed=signed, symmetric=symmetric)
    grid = grid_of(scale, zero, bits=bits, signed=signed)
    assert grid.lowest <= int(zero) <= grid.highest
    assert float(fake_quantise(np.zeros(1, np.float32), grid)[0]) == 0.0
    step = float(scale)
    assert (grid.lowest - int(zero)) * step <= low + 0.501 * step
    assert (grid.highest - int(zero)) * step >= high - 0.501 * step
    if symmetric:
        assert int(zero) == (0 if signed else 1 << (bits - 1))
        assert np.isclose(step, max(-low, high) / (2 ** (bits - 1) - 1))
    else:
        assert np.isclose(step, (high - low) / (2**bits - 1))


def test_a_range_behind_a_relu_uses_every_code() -> None:
    scale, zero = from_range(0.0, 6.0, bits=8, signed=False, symmetric=False)
    assert (int(zero), float(scale)) == (0, pytest.approx(6 / 255))
    scale, zero = from_range(0.0, 6.0, bits=8, signed=True, symmetric=False)
    assert int(zero) == -128


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38])
def test_a_range_of_no_width_gives_a_scale_that_divides(size: float, symmetric: bool) -> None:
    scale, zero = from_range(-size, size, bits=8, signed=False, symmetric=symmetric)
    assert float(scale) == 1.0
    assert float(fake_quantise(np.array([size], np.float32), grid_of(scale, zero))[0]) == 0.0


def test_the_widest_range_of_float32_does_not_overflow() -> None:
    top = float(np.finfo(np.float32).max)
    scale, zero = from_range(-top, top, bits=8, signed=False, symmetric=False)
    assert np.isfinite(scale)
    assert int(zero) in (127, 128)


# -- weights --------------------------------------------------------------------------------------------------------------------


@given(st.data())
def test_weight_grids_are_those_of_the_paper(data: st.DataObject) -> None:
    weight = data.draw(arrays(np.float32, array_shapes(min_dims=2, max_dims=3, max_side=5), elements=st.floats(-8, 8, width=16)))
    axis, block = data.draw(st.sampled_from(layouts(weight.shape)))
    bits, symmetric = data.draw(st.sampled_from([2, 4, 7, 8])), data.draw(st.booleans())
    grid = weight_grid(weight, bits=bits, symmetric=symmetric, axis=axis, block=block)
    scales, zeros = affine.weight_grid(weight, bits, symmetric, axis, block)
    assert grid.signed is symmetric
    assert grid.scale.shape == scales_shape(weight.shape, axis, block)
    for key, scale in scales.items():
        assert float(grid.scale[key]) == pytest.approx(scale, rel=1e-6)
        assert int(grid.zero_point[key]) == zeros[key]
    assert np.abs(quantise(weight, grid).codes.astype(int)).max() <= (2 ** (bits - 1) - 1 if symmetric else 2**bits - 1)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 65, 100])
def test_blocks_of_32_cover_lengths_on_both_sides_of_their_borders(length: int) -> None:
    weight = np.random.default_rng(length).standard_normal((3, length)).astype(np.float32)
    grid = weight_grid(weight, bits=4, symmetric=True, axis=1, block=32)
    scales, _ = affine.weight_grid(weight, 4, True, 1, 32)
    assert grid.scale.shape == (3, -(-length // 32))
    assert all(float(grid.scale[key]) == pytest.approx(scale) for key, scale in scales.items())
    codes = quantise(weight, grid).codes
    assert np.array_equal(codes, affine.quantize_linear(weight, grid.scale, grid.zero_point, -8, 7, 1, 32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(Refused, match="NaN or infinity"):
        weight_grid(np.array([[1.0, bad]], np.float32), bits=8)


def test_huge_and_subnormal_weights_get_grids() -> None:
    weight = np.array([[1e38, -5e37], [1e-44, -1e-45], [0, 0]], np.float32)
    grid = weight_grid(weight, bits=8, axis=0)
    back = fake_quantise(weight, grid)
    assert np.allclose(back[0], weight[0], rtol=0.01)
    assert np.all(back[1:] == 0)


# -- biases ---------------------------------------------------------------------------------------------------------------------


@given(
    arrays(np.float32, 4, elements=st.floats(-15, 15, width=32)),
    st.floats(2.0**-13, 10.0),
    arrays(np.float32, 4, elements=st.floats(2.0**-13, 10, width=32)),
)
def test_biases_lie_on_the_accumulators_grid(bias: Array, input_scale: float, scales: Array) -> None:
    steps = np.float32(input_scale) * scales
    assert quantise_bias(bias, steps).tolist() == affine.bias(bias, input_scale, scales)


def test_a_bias_that_would_overflow_raises_its_channels_scale() -> None:
    alive = np.zeros(3, bool)
    bias, weight_scale = np.array([1e3, 1.0, 0.0], np.float32), np.array([1e-9, 1e-3, 1e-3], np.float32)
    scale = scale_for_bias(weight_scale, 1e-3, bias, alive)
    assert scale[0] > weight_scale[0]
    assert scale[1:].tolist() == weight_scale[1:].tolist()
    codes = quantise_bias(bias, scale * np.float32(1e-3))
    assert np.all(np.abs(codes.astype(np.int64)) <= 1 << 30)
    assert np.allclose(codes * (scale * 1e-3), bias, rtol=1e-6)


def test_a_dead_channel_keeps_its_bias_whatever_the_scale_of_its_input() -> None:
    bias = np.array([0.3, -2.0, 0.0], np.float32)
    for input_scale in (1e-6, 1.0, 1e6):
        scale = scale_for_bias(np.ones(3, np.float32), input_scale, bias, np.ones(3, bool))
        steps = scale.astype(np.float64) * input_scale
        assert np.allclose(quantise_bias(bias, steps) * steps, bias, rtol=1e-6)


def test_steps_of_a_bias_are_never_subnormal() -> None:
    scale = scale_for_bias(np.array([1e-30], np.float32), 1e-20, np.array([0.0], np.float32), np.zeros(1, bool))
    assert np.float32(scale[0]) * np.float32(1e-20) >= SMALLEST_SCALE


# -- onnxruntime ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("axis", "block"), [(None, 0), (0, 0), (1, 0), (1, 3), (1, 4), (0, 2)])
@pytest.mark.parametrize("signed", [True, False])
def test_onnxruntime_computes_the_same_codes(axis: int | None, block: int, signed: bool) -> None:
    values = np.random.default_rng(3).standard_normal((5, 10)).astype(np.float32)
    values[0, :4] = [0.05, 0.15, 0.25, -0.25]
    scale, zero = from_range(
        *np.broadcast_arrays(-1.0, np.full(scales_shape(values.shape, axis, block), 1.7)), bits=8, signed=signed, symmetric=False
    )
    grid = grid_of(scale, zero, signed=signed, axis=axis, block=block)
    sketch = Sketch(opset=21)
    x = sketch.input("x", [5, 10])
    attributes = ({} if axis is None else {"axis": axis}) | ({"block_size": block} if block else {})
    parameters = [sketch.constant(scale), sketch.constant(zero, np.int8 if signed else np.uint8)]
    codes = sketch.output(sketch.node("QuantizeLinear", x, *parameters, **attributes), dtype=3 if signed else 2)
    back = sketch.output(sketch.node("DequantizeLinear", codes, *parameters, **attributes))
    found = outputs(sketch.model(), {"x": values})
    assert np.array_equal(found[codes], quantise(values, grid).codes)
    assert np.array_equal(found[back], fake_quantise(values, grid))


def test_dynamic_quantisation_is_that_of_the_specification() -> None:
    values = np.random.default_rng(5).standard_normal((4, 33)).astype(np.float32) * 3 + 1
    sketch = Sketch()
    codes, scale, zero = sketch.node("DynamicQuantizeLinear", sketch.input("x", [4, 33]), count=3)
    for name, dtype in ((codes, 2), (scale, 1), (zero, 2)):
        sketch.output(name, dtype=dtype)
    found = outputs(sketch.model(), {"x": values})
    wanted = affine.dynamic_quantize_linear(values)
    assert np.array_equal(found[codes], wanted[0])
    assert (found[scale], found[zero]) == (wanted[1], wanted[2])
    ours = from_range(values.min(), values.max(), bits=8, signed=False, symmetric=False)
    assert (np.float32(ours[0]), int(ours[1])) == (pytest.approx(wanted[1], rel=1e-6), wanted[2])
