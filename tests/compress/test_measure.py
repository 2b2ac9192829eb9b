"""``measure``: a model on this machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.compress import digits
from tests.compress.small_graphs import Sketch, samples

import whet
from whet.compress.inspect import inspect
from whet.compress.measure import macs_by_dtype, measure, opened_files
from whet.core.errors import Refused
from whet.core.measurement import Measurement
from whet.device.machine_limits import MachineLimits
from whet.device.profile import Profile


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return digits.write(tmp_path_factory.mktemp("digits"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Limits of a made-up machine, and memory without a fresh process but where the test is about it."""
    monkeypatch.setattr("whet.compress.measure.machine_limits", lambda threads=None: None)
    if "with_memory" not in request.node.name:
        nothing = tuple(Measurement(name, None, " B", why="not asked") for name in ("peak_rss_bytes", "model_rss_bytes"))
        monkeypatch.setattr("whet.device.profile.memory_use", lambda *_, **__: nothing)


def test_with_memory_everything_is_measured_and_plausible(files: dict[str, Path]) -> None:
    found = measure(files["model"], data=files["eval"], seconds=0.05, threads=1)
    assert not found.synthetic
    assert 0.001 < (found.latency.median.value or 0) < 1000
    assert found.size.value == files["model"].stat().st_size
    assert (found.peak_rss.value or 0) > (found.model_rss.value or 0) > 0
    assert {"Conv", "Gemm"} & {each.op for each in found.operators}
    assert found.energy.value is not None or found.energy.why
    assert Profile.from_json(found.to_json()) == found


def test_without_data_the_inputs_are_made_up_and_it_is_said(files: dict[str, Path]) -> None:
    assert measure(files["model"], seconds=0.02).synthetic


def test_an_artifact_is_measured_as_it_lies_there(files: dict[str, Path], tmp_path: Path) -> None:
    whet.apply(files["model"], "static", calibration=files["calib"], target="x86-vnni", out=tmp_path / "int8")
    found = measure(tmp_path / "int8", data=files["eval"], seconds=0.02)
    assert found.size.value == (tmp_path / "int8" / "model.onnx").stat().st_size
    assert "QLinearConv" in {each.op for each in found.operators}
    assert "int8" in found.energy.method or found.energy.source == "measured"


def test_weights_in_other_files_are_part_of_the_size(files: dict[str, Path], tmp_path: Path) -> None:
    place = tmp_path / "model.onnx"
    onnx.save(onnx.load(files["model"]), place, save_as_external_data=True, location="elsewhere.bin", size_threshold=100)
    found = measure(place, seconds=0.02)
    assert found.size.value == place.stat().st_size + (tmp_path / "elsewhere.bin").stat().st_size


def test_a_torch_module() -> None:
    import torch

    module = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU())
    found = measure(module, example_inputs=(torch.zeros(2, 8),), seconds=0.02)
    assert (found.latency.median.value or 0) > 0
    assert (found.size.value or 0) > 8 * 4 * 4


@pytest.mark.parametrize("batch", ["N", 1, 16])
def test_the_roofline_counts_what_one_inference_does(batch: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def profiled(path: Path, **more: object) -> None:
        asked.update(more)

    monkeypatch.setattr("whet.compress.measure.profile", profiled)
    monkeypatch.setattr("whet.compress.measure.machine_limits", lambda threads=None: MachineLimits)
    g = Sketch()
    g.output(g.gemm(g.input("x", [batch, 64]), 64, 10, name="head"))
    data = samples({"x": (64,)}, 5)
    measure(g.model(), data={"x": next(data.batches(5))["x"]})
    size = 16 if batch == 16 else 1
    assert asked["macs"] == {"float32": 640 * size}
    assert np.shape(asked["feeds"]["x"]) == (size, 64)  # type: ignore[index]
    assert asked["weight_bytes"] == (640 + 10) * 4


def test_products_are_counted_by_the_type_of_their_weights(files: dict[str, Path]) -> None:
    model = whet.load(files["model"])
    macs = inspect(model).macs
    assert macs_by_dtype(inspect(model)) == {"float32": macs}
    half = whet.apply(model, whet.Step("static", exclude=("second",)), calibration=files["calib"], target="x86-vnni")
    found = macs_by_dtype(inspect(half))
    assert sum(found.values()) == macs
    assert found["float32"] == {layer.name: layer.macs for layer in inspect(model).layers}["second"]


def test_bad_questions_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(Refused, match="No such file"):
        measure(tmp_path / "none.onnx")
    with pytest.raises(Refused, match="shape"):
        measure(files["model"], data={"image": np.zeros((3, 1, 9, 9), np.float32)})
    with pytest.raises(Refused, match="thread"):
        measure(files["model"], threads=0)


def test_temporary_files_go_away_whatever_happens() -> None:
    g = Sketch()
    g.output(g.gemm(g.input("x", ["N", 4]), 4, 2, name="head"))
    with opened_files(g.model(), None) as (path, *beside):
        assert path.is_file()
        assert beside == []
    assert not path.parent.exists()
    seen = []

    def interrupted() -> None:
        with opened_files(g.model(), None) as paths:
            seen.extend(paths)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not seen[0].parent.exists()
