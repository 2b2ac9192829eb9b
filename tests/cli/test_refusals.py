"""Whatever is wrong with what was given: code 2, a message that says what, no traceback, and nothing half-written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.cli.conftest import Task, Whet

DIFFERENT = np.random.default_rng(0).standard_normal((8, 1, 8, 8), dtype=np.float32)
NAN = np.full((8, 1, 8, 8), np.nan, np.float32)
NUMBERS = np.arange(8)

# What the words in capitals stand for: a path, made when a case needs it.
PLACES: dict[str, Callable[[Task, Path], object]] = {
    "MODEL": lambda task, _: task.model,
    "DATA": lambda task, _: task.data,
    "OUT": lambda _, tmp: tmp / "out",
    "NOTHING": lambda _, tmp: tmp / "nothing",
    "CUT": lambda task, tmp: written(tmp / "cut.onnx", task.model.read_bytes()[:1000]),
    "OTHER": lambda task, tmp: other_input(task, tmp / "other.onnx"),
    "LONG": lambda _, tmp: "x" * 5000,
    "NANS": lambda _, tmp: data(tmp / "nans.npz", x=NAN, labels=NUMBERS),
    "EMPTY": lambda _, tmp: data(tmp / "empty.npz", x=DIFFERENT[:0], labels=NUMBERS[:0]),
    "SHORT": lambda _, tmp: data(tmp / "short.npz", x=DIFFERENT, labels=NUMBERS[:5]),
    "FLAT": lambda _, tmp: data(tmp / "flat.npz", x=DIFFERENT[:, 0, 0], labels=NUMBERS),
    "UNLABELLED": lambda _, tmp: data(tmp / "unlabelled.npz", x=DIFFERENT),
    "FILE": lambda _, tmp: written(tmp / "file", b"mine"),
    "BELOW": lambda _, tmp: written(tmp / "file", b"mine") / "out",
    "THEIRS": lambda _, tmp: written(tmp / "out" / "best" / "novel.txt", b"chapter one").parents[1],
    "RECIPE": lambda _, tmp: written(tmp / "r.toml", b'[[step]]\napply = "float16"\nto = ["nothing*"]\n'),
    "NO_TOML": lambda _, tmp: written(tmp / "r.toml", b"]"),
    "NO_REPORT": lambda _, tmp: written(tmp / "report.json", b"{}"),
}
CASES = [
    ("inspect NOTHING", "no such file"),
    ("inspect CUT", "cut off"),
    ("inspect LONG", "name too long"),
    ("inspect MODEL --weights MODEL", "package.module:callable"),
    ("inspect no.such.module:net --input-shape 1,2", "no module"),
    ("optimize NOTHING --data DATA -o OUT", "no such file"),
    ("optimize CUT --data DATA -o OUT", "cut off"),
    ("optimize MODEL --data NOTHING -o OUT", "no such file"),
    ("optimize MODEL --data NANS -o OUT", "nan"),
    ("optimize MODEL --data EMPTY -o OUT", "empty"),
    ("optimize MODEL --data SHORT -o OUT", "5 labels for 8 samples"),
    ("optimize MODEL --data FLAT -o OUT", "shape"),
    ("optimize MODEL --data UNLABELLED --metric accuracy --target pi5 -o OUT", "label"),
    ("optimize MODEL --data DATA --calibration DATA -o OUT", "also in the calibration data"),
    ("optimize MODEL --data DATA --metric beauty -o OUT", "there are accuracy"),
    ("optimize MODEL --data DATA --target toaster -o OUT", "there are host"),
    ("optimize MODEL --data DATA --minimize regret -o OUT", "is not one of"),
    ("optimize MODEL --data DATA --max-drop 5 -o OUT", "write 5% for 0.05"),
    ("optimize MODEL --data DATA --max-latency 20 -o OUT", "write 20ms"),
    ("optimize MODEL --data DATA --confidence 95 --target pi5 -o OUT", "between 0.5 and 1"),
    ("optimize MODEL --data DATA -o FILE", "a file of that name"),
    ("optimize MODEL --data DATA -o BELOW", "is a file and not a directory"),
    ("optimize MODEL --data DATA -o THEIRS", "not what whet wrote"),
    ("apply float16 MODEL -o FILE", "a file of that name"),
    ("apply float16 MODEL -o BELOW", "is a file and not a directory"),
    ("apply float16 MODEL -o /proc/whet/out", "/proc"),
    ("apply static MODEL -o OUT", "--calibration"),
    ("apply static MODEL --calibration NANS -o OUT", "nan"),
    ("apply --recipe RECIPE MODEL -o OUT", "matches no layer"),
    ("plan MODEL --recipe RECIPE", "matches no layer"),
    ("plan MODEL --recipe NO_TOML", "not valid toml"),
    ("plan MODEL --recipe NOTHING", "no such file"),
    ("compare MODEL OTHER", "one takes x, the other z"),
    ("compare MODEL MODEL --max-drop 1%", "--max-drop needs --data"),
    ("compare MODEL MODEL --data DATA --metric beauty", "there are accuracy"),
    ("export MODEL -o BELOW.onnx", "is a file and not a directory"),
    ("export MODEL -o OUT.tflite", ".onnx"),
    ("report NOTHING", "no such file"),
    ("report NO_REPORT", "is missing"),
    ("targets toaster", "there are host"),
    ("techniques alchemy", "use one of: adaround"),
]


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def data(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def other_input(task: Task, path: Path) -> Path:
    model = onnx.load(task.model)
    model.graph.input[0].name = model.graph.node[0].input[0] = "z"
    onnx.save(model, path)
    return path


def files(folder: Path) -> dict[Path, bytes | None]:
    """Everything in a folder: None for a folder, else the content."""
    return {path: None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize(("line", "said"), CASES)
def test_bad_input_ends_with_two_and_a_message(whet: Whet, task: Task, tmp_path: Path, line: str, said: str) -> None:
    words = [re.sub("^[A-Z_]+", lambda found: str(PLACES[found[0]](task, tmp_path)), word) for word in line.split()]
    before = files(tmp_path)
    done = whet(*words)
    assert done.exit_code == 2, done.output
    assert said in " ".join(done.stderr.split()).lower()
    assert "Traceback" not in done.output
    assert done.stdout == ""
    assert len(done.stderr) < 2000
    assert files(tmp_path) == before


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
