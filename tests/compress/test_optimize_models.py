"""``optimize`` on all kinds of models, data, metrics and places. The target is another machine, so that nothing waits for a clock."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from tests.compress import digits
from tests.compress.small_graphs import Sketch

import whet
from whet.compress.artifacts import original_artifact, read_artifact
from whet.compress.evaluate import find_metric
from whet.compress.optimize import searching, trials
from whet.compress.optimize.trials import metric_key
from whet.core.errors import Refused, WhetError
from whet.core.outcome import Outcome

pytestmark = pytest.mark.usefixtures("one_torch_thread")

Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def without_learned_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes minutes; which of it is tried is test_optimize_search.py's."""
    leave_learning_out(monkeypatch)


def leave_learning_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "technique_names", lambda: ("bias_correct", "clip", "equalize", "static"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return digits.write(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the recipes that are really made, and not read back."""
    names: list[str] = []
    original = trials.apply_recipe
    monkeypatch.setattr(trials, "apply_recipe", lambda model, recipe, *more, **options: (
        names.append(recipe.name), original(model, recipe, *more, **options))[1])
    return names


def optimized(model: Any, data: Any, out: Path, **options: Any) -> Outcome:
    return whet.optimize(model, data=data, out=out, **{"target": "x86-vnni", "seconds": 0.02, **options})


def digits_outcome(files: dict[str, Path], out: Path, **options: Any) -> Outcome:
    return optimized(files["model"], files["eval"], out, calibration=files["calib"], **options)


@pytest.fixture(scope="module")
def one_run(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """``digits_outcome`` with nothing but the defaults, done once, and the folder of it: to look at and to copy."""
    out = tmp_path_factory.mktemp("once") / "out"
    with pytest.MonkeyPatch.context() as monkeypatch:
        leave_learning_out(monkeypatch)
        return digits_outcome(files, out), out


def regression(count: int = 300) -> tuple[Sketch, dict[str, Array]]:
    """Two products and a scalar input that is the same for all samples; labels are what it gives, and noise."""
    g = Sketch(seed=2)
    x = g.node("Mul", g.input("x", ["N", 32]), g.input("gain", []), name="gained")
    y = g.node("Relu", g.gemm(x, 32, 64, name="one"), name="relu")
    g.output(g.matmul(y, 64, 1, name="two"))
    random = np.random.default_rng(0)
    rows = random.normal(size=(count, 32)).astype(np.float32)
    weights = g.constants
    hidden = np.maximum(2 * rows @ weights["one.W"].T + weights["one.B"], 0)
    labels = hidden @ weights["two.W"] + random.normal(0, 0.1, (count, 1)).astype(np.float32)
    return g, {"x": rows, "gain": np.float32(2), "labels": labels}  # type: ignore[dict-item]


# -- metrics ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["mae", pytest.param("rmse", marks=pytest.mark.slow)])
def test_a_regression_may_lose_one_percent_of_its_error_by_default(metric: str, tmp_path: Path) -> None:
    g, data = regression()
    outcome = optimized(g.model(), data, tmp_path, metric=metric, minimize="size")
    value = outcome.trials[0].value(metric)
    assert value == pytest.approx(0.1 if metric == "rmse" else 0.08, rel=0.15)
    assert outcome.gates[0].limit == pytest.approx(0.01 * value)
    assert outcome.gates[0].reason == "the default"
    found = outcome.trial("int8")
    assert found is not None
    assert found.value("drop") == pytest.approx((found.value(metric) or 0) - value, rel=1e-6)
    best = outcome.trial(outcome.winner)
    assert best is None or (best.value("drop") or 0) <= outcome.gates[0].limit


def test_a_metric_of_the_users(one_run: tuple[Outcome, Path], files: dict[str, Path], tmp_path: Path) -> None:
    def even_or_odd(outputs: Array, labels: Array) -> Array:
        return (outputs.argmax(1) % 2 == labels % 2).astype(float)

    outcome = digits_outcome(files, tmp_path, metric=even_or_odd)
    assert outcome.metric == "even_or_odd"
    assert outcome.winner
    assert (outcome.trials[0].value("even_or_odd") or 0) > (one_run[0].trials[0].value("accuracy") or 1)


def test_a_metric_of_which_less_is_better(files: dict[str, Path], tmp_path: Path) -> None:
    def wrong(outputs: Array, labels: Array) -> Array:
        return (outputs.argmax(1) != labels).astype(float)

    wrong.direction = "lower"  # type: ignore[attr-defined]
    outcome = digits_outcome(files, tmp_path, metric=wrong, max_drop=0.01)
    found = outcome.trial("int8")
    assert found is not None
    assert found.value("drop") == pytest.approx((found.value("wrong") or 0) - (outcome.trials[0].value("wrong") or 0))


def test_a_metric_that_raises_is_told_by_name_and_nothing_is_left(files: dict[str, Path], tmp_path: Path) -> None:
    def broken(outputs: Array, labels: Array) -> float:
        raise KeyError("no such class")

    with pytest.raises(Refused, match=r"broken.*KeyError.*no such class"):
        digits_outcome(files, tmp_path / "out", metric=broken)
    assert not (tmp_path / "out").exists()


def test_a_metric_that_raises_for_a_candidate_only_fails_that_candidate(files: dict[str, Path], tmp_path: Path) -> None:
    seen: list[float] = []

    def picky(outputs: Array, labels: Array) -> Array:
        seen.append(float(outputs.sum()))
        if seen[-1] != seen[0]:
            raise ValueError("not the original")
        return np.ones(len(labels))

    outcome = digits_outcome(files, tmp_path, metric=picky, max_drop=0.1)
    assert not outcome.winner
    assert {trial.status for trial in outcome.trials[1:]} <= {"failed", "skipped"}
    assert "not the original" in outcome.headline


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_labels_of_any_numeric_type(kind: str, files: dict[str, Path], tmp_path: Path) -> None:
    images, labels = digits.data()
    outcome = optimized(files["model"], {"image": images[500:900], "labels": labels[500:900].astype(kind)}, tmp_path,
                        calibration=files["calib"], time_budget_s=0.0)
    assert outcome.trials[0].value("accuracy") == pytest.approx(0.96, abs=0.02)


@pytest.mark.parametrize("labels", [lambda y: y.astype(str), lambda y: np.eye(10)[y], lambda y: y + 1, lambda y: y + 0.5])
def test_labels_that_are_no_classes_are_refused(labels: Callable[[Array], Array], files: dict[str, Path], tmp_path: Path) -> None:
    images, classes = digits.data()
    with pytest.raises(Refused, match="labels"):
        optimized(files["model"], {"image": images[500:900], "labels": labels(classes[500:900])}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_few_samples_to_prove_anything_are_refused_with_how_many_it_takes(files: dict[str, Path], tmp_path: Path) -> None:
    images, labels = digits.data()
    data = {"image": images[500:600], "labels": labels[500:600]}
    with pytest.raises(Refused, match=r"with 100 samples.*evaluate on about \d+ samples"):
        optimized(files["model"], data, tmp_path, calibration=files["calib"])


# -- what is measured once -----------------------------------------------------------------------------------------------------------


def test_the_key_of_a_metric_changes_with_all_that_it_depends_on(tmp_path: Path) -> None:
    def of(share: float) -> Callable[..., float]:
        return lambda outputs, labels: float(np.mean(outputs) * share)

    def key(metric: Any) -> str:
        return metric_key(find_metric(metric))

    assert key(of(0.5)) == key(of(0.5))
    assert key(of(0.5)) != key(of(0.25))
    namespace: dict[str, Any] = {}
    for body in ("outputs.mean()", "outputs.max()"):  # typed in, and nowhere in a file
        exec(f"def typed(outputs, labels): return {body}", namespace)
        namespace[body] = key(namespace["typed"])
    assert namespace["outputs.mean()"] != namespace["outputs.max()"]
    module = tmp_path / "mine.py"
    keys = []
    for scale in (1, 2):
        module.write_text(f"SCALE = {scale}\ndef score(outputs, labels):\n    return float(outputs.mean() * SCALE)\n")
        keys.append(key(f"{module}:score"))
    assert keys[0] != keys[1]

    class Scorer:
        def __call__(self, outputs: Array, labels: Array) -> float:
            return 1.0

    assert key(Scorer()) != key(Scorer())  # nobody can tell what it depends on: never read back
    assert key("accuracy") == key("accuracy") != key("f1")


@pytest.mark.slow
def test_another_function_of_the_same_name_is_measured_again(files: dict[str, Path], tmp_path: Path, made: list[str]) -> None:
    def scored(power: int) -> Callable[..., Array]:
        def score(outputs: Array, labels: Array) -> Array:
            return (outputs.argmax(1) == labels) ** power

        return score

    digits_outcome(files, tmp_path, metric=scored(1))
    count = len(made)
    assert count
    digits_outcome(files, tmp_path, metric=scored(1))
    assert len(made) == count
    digits_outcome(files, tmp_path, metric=scored(2))
    assert len(made) == 2 * count


def test_a_model_without_a_file_is_not_taken_for_an_earlier_one(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    sizes = []
    for width in (20, 400):
        g = Sketch()
        g.output(g.gemm(g.node("Relu", g.gemm(g.input("x", ["N", 16]), 16, width, name="one")), width, 2, name="two"))
        outcome = optimized(g.model(), {"x": x}, tmp_path, max_drop=0.5, minimize="size")
        sizes.append(outcome.trials[0].value("size_bytes") or 0)
        assert 4 * 19 * width < sizes[-1] < 4 * 19 * width + 2000
    assert sizes[1] > 5 * sizes[0]


# -- models -------------------------------------------------------------------------------------------------------------------------


def test_several_outputs_are_all_held_against_the_original(tmp_path: Path) -> None:
    g = Sketch()
    y = g.gemm(g.input("x", ["N", 16]), 16, 8, name="one")
    g.output(g.node("Relu", y, name="relu"))
    g.output(g.gemm(y, 8, 3, name="two"))
    g.output(g.node("ArgMax", y, name="arg", axis=1, keepdims=0), TensorProto.INT64)
    x = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
    outcome = optimized(g.model(), {"x": x}, tmp_path, minimize="size")
    assert outcome.metric == "fidelity"
    assert outcome.gates[0].limit == 0.01
    best = outcome.trial(outcome.winner)
    assert best is not None
    assert "worst of 2 outputs" in best.measurements["drop"].method


@pytest.mark.parametrize("batch", [128, pytest.param(1, marks=pytest.mark.slow)])
def test_graphs_of_a_fixed_batch(batch: int, one_run: tuple[Outcome, Path], files: dict[str, Path], tmp_path: Path) -> None:
    proto = onnx.load(files["model"])
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(proto, tmp_path / "model.onnx")
    outcome = optimized(tmp_path / "model.onnx", files["eval"], tmp_path / "out", calibration=files["calib"])
    assert outcome.winner
    assert all(layer.sqnr_db is not None for layer in outcome.layers)
    assert outcome.trials[0].value("accuracy") == one_run[0].trials[0].value("accuracy")
    assert whet.load(tmp_path / "out" / "best").fixed_batch == batch


def test_weights_in_another_file_count(files: dict[str, Path], tmp_path: Path) -> None:
    place = tmp_path / "model.onnx"
    onnx.save(onnx.load(files["model"]), place, save_as_external_data=True, location="weights.bin", size_threshold=100)
    outcome = optimized(place, files["eval"], tmp_path / "out", calibration=files["calib"])
    assert outcome.trials[0].value("size_bytes") == place.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    assert outcome.winner
    assert original_artifact(whet.load(place), place).size_bytes == outcome.trials[0].value("size_bytes")


def test_an_input_that_is_the_same_for_all_samples(tmp_path: Path) -> None:
    g, data = regression()
    (tmp_path / "model.onnx").write_bytes(g.proto().SerializeToString())
    outcome = optimized(tmp_path / "model.onnx", {"x": data["x"], "gain": data["gain"]}, tmp_path / "out", minimize="size")
    assert outcome.winner
    assert [spec.name for spec in whet.load(tmp_path / "out" / "best").inputs] == ["x", "gain"]


def test_a_model_with_nothing_to_change_is_told_so(tmp_path: Path) -> None:
    g = Sketch()
    g.output(g.node("Relu", g.input("x", ["N", 4]), name="only"))
    outcome = optimized(g.model(), {"x": np.arange(320, dtype=np.float32).reshape(80, 4)}, tmp_path, minimize="size", max_drop=0.5)
    assert outcome.headline.startswith("nothing is shipped: no candidate could be made")
    assert "only" in outcome.headline
    assert (tmp_path / "report.html").is_file()


@pytest.mark.slow
def test_what_was_optimised_already_is_not_spoilt(files: dict[str, Path], tmp_path: Path) -> None:
    first = digits_outcome(files, tmp_path / "one")
    again = optimized(tmp_path / "one" / "best", files["eval"], tmp_path / "two", calibration=files["calib"], minimize="size")
    assert first.winner
    best = again.trial(again.winner)
    assert best is None or (best.value("size_bytes") or 0) <= (again.trials[0].value("size_bytes") or 0)


def test_states_go_in_and_out_with_their_samples(assets: Path, tmp_path: Path) -> None:
    model = assets / "dtln" / "model_1.onnx"
    random = np.random.default_rng(0)
    data = {"input_2": np.abs(random.normal(size=(24, 1, 257))).astype(np.float32),
            "input_3": (0.3 * random.normal(size=(24, 2, 128, 2))).astype(np.float32)}
    outcome = optimized(model, data, tmp_path, minimize="size")
    best = outcome.trial(outcome.winner)
    assert best is not None
    assert outcome.metric == "fidelity"
    assert (best.value("size_bytes") or 1e9) < model.stat().st_size / 3
    quality = whet.compare(model, tmp_path / "best", data=data, seconds=0.02).quality
    assert quality is not None
    assert (quality.drop.value or 0) <= 0.01


def test_control_flow_is_inspected_and_then_named(assets: Path, tmp_path: Path) -> None:
    model = assets / "silero_vad" / "model.onnx"
    layers = whet.inspect(model).layers
    assert {"If", "LSTM", "Conv"} <= {layer.op for layer in layers}
    sound = {"input": np.random.default_rng(0).normal(size=(60, 512)).astype(np.float32)}
    data = whet.load_data(sound, whet.load(model).inputs, constants={"state": np.zeros((2, 1, 128), np.float32), "sr": np.int64(16000)})
    with pytest.raises(WhetError, match=r"If_0"):
        whet.apply(model, "static", calibration=data)
    outcome = optimized(model, data, tmp_path, minimize="size", max_drop=0.5)
    assert outcome.winner  # weights inside the branches are stored small
    best = outcome.trial(outcome.winner)
    assert best is not None
    assert (best.value("size_bytes") or 1e9) < 0.6 * (outcome.trials[0].value("size_bytes") or 0)


# -- places -------------------------------------------------------------------------------------------------------------------------


def test_names_with_spaces_and_signs_and_a_model_that_may_only_be_read(files: dict[str, Path], tmp_path: Path) -> None:
    model = tmp_path / "mödel ☃ one.onnx"
    shutil.copyfile(files["model"], model)
    model.chmod(0o444)
    out = tmp_path / "aus gabe ☃" / "now"
    outcome = optimized(model, files["eval"], out, calibration=files["calib"])
    assert outcome.winner
    assert whet.load(out / "best").inputs
    assert "☃" in outcome.model
    assert (out / "report.html").read_text(encoding="utf-8").count("☃")


def test_relative_paths(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files["model"].parent)
    out = Path(os.path.relpath(tmp_path / "out"))
    outcome = optimized("model.onnx", "eval.npz", out, calibration="calib.npz")
    assert outcome.winner
    assert all((out / trial.path).is_file() for trial in outcome.trials if trial.path)
    for trial in outcome.trials:  # paths in the report are relative to the folder that it lies in
        assert not Path(trial.path).is_absolute()
        if trial.artifact is not None:
            assert read_artifact((out / trial.path).parent).artifact_id == trial.artifact.artifact_id


@pytest.mark.parametrize("more", [{}, {"max_size_bytes": 1}])
def test_files_of_others_are_not_touched(more: dict[str, Any], files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "novel.txt").write_text("chapter one")
    with pytest.raises(Refused, match="not what Whet wrote"):
        digits_outcome(files, tmp_path, **more)
    assert (tmp_path / "best" / "novel.txt").read_text() == "chapter one"
    assert os.listdir(tmp_path) == ["best"]


def test_two_at_once_in_one_folder_are_refused_and_the_first_goes_on(files: dict[str, Path], tmp_path: Path) -> None:
    seen: list[str] = []

    def second(outputs: Array, labels: Array) -> Array:
        if not seen:
            with pytest.raises(Refused, match="another run"):
                digits_outcome(files, tmp_path)
            seen.append("refused")
        return (outputs.argmax(1) == labels).astype(float)

    assert digits_outcome(files, tmp_path, metric=second).winner
    assert seen
    assert whet.load(tmp_path / "best").inputs
    assert digits_outcome(files, tmp_path).winner  # the folder is free again


@pytest.mark.slow
def test_two_processes_at_once_spoil_nothing(files: dict[str, Path], tmp_path: Path) -> None:
    code = ("import sys, whet\n"
            "try:\n    print('won', whet.optimize(sys.argv[1], data=sys.argv[2], calibration=sys.argv[3], out=sys.argv[4], "
            "target='x86-vnni', seconds=0.02).winner)\n"
            "except whet.Refused as refusal:\n    print('refused', refusal)\n")
    words = [sys.executable, "-c", code, *(str(files[name]) for name in ("model", "eval", "calib")), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(Path(whet.__file__).parent.parent)}
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    lines = [out.strip().splitlines()[-1] if out.strip() else error for out, error in said]
    assert all(line.startswith(("won int8", "refused optimise into")) for line in lines), lines
    assert any(line.startswith("won") for line in lines)
    read_artifact(tmp_path / "out" / "best")
    assert not list((tmp_path / "out").rglob(".*"))


@pytest.mark.parametrize(("name", "spoilt"), [
    ("trial.json", b'{"name": 3}'), ("artifact/whet.json", b"[]"), pytest.param("trial.json", b"\xff\x00[", marks=pytest.mark.slow),
    pytest.param("trial.json", b"", marks=pytest.mark.slow), pytest.param("artifact/model.onnx", b"", marks=pytest.mark.slow),
])
def test_a_trial_that_is_damaged_is_made_again(name: str, spoilt: bytes, one_run: tuple[Outcome, Path], files: dict[str, Path],
                                               tmp_path: Path) -> None:
    first, out = one_run[0], tmp_path / "out"
    shutil.copytree(one_run[1], out)
    for place in (out / "trials").glob(f"*/{name}"):
        place.write_bytes(spoilt)
    again = digits_outcome(files, out)
    assert again.winner == first.winner
    assert [trial.artifact for trial in again.trials] == [trial.artifact for trial in first.trials]
    read_artifact(out / "best")


# -- questions ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{"minimize": "beauty"}, {"seconds": -1.0}, {"seconds": float("nan")}, {"time_budget_s": -1.0},
                                   {"max_drop": float("nan")}, {"max_size_bytes": -1}])
def test_a_question_that_makes_no_sense_is_refused_before_anything_is_read(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Refused, match=next(iter(wrong)) if wrong != {"minimize": "beauty"} else "minimise"):
        optimized(tmp_path / "no model.onnx", tmp_path / "no data.npz", tmp_path / "out", **wrong)


def test_the_blame_is_for_what_was_complained_of(files: dict[str, Path], tmp_path: Path) -> None:
    lossy = digits_outcome(files, tmp_path, metric="kl", max_drop=1e-9)
    assert lossy.blame
    assert all("quantised alone" in line for line in lossy.blame)
    large = digits_outcome(files, tmp_path, max_size_bytes=1)
    assert not large.winner
    assert large.blame == ()
