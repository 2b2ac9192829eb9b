"""Whatever is wrong with what was given: code 2, a message that says what, no traceback, and nothing half-written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.cli.conftest import Task, Whet

Case = Callable[[Task, Path], list[object]]


def data_with(folder: Path, **changed: object) -> Path:
    """eval.npz with some arrays replaced."""
    arrays = {"x": np.zeros((8, 1, 8, 8), np.float32), "labels": np.arange(8), **changed}
    np.savez(folder / "bad.npz", **{name: array for name, array in arrays.items() if array is not None})  # type: ignore[arg-type]
    return folder / "bad.npz"


def optimize(task: Task, out: Path, *more: object, data: Path | None = None, target: str = "pi5") -> list[object]:
    return ["optimize", task.model, "--data", data or task.data, "--target", target, "-o", out, *more]


def truncated(task: Task, folder: Path) -> Path:
    (folder / "cut.onnx").write_bytes(task.model.read_bytes()[:1000])
    return folder / "cut.onnx"


def text(folder: Path, name: str, content: str) -> Path:
    (folder / name).write_text(content)
    return folder / name


DIFFERENT = np.random.default_rng(0).standard_normal((8, 1, 8, 8)).astype(np.float32)
NAN = np.full((8, 1, 8, 8), np.nan, np.float32)
CASES: dict[str, tuple[Case, str]] = {
    "no model": (lambda task, tmp: ["inspect", tmp / "none.onnx"], "No such file"),
    "no model to optimise": (lambda task, tmp: ["optimize", tmp / "none.onnx", "--data", task.data, "-o", tmp / "out"], "No such file"),
    "a truncated model": (lambda task, tmp: ["inspect", truncated(task, tmp)], "cut off"),
    "a truncated model to optimise": (lambda task, tmp: ["optimize", truncated(task, tmp), "--data", task.data, "-o", tmp / "out"], "cut off"),
    "a name too long for a file": (lambda task, tmp: ["inspect", "x" * 5000], "name too long"),
    "NaN in the data": (lambda task, tmp: optimize(task, tmp / "out", data=data_with(tmp, x=NAN)), "NaN"),
    "no samples": (lambda task, tmp: optimize(task, tmp / "out", data=data_with(tmp, x=NAN[:0], labels=np.arange(0))), "empty"),
    "labels of another length": (lambda task, tmp: optimize(task, tmp / "out", data=data_with(tmp, labels=np.arange(5))), "5 labels for 8 samples"),
    "no data": (lambda task, tmp: optimize(task, tmp / "out", data=tmp / "none.npz"), "no such file"),
    "data of another shape": (lambda task, tmp: optimize(task, tmp / "out", data=data_with(tmp, x=np.zeros((8, 3), np.float32))), "shape"),
    "calibration among the data": (lambda task, tmp: optimize(task, tmp / "out", "--calibration", task.data), "also in the calibration data"),
    "an unknown metric": (lambda task, tmp: optimize(task, tmp / "out", "--metric", "beauty"), "there are accuracy"),
    "an unknown metric to compare by": (lambda task, tmp: ["compare", task.model, task.model, "--data", task.data, "--metric", "beauty"],
                                        "there are accuracy"),
    "a metric without its labels": (lambda task, tmp: optimize(task, tmp / "out", "--metric", "accuracy", data=data_with(tmp, x=DIFFERENT, labels=None)),
                                    "label"),
    "an unknown target": (lambda task, tmp: optimize(task, tmp / "out", target="toaster"), "there are host"),
    "a target that is shown and unknown": (lambda task, tmp: ["targets", "toaster"], "there are host"),
    "an unknown technique": (lambda task, tmp: ["techniques", "alchemy"], "use one of: dynamic"),
    "a drop of five": (lambda task, tmp: optimize(task, tmp / "out", "--max-drop", "5"), "write 5% for 0.05"),
    "a limit without a unit": (lambda task, tmp: optimize(task, tmp / "out", "--max-latency", "20"), "write 20ms"),
    "a certainty beyond one": (lambda task, tmp: optimize(task, tmp / "out", "--confidence", "95"), "between 0.5 and 1"),
    "a goal that is none": (lambda task, tmp: optimize(task, tmp / "out", "--minimize", "regret"), "is not one of"),
    "an output that is a file": (lambda task, tmp: optimize(task, text(tmp, "out", "mine")), "out"),
    "an artifact that is a file": (lambda task, tmp: ["apply", "float16", task.model, "-o", text(tmp, "out", "mine")], "a file of that name"),
    "an output below a file": (lambda task, tmp: optimize(task, text(tmp, "file", "mine") / "out"), "ot a directory"),
    "an artifact below a file": (lambda task, tmp: ["apply", "float16", task.model, "-o", text(tmp, "file", "mine") / "out"], "ot a directory"),
    "a file to export that cannot be": (lambda task, tmp: ["export", task.model, "-o", text(tmp, "file", "mine") / "x.onnx"], "ot a directory"),
    "an export by another name": (lambda task, tmp: ["export", task.model, "-o", tmp / "x.tflite"], ".onnx"),
    "a place where nothing can be": (lambda task, tmp: ["apply", "float16", task.model, "-o", "/proc/whet/out"], "/proc"),
    "a step that matches nothing": (
        lambda task, tmp: ["apply", "--recipe", text(tmp, "r.toml", '[[step]]\napply = "float16"\nto = ["nothing*"]\n'), task.model, "-o", tmp / "out"],
        "matches no layer"),
    "a recipe that is none": (lambda task, tmp: ["plan", task.model, "--recipe", text(tmp, "r.toml", "]")], "not valid TOML"),
    "no recipe": (lambda task, tmp: ["plan", task.model, "--recipe", tmp / "none.toml"], "no such file"),
    "no calibration": (lambda task, tmp: ["apply", "static", task.model, "-o", tmp / "out"], "--calibration"),
    "a best of somebody else's": (lambda task, tmp: optimize(task, somebody_elses(tmp)), "not what Whet wrote"),
    "models with other inputs": (lambda task, tmp: ["compare", task.model, other_input(task, tmp)], "one takes x, the other z"),
    "a gate without data": (lambda task, tmp: ["compare", task.model, task.model, "--max-drop", "1%"], "--max-drop needs --data"),
    "no report": (lambda task, tmp: ["report", tmp], "no such file"),
    "a report that is none": (lambda task, tmp: ["report", text(tmp, "report.json", "{}")], "is missing"),
    "weights for a file": (lambda task, tmp: ["inspect", task.model, "--weights", task.model], "package.module:callable"),
    "no module": (lambda task, tmp: ["inspect", "no.such.module:net", "--input-shape", "1,2"], "no module"),
}  # fmt: skip


def somebody_elses(folder: Path) -> Path:
    (folder / "out" / "best").mkdir(parents=True)
    text(folder / "out" / "best", "novel.txt", "chapter one")
    return folder / "out"


def other_input(task: Task, folder: Path) -> Path:
    import onnx

    model = onnx.load(task.model)
    model.graph.input[0].name = model.graph.node[0].input[0] = "z"
    onnx.save(model, folder / "other.onnx")
    return folder / "other.onnx"


@pytest.mark.parametrize("name", CASES)
def test_bad_input_ends_with_two_and_a_message(whet: Whet, task: Task, tmp_path: Path, name: str) -> None:
    case, said = CASES[name]
    words = case(task, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = whet(*words)
    assert done.exit_code == 2, done.output
    assert said.lower() in " ".join(done.stderr.split()).lower()
    assert "Traceback" not in done.output
    assert done.stdout == ""
    assert len(done.stderr) < 2000
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not [path for path in tmp_path.rglob("*") if path.is_dir() and path.name in ("out", "trials") and path.parent != tmp_path / "out"
                and not any(path.iterdir())]  # fmt: skip


def test_a_fault_of_whets_is_one_and_shows_no_traceback(whet: Whet, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("whet.inspect", broken)
    done = whet("inspect", task.model)
    assert done.exit_code == 1
    assert done.stderr == "whet: failed: ZeroDivisionError: a bug (this is a fault of Whet's; --verbose shows where)\n"
    loud = whet("inspect", task.model, "--verbose")
    assert loud.exit_code == 1
    assert "Traceback" in loud.stderr
    assert "in broken" in loud.stderr


def test_a_full_disk_is_told(whet: Whet, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        import errno

        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("whet.device.files.os.replace", full)
    done = whet("apply", "float16", task.model, "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert "the disk is full" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_message_cannot_steer_the_terminal(whet: Whet) -> None:
    done = whet("inspect", "\x1b[2Jno.onnx")
    assert done.exit_code == 2
    assert "\x1b" not in done.stderr
