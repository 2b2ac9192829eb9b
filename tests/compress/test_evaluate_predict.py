"""predict: batches, ragged ends, fixed batch sizes, outputs without a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from whet.compress.data import Dataset, load_data
from whet.compress.evaluate import predict
from whet.core.artifact import TensorSpec
from whet.core.errors import Refused
from whet.core.progress import reporting

X = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
DATA = Dataset.of({"x": X})


def double(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"y": feeds["x"] * 2, "sum": feeds["x"].sum(axis=1).astype(np.float64)}


@pytest.mark.parametrize("size", [1, 3, 5, 10, 64])
@pytest.mark.parametrize("fixed", [False, True])
def test_outputs_are_put_together_in_order(size: int, fixed: bool) -> None:
    fed: list[int] = []

    def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        fed.append(len(feeds["x"]))
        return double(feeds)

    found = predict(run, DATA, batch_size=size, fixed=fixed)
    assert np.array_equal(found["y"], X * 2)
    assert np.array_equal(found["sum"], X.sum(axis=1).astype(np.float64))
    assert found["y"].dtype == np.float32
    assert not fixed or set(fed) == {size}


def test_a_fixed_batch_is_filled_with_the_last_sample_and_constants_are_left_alone() -> None:
    spec = [TensorSpec("x", "float32", (4, 3)), TensorSpec("sr", "int64", ())]
    data = load_data({"x": X, "sr": 8000}, spec)
    seen: list[Mapping[str, np.ndarray]] = []

    def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.append(feeds)
        return {"y": feeds["x"]}

    predict(run, data, batch_size=4, fixed=True)
    assert [each["x"].shape for each in seen] == [(4, 3)] * 3
    assert np.array_equal(seen[-1]["x"], X[[8, 9, 9, 9]])
    assert all(each["sr"].shape == () for each in seen)


def test_only_the_named_outputs_are_kept() -> None:
    assert list(predict(double, DATA, batch_size=4, outputs=["sum"])) == ["sum"]
    with pytest.raises(Refused, match=r"output 'z': the model has y, sum"):
        predict(double, DATA, batch_size=4, outputs=["z"])


@pytest.mark.parametrize(("size", "sample"), [(1, 7), (4, 7), (10, 7)])
def test_nan_names_the_sample(size: int, sample: int) -> None:
    def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = feeds["x"].copy()
        values[(values == X[sample]).all(axis=1), 1] = np.nan
        return {"y": values}

    with pytest.raises(Refused, match=rf"NaN in the output 'y' for sample {sample} "):
        predict(run, DATA, batch_size=size)


def test_the_filling_of_a_fixed_batch_is_not_looked_at() -> None:
    def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = feeds["x"].copy()
        if np.array_equal(values[-1], values[-2]):
            values[-1] = np.nan
        return {"y": values}

    assert np.isfinite(predict(run, DATA, batch_size=4, fixed=True)["y"]).all()


@pytest.mark.parametrize("shape", [(), (2, 1, 8), (5,)])
def test_outputs_without_a_batch_need_batch_size_one(shape: tuple[int, ...]) -> None:
    def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": feeds["x"], "state": np.full(shape, feeds["x"][0, 0])}

    found = predict(run, DATA, batch_size=1)["state"]
    assert found.shape == (10, *shape)
    assert np.array_equal(found.reshape(10, -1)[:, 0], X[:, 0])
    with pytest.raises(Refused, match=r"'state' for each of 4 samples.*batch size 1"):
        predict(run, DATA, batch_size=4)
    assert list(predict(run, DATA, batch_size=4, outputs=["y"])) == ["y"]


def test_outputs_of_changing_shape_are_refused() -> None:
    def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": np.zeros((len(feeds["x"]), 3 if feeds["x"][0, 0] == X[0, 0] else 4))}

    with pytest.raises(Refused, match=r"sample 4 gives \[4\] where the first gave \[3\]"):
        predict(run, DATA, batch_size=4)


def test_no_samples_are_refused() -> None:
    with pytest.raises(Refused, match="empty"):
        predict(double, DATA.take([]), batch_size=4)


def test_progress_is_told_in_samples() -> None:
    class Seen:
        calls: list[Any]

        def __init__(self) -> None:
            self.calls = []

        def start(self, name: str, total: int | None) -> int:
            self.calls.append((name, total))
            return 0

        def advance(self, task: int, steps: int, note: str) -> None:
            self.calls.append(steps)

        def stop(self, task: int) -> None:
            self.calls.append("stop")

    seen = Seen()
    with reporting(seen):
        predict(double, DATA, batch_size=4, name="judging")
    assert seen.calls == [("judging", 10), 4, 4, 2, "stop"]
