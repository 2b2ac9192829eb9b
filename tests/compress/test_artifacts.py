"""Artifacts on disk: whole or not there, and not read when they are not what their manifest says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.compress.small_graphs import Sketch, feeds_of, outputs, samples

from whet.compress import graph as graph_module
from whet.compress.apply import apply
from whet.compress.artifacts import load, original_artifact, read_artifact, source_file, write_artifact
from whet.compress.graph import GraphModel
from whet.core.artifact import MANIFEST_NAME, Artifact
from whet.core.errors import Refused, Untrusted, WhetError
from whet.core.recipe import Recipe, Step


def network() -> GraphModel:
    sketch = Sketch()
    sketch.output(sketch.gemm(sketch.input("serving_default_input_1:0", ["N", 40]), 40, 24, name="layer"))
    return sketch.model()


FEEDS = feeds_of(samples({"serving_default_input_1:0": (40,)}, 4))


def written(folder: Path, technique: str = "weight_only") -> GraphModel:
    return apply(network(), technique, target="x86-vnni", out=folder)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    made = apply(network(), "weight_only", target="x86-vnni", options={"bits": 4})
    read = apply(network(), "weight_only", target="x86-vnni", options={"bits": 4}, out=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.onnx", "whet.json"]
    for output, wanted in outputs(made, FEEDS).items():
        assert np.array_equal(outputs(read, FEEDS)[output], wanted)
    assert (tmp_path / "out" / "model.onnx").read_bytes() == made.content
    assert load(tmp_path / "out" / "model.onnx").artifact_id == load(tmp_path / "out").artifact_id == read.artifact_id != ""


def test_the_manifest_says_where_it_comes_from(tmp_path: Path) -> None:
    written(tmp_path / "out")
    artifact = read_artifact(tmp_path / "out")
    assert artifact.format == "onnx"
    assert artifact.recipe is not None
    assert artifact.recipe.steps[0].technique == "weight_only"
    assert artifact.target == "x86-vnni"
    assert artifact.parent == original_artifact(network(), None).artifact_id
    assert {"whet", "python", "onnx", "onnxruntime", "numpy"} <= set(artifact.tools)
    assert [spec.name for spec in artifact.inputs] == ["serving_default_input_1:0"]
    assert artifact.size_bytes == (tmp_path / "out" / "model.onnx").stat().st_size


def test_the_child_of_an_artifact_names_its_parent(tmp_path: Path) -> None:
    first = apply(network(), Step("weight_only", options={"bits": 8}), target="x86-vnni", out=tmp_path / "a")
    sketch = Sketch()
    sketch.output(sketch.gemm(sketch.gemm(sketch.input("x", ["N", 40]), 40, 24, name="one"), 24, 8, name="two"))
    parent = apply(sketch.model(), Step("weight_only", ("one",)), target="x86-vnni", out=tmp_path / "b")
    child = apply(tmp_path / "b", Step("float16", ("two",)), target="x86-vnni", out=tmp_path / "c")
    assert read_artifact(tmp_path / "c").parent == parent.artifact_id
    assert len({first.artifact_id, parent.artifact_id, child.artifact_id}) == 3


def test_the_same_work_has_the_same_id(tmp_path: Path) -> None:
    assert written(tmp_path / "a").artifact_id == written(tmp_path / "b").artifact_id


# -- what is not to be trusted ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 100, -1])
def test_a_file_that_was_changed_is_untrusted(tmp_path: Path, at: int) -> None:
    written(tmp_path / "out")
    place = tmp_path / "out" / "model.onnx"
    content = bytearray(place.read_bytes())
    content[at] ^= 1
    place.write_bytes(content)
    for source in (tmp_path / "out", place):
        with pytest.raises(Untrusted, match=r"model\.onnx"):
            load(source)


def test_a_file_that_was_cut_off_or_is_gone_is_not_loaded(tmp_path: Path) -> None:
    written(tmp_path / "out")
    place = tmp_path / "out" / "model.onnx"
    place.write_bytes(place.read_bytes()[:-10])
    with pytest.raises(Untrusted):
        load(tmp_path / "out")
    place.unlink()
    with pytest.raises(Refused, match="missing"):
        load(tmp_path / "out")


def test_a_manifest_cut_off_at_any_byte_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "out")
    place = tmp_path / "out" / MANIFEST_NAME
    whole = place.read_bytes().rstrip()
    for length in range(0, len(whole), 7):
        place.write_bytes(whole[:length])
        with pytest.raises(Refused):
            read_artifact(tmp_path / "out")
    place.write_bytes(whole)
    assert read_artifact(tmp_path / "out")


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b"\xff\xfe\x00", b'{"format": 1}', b"[" * 100_000, b'{"format": "onnx", "inputs": [], "outputs": []}']
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    written(tmp_path / "out")
    (tmp_path / "out" / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(Refused):
        load(tmp_path / "out")


@pytest.mark.parametrize("path", ["../outside.onnx", "/etc/passwd", "a/../../b", "C:\\x", "./model.onnx", ""])
def test_a_manifest_whose_files_lie_elsewhere_is_refused(tmp_path: Path, path: str) -> None:
    written(tmp_path / "out")
    place = tmp_path / "out" / MANIFEST_NAME
    plain = json.loads(place.read_text())
    plain["files"][0]["path"] = path
    place.write_text(json.dumps(plain))
    with pytest.raises(Refused):
        load(tmp_path / "out")


def test_a_model_beside_a_manifest_that_does_not_name_it_is_an_original(tmp_path: Path) -> None:
    written(tmp_path / "out")
    other = tmp_path / "out" / "other.onnx"
    other.write_bytes(network().content)
    assert load(other).artifact_id == ""


@pytest.mark.parametrize("name", ["missing.onnx", "folder", "text.onnx"])
def test_what_is_no_model_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.onnx").write_text("this is no model")
    with pytest.raises(WhetError):
        load(tmp_path / name)


# -- writing ----------------------------------------------------------------------------------------------------------------------------


def test_an_artifact_is_replaced_but_no_other_folder(tmp_path: Path) -> None:
    written(tmp_path / "out", "weight_only")
    before = load(tmp_path / "out").artifact_id
    assert written(tmp_path / "out", "float16").artifact_id != before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(Refused, match="would be lost"):
        written(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_a_failure_while_writing_leaves_the_old_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = written(tmp_path / "out").artifact_id

    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(GraphModel, "save", fails)
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path / "out", "float16")
    monkeypatch.undo()
    assert load(tmp_path / "out").artifact_id == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_model_too_large_for_one_file_is_written_as_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = outputs(network(), FEEDS)
    monkeypatch.setattr(graph_module, "LARGE_BYTES", 500)
    artifact = write_artifact(network(), tmp_path / "out", parent=None)
    assert sorted(file.path for file in artifact.files) == ["model.onnx", "model.onnx.data"]
    read = load(tmp_path / "out")
    assert read.is_large
    assert all(np.array_equal(outputs(read, FEEDS)[output], value) for output, value in wanted.items())
    made = apply(tmp_path / "out", "float16", target="x86-vnni", out=tmp_path / "small")
    assert all(np.allclose(outputs(made, FEEDS)[output], value, atol=0.01) for output, value in wanted.items())
    data = tmp_path / "out" / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"\x00")
    with pytest.raises(Untrusted, match="data"):
        load(tmp_path / "out")


def test_a_large_model_is_calibrated_and_quantised_through_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "LARGE_BYTES", 500)
    made = apply(network(), "static", target="x86-vnni", calibration=FEEDS)
    wanted = outputs(network(), FEEDS)
    assert all(np.allclose(outputs(made, FEEDS)[output], value, atol=0.1) for output, value in wanted.items())


# -- originals --------------------------------------------------------------------------------------------------------------------------


def test_an_original_is_known_by_its_file_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    place = tmp_path / "model.onnx"
    onnx.save(onnx.load_from_string(network().content), place, save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = load(place)
    artifact = original_artifact(model, source_file(place))
    assert sorted(file.path for file in artifact.files) == ["model.onnx", "weights.bin"]
    weights = tmp_path / "weights.bin"
    before = artifact.artifact_id
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert original_artifact(load(place), place).artifact_id != before


def test_a_recipe_in_the_manifest_can_be_done_again(tmp_path: Path) -> None:
    recipe = Recipe((Step("weight_only", options={"bits": 4, "block": 32}),))
    first = apply(network(), recipe, target="x86-vnni", out=tmp_path / "a")
    again = read_artifact(tmp_path / "a").recipe
    assert again is not None
    assert apply(network(), again, target="x86-vnni", out=tmp_path / "b").artifact_id == first.artifact_id


def test_a_manifest_survives_fields_of_a_later_version(tmp_path: Path) -> None:
    written(tmp_path / "out")
    place = tmp_path / "out" / MANIFEST_NAME
    plain = json.loads(place.read_text()) | {"of_tomorrow": [1, 2]}
    place.write_text(json.dumps(plain))
    assert Artifact.from_json(place.read_text()).to_plain()["of_tomorrow"] == [1, 2]
    assert load(tmp_path / "out").content
