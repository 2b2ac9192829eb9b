"""Weight-only: what is exported computes what float computes with weights from the grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.compress.operators_with_weights import CASES, Case, on_grid
from tests.compress.small_graphs import Sketch, executed, feeds_of, noise_ratio, outputs, samples, weights_of
from tests.slow_papers import layers

from whet.compress.apply import apply_recipe
from whet.compress.graph import GraphModel
from whet.compress.grid import quantise, weight_grid
from whet.compress.put.storage import pack_rows
from whet.core.errors import Refused, Unsupported
from whet.core.recipe import Recipe, Step
from whet.device.targets import target

Array = np.ndarray[Any, Any]
VNNI = target("x86-vnni")
BLOCKED = {"Gemm", "Gemm transB", "Gemm alpha beta", "Gemm without bias", "MatMul", "MatMul of 3 dimensions"}
# Operators that the float graph runs as as well; onnxruntime folds everything else at load.
FLOAT_ONLY = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "LSTM", "GRU", "ReorderInput", "ReorderOutput", "FusedConv"}


def weight_only(model: GraphModel, **options: Any) -> GraphModel:
    return apply_recipe(model, Recipe((Step("weight_only", options=options),)), VNNI)


def close(case: Case, made: GraphModel, wanted: GraphModel, tolerance: float) -> bool:
    feeds = feeds_of(case.data)
    exact = outputs(wanted, feeds)
    return all(noise_ratio(ours, exact[name]) < tolerance for name, ours in outputs(made, feeds).items())


@pytest.mark.parametrize(("bits", "symmetric"), [(8, True), (8, False), (4, True), (4, False)])
@pytest.mark.parametrize("name", CASES)
def test_the_exported_model_is_float_with_weights_on_the_grid(name: str, bits: int, symmetric: bool) -> None:
    case = CASES[name]()
    made = weight_only(case.model(), bits=bits, symmetric=symmetric)
    wanted = case.with_weights(
        lambda _, weight, axis: (
            on_grid(weight * (0.5 if "alpha" in name else 1), axis, bits, symmetric=symmetric) / (0.5 if "alpha" in name else 1)
        )
    )
    assert close(case, made, wanted, 2e-6)
    assert not close(case, made, case.model(), 1e-4)
    assert set(executed(made)) <= FLOAT_ONLY
    shapes = {case.sketch.constants[weight].shape for weight in case.weights}
    assert not any(array.dtype == np.float32 and array.shape in shapes for array in weights_of(made).values())


@pytest.mark.parametrize("accuracy_level", [0, 4])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_run_on_the_packed_kernel(bits: int, block: int, symmetric: bool, accuracy_level: int) -> None:
    case = CASES["Gemm transB"]()  # 70 inputs: ragged blocks of every size
    made = weight_only(case.model(), bits=bits, block=block, symmetric=symmetric, accuracy_level=accuracy_level)
    found = executed(made)
    assert found["MatMulNBits"] == 1
    assert not {"Gemm", "MatMul", "DequantizeLinear"} & set(found)
    wanted = case.with_weights(lambda _, weight, axis: on_grid(weight, axis, bits, symmetric=symmetric, block=block))
    # Level 4 quantises the activations of each block to 8 bits: half a step of 1/127 of the largest of them, at random.
    assert close(case, made, wanted, 2e-6 if accuracy_level == 0 else 0.01)


@pytest.mark.parametrize("name", sorted(BLOCKED))
def test_every_matrix_product_can_have_blocks(name: str) -> None:
    case = CASES[name]()
    factor = 0.5 if "alpha" in name else 1.0
    made = weight_only(case.model(), bits=4, block=32, accuracy_level=0)
    assert executed(made)["MatMulNBits"] == 1
    wanted = case.with_weights(lambda _, weight, axis: on_grid(weight * factor, axis, 4, block=32) / factor)
    assert close(case, made, wanted, 2e-6)


@pytest.mark.parametrize("name", sorted(set(CASES) - BLOCKED))
def test_what_has_no_one_summed_dimension_gets_a_scale_a_channel(name: str) -> None:
    case = CASES[name]()
    made = weight_only(case.model(), bits=4, block=32)
    assert close(case, made, case.with_weights(lambda _, weight, axis: on_grid(weight, axis, 4)), 2e-6)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", sorted(BLOCKED))
def test_blocks_without_a_packed_kernel_come_back_at_load(name: str, bits: int, symmetric: bool) -> None:
    case, factor = CASES[name](), 0.5 if "alpha" in name else 1.0
    made = apply_recipe(
        case.model(), Recipe((Step("weight_only", options={"bits": bits, "block": 32, "symmetric": symmetric}),)), target("jetson")
    )
    wanted = case.with_weights(lambda _, weight, axis: on_grid(weight * factor, axis, bits, symmetric=symmetric, block=32) / factor)
    assert close(case, made, wanted, 2e-6)
    assert set(executed(made)) <= FLOAT_ONLY


def test_a_product_whose_bias_is_an_activation_keeps_its_factors() -> None:
    sketch = Sketch()
    x, c = sketch.input("x", [6, 40]), sketch.input("c", [6, 24])
    y = sketch.output(sketch.node("Gemm", x, sketch.weight(40, 24), c, alpha=0.5, beta=3.0))
    feeds = feeds_of(samples({"x": (40,), "c": (24,)}, 6))
    made = weight_only(sketch.model(), block=32, accuracy_level=0)
    assert executed(made)["MatMulNBits"] == 1
    assert noise_ratio(outputs(made, feeds)[y], outputs(sketch.model(), feeds)[y]) < 0.01


def test_a_transposed_activation_stays_on_the_float_kernel() -> None:
    sketch = Sketch()
    y = sketch.output(sketch.node("Gemm", sketch.input("x", [40, 6]), sketch.weight(40, 24), transA=1))
    feeds = feeds_of(samples({"x": (6,)}, 40))
    made = weight_only(sketch.model(), block=32)
    assert executed(made) == {"Gemm": 1}
    assert noise_ratio(outputs(made, feeds)[y], outputs(sketch.model(), feeds)[y]) < 0.01


# -- packing -----------------------------------------------------------------------------------------------------------------------


@given(st.sampled_from([4, 8]), st.sampled_from([16, 32]), st.integers(1, 5), st.integers(1, 70), st.booleans(), st.integers(0, 99))
def test_packed_weights_unpack_to_the_same_numbers(bits: int, block: int, rows: int, columns: int, symmetric: bool, seed: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    quantised = quantise(weight, weight_grid(weight, bits=bits, symmetric=symmetric, axis=1, block=block))
    packed, scales, zeros = pack_rows(quantised)
    blocks = -(-columns // block)
    assert (packed.shape, scales.shape, zeros.shape) == (
        (rows, blocks, block * bits // 8),
        (rows * blocks,),
        (rows * -(-blocks * bits // 8),),
    )
    assert (packed.dtype, scales.dtype, zeros.dtype) == (np.uint8, np.float32, np.uint8)
    unpacked = layers.matmul_nbits(packed, scales, zeros, rows, columns, bits, block)
    assert np.allclose(unpacked, quantised.values, rtol=1e-6, atol=0)
    assert np.abs(unpacked - weight).max() <= scales.max() * 0.501 + (0.5 * scales.max() if not symmetric else 0)


# -- size, types, refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "factor"), [(8, 3.5), (4, 6.0)])
def test_the_file_shrinks_as_the_bits_say(bits: int, factor: float) -> None:
    sketch = Sketch()
    sketch.output(sketch.gemm(sketch.input("x", ["N", 256]), 256, 256))
    model = sketch.model()
    assert len(model.content) / len(weight_only(model, bits=bits).content) > factor
    assert len(model.content) / len(weight_only(model, bits=bits, block=128).content) > factor


def test_a_weight_that_two_layers_share_is_stored_once() -> None:
    sketch = Sketch()
    y = sketch.conv(sketch.input("x", ["N", 4, 8, 8]), (4, 4), name="a")
    sketch.output(sketch.node("Conv", y, "a.W", "a.B", pads=[1] * 4))
    integers = [array for array in weights_of(weight_only(sketch.model())).values() if array.dtype == np.int8]
    assert len(integers) == 1


def test_float16_weights_are_dequantised_to_float16() -> None:
    sketch = Sketch()
    half = sketch.node("Cast", sketch.input("x", ["N", 40]), to=10)
    y = sketch.node("MatMul", half, sketch.constant(np.random.default_rng(0).standard_normal((40, 24)), np.float16), name="m")
    sketch.output(sketch.node("Cast", y, to=1))
    feeds = feeds_of(samples({"x": (40,)}))
    (wanted,) = outputs(sketch.model(), feeds).values()
    for options, tolerance in (({"bits": 8}, 0.02), ({"bits": 4}, 0.2), ({"bits": 4, "block": 32}, 0.2)):
        (made,) = outputs(weight_only(sketch.model(), **options), feeds).values()
        assert noise_ratio(made, wanted) < tolerance


def test_nothing_to_quantise_is_unsupported() -> None:
    sketch = Sketch()
    sketch.output(sketch.node("Tanh", sketch.input("x", ["N", 4])))
    with pytest.raises(Unsupported, match="no weights"):
        weight_only(sketch.model())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(bad: float) -> None:
    sketch = Sketch()
    sketch.output(sketch.gemm(sketch.input("x", ["N", 4]), 4, 4, name="g"))
    sketch.constants["g.W"][0, 0] = bad
    with pytest.raises(Refused, match="NaN or infinity"):
        weight_only(sketch.model())
