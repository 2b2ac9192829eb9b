"""Each command does what its help says, for people and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.cli.conftest import Task, Whet

from whet.core.errors import Refused
from whet.core.outcome import Outcome

JSON = [
    "inspect MODEL", "inspect MODEL --roofline", "plan MODEL --technique static", "profile MODEL --seconds 0.05", "targets", "targets pi5",
    "techniques", "techniques static", "report OPTIMISED -o OUT/page.html", "export MODEL -o OUT/x.onnx",
    "compare MODEL OPTIMISED/best --seconds 0.05", "apply static MODEL --calibration CALIB -o OUT/a",
]  # fmt: skip
MORE = ["inspect MODEL --all", "plan MODEL --technique weight_only --all", "profile MODEL --seconds 0.05 --data DATA"]
Words = Callable[[str], list[str]]


@pytest.fixture
def words(task: Task, optimised: Path, tmp_path: Path) -> Words:
    places = {"MODEL": task.model, "DATA": task.data, "CALIB": task.calibration, "OPTIMISED": optimised, "OUT": tmp_path}

    def filled(line: str) -> list[str]:
        for name, place in places.items():
            line = line.replace(name, str(place))
        return line.split()

    return filled


@pytest.mark.parametrize("line", JSON)
def test_json_is_all_there_is_on_stdout(whet: Whet, words: Words, line: str) -> None:
    done = whet(*words(line), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)


@pytest.mark.parametrize("line", [*JSON, *MORE])
def test_for_people_no_brace_and_no_traceback(whet: Whet, words: Words, line: str) -> None:
    done = whet(*words(line))
    assert done.exit_code == 0, done.output
    assert "{" not in done.stdout
    assert done.stderr == ""


def test_inspect_shows_layers_and_totals(whet: Whet, task: Task) -> None:
    shown = whet("inspect", task.model).stdout
    assert [line.split()[0] for line in shown.splitlines()[:4]] == ["layer", "second/product", "answers", "first/conv"]
    found = json.loads(whet("inspect", task.model, "--json").stdout)
    assert found["parameters"] == 16 * 9 + 64 * 1024 + 650
    assert found["macs"] == 16 * 9 * 64 + 64 * 1024 + 640
    assert whet("inspect", task.model, "--quiet").stdout.splitlines()[0].split() == ["layers", "6"]


def test_inspect_against_the_roofline(whet: Whet, task: Task) -> None:
    found = json.loads(whet("inspect", task.model, "--roofline", "--json").stdout)["roofline"]
    conv, product = found[0], found[3]
    assert conv["least_us"] == pytest.approx(1e6 * max(9216 / 5e10, (576 + 4096) / 3e10))
    assert product["least_us"] == pytest.approx(1e6 * (262144 + 256) / 3e10)
    assert (conv["bound"], product["bound"]) == ("products", "memory")


def test_a_plan_takes_the_options_of_its_technique(whet: Whet, task: Task) -> None:
    found = json.loads(whet("plan", task.model, "--technique", "weight_only", "--bits", "4", "--json").stdout)
    assert found["recipe"]["step"] == [{"apply": "weight_only", "with": {"bits": 4}}]
    assert {layer["weights"] for layer in found["layers"] if layer["weights"]} == {"int4"}


def test_a_plan_and_the_artifact_that_comes_of_it(whet: Whet, task: Task, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[step]]\napply = "static"\nexcept = ["answers"]\n\n[[step]]\napply = "float16"\nto = ["answers"]\n')
    plan = json.loads(whet("plan", task.model, "--recipe", recipe, "--json").stdout)
    assert {layer["name"]: layer["technique"] for layer in plan["layers"] if layer["weights"]} == {
        "first/conv": "static", "second/product": "static", "answers": "float16"}  # fmt: skip
    done = whet("apply", "--recipe", recipe, task.model, "--calibration", task.calibration, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    stored = {tensor.data_type for tensor in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer}
    assert {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT16} <= stored
    size = (tmp_path / "out" / "model.onnx").stat().st_size
    assert f"-> {size / 1000:.1f} kB" in done.stdout


def test_apply_replaces_its_own_artifact_only_with_force(whet: Whet, task: Task, tmp_path: Path) -> None:
    line = ["apply", "float16", task.model, "-o", tmp_path / "out"]
    assert whet(*line).exit_code == 0
    first = (tmp_path / "out" / "whet.json").read_text()
    refused = whet("apply", "weight_only", task.model, "-o", tmp_path / "out")
    assert (refused.exit_code, "use --force" in refused.stderr) == (2, True)
    assert (tmp_path / "out" / "whet.json").read_text() == first
    assert whet("apply", "weight_only", task.model, "-o", tmp_path / "out", "--force").exit_code == 0
    assert (tmp_path / "out" / "whet.json").read_text() != first
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert whet("apply", "float16", task.model, "-o", tmp_path / "mine", "--force").exit_code == 2
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_compare_says_how_much_is_lost_and_gates(whet: Whet, task: Task, optimised: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ["compare", task.model, optimised / "best", "--data", task.data, "--seconds", "0.05"]
    monkeypatch.setattr("whet.compress.compare.memory_use", lambda *_, **__: ())  # fresh processes: compare is in JSON above, with them
    shown = whet(*line, "--metric", "accuracy", "--max-drop", "2%")
    assert (shown.exit_code, "passed: drop at most 0.02 (asked with --max-drop)" in shown.stdout) == (0, True)
    assert "Accuracy, candidate" in shown.stdout
    refused = whet(*line, "--max-drop", "0", "--json")
    assert refused.exit_code == 3
    assert json.loads(refused.stdout)["verdict"]["passed"] is False
    own = task.folder / "my_metric_for_cli.py"
    own.write_text("def right(outputs, labels):\n    return outputs.argmax(1) == labels\n")
    assert json.loads(whet(*line, "--metric", f"{own}:right", "--json").stdout)["quality"]["n"] == 400
    monkeypatch.chdir(task.folder)
    assert whet(*line, "--metric", "my_metric_for_cli:right", "--json").exit_code == 0


def test_optimize_ships_the_best_and_says_so(whet: Whet, task: Task, optimised: Path) -> None:
    line = ["optimize", task.model, "--data", task.data, "--calibration", task.calibration, "--target", "pi5", "--minimize", "size",
            "-o", optimised, "--max-drop", "5%"]  # fmt: skip
    before = {path: path.stat().st_mtime_ns for path in (optimised / "trials").glob("*/trial.json")}
    done = whet(*line)
    assert done.exit_code == 0, done.output
    assert {path: path.stat().st_mtime_ns for path in (optimised / "trials").glob("*/trial.json")} == before  # nothing was done twice
    outcome = Outcome.from_json((optimised / "report.json").read_text())
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{outcome.winner}: ")
    assert f"report      {optimised / 'report.html'}" in lines
    assert f"best model  {optimised / 'best' / 'model.onnx'}" in lines
    table = [each.split()[0] for each in lines[3 : 3 + len(before) + 1]]
    assert table[:2] == ["■", "★"]
    assert outcome.command == " ".join(["whet", *map(str, line)])
    assert whet(*line, "--quiet").stdout.splitlines() == [lines[0], *lines[-3:]]


def test_optimize_that_finds_nothing_ends_with_three_and_a_report(whet: Whet, task: Task, tmp_path: Path) -> None:
    line = ["optimize", task.model, "--data", task.data, "--target", "pi5", "--minimize", "size", "--max-size", "1kB",
            "-o", tmp_path / "out"]  # fmt: skip
    done = whet(*line)
    assert done.exit_code == 3
    assert "nothing is shipped: " in done.stdout
    assert "came closest" in done.stdout
    assert (tmp_path / "out" / "report.html").is_file()
    assert not (tmp_path / "out" / "best").exists()
    again = whet(*line, "--json")
    assert again.exit_code == 3
    assert json.loads(again.stdout)["winner"] == ""
    assert json.loads(again.stdout)["closest"]


def test_report_renders_the_page_again(whet: Whet, optimised: Path, tmp_path: Path) -> None:
    done = whet("report", optimised / "report.json", "-o", tmp_path / "page.html")
    assert done.exit_code == 0
    assert (tmp_path / "page.html").read_text() == (optimised / "report.html").read_text()


def test_export_writes_one_file_and_tells_the_session_options(whet: Whet, task: Task, optimised: Path, tmp_path: Path) -> None:
    done = whet("export", optimised / "best", "-o", tmp_path / "x.onnx")
    assert done.exit_code == 0
    told = json.loads((optimised / "best" / "whet.json").read_text()).get("session_options", {})
    for name in told:
        assert name in done.stdout
    assert onnx.load(tmp_path / "x.onnx").graph.node
    assert whet("export", task.model, "-o", tmp_path / "x.onnx").exit_code == 2
    assert whet("export", task.model, "-o", tmp_path / "x.onnx", "--force").exit_code == 0


def test_a_module_of_pytorch_with_weights_and_shapes(whet: Whet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    Path("my_net_for_cli.py").write_text(
        "import torch\nprint('hello from the module')\ndef net():\n    return torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU())\n"
    )
    known = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU())
    torch.save(known.state_dict(), "w.pt")
    np.savez("d.npz", input=np.ones((5, 6), np.float32))
    done = whet("inspect", "my_net_for_cli:net", "--weights", "w.pt", "--input-shape", "1,6", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["parameters"] == 28
    assert whet("export", "my_net_for_cli:net", "--weights", "w.pt", "--input-shape", "1,6", "-o", "net.onnx").exit_code == 0
    stored = [numpy_helper.to_array(tensor) for tensor in onnx.load("net.onnx").graph.initializer]
    assert any(each.shape == (4, 6) and (each == known[0].weight.detach().numpy()).all() for each in stored)
    by_data = whet("profile", "my_net_for_cli:net", "--data", "d.npz", "--seconds", "0.05", "--quiet")
    assert by_data.exit_code == 0, by_data.output
    missing = whet("inspect", "my_net_for_cli:net")
    assert (missing.exit_code, "example inputs" in missing.stderr) == (2, True)
    assert whet("inspect", "my_net_for_cli:net", "--input-shape", "1,6:complex").exit_code == 2


def test_what_is_asked_of_optimize_reaches_it(whet: Whet, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def recorded(model: object, **asked: object) -> None:
        seen.update(asked, model=model)
        raise Refused("stop here")

    monkeypatch.setattr("whet.optimize", recorded)
    done = whet("optimize", task.model, "--data", "d.npz", "--calibration", "c.npz", "--metric", "top-5", "--target", "pi5",
                "--minimize", "energy", "--max-drop", "0.5%", "--max-latency", "1.5s", "--max-size", "1KiB", "--max-memory", "2MB",
                "--confidence", "99%", "--seconds", "300ms", "--time-budget", "10m", "--threads", "3", "--seed", "7",
                "-o", tmp_path / "a folder")  # fmt: skip
    assert done.stderr == "whet: stop here.\n"
    target = seen.pop("target")
    assert (target.name, target.threads) == ("pi5", 3)
    assert seen.pop("command").endswith(f"--seed 7 -o '{tmp_path}/a folder'")
    assert seen == {
        "model": str(task.model), "data": "d.npz", "calibration": "c.npz", "metric": "top-5", "minimize": "energy", "max_drop": 0.005,
        "max_latency_ms": 1500.0, "max_size_bytes": 1024.0, "max_memory_bytes": 2e6, "confidence": 0.99, "seconds": 0.3,
        "time_budget_s": 600.0, "seed": 7, "out": tmp_path / "a folder",
    }  # fmt: skip
