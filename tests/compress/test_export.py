"""``export``: a model as a file for a runtime, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.compress import digits
from tests.compress.small_graphs import outputs

import whet
from whet.compress import graph as graph_module
from whet.compress.export import export
from whet.compress.graph import GraphModel
from whet.core.errors import Refused, Unsupported


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return digits.write(tmp_path_factory.mktemp("digits"))


def same(one: object, other: object) -> bool:
    images, _ = digits.data()
    feeds = {"image": images[:20]}
    first, second = (outputs(whet.load(each), feeds)["scores"] for each in (one, other))
    return bool(np.array_equal(first, second))


def test_a_file_computes_the_same_afterwards(files: dict[str, Path], tmp_path: Path) -> None:
    place = export(files["model"], tmp_path / "new folder" / "mödel.onnx")
    assert place == tmp_path / "new folder" / "mödel.onnx"
    assert same(files["model"], place)
    assert os.listdir(place.parent) == ["mödel.onnx"]
    onnx.checker.check_model(onnx.load(place))


def test_of_an_artifact_the_very_bytes_that_were_measured(files: dict[str, Path], tmp_path: Path) -> None:
    whet.apply(files["model"], "static", calibration=files["calib"], target="x86-vnni", out=tmp_path / "int8")
    place = export(tmp_path / "int8", tmp_path / "small.onnx")
    assert place.read_bytes() == (tmp_path / "int8" / "model.onnx").read_bytes()


def test_a_torch_module(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Tanh())
    x = torch.randn(5, 8)
    place = export(module, tmp_path / "net.onnx", example_inputs=(x,))
    model = whet.load(place)
    (found,) = outputs(model, {model.inputs[0].name: x.numpy()}).values()
    assert np.allclose(found, module(x).detach().numpy(), atol=1e-6)


def test_a_large_model_gets_a_file_of_weights_beside_it(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "LARGE_BYTES", 1000)
    place = export(files["model"], tmp_path / "large.onnx")
    assert sorted(os.listdir(tmp_path)) == ["large.onnx", "large.onnx.data"]
    assert (tmp_path / "large.onnx.data").stat().st_size > 30_000
    assert place.stat().st_size < 5000
    assert same(files["model"], place)


def test_an_old_file_is_replaced(files: dict[str, Path], tmp_path: Path) -> None:
    place = tmp_path / "model.onnx"
    place.write_bytes(b"old")
    assert same(files["model"], export(files["model"], place))
    assert same(files["model"], export(place, place))  # even by itself


@pytest.mark.parametrize("name", ["model", "model.tflite", "model.onnx.gz", "model.ONNX"])
def test_another_ending_is_refused(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"\.onnx"):
        export(files["model"], tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_another_format_is_not_supported(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"tflite.*onnx"):
        export(files["model"], tmp_path / "model.onnx", format="tflite")
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.onnx").mkdir()
    for place in (tmp_path / "file" / "model.onnx", tmp_path / "folder.onnx"):
        with pytest.raises(Refused, match="write"):
            export(files["model"], place)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.onnx"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_the_old_file_as_it_was(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(self: GraphModel, path: object) -> None:
        Path(str(path)).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(GraphModel, "save", full)
    (tmp_path / "model.onnx").write_bytes(b"old")
    with pytest.raises(Refused, match="the disk is full"):
        export(files["model"], tmp_path / "model.onnx")
    assert os.listdir(tmp_path) == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"old"


def test_no_model_no_file(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="No such file"):
        export(tmp_path / "none.onnx", tmp_path / "out.onnx")
    assert os.listdir(tmp_path) == []
