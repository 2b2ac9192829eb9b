"""Data from Python: names, shapes, dtypes, values, labels, constants, iterables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.compress.data import Dataset, load_data
from whet.compress.data.casting import cast
from whet.core.artifact import TensorSpec
from whet.core.errors import Refused

IMAGE = [TensorSpec("input", "float32", ("N", 3, 4, 4))]
ROW = [TensorSpec("x", "float32", ("N", 2))]
PAIR = [TensorSpec("a", "float32", ("N", 2)), TensorSpec("b", "int64", ("N",))]
SILERO = [TensorSpec("input", "float32", ("?", "?")), TensorSpec("state", "float32", (2, "?", 128)), TensorSpec("sr", "int64", ())]


def rows(n: int) -> np.ndarray:
    return np.arange(2 * n, dtype=np.float32).reshape(n, 2)


def only(data: Dataset, name: str = "x") -> np.ndarray:
    return next(data.batches(len(data)))[name]


@pytest.mark.parametrize("source", [
    rows(4),
    {"x": rows(4)},
    (rows(4),),
    [rows(4)[:3], rows(4)[3:]],
    [{"x": rows(4)[:3]}, {"x": rows(4)[3:]}],
    (part for part in (rows(4)[:1], rows(4)[1:])),
    {"x": rows(4).tolist()},
    {"x": rows(4).astype(np.float64)},
    {"x": rows(4).astype(np.int16)},
    {"x": rows(4).astype(">f4")},
])
def test_one_input_in_every_form(source: Any) -> None:
    data = load_data(source, ROW)
    assert data.names == ("x",)
    assert data.labels is None
    assert only(data).dtype == np.float32
    assert np.array_equal(only(data), rows(4))


@pytest.mark.parametrize("source", [
    (rows(4), [0, 1, 0, 1]),
    ({"x": rows(4)}, np.array([0, 1, 0, 1])),
    {"x": rows(4), "labels": [0, 1, 0, 1]},
    {"x": rows(4), "label": np.array([False, True, False, True])},
    [(rows(4)[:2], [0, 1]), (rows(4)[2:], [0, 1])],
    [[rows(4)[:2], np.array([0, 1], np.uint8)], [rows(4)[2:], np.array([0, 1], np.uint8)]],
    [{"x": rows(4), "labels": [0, 1, 0, 1]}],
    [({"x": rows(4)}, [0, 1, 0, 1])],
])
def test_labels_in_every_form(source: Any) -> None:
    data = load_data(source, ROW)
    assert data.labels is not None
    assert data.labels.dtype == np.int64
    assert data.labels.tolist() == [0, 1, 0, 1]
    assert np.array_equal(only(data), rows(4))


@pytest.mark.parametrize("source", [
    (rows(3), [7, 8, 9]),
    (rows(3), [7, 8, 9], [0, 0, 1]),
    ((rows(3), [7, 8, 9]), [0, 0, 1]),
    {"b": [7, 8, 9], "a": rows(3)},
    [(rows(3)[:2], [7, 8], [0, 0]), (rows(3)[2:], [9], [1])],
    [((rows(3)[:2], [7, 8]), [0, 0]), ((rows(3)[2:], [9]), [1])],
])
def test_two_inputs(source: Any) -> None:
    data = load_data(source, PAIR)
    batch = next(data.batches(3))
    assert np.array_equal(batch["a"], rows(3))
    assert batch["b"].tolist() == [7, 8, 9]
    assert data.labels is None or data.labels.tolist() == [0, 0, 1]


def test_torch_tensors_and_loaders() -> None:
    torch = pytest.importorskip("torch")
    values, labels = torch.from_numpy(rows(5)), torch.arange(5)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(values.requires_grad_(), labels), batch_size=2)
    for source in (loader, (values, labels), (values.to(torch.bfloat16), labels)):
        data = load_data(source, ROW)
        assert np.array_equal(only(data), rows(5))
        assert data.labels is not None
        assert data.labels.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(Refused, match="DataLoader"):
        load_data(torch.utils.data.TensorDataset(values, labels), ROW)


def test_an_iterable_is_read_once() -> None:
    class Once:
        readings = 0

        def __iter__(self) -> Any:
            self.readings += 1
            yield rows(2)

    source = Once()
    data = load_data(source, ROW)
    assert [len(list(data.batches(1))) for _ in range(3)] == [2, 2, 2]
    assert source.readings == 1


def test_an_endless_iterable_ends() -> None:
    def endless() -> Any:
        while True:
            yield rows(1000)

    with pytest.raises(Refused, match=r"keep the data within .*GiB: \d+ batches take"):
        load_data(endless(), ROW, max_bytes=100_000)


@pytest.mark.parametrize(("source", "inputs", "message"), [
    ({"x": np.zeros((0, 2))}, ROW, "empty: no samples"),
    ([], ROW, "empty"),
    ({"X": rows(2)}, ROW, r"model's inputs \('x'\) .*the arrays 'X'"),
    ({"x": rows(2), "y": rows(2)}, ROW, r"inputs \('x'\) .*'x', 'y'"),
    ({"a": rows(2)}, PAIR, r"inputs \('a', 'b'\) .*the arrays 'a'"),
    (rows(2), PAIR, r"inputs \('a', 'b'\) .*'arr_0'"),
    ((rows(2), [1, 2], [3, 4], [5, 6]), PAIR, "4 arrays"),
    ({"a": rows(3), "b": [1, 2]}, PAIR, r"'b' .*2 samples where the other inputs have 3"),
    ({"x": rows(3), "labels": [0, 1]}, ROW, "2 labels for 3 samples"),
    ({"x": rows(3), "labels": 1}, ROW, "one number for 3 samples"),
    ({"x": rows(2), "labels": [0, np.nan]}, ROW, r"labels .*nan in sample 1"),
    ({"x": rows(2), "labels": ["cat", "dog"]}, ROW, r"labels .*number of the class"),
    ({"x": rows(2), "labels": [0, 1], "label": [0, 1]}, ROW, "twice"),
    (({"x": rows(2), "labels": [0, 1]}, [0, 1]), ROW, "twice"),
    ({"x": np.array([[0, 1], [2, np.nan], [np.nan, 0]], np.float32)}, ROW, r"nan in sample 1 \(counted from 0\)"),
    ({"x": np.array([[0, -np.inf]])}, ROW, "-inf in sample 0"),
    ({"x": np.array([[1, None]], dtype=object)}, ROW, "array of object"),
    ({"x": [[1, 2], [3]]}, ROW, "no regular array"),
    ({"x": np.zeros((3, 5), np.float32)}, ROW, r"samples of shape \[2\], so \[n, 2\]: an array of shape \[3, 5\]"),
    ({"x": np.zeros(2, np.float32)}, ROW, "looks like one sample"),
    (np.zeros((5, 4, 4, 3), np.float32), IMAGE, r"transpose\(0, 3, 1, 2\)"),
    ({"x": np.zeros((2, 2), np.complex64)}, ROW, "complex64"),
    ({"x": np.array([["a", "b"]])}, ROW, "texts"),
    ([rows(2), {"y": rows(2)}], ROW, "batch 1: it has y where the first batch has x"),
    ([np.zeros((1, 2)), np.zeros((1, 3))], ROW, "differ in shape"),
    (17, ROW, "a int"),
])
def test_what_does_not_fit_is_refused(source: Any, inputs: list[TensorSpec], message: str) -> None:
    with pytest.raises(Refused, match=message):
        load_data(source, inputs)


@pytest.mark.parametrize(("values", "dtype", "message"), [
    ([0, 1, 16777217], "float32", r"16777217 \(int64\) in sample 2"),
    ([0.0, 0.5], "int64", r"0.5 \(float64\) in sample 1"),
    ([1e39], "float32", "1e\\+39"),
    ([70000.0], "float16", "70000"),
    ([-1], "uint8", "-1"),
    (np.array([200], np.uint8), "int8", "200"),
    (np.array([-1], np.int64), "uint64", "-1"),
    ([2], "bool", "2 "),
    (["a"], "float32", "texts"),
    ([1.5], "string", "float64"),
])
def test_a_lossy_cast_is_refused(values: Any, dtype: str, message: str) -> None:
    with pytest.raises(Refused, match=message):
        cast(np.array(values), dtype, "x")


@pytest.mark.parametrize(("values", "dtype"), [
    ([0.1, 1e-50], "float32"), ([1, 2**24], "float32"), ([3.0, -4.0], "int32"), ([True, False], "float32"), ([0, 1], "bool"),
    ([255], "uint8"), (["a", "bb"], "string"), ([1.25], "bfloat16"),
])
def test_a_faithful_cast_is_done(values: Any, dtype: str) -> None:
    result = cast(np.array(values), dtype, "x")
    assert result.dtype.name == dtype or dtype == "string"
    if dtype != "string":
        assert np.allclose(result.astype(np.float64), np.array(values, np.float64), rtol=1e-6, atol=1e-40)


DTYPES = ["int8", "uint8", "int32", "uint64", "float32", "float64"]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5), st.sampled_from(DTYPES))
def test_a_cast_keeps_every_integer_or_refuses(values: list[int], dtype: str) -> None:
    try:
        result = cast(np.array(values, np.int64), dtype, "x")
    except Refused:
        assert [int(each) for each in np.array(values, np.int64).astype(dtype)] != values
    else:
        assert [int(each) for each in result] == values


def test_scalars_and_states_are_constants() -> None:
    state = np.zeros((2, 1, 128))
    data = load_data({"input": np.zeros((50, 512)), "state": state, "sr": np.array([16000])}, SILERO)
    assert (data.names, set(data.constants)) == (("input",), {"state", "sr"})
    batches = list(data.batches(20))
    assert [batch["input"].shape for batch in batches] == [(20, 512), (20, 512), (10, 512)]
    assert all(batch["state"].shape == (2, 1, 128) and batch["sr"].shape == () and batch["sr"] == 16000 for batch in batches)
    assert batches[0]["state"].dtype == np.float32
    # With two samples the length alone would not tell the state from a batch.
    assert load_data({"input": np.zeros((2, 512)), "state": state, "sr": 16000}, SILERO).names == ("input",)


def test_constants_can_be_declared() -> None:
    constants = {"sr": 16000, "state": np.zeros((2, 1, 128))}
    data = load_data([np.zeros((3, 512)), np.zeros((1, 512))], SILERO, constants=constants)
    assert len(data) == 4
    assert data.constants["sr"].dtype == np.int64
    with pytest.raises(Refused, match="has only 'x'"):
        load_data(rows(2), ROW, constants={"sr": 1})
    with pytest.raises(Refused, match=r"takes \[2, \?, 128\]: shape \[3\]"):
        load_data(np.zeros((3, 512)), SILERO, constants={**constants, "state": np.zeros(3)})


def test_states_given_for_each_sample_are_samples() -> None:
    specs = [TensorSpec("x", "float32", (1, 1, 8)), TensorSpec("state", "float32", (1, 2, 4))]
    data = load_data({"x": np.zeros((5, 1, 8)), "state": np.zeros((5, 2, 4))}, specs)
    assert (data.names, len(data)) == (("x", "state"), 5)
    data = load_data({"x": np.zeros((5, 1, 8)), "state": np.zeros((1, 2, 4))}, specs)
    assert (data.names, set(data.constants)) == (("x",), {"state"})


def test_an_input_may_itself_be_called_labels() -> None:
    specs = [TensorSpec("labels", "int64", ("N",))]
    assert load_data({"labels": [1, 2]}, specs).labels is None


def test_a_dataset_passes_through_if_it_fits() -> None:
    data = load_data(rows(3), ROW)
    assert load_data(data, ROW) is data
    with pytest.raises(Refused, match=r"inputs \(a, b\): it has x"):
        load_data(data, PAIR)
    with pytest.raises(Refused, match="empty"):
        load_data(data.take([]), ROW)
    with pytest.raises(Refused, match=r"samples of shape \[3\]"):
        load_data(data, [TensorSpec("x", "float32", ("N", 3))])


def test_labels_of_values_stay_floats_of_any_shape() -> None:
    data = load_data({"x": rows(2), "labels": np.zeros((2, 3), np.float32)}, ROW)
    assert data.labels is not None
    assert (data.labels.dtype, data.labels.shape) == (np.float64, (2, 3))
