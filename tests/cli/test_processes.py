"""What only shows in a process of its own: quick starts, Ctrl-C, a reader that goes away, a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from tests.cli.conftest import Task

SOURCE = Path(__file__).resolve().parents[2] / "src"
HEAVY = ("torch", "onnx", "onnx_ir", "onnxscript", "scipy", "sklearn", "pyarrow", "matplotlib", "transformers", "PIL")


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "whet", *map(str, words)]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SOURCE), **more}


def whet(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, env=environment(**more), timeout=120, check=False)


@pytest.mark.parametrize("line", ["--help", "--version", "optimize --help", "targets", "techniques", "apply static --help"])
def test_what_needs_no_model_loads_nothing_heavy(line: str) -> None:
    code = ("import json, sys\nfrom whet.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
            f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))")  # fmt: skip
    words = [sys.executable, "-c", code, *line.split()]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_the_help_alone_does_without_rich_and_numpy() -> None:
    code = ("import sys\nfrom whet.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
            "assert not {'rich', 'numpy'} & set(sys.modules)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_finished_and_the_same_command_goes_on(task: Task, tmp_path: Path) -> None:
    """The metric presses Ctrl-C when it is asked about a candidate while two others are finished."""
    metric = tmp_path / "metric.py"
    metric.write_text(
        "import glob, os, signal\n"
        "def right(outputs, labels):\n"
        "    if 'STOP' in os.environ and len(glob.glob(os.environ['STOP'] + '/trials/*/trial.json')) == 2:\n"
        "        signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return outputs.argmax(1) == labels\n"
    )
    out = tmp_path / "out"
    words = ["optimize", task.model, "--data", task.data, "--calibration", task.calibration, "--metric", f"{metric}:right",
             "--target", "pi5", "--minimize", "size", "--max-drop", "5%", "-o", out]  # fmt: skip
    stopped = whet(*words, STOP=str(out))
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr.splitlines() == [
        f"whet: stopped; 2 finished candidates kept in {out / 'trials'}, and the same command goes on from there"
    ]
    kept = {path: path.stat().st_mtime_ns for path in out.glob("trials/*/trial.json")}
    assert len(kept) == 2
    assert [path.name for path in out.iterdir()] == ["trials"]
    assert list(out.rglob(".*")) == []
    again = whet(*words)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (out / "best" / "whet.json").is_file()
    assert (out / "report.html").is_file()


def test_ctrl_c_before_anything_is_written(task: Task, tmp_path: Path) -> None:
    code = ("import sys, whet.compress.apply as place\nfrom whet.cli import main\n"
            "def stop(*_, **__):\n    raise KeyboardInterrupt\nplace.write_artifact = stop\nmain(sys.argv[1:])")  # fmt: skip
    words = [sys.executable, "-c", code, "apply", "float16", str(task.model), "-o", str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130, "whet: stopped; nothing was written\n")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_went_away_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    words = command("techniques")
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, env=environment(), timeout=60, check=False)
    os.close(write)
    assert done.stderr == ""


def on_terminal(words: list[str], columns: int, **more: str) -> str:
    """What a terminal of that width is sent."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = {name: value for name, value in environment(TERM="xterm-256color", **more).items() if name not in ("COLUMNS", "LINES")}
    child = subprocess.Popen(words, stdin=follower, stdout=follower, stderr=follower, env=env)
    os.close(follower)
    shown = b""
    try:
        while block := os.read(leader, 65536):
            shown += block
    except OSError:  # Linux: the other end was closed
        pass
    os.close(leader)
    assert child.wait(60) == 0, shown
    return shown.decode()


def bare(shown: str) -> list[str]:
    import re

    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "").splitlines()


def test_a_terminal_gets_tables_of_its_width_with_colours() -> None:
    shown = on_terminal(command("techniques"), 80)
    assert "\x1b[1m" in shown
    assert max(map(len, bare(shown))) <= 80
    assert any("…" in line for line in bare(shown))


def test_no_color_is_honoured() -> None:
    code = "from whet.cli.screen import Screen; Screen().line('all is red', 'red')"
    assert "\x1b[31m" in on_terminal([sys.executable, "-c", code], 80)
    assert "\x1b[31m" not in on_terminal([sys.executable, "-c", code], 80, NO_COLOR="1")


def test_progress_goes_to_a_terminal_and_not_into_a_pipe(task: Task, tmp_path: Path) -> None:
    words = ["apply", "static", task.model, "--calibration", task.calibration]
    assert "calibrating" in on_terminal(command(*words, "-o", tmp_path / "a"), 80)
    assert "calibrating" not in on_terminal(command(*words, "-o", tmp_path / "b", "--quiet"), 80)
    piped = whet(*words, "-o", tmp_path / "c")
    assert (piped.returncode, piped.stderr) == (0, "")
