"""``compare``: two models on the same samples and in the same run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.compress import digits
from tests.compress.small_graphs import Sketch

import whet
from whet.compress.compare import SideBySide, compare
from whet.core.errors import Refused, WhetError
from whet.device.latency import interleave

COSTS = {"latency_ms", "latency_p95_ms", "throughput_per_s", "latency_ratio", "size_bytes", "peak_rss_bytes", "model_rss_bytes"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("digits")
    paths = digits.write(folder)
    whet.apply(paths["model"], "static", calibration=paths["calib"], target="x86-vnni", out=folder / "int8")
    return {**paths, "int8": folder / "int8"}


@pytest.fixture(autouse=True)
def no_fresh_processes(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Memory is measured in a fresh process, which takes 0.3 s; only one test is about it."""
    if "with_memory" not in request.node.name:
        monkeypatch.setattr("whet.compress.compare.memory_use", lambda *_, **__: ())


@pytest.fixture
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of quality and size: time is measured, and not well."""
    monkeypatch.setattr("whet.compress.compare.interleave", partial(interleave, min_rounds=4))


def test_with_memory_everything_is_there_and_plausible(files: dict[str, Path]) -> None:
    found = compare(files["model"], files["int8"], data=files["eval"], seconds=0.1, threads=1)
    assert set(found.parent) == set(found.candidate) == COSTS
    assert found.parent["latency_ratio"].value == 1.0
    assert 0.05 < (found.candidate["latency_ratio"].value or 0) < 20
    assert found.parent["size_bytes"].value == files["model"].stat().st_size
    assert found.candidate["size_bytes"].value == (files["int8"] / "model.onnx").stat().st_size
    for each in (found.parent, found.candidate):
        assert 0.001 < (each["latency_ms"].value or 0) < 1000
        assert (each["latency_p95_ms"].value or 0) >= (each["latency_ms"].value or 0) * 0.8
        assert (each["throughput_per_s"].value or 0) == pytest.approx(1000 / (each["latency_ms"].value or 1), rel=0.9)
        assert (each["peak_rss_bytes"].value or 0) > (each["model_rss_bytes"].value or 0) > 0
        assert all(one.source == "measured" and one.method and one.device and one.at for one in each.values())
    assert found.candidate["size_bytes"].artifact == whet.load(files["int8"]).artifact_id


@pytest.mark.usefixtures("few_rounds")
def test_quality_is_paired_over_the_same_samples(files: dict[str, Path]) -> None:
    found = compare(files["model"], files["int8"], data=files["eval"], seconds=0.02)
    assert found.quality is not None
    assert (found.quality.metric, found.quality.n) == ("accuracy", 400)
    assert 0.9 < (found.quality.parent.value or 0) < 1
    assert 15 < (found.quality.sqnr_db.value or 0) < 60  # the candidate is beside its parent, and not beside itself
    drop, lost, gained = found.quality.drop.value, found.quality.lost, found.quality.gained
    assert lost is not None
    assert gained is not None
    assert drop == pytest.approx((lost - gained) / 400)
    assert drop == pytest.approx((found.quality.parent.value or 0) - (found.quality.candidate.value or 0))
    exact = compare(files["model"], files["model"], data=files["eval"], seconds=0.02).quality
    assert exact is not None
    assert (exact.drop.value, exact.lost, exact.gained, exact.flips.value) == (0.0, 0, 0, 0.0)


def test_it_can_be_written_down_and_read_again(files: dict[str, Path]) -> None:
    found = compare(files["model"], files["int8"], data=files["eval"], seconds=0.02)
    assert SideBySide.from_json(found.to_json()) == found


def test_without_data_only_the_costs_are_compared(files: dict[str, Path]) -> None:
    found = compare(files["model"], files["int8"], seconds=0.02)
    assert found.quality is None
    assert found.candidate["latency_ratio"].value
    with pytest.raises(Refused, match="no data"):
        compare(files["model"], files["int8"], metric="accuracy")


@pytest.mark.usefixtures("few_rounds")
def test_an_iterable_that_is_used_up_by_reading_is_enough(files: dict[str, Path]) -> None:
    images, labels = digits.data()

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(500, 700, 64):
            yield images[start : start + 64], labels[start : start + 64]

    found = compare(files["model"], files["int8"], data=batches(), seconds=0.02)
    assert found.quality is not None
    assert (found.quality.n, found.quality.metric) == (256, "accuracy")


@pytest.mark.usefixtures("few_rounds")
def test_without_labels_fidelity(files: dict[str, Path]) -> None:
    images, _ = digits.data()
    found = compare(files["model"], files["int8"], data={"image": images[:50]}, seconds=0.02)
    assert found.quality is not None
    assert found.quality.metric == "fidelity"
    assert found.quality.limit == 0.02


@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize("where", ["parent", "candidate"])
def test_weights_in_other_files_are_part_of_the_size(where: str, files: dict[str, Path], tmp_path: Path) -> None:
    place = tmp_path / "model.onnx"
    onnx.save(onnx.load(files["model"]), place, save_as_external_data=True, location="any name.bin", size_threshold=100)
    (tmp_path / "model.onnx.data").write_bytes(b"left by somebody else")
    found = compare(*((place, files["model"]) if where == "parent" else (files["model"], place)), seconds=0.02)
    size = {"parent": found.parent, "candidate": found.candidate}[where]["size_bytes"].value
    assert size == place.stat().st_size + (tmp_path / "any name.bin").stat().st_size


@pytest.mark.usefixtures("few_rounds")
def test_a_model_without_a_file_has_the_size_that_it_would_have(files: dict[str, Path]) -> None:
    found = compare(whet.load(files["model"].read_bytes()), whet.load(files["int8"]), seconds=0.02)
    assert found.parent["size_bytes"].value == pytest.approx(files["model"].stat().st_size, rel=0.05)
    assert found.candidate["size_bytes"].value == pytest.approx((files["int8"] / "model.onnx").stat().st_size, rel=0.05)


def linear(name: str = "x", inside: int = 4, out: int = 3, batch: int | str = "N", output: str = "") -> bytes:
    g = Sketch()
    y = g.gemm(g.input(name, [batch, inside]), inside, out, name="head")
    g.output(g.node("Relu", y, name="relu"))
    proto = g.proto()
    if output:
        proto.graph.node[-1].output[0] = proto.graph.output[0].name = output
    return bytes(proto.SerializeToString())


def test_models_that_take_other_inputs_are_refused_with_both_names() -> None:
    with pytest.raises(Refused, match="one takes x, the other image"):
        compare(linear("x"), linear("image"))


@pytest.mark.parametrize(("candidate", "message"), [
    (linear(inside=5), "shape|dimension"), (linear(out=2), "shape"), (linear(output="other"), "other"),
])
def test_models_that_are_not_alike_are_refused(candidate: bytes, message: str) -> None:
    data = {"x": np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)}
    with pytest.raises(WhetError, match=message):
        compare(linear(), candidate, data=data, seconds=0.02)


@pytest.mark.parametrize(("metric", "message"), [("beauty", "there are accuracy"), ("auc", "label"), ("accuracy", "label")])
def test_a_metric_that_does_not_fit_is_refused(metric: str, message: str) -> None:
    data = {"x": np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)}
    with pytest.raises(Refused, match=message):
        compare(linear(), linear(), data=data, metric=metric, seconds=0.02)


@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize(("one", "other"), [(1, "N"), ("N", 1), (1, 1), (16, 16), (16, "N")])
def test_fixed_batches_of_any_size(one: int | str, other: int | str) -> None:
    data = {"x": np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)}
    found = compare(linear(batch=one), linear(batch=other), data=data, seconds=0.02)
    assert found.quality is not None
    assert found.quality.n == 10
    assert found.quality.drop.value == 0.0


@pytest.mark.usefixtures("few_rounds")
def test_several_outputs_are_all_compared() -> None:
    g = Sketch()
    y = g.gemm(g.input("x", ["N", 16]), 16, 8, name="first")
    g.output(y)
    g.output(g.gemm(g.node("Relu", y), 8, 2, name="second"))
    model = g.model()
    x = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    made = whet.apply(model, "static", calibration={"x": x}, target="x86-vnni")
    found = compare(model, made, data={"x": x}, seconds=0.02).quality
    assert found is not None
    assert found.metric == "fidelity"
    assert found.limit == 0.01  # of error energy: several float outputs have no one answer
    assert 0 < (found.drop.value or 0) < 0.01
    assert (found.sqnr_db.value or 0) > 20
