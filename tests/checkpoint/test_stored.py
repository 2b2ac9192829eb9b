"""Rounded weights in a checkpoint: bit by bit as the format says, planned to the byte, and back as they went."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.slow_papers import packed_codes
from torch import Tensor

from whet.compress.checkpoint import stored
from whet.compress.checkpoint.stored import Layout
from whet.compress.checkpoint.tensor_writer import shape_of
from whet.compress.codebook import coded
from whet.compress.grid import Grid, Quantised, quantise, weight_grid
from whet.core.errors import Unsupported

pytestmark = pytest.mark.usefixtures("one_torch_thread")
Array = np.ndarray[Any, Any]


def rounded(size: tuple[int, int], bits: int, group: int, symmetric: bool, seed: int = 0) -> Quantised:
    """Random numbers on a grid of float16 scales, and codes at both of its ends."""
    weight = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    grid = weight_grid(weight, bits=bits, symmetric=symmetric, axis=1 if group else 0, block=group, scales="float16",
                       either_sign=True)
    found = quantise(weight, grid)
    found.codes.flat[:: 3] = grid.lowest
    found.codes.flat[1:: 5] = grid.highest
    return found


def reader(tensors: dict[str, Tensor]) -> Callable[[str], Tensor]:
    return lambda name: tensors[name]


@given(rows=st.integers(1, 40), columns=st.integers(1, 70), bits=st.integers(2, 8), group=st.sampled_from([0, 1, 5, 16, 32, 64, 128]),
       symmetric=st.booleans(), seed=st.integers(0, 3))
def test_what_goes_in_comes_out_and_takes_what_was_planned(rows: int, columns: int, bits: int, group: int, symmetric: bool,
                                                           seed: int) -> None:
    weight, size = rounded((rows, columns), bits, group, symmetric, seed), (rows, columns)
    layout = stored.layout_of(weight)
    assert layout == Layout("int", bits, group, symmetric)
    tensors = stored.tensors("a.b", weight)
    assert stored.shapes("a.b", size, layout) == [shape_of(name, tensor) for name, tensor in tensors.items()]
    assert stored.size_of("a.b", layout, reader(tensors)) == size
    again = stored.unpacked("a.b", layout, reader(tensors))
    assert isinstance(again, Quantised)
    assert again.codes.dtype == weight.codes.dtype
    assert np.array_equal(again.codes, weight.codes)
    assert np.array_equal(again.grid.scale, weight.grid.scale)
    assert np.array_equal(again.grid.zero_point, weight.grid.zero_point)
    assert (again.grid.axis, again.grid.block, again.grid.bits, again.grid.signed) == (1 if group else 0, group, bits, symmetric)
    assert again.values.tobytes() == weight.values.tobytes()


@given(rows=st.integers(1, 40), columns=st.integers(1, 70), group=st.sampled_from([0, 16, 32]), seed=st.integers(0, 3))
def test_codes_beside_int8_inputs_are_bytes_as_they_are(rows: int, columns: int, group: int, seed: int) -> None:
    weight, size = rounded((rows, columns), 8, group, True, seed), (rows, columns)
    layout = stored.layout_of(weight, 8)
    assert layout == Layout("int", 8, group, activations=8)
    tensors = stored.tensors("a.b", weight, 8)
    assert stored.shapes("a.b", size, layout) == [shape_of(name, tensor) for name, tensor in tensors.items()]
    assert set(stored.marks("a.b", layout)) == set(tensors)
    assert stored.size_of("a.b", layout, reader(tensors)) == size
    assert np.array_equal(tensors["a.b.weight"].numpy(), weight.codes)
    again = stored.unpacked("a.b", layout, reader(tensors))
    assert isinstance(again, Quantised)
    assert np.array_equal(again.values, weight.values)
    assert (again.grid.axis, again.grid.block) == (1 if group else 0, group)


ON_A_BOOK = coded(np.random.default_rng(0).standard_normal((37, 40)).astype(np.float32), "nf4", block=64, double=True)


@pytest.mark.parametrize("weight", [rounded((37, 40), 3, 16, False), rounded((37, 40), 4, 0, True), ON_A_BOOK])
def test_some_rows_are_those_of_the_whole(weight: Any) -> None:
    read, chosen = reader(stored.tensors("a.b", weight)), np.array([0, 36, 7, 7])
    found = stored.some_rows("a.b", stored.layout_of(weight), read, chosen)
    assert found.tobytes() == weight.values[chosen].tobytes()


def test_some_rows_of_bytes_are_those_of_the_whole() -> None:
    weight, chosen = rounded((37, 40), 8, 16, True), np.array([0, 36, 7, 7])
    found = stored.some_rows("a.b", stored.layout_of(weight, 8), reader(stored.tensors("a.b", weight, 8)), chosen)
    assert found.tobytes() == weight.values[chosen].tobytes()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [0, 16])
@pytest.mark.parametrize("bits", range(2, 9))
def test_bits_lie_where_the_slow_paper_puts_them(bits: int, group: int, symmetric: bool) -> None:
    size = (7, 37)  # neither fills whole words
    weight = rounded(size, bits, group, symmetric)
    found = {name.removeprefix("x.weight_"): tensor.numpy() for name, tensor in stored.tensors("x", weight).items()}
    shifted = weight.codes.astype(np.int64) - weight.grid.lowest
    assert np.array_equal(found["packed"], packed_codes.words_of(shifted, bits))
    assert found["shape"].tolist() == list(size)
    assert found["scale"].dtype == np.float16
    if symmetric:
        assert set(found) == {"packed", "scale", "shape"}
    else:
        zeros = weight.grid.zero_point.reshape(7, -1)
        assert np.array_equal(found["zero_point"], packed_codes.words_of(zeros.T, bits).T)
    meant = packed_codes.weight_of(found["packed"], found["scale"], found.get("zero_point"), bits=bits, group=group, shape=size)
    assert np.array_equal(meant, weight.values)


def test_words_that_were_packed_by_hand() -> None:
    assert stored.packed(np.array([[1, 2, 3, 4, 5, 6, 7, 8, 9]], np.uint8), 4).tolist() == [[0x87654321 - 2**32, 0x9]]
    assert stored.packed(np.array([[1, 0, 0, 255]], np.uint8), 8).tolist() == [[0xFF000001 - 2**32]]
    assert stored.packed(np.array([[7, 0, 1]], np.uint8), 3).tolist() == [[0b001_000_111]]
    across = stored.packed(np.array([[0] * 10 + [0b101]], np.uint8), 3)  # its third bit is the first of the next word
    assert across.tolist() == [[(0b01 << 30), 0b1]]
    assert stored.codes_in(np.array([[0b001_000_111]], np.int32), 3, 3).tolist() == [[7, 0, 1]]


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_package_that_reads_the_format_agrees(bits: int) -> None:
    """compressed-tensors' own packer, where it is installed: version 0.20, older ones left gaps between 3, 5, 6 and 7 bits."""
    package = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    weight = rounded((6, 43), bits, 0, True)
    assert torch.equal(package.pack_to_int32(torch.from_numpy(weight.codes), bits), stored.tensors("x", weight)["x.weight_packed"])


