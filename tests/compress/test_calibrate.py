"""Calibration: in one pass, in few bytes, and the same numbers as all tensors laid out would give."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from tests.compress.operators_with_weights import CASES
from tests.compress.small_graphs import Sketch, samples

from whet.compress import calibrate
from whet.compress.artifacts import load
from whet.compress.calibrate import collect
from whet.compress.data import Dataset, load_data
from whet.compress.graph import GraphModel
from whet.compress.runtime import exposed, one_inference, opened
from whet.compress.statistics import Statistics
from whet.core.errors import Refused
from whet.device.session import run

Array = np.ndarray[Any, Any]
PAIRS = ("cwru_bearing", "fsdd_digits", "kws_mlperf_tiny", "resnet8_mlperf_tiny", "resnet20_cifar10", "sisfall_falls")


def network(batch: int | str = "N") -> GraphModel:
    """A residual block, with what onnxruntime fuses: Conv + Relu, and Conv + Add + Relu."""
    g = Sketch()
    x = g.node("Relu", g.conv(g.input("x", [batch, 3, 9, 9]), (3, 16), name="stem"))
    y = g.node("Relu", g.conv(x, (16, 16), name="one"))
    y = g.node("Relu", g.node("Add", g.conv(y, (16, 16), name="two"), x, name="add"), name="after")
    y = g.node("Flatten", g.node("GlobalAveragePool", g.node("MaxPool", y, kernel_shape=[2, 2], name="pool")))
    g.output(g.gemm(y, 16, 4, name="head"))
    return g.model()


DATA = samples({"x": (3, 9, 9)}, 37)


def inner(model: GraphModel) -> list[str]:
    return [value.name or "" for node in model.ir.graph for value in node.outputs if value.name]


def laid_out(model: GraphModel, tensors: Sequence[str], data: Dataset) -> dict[str, list[Array]]:
    """The tensors of every sample, run one by one (or one fixed batch by one)."""
    found: dict[str, list[Array]] = {name: [] for name in tensors}
    with opened(exposed(model, [name for name in tensors if name not in data.names]), threads=1) as session:
        for at in range(len(data)):
            feeds = one_inference(model, data.take([at]))
            values = {**feeds, **run(session, feeds)}
            for name in tensors:
                found[name].append(values[name])
    return found


def agree(found: Mapping[str, Statistics], expected: Mapping[str, list[Array]]) -> None:
    for name, arrays in expected.items():
        numbers = np.concatenate([array.ravel() for array in arrays]).astype(np.float64)
        noise = 1e-5 * max(float(np.abs(numbers).max(initial=0.0)), 1e-6)
        assert found[name].low == pytest.approx(numbers.min(), abs=noise), name
        assert found[name].high == pytest.approx(numbers.max(), abs=noise), name


def test_every_tensor_has_the_range_that_numpy_finds_in_all_of_it() -> None:
    model = network()
    tensors = ["x", *inner(model)]
    found = collect(model, tensors, DATA, histogram=True)
    expected = laid_out(model, tensors, DATA)
    agree(found, expected)
    for name in tensors:
        assert found[name].count == sum(array.size for array in expected[name]) == found[name].counts.sum()


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name]().op not in ("LSTM", "GRU", "RNN")])
def test_every_kind_of_layer(name: str) -> None:
    """Not of recurrent ones: what these graphs call samples are steps of one sequence."""
    case = CASES[name]()
    model = case.model()
    tensors = inner(model)
    agree(collect(model, tensors, case.data, histogram=False), laid_out(model, tensors, case.data))


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
def test_every_model_of_the_assets(pair: str, assets: Path) -> None:
    model = load(assets / pair / "model.onnx").folded()
    data = load_data(assets / pair / "calib.npz", model.inputs)
    data = data.take(range(min(40, len(data))))
    expected = {name: arrays for name, arrays in laid_out(model, inner(model), data).items() if arrays[0].dtype == np.float32}
    agree(collect(model, list(expected), data, histogram=False), expected)  # whole numbers there are sizes of the batch


@pytest.mark.parametrize("histogram", [False, True])
def test_threads_change_nothing_at_all(histogram: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "BATCH_BYTES", 40_000)  # a few samples, so that batches go side by side
    model = network()
    tensors = inner(model)
    channels = {tensors[0]: 1}
    one, *others = (collect(model, tensors, DATA, histogram=histogram, threads=threads, channels=channels) for threads in (1, 2, 3))
    for other in others:
        for name in tensors:
            assert (one[name].low, one[name].high, one[name].mean_low, one[name].mean_high, one[name].batches) == \
                (other[name].low, other[name].high, other[name].mean_low, other[name].mean_high, other[name].batches)
            assert np.array_equal(one[name].counts, other[name].counts)
        assert np.array_equal(one[tensors[0]].channel_std, other[tensors[0]].channel_std)


@pytest.mark.parametrize("batch_bytes", [1, 100_000, 1 << 30])
@pytest.mark.parametrize("at_once_bytes", [1, 1 << 30])
def test_batches_change_no_range(batch_bytes: int, at_once_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    tensors = inner(model)
    plain = collect(model, tensors, DATA, histogram=True, threads=2, channels={tensors[0]: 1})
    monkeypatch.setattr(calibrate, "BATCH_BYTES", batch_bytes)
    monkeypatch.setattr(calibrate, "AT_ONCE_BYTES", at_once_bytes)
    found = collect(model, tensors, DATA, histogram=True, threads=2, channels={tensors[0]: 1})
    for name in tensors:
        for part in ("low", "high", "mean_low", "mean_high"):
            assert getattr(found[name], part) == pytest.approx(getattr(plain[name], part), rel=1e-5, abs=1e-6), (name, part)
        assert found[name].counts.sum() == found[name].count == plain[name].count
    assert found[tensors[0]].channel_std == pytest.approx(plain[tensors[0]].channel_std, rel=1e-5)


def test_the_graph_runs_once_for_each_sample_and_holds_no_more_batches_than_go_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "BATCH_BYTES", 1)
    alive: list[weakref.ref[Array]] = []
    most = 0

    def watched(session: Any, feeds: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
        nonlocal most
        found = run(session, feeds, names)
        alive.append(weakref.ref(next(iter(found.values()))))
        most = max(most, sum(ref() is not None for ref in alive))
        return found

    monkeypatch.setattr(calibrate, "run", watched)
    model = network()
    collect(model, inner(model), DATA, histogram=True, threads=2)
    assert len(alive) == len(DATA)
    assert most <= 3  # two, and what a worker has not let go of yet
    assert all(ref() is None for ref in alive)


def test_tensors_are_let_go_at_once_where_no_histogram_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "BATCH_BYTES", 1)
    handed: list[int] = []
    add = calibrate._add
    monkeypatch.setattr(calibrate, "_add", lambda *given: (handed.append(len(given[-1].values)), add(*given)))
    for histogram, kept in ((False, 0), (True, 2)):
        handed.clear()
        collect(network(), inner(network())[:2], DATA, histogram=histogram, threads=2)
        assert handed == [kept] * len(DATA)


def test_the_numbers_of_channels_are_those_of_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "BATCH_BYTES", 40_000)
    model = network()
    axes = {"x": 1, inner(model)[0]: 1, inner(model)[-1]: -1}
    found = collect(model, [], DATA, histogram=False, channels=axes)
    assert set(found) == set(axes)
    for name, arrays in laid_out(model, list(axes), DATA).items():
        rows = np.moveaxis(np.concatenate(arrays), axes[name], 0)
        rows = rows.reshape(len(rows), -1).astype(np.float64)
        for part, expected in (("low", rows.min(1)), ("high", rows.max(1)), ("mean", rows.mean(1)), ("std", rows.std(1))):
            assert getattr(found[name], f"channel_{part}") == pytest.approx(expected, rel=1e-4, abs=1e-5), (name, part)


def test_channels_that_were_not_asked_for_are_none() -> None:
    found = collect(network(), ["x"], DATA, histogram=True)["x"]
    assert (found.channel_low, found.channel_high, found.channel_mean, found.channel_std) == (None, None, None, None)


def test_an_axis_that_is_not_there_is_refused() -> None:
    with pytest.raises(Refused, match=r"axis 4.*4 dimensions"):
        collect(network(), [], DATA, histogram=False, channels={"x": 4})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_number_late_in_the_data_is_found(bad: float) -> None:
    numbers = next(DATA.batches(len(DATA)))["x"].copy()
    numbers[30, 1, 4, 4] = bad
    model = network()
    with pytest.raises(Refused, match=r"of stem.*NaN or infinity"):
        collect(model, inner(model)[:1], Dataset.of({"x": numbers}), histogram=False, threads=2)


def test_a_batch_that_fails_ends_it_with_its_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "BATCH_BYTES", 1)
    g = Sketch()
    g.output(g.node("Gather", g.constant(np.arange(5.0)), g.node("Cast", g.input("x", ["N", 1]), to=TensorProto.INT64), name="look"))
    numbers = np.zeros((20, 1), np.float32)
    numbers[13] = 7
    model = g.model()
    with pytest.raises(Exception, match="look"):
        collect(model, inner(model)[-1:], Dataset.of({"x": numbers}), histogram=False, threads=2)


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_a_fixed_batch(batch: int) -> None:
    tensors = inner(network())
    fixed = collect(network(batch), inner(network(batch)), DATA, histogram=False)
    free = collect(network(), tensors, DATA, histogram=False)
    for one, other in zip(fixed.values(), free.values(), strict=True):
        assert (one.low, one.high) == pytest.approx((other.low, other.high), rel=1e-5, abs=1e-6)


def test_whole_numbers_truth_and_nothing() -> None:
    g = Sketch()
    x = g.input("x", ["N", 6])
    whole = g.node("Cast", x, to=TensorProto.INT32, name="whole")
    positive = g.node("Greater", x, g.constant(0.0), name="positive")
    empty = g.node("Slice", x, *(g.constant([v], np.int64) for v in (3, 3, 1)), name="empty")
    for name, kind in ((whole, TensorProto.INT32), (positive, TensorProto.BOOL), (empty, TensorProto.FLOAT)):
        g.output(name, kind)
    model = g.model()
    data = Dataset.of({"x": np.array([[-7, 3, 4, 5, 6, 300]], np.float32)})
    found = collect(model, [whole, positive, empty], data, histogram=True, channels={whole: 1})
    assert (found[whole].low, found[whole].high, found[whole].counts.sum()) == (-7.0, 300.0, 6)
    assert found[whole].channel_mean == pytest.approx([-7, 3, 4, 5, 6, 300])
    assert (found[positive].low, found[positive].high) == (0.0, 1.0)
    assert found[empty].count == found[empty].batches == 0


def test_tails_are_those_of_all_samples_for_any_number_of_threads() -> None:
    model, share = network(), 5e-4
    names = inner(model)
    one, two = (collect(model, names, DATA, histogram=False, tails=share, threads=threads) for threads in (1, 2))
    for name, arrays in laid_out(model, names, DATA).items():
        numbers = np.sort(np.concatenate([array.ravel() for array in arrays]))
        kept = int(share * numbers.size) + 2
        expected = numbers[numbers > 0][::-1][:kept]
        assert one[name].highest == pytest.approx(expected, rel=1e-4, abs=1e-5), name
        assert one[name].highest.tolist() == two[name].highest.tolist()
        assert one[name].lowest.tolist() == two[name].lowest.tolist()


MEMORY = """
import json, sys
import numpy as np
from tests.compress.test_calibrate import inner, wide
from whet.compress.calibrate import collect
from whet.compress.data import Dataset
from whet.compress.runtime import opened
from whet.device.session import run

