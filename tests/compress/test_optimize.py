"""``optimize`` from end to end on a small network. Where time decides, time is made up, so that the test is about the decision."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.compress import digits

import whet
from whet.compress.optimize import mixing, run, searching, trials
from whet.compress.optimize.bench import Bench
from whet.core.errors import Refused, Untrusted
from whet.core.measurement import Interval, Measurement
from whet.core.outcome import Outcome

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return digits.write(tmp_path)


@pytest.fixture
def slower() -> None:
    """Every candidate takes 1.5 times the original's time."""


@pytest.fixture
def real_time() -> None:
    """Time is measured and not made up."""


@pytest.fixture(autouse=True)
def made_up_time(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Integer models take half of the original's time, everything else as much; all take 1.5 times where the test uses ``slower``."""
    if "real_time" not in request.fixturenames:
        make_time_up(monkeypatch, slower="slower" in request.fixturenames)


def make_time_up(monkeypatch: pytest.MonkeyPatch, *, slower: bool = False) -> None:
    def measured(bench: Bench, model: Any, path: Path, own: Any) -> dict[str, Measurement]:
        kinds = {node.op for node in model.nodes}
        ratio = 1.0 if path == bench.path else 1.5 if slower else 0.5 if "QuantizeLinear" in kinds else 1.0
        interval = Interval(ratio * 0.98, ratio * 1.02, 0.95) if ratio != 1.0 else Interval(1.0, 1.0, 0.95)
        found = [Measurement("latency_ratio", ratio, interval=interval, n=50), Measurement("latency_ms", ratio, " ms"),
                 Measurement("model_rss_bytes", 1e6, " B"), Measurement("energy_mj", ratio, " mJ")]
        return {each.name: each for each in found}

    monkeypatch.setattr(Bench, "_measured", measured)
    # Learned rounding takes minutes; which of it is tried is test_optimize_search.py's.
    monkeypatch.setattr(searching, "technique_names", lambda: ("bias_correct", "clip", "equalize", "static"))
    for module in (run, mixing):
        monkeypatch.setattr(module, "kernels_of", lambda *_: ())


def optimized(files: dict[str, Path], out: Path, **options: Any) -> Outcome:
    return whet.optimize(files["model"], data=files["eval"], calibration=files["calib"], out=out, seconds=0.1, **options)


@pytest.fixture(scope="module")
def one_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """``optimize`` with nothing but the defaults, done once, and the folder of it."""
    folder = tmp_path_factory.mktemp("once")
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_time_up(monkeypatch)
        return optimized(digits.write(folder), folder / "out"), folder / "out"


@pytest.fixture
def outcome(one_run: tuple[Outcome, Path], tmp_path: Path) -> Outcome:
    """Its outcome, with the folder as tmp_path / "out", to spoil."""
    shutil.copytree(one_run[1], tmp_path / "out")
    return one_run[0]


def test_the_winner_is_smaller_faster_and_as_good_and_can_be_loaded(outcome: Outcome, files: dict[str, Path], tmp_path: Path) -> None:
    best = outcome.trial(outcome.winner)
    assert best is not None
    assert best.passed
    assert best.value("latency_ratio") == 0.5
    assert (best.value("size_bytes") or 1e9) < files["model"].stat().st_size / 2
    drop = best.measurements["drop"]
    assert drop.interval is not None
    assert drop.interval.high <= 0.01
    model = whet.load(tmp_path / "out" / "best")
    assert [spec.name for spec in model.inputs] == ["image"]
    assert {"report.html", "report.json", "recipe.toml", "best", "trials"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_the_manifest_holds_lineage_recipe_and_hashes(outcome: Outcome, files: dict[str, Path], tmp_path: Path) -> None:
    from whet.compress.artifacts import original_artifact, read_artifact

    artifact = read_artifact(tmp_path / "out" / "best")
    assert artifact.parent == original_artifact(whet.load(files["model"]), files["model"]).artifact_id
    assert artifact.recipe == whet.Recipe.from_text((tmp_path / "out" / "recipe.toml").read_text())
    assert artifact.artifact_id == outcome.trial(outcome.winner).artifact.artifact_id  # type: ignore[union-attr]
    model = tmp_path / "out" / "best" / "model.onnx"
    model.write_bytes(model.read_bytes() + b"\0")
    with pytest.raises(Untrusted, match="not the file"):
        whet.load(tmp_path / "out" / "best")


@pytest.mark.usefixtures("outcome")
def test_the_recipe_makes_the_winner_again(files: dict[str, Path], tmp_path: Path) -> None:
    whet.apply(files["model"], tmp_path / "out" / "recipe.toml", calibration=files["calib"], out=tmp_path / "again")
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (tmp_path / "out" / "best" / "model.onnx").read_bytes()


@pytest.mark.usefixtures("slower")
def test_nothing_is_shipped_that_is_slower_than_the_original(files: dict[str, Path], tmp_path: Path) -> None:
    outcome = optimized(files, tmp_path / "out")
    assert outcome.winner == ""
    assert outcome.closest
    assert "not slower than the original" in outcome.headline
    assert not (tmp_path / "out" / "best").exists()
    assert not (tmp_path / "out" / "recipe.toml").exists()
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.usefixtures("slower")
def test_a_slower_model_may_win_where_size_is_what_counts(files: dict[str, Path], tmp_path: Path) -> None:
    outcome = optimized(files, tmp_path / "out", minimize="size")
    best = outcome.trial(outcome.winner)
    assert best is not None
    sizes = [trial.value("size_bytes") for trial in outcome.trials if trial.passed]
    assert best.value("size_bytes") <= min(size for size in sizes if size) * 1.03  # type: ignore[operator]


def test_a_limit_that_nothing_meets_names_the_closest_and_the_layers_to_blame(files: dict[str, Path], tmp_path: Path) -> None:
    outcome = optimized(files, tmp_path / "out", metric="kl", max_drop=1e-9)
    assert outcome.winner == ""
    assert "drop at most 1e-09" in outcome.headline
    assert outcome.blame
    assert all(name in " ".join(outcome.blame) for name in ("first", "second", "last"))
    assert any(layer.damage is not None for layer in outcome.layers)
    assert any("in float" in trial.name for trial in outcome.trials)


def test_where_no_integer_model_passes_gentler_ones_are_tried_though_another_passes(files: dict[str, Path], tmp_path: Path) -> None:
    outcome = optimized(files, tmp_path / "out", metric="kl", max_drop=1e-5)
    assert outcome.trial("float16").passed  # type: ignore[union-attr]
    assert not outcome.trial("int8").passed  # type: ignore[union-attr]
    assert any("in float" in trial.name for trial in outcome.trials)


def test_the_stages_end_early_and_say_why(files: dict[str, Path], tmp_path: Path) -> None:
    outcome = optimized(files, tmp_path / "out", max_drop=0.05)
    stages = {stage.name: stage for stage in outcome.stages}
    assert list(stages) == ["plain int8", "better ranges", "equalise and correct", "mixed precision", "learned rounding", "other ways"]
    assert stages["plain int8"].trials == ("int8",)
    assert stages["plain int8"].passed
    assert not stages["equalise and correct"].trials
    assert "keeps the drop" in stages["equalise and correct"].note
    made = [name for stage in outcome.stages for name in stage.trials]
    assert made == [trial.name for trial in outcome.trials[1:]]
    assert stages["other ways"].best == outcome.winner
    assert sum(trial.status == "measured" for trial in outcome.trials[1:]) <= 8
    assert {trial.status for trial in outcome.trials if trial.name in ("float16", "int8 weights")} == {"skipped"}


def test_where_the_drop_is_to_be_least_all_that_mends_it_is_tried(files: dict[str, Path], tmp_path: Path) -> None:
    outcome = optimized(files, tmp_path / "out", minimize="drop", max_drop=0.05)
    stages = {stage.name: stage for stage in outcome.stages}
    assert len(stages["better ranges"].trials) >= 2
    assert stages["equalise and correct"].trials or "nearer" in stages["equalise and correct"].note
    passed = {trial.name: trial.value("drop") for trial in outcome.trials if trial.passed and trial.name != "original"}
    assert passed[outcome.winner] == min(passed.values(), key=lambda drop: drop or 0.0)
    assert any("least drop" in note for note in outcome.notes)


@pytest.mark.usefixtures("slower")
def test_the_least_drop_is_not_bought_with_time(files: dict[str, Path], tmp_path: Path) -> None:
    outcome = optimized(files, tmp_path / "out", minimize="drop", max_drop=0.05)
    assert not outcome.winner
    assert "not slower than the original" in outcome.headline


def test_where_bytes_count_weights_get_fewer_bits_until_the_drop_is_too_large(files: dict[str, Path], tmp_path: Path) -> None:
    outcome = optimized(files, tmp_path / "out", minimize="size", max_drop=0.05)
    best = outcome.trial(outcome.winner)
    assert best is not None
    assert best.passed
    assert any(step.options.get("bits") == 4 for step in best.recipe.steps)
    assert (best.value("size_bytes") or 1e9) < 0.8 * (outcome.trial("int8").value("size_bytes") or 0.0)  # type: ignore[union-attr]


@pytest.mark.parametrize(("samples", "limit", "advice"), [(20, 0.01, "about [0-9]+ samples"), (400, 0.0, "above 0")])
def test_what_no_model_could_prove_is_refused_at_once(samples: int, limit: float, advice: str, tmp_path: Path) -> None:
    files = digits.write(tmp_path, evaluated=samples)
    with pytest.raises(Refused, match=advice):
        optimized(files, tmp_path / "out", max_drop=limit)
    assert not list((tmp_path / "out" / "trials").glob("*"))


def test_as_many_samples_as_were_asked_for_do_prove_it(tmp_path: Path) -> None:
    files = digits.write(tmp_path, evaluated=280)
    assert optimized(files, tmp_path / "out", max_drop=0.01).trials[0].passed


def test_an_impossible_size_is_refused_with_the_limit(files: dict[str, Path], tmp_path: Path) -> None:
    outcome = optimized(files, tmp_path / "out", max_size_bytes=100)
    assert outcome.winner == ""
    assert "size_bytes at most 100" in outcome.headline


def test_a_best_of_an_earlier_laxer_question_is_taken_away(outcome: Outcome, files: dict[str, Path], tmp_path: Path) -> None:
    assert outcome.winner
    assert (tmp_path / "out" / "best").exists()
    assert not optimized(files, tmp_path / "out", max_size_bytes=100).winner
    assert not (tmp_path / "out" / "best").exists()
    assert not (tmp_path / "out" / "recipe.toml").exists()


def test_a_second_run_makes_nothing_again(outcome: Outcome, files: dict[str, Path], tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "apply_recipe", lambda *_, **__: pytest.fail("made again"))
    second = optimized(files, tmp_path / "out")
    assert [trial.artifact for trial in second.trials] == [trial.artifact for trial in outcome.trials]
    assert second.winner == outcome.winner


@pytest.mark.usefixtures("outcome")
def test_other_data_is_another_question(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = trials.apply_recipe
    monkeypatch.setattr(trials, "apply_recipe", lambda *args, **more: made.append(1) or original(*args, **more))
    digits.write(tmp_path, evaluated=300)
    optimized(files, tmp_path / "out")
    assert made


@pytest.mark.usefixtures("outcome")
def test_a_damaged_trial_is_made_again(files: dict[str, Path], tmp_path: Path) -> None:
    for model in (tmp_path / "out" / "trials").glob("*/artifact/model.onnx"):
        model.write_bytes(model.read_bytes()[:-10])
    assert optimized(files, tmp_path / "out").winner
    whet.load(tmp_path / "out" / "best")


def test_ctrl_c_loses_nothing_that_was_finished(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = trials.apply_recipe, []

    def interrupted(*args: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **more)

    monkeypatch.setattr(trials, "apply_recipe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimized(files, tmp_path / "out")
    assert not (tmp_path / "out" / "best").exists()
    assert not (tmp_path / "out" / "report.json").exists()
    finished = list((tmp_path / "out" / "trials").glob("*/trial.json"))
    assert len(finished) == 2
    assert not list((tmp_path / "out" / "trials").glob(".*"))  # nothing half-written
    calls.clear()
    monkeypatch.setattr(trials, "apply_recipe", lambda *args, **more: calls.append(1) or original(*args, **more))
    outcome = optimized(files, tmp_path / "out")
    assert outcome.winner
    assert len(calls) == sum(trial.status == "measured" for trial in outcome.trials) - 1 - 2


def test_a_full_disk_ends_in_words_and_leaves_nothing_half_written(files: dict[str, Path], tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    from whet.compress.graph import GraphModel

    def full(self: GraphModel, path: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(GraphModel, "save", full)
    outcome = optimized(files, tmp_path / "out")
    assert not outcome.winner
    assert {trial.status for trial in outcome.trials[1:]} <= {"failed", "skipped"}
    assert "the disk is full" in next(trial.note for trial in outcome.trials if trial.status == "failed")
    assert not list((tmp_path / "out").rglob("model.onnx"))


def test_a_disk_that_is_full_at_the_very_end_ends_in_words_too(files: dict[str, Path], tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, place: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(Refused, match="the disk is full"):
        optimized(files, tmp_path / "out")
    assert not (tmp_path / "out" / "best").exists()
    assert not list((tmp_path / "out").glob(".*"))


def test_without_labels_fidelity_is_what_is_gated(files: dict[str, Path], tmp_path: Path) -> None:
    images, _ = digits.data()
    outcome = whet.optimize(files["model"], data={"image": images[500:900]}, calibration=files["calib"], out=tmp_path / "out")
    assert outcome.metric == "fidelity"
    assert outcome.gates[0].limit == 0.02
    assert outcome.winner


def test_without_calibration_it_is_split_off_and_said(files: dict[str, Path], tmp_path: Path) -> None:
    outcome = whet.optimize(files["model"], data=files["eval"], out=tmp_path / "out")
    assert outcome.data["calibration"]["samples"] == 80
    assert outcome.data["evaluation"]["samples"] == 320
    assert any("split off" in note for note in outcome.notes)


def test_an_overlap_of_calibration_and_evaluation_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    images, labels = digits.data()
    np.savez(files["eval"], image=images[100:400], labels=labels[100:400])
    with pytest.raises(Refused, match="20 of"):
        optimized(files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda images, labels: (np.where(images > 0.9, np.nan, images), labels), "NaN"),
    (lambda images, labels: (images[:0], labels[:0]), "empty|no samples"),
    (lambda images, labels: (images, labels[:-1]), "labels"),
    (lambda images, labels: (images[:, :, :5], labels), "shape"),
])
def test_bad_data_is_refused_before_anything_is_written(spoil: Any, message: str, files: dict[str, Path], tmp_path: Path) -> None:
    images, labels = digits.data()
    images, labels = spoil(images[500:700], labels[500:700])
    np.savez(files["eval"], image=images, labels=labels)
    with pytest.raises(Refused, match=message):
        optimized(files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_machine_gets_estimates_that_say_so(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    outcome = optimized(files, tmp_path / "out", target="x86-vnni")
    found = outcome.trial("int8")
    assert found is not None
    assert found.measurements["latency_ratio"].source == "estimated"
    assert found.measurements["accuracy"].source == "measured"
    assert any("not this machine" in note for note in outcome.notes)


def test_no_time_means_no_trials_and_the_report_says_so(files: dict[str, Path], tmp_path: Path) -> None:
    outcome = optimized(files, tmp_path / "out", time_budget_s=0.0)
    assert [trial.name for trial in outcome.trials] == ["original"]
    assert any("time budget" in note for note in outcome.notes)
    assert "nothing is shipped" in outcome.headline


def test_the_report_holds_what_was_found(outcome: Outcome, tmp_path: Path) -> None:
    kept = Outcome.from_plain(json.loads((tmp_path / "out" / "report.json").read_text()))
    assert replace(kept, seconds=0.0) == replace(outcome, seconds=0.0)
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(trial.name in page for trial in outcome.trials)
    assert {layer.name for layer in outcome.layers} == {"first", "second", "last"}
    assert all(layer.sqnr_db is not None and 10 < layer.sqnr_db < 80 for layer in outcome.layers)


def test_a_torch_module_and_batches_from_python(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10))
    images, _ = digits.data()

    def batches() -> Iterator[torch.Tensor]:
        for start in range(0, 300, 64):
            yield torch.from_numpy(images[start : start + 64])

    outcome = whet.optimize(module, example_inputs=(torch.from_numpy(images[:2]),), data=batches(), out=tmp_path / "out", minimize="size")
    assert outcome.winner
    assert outcome.metric == "fidelity"


def test_a_question_that_makes_no_sense_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(Refused, match="minimise"):
        optimized(files, tmp_path / "out", minimize="beauty")
    with pytest.raises(Refused, match="max_drop"):
        optimized(files, tmp_path / "out", max_drop=-0.1)
    with pytest.raises(Refused, match="metric"):
        optimized(files, tmp_path / "out", metric="beauty")
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="write into"):
        optimized(files, tmp_path / "file")


@pytest.mark.slow
@pytest.mark.timing
@pytest.mark.usefixtures("real_time")
def test_the_whole_way_with_real_time(files: dict[str, Path], tmp_path: Path) -> None:
    outcome = optimized(files, tmp_path / "out", minimize="size")
    best = outcome.trial(outcome.winner)
    assert best is not None
    assert {"latency_ms", "latency_p95_ms", "latency_ratio", "peak_rss_bytes", "model_rss_bytes", "energy_mj", "size_bytes",
            "accuracy", "drop", "flips", "kl", "sqnr_db"} <= set(best.measurements)
    assert all(found.at and found.device and found.method for name, found in best.measurements.items() if name.startswith("latency"))
    assert outcome.operators