def test_a_group_longer_than_the_row_is_one_group() -> None:
    found = stored.tensors("x", rounded((3, 20), 4, 128, True))
    assert found["x.weight_scale"].shape == (3, 1)


# -- the words in config.json ----------------------------------------------------------------------------------------------------------


def test_layouts_come_back_from_the_words() -> None:
    layouts = {"a": Layout("int", 4, 128), "b": Layout("int", 4, 128), "c": Layout("int", 8), "d": Layout("int", 3, 32, False)}
    words = json.loads(json.dumps(stored.described(layouts, ("head",))))
    assert stored.layouts_in(words) == layouts
    assert words["ignore"] == ["head"]
    assert [len(group["targets"]) for group in words["config_groups"].values()] == [2, 1, 1]
    assert [group["weights"]["strategy"] for group in words["config_groups"].values()] == ["group", "channel", "group"]
    assert (words["quant_method"], words["format"]) == ("compressed-tensors", "pack-quantized")


def test_layouts_of_int8_inputs_come_back_alone_and_beside_others() -> None:
    inputs = {"a": Layout("int", 8, activations=8), "b": Layout("int", 8, 32, activations=8)}
    words = json.loads(json.dumps(stored.described(inputs, ())))
    assert words["format"] == "int-quantized"
    assert stored.layouts_in(words) == inputs
    both = {**inputs, "c": Layout("int", 8), "d": Layout("int", 4, 32)}
    words = json.loads(json.dumps(stored.described(both, ())))
    assert words["format"] == "mixed-precision"
    assert stored.layouts_in(words) == both


def test_layouts_of_code_books_come_back_from_the_words() -> None:
    layouts = {"a": Layout("nf4", 4, 64, double=True), "b": Layout("nf4", 4, 128, double=True)}
    words = json.loads(json.dumps(stored.described(layouts, ("head",))))
    assert stored.layouts_in(words) == layouts
    assert (words["bnb_4bit_quant_type"], words["bnb_4bit_use_double_quant"]) == ("nf4", True)
    assert words["llm_int8_skip_modules"] == ["head"]


def test_integers_and_code_books_have_no_format_together() -> None:
    with pytest.raises(Unsupported, match="layers of integers and layers of nf4"):
        stored.described({"a": Layout("int", 4), "b": Layout("nf4", 4, 64)}, ())


def test_layouts_are_told_from_the_weights() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    assert stored.layout_of(coded(weight, "fp4", block=32, double=False)) == Layout("fp4", 4, 32)
    grid = Grid(5, False, np.ones(4, np.float32), np.zeros(4, np.int32), 0)
    assert stored.layout_of(quantise(weight, grid)) == Layout("int", 5, 0, False)
    assert stored.layout_of(quantise(weight, replace(grid, signed=True))).symmetric
