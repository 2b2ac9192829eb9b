"""Datasets: order, hashes, taking, splitting, overlap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.compress.data import Dataset, check_overlap, split
from whet.core.errors import Refused


def dataset(n: int, classes: int = 0, seed: int = 0) -> Dataset:
    values = np.random.default_rng(seed).normal(size=(n, 2, 3)).astype(np.float32)
    return Dataset.of({"x": values}, np.arange(n) % classes if classes else None)


def gathered(data: Dataset, size: int) -> np.ndarray:
    return np.concatenate([batch["x"] for batch in data.batches(size)])


@pytest.mark.parametrize("size", [1, 3, 10, 11])
def test_batches_hold_every_sample_once_in_order_and_again(size: int) -> None:
    values = np.arange(10, dtype=np.float32)[:, None]
    data = Dataset.of({"x": values})
    assert [len(batch["x"]) for batch in data.batches(size)][:-1] == [size] * ((10 - 1) // size)
    for _ in range(2):
        assert np.array_equal(gathered(data, size), values)


def test_a_batch_size_of_zero_is_refused() -> None:
    with pytest.raises(Refused, match="batch size 0"):
        list(dataset(3).batches(0))


def test_a_batch_may_be_changed_without_changing_the_data() -> None:
    data = dataset(4)
    before = gathered(data, 4)
    next(data.batches(4))["x"][:] = 0
    assert np.array_equal(gathered(data, 4), before)


def test_take_follows_the_order_asked_and_nests() -> None:
    data = dataset(10, classes=5)
    taken = data.take([7, 2, 9]).take([2, 0])
    assert taken.labels is not None
    assert taken.labels.tolist() == [4, 2]
    assert np.array_equal(gathered(taken, 1), gathered(data, 10)[[9, 7]])
    assert taken.sample_hashes == (data.sample_hashes[9], data.sample_hashes[7])
    assert len(data.take(np.arange(10) > 6)) == 3


@pytest.mark.parametrize("index", [-1, 10])
def test_an_index_outside_is_refused(index: int) -> None:
    with pytest.raises(Refused, match=f"index {index} of 10"):
        dataset(10).take([0, index])


def test_the_hash_covers_values_order_labels_names_dtype_and_constants() -> None:
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    labels = np.array([0, 1, 0])
    plain = Dataset.of({"x": values}, labels)
    assert plain.content_hash == Dataset.of({"x": values.copy()}, labels.copy()).content_hash
    changed = values.copy()
    changed[2, 1] = np.nextafter(changed[2, 1], np.float32(9))
    others = [
        Dataset.of({"x": changed}, labels),
        Dataset.of({"x": values}, np.array([0, 1, 1])),
        Dataset.of({"x": values}),
        Dataset.of({"y": values}, labels),
        Dataset.of({"x": values.astype(np.float64)}, labels),
        Dataset.of({"x": values[:, None]}, labels),
        plain.take([1, 0, 2]),
        plain.take([0, 1]),
    ]
    constant = Dataset.of({"x": values}, labels)
    constant.constants = {"sr": np.int64(16000)[None]}
    hashes = [each.content_hash for each in [plain, *others, constant]]
    assert len(set(hashes)) == len(hashes)


def test_the_hash_does_not_depend_on_the_memory_layout() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    same = [np.asfortranarray(values), values.astype(">f4"), np.repeat(values, 2, axis=0)[::2]]
    assert len({Dataset.of({"x": each}).content_hash for each in [values, *same]}) == 1


def test_a_sample_hash_leaves_the_label_out_and_is_the_same_in_any_company() -> None:
    values = np.arange(40, dtype=np.float32).reshape(20, 2)
    with_labels, alone = Dataset.of({"x": values}, np.arange(20)), Dataset.of({"x": values[17:18]})
    assert with_labels.sample_hashes[17] == alone.sample_hashes[0]
    assert len(set(with_labels.sample_hashes)) == 20


@given(n=st.integers(2, 60), classes=st.integers(0, 5), share=st.floats(0, 1), seed=st.integers(0, 9))
def test_a_split_parts_every_sample_and_keeps_the_order(n: int, classes: int, share: float, seed: int) -> None:
    data, count = dataset(n, classes), min(max(1, round(share * n)), n - 1)
    first, second = split(data, count=count, seed=seed)
    assert (len(first), len(second)) == (count, n - count)
    assert set(first.sample_hashes) | set(second.sample_hashes) == set(data.sample_hashes)
    for part in (first, second):
        positions = [data.sample_hashes.index(each) for each in part.sample_hashes]
        assert positions == sorted(positions)
    check_overlap(first, second)


def test_a_split_is_stratified_repeatable_and_moved_by_the_seed() -> None:
    labels = np.array([0] * 60 + [1] * 30 + [2] * 10)
    data = Dataset.of({"x": np.arange(100, dtype=np.float32)}, labels)
    first, _ = split(data, fraction=0.2, seed=3)
    assert first.labels is not None
    assert np.bincount(first.labels).tolist() == [12, 6, 2]
    assert split(data, fraction=0.2, seed=3)[0].content_hash == first.content_hash
    assert split(data, fraction=0.2, seed=4)[0].content_hash != first.content_hash


def test_float_labels_are_no_classes() -> None:
    data = Dataset.of({"x": np.arange(9.0)}, np.linspace(0, 1, 9))
    assert len(split(data, count=4)[0]) == 4


def test_identical_samples_stay_together() -> None:
    values = np.repeat(np.arange(10, dtype=np.float32), 3)
    data = Dataset.of({"x": values}, np.repeat(np.arange(10) % 2, 3))
    for seed in range(5):
        first, second = split(data, count=12, seed=seed)
        assert len(first) == 12
        check_overlap(first, second)


@pytest.mark.parametrize("asked", [{}, {"count": 2, "fraction": 0.5}, {"count": 0}, {"count": 10}, {"fraction": 0.01}, {"fraction": 1.0}])
def test_a_split_with_an_empty_part_is_refused(asked: dict[str, float]) -> None:
    with pytest.raises(Refused, match="split"):
        split(dataset(10), **asked)  # type: ignore[arg-type]


def test_a_split_of_one_sample_many_times_is_refused() -> None:
    with pytest.raises(Refused, match="identical"):
        split(Dataset.of({"x": np.zeros((5, 2), np.float32)}), count=2)


def test_an_overlap_is_found_whatever_the_labels_and_counted() -> None:
    values = np.arange(20, dtype=np.float32)[:, None]
    calibration, evaluation = Dataset.of({"x": values[:8]}), Dataset.of({"x": values[5:]}, np.zeros(15, np.int64))
    with pytest.raises(Refused, match=r"3 of 15 evaluation samples .*the first is sample 0"):
        check_overlap(calibration, evaluation)
    check_overlap(calibration.take(range(5)), evaluation)