def status(name):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))

way, count = sys.argv[1], int(sys.argv[2])
model = wide()
data = Dataset.of({"x": np.random.default_rng(0).standard_normal((count, 3, 256, 256)).astype(np.float32)})
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
if way == "forward":
    with opened(model, threads=2) as session:
        for feeds in data.batches(1):
            run(session, feeds)
else:
    collect(model, inner(model), data, histogram=way == "histogram", threads=2)
print(json.dumps(status("VmHWM") - before))
"""


def wide() -> GraphModel:
    """72 MB of inner tensors a sample."""
    g = Sketch()
    y = g.conv(g.input("x", ["N", 3, 256, 256]), (3, 16), name="stem")
    for at in range(8):
        y = g.node("Relu", g.conv(y, (16, 16), name=f"conv_{at}"))
    g.output(g.node("GlobalAveragePool", y))
    return g.model()


def growth(way: str, count: int) -> float:
    """Resident MB that the work adds at most, in a fresh process."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", MEMORY, way, str(count)], cwd=root, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])) / 1e6


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak since a moment")
@pytest.mark.parametrize("way", ["minmax", "histogram"])
def test_peak_memory_is_that_of_the_forward_pass_and_a_bound(way: str) -> None:
    """72 MB of inner tensors a sample. The samples themselves are not counted: they are there before. onnxruntime's arena grows by powers
    of two: how much of the bound is used varies with how batches that go side by side meet."""
    forward = growth("forward", 12)
    for count in (12, 48):
        assert growth(way, count) - forward < 200
