from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from tests.device.tiny_models import dense, graph_model, value

from whet.core.errors import Refused
from whet.device import memory as rooms
from whet.device.memory import disk_size, memory_use

AT = "2026-01-01T00:00:00Z"
MIB = 2**20


def saved(folder: Path, model: bytes, name: str = "model.onnx") -> Path:
    (folder / name).write_bytes(model)
    return folder / name


@pytest.mark.timing
def test_growth_follows_the_weights(tmp_path: Path) -> None:
    """2 and 34 MB of weights: the difference must show once at least, and no more than loading and repacking can make of it."""
    grown = []
    for layers in (1, 16):
        model = saved(tmp_path, dense(724, layers), f"{layers}.onnx")
        peak, growth = memory_use(model, feeds={"x": np.ones((1, 724), np.float32)}, threads=1, at=AT)
        assert (peak.name, growth.name) == ("peak_rss_bytes", "model_rss_bytes")
        assert (peak.at, peak.n, peak.unit) == (AT, 1, " B")
        assert peak.value is not None
        assert growth.value is not None
        assert 20 * MIB < peak.value - growth.value < 300 * MIB  # the interpreter with numpy and onnxruntime
        grown.append(growth.value)
    assert 30 * MIB < grown[1] - grown[0] < 130 * MIB


@pytest.mark.timing
def test_activations_count(tmp_path: Path) -> None:
    model = saved(tmp_path, dense(64, 2))
    small, large = (memory_use(model, feeds={"x": np.ones((rows, 64), np.float32)})[1].value or 0 for rows in (1, 100_000))
    assert large - small > 40 * MIB  # the feed alone has 25.6 MB, and a hidden layer as much


def test_ugly_input_names_and_relative_paths_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx import helper

    name = "serving/default input:0 ä'\""
    saved(tmp_path, graph_model([helper.make_node("Relu", [name], ["y"])], [value(name, [2])], [value("y", [2])]))
    (tmp_path / "numpy.py").write_text("raise RuntimeError('the folder that we stand in was imported')")
    monkeypatch.chdir(tmp_path)
    found = memory_use(Path("model.onnx"), feeds={name: np.ones(2, np.float32)})[0]
    assert found.value, found.why


def test_a_model_that_does_not_load_says_why(tmp_path: Path) -> None:
    model = saved(tmp_path, b"no model")
    for found in memory_use(model, feeds={}):
        assert found.value is None
        assert "not an ONNX model" in found.why


def test_feeds_that_do_not_fit_say_why(tmp_path: Path) -> None:
    found = memory_use(saved(tmp_path, dense()), feeds={"q": np.ones(1)})[0]
    assert found.value is None
    assert "no value for 'x'" in found.why


@pytest.mark.parametrize(("script", "why"), [
    ("import os; os.kill(os.getpid(), 9)", "killed by signal 9 (out of memory?)"),
    ("import os; os.abort()", "killed by signal 6"),
    ("raise SystemExit('no room')", "ended with code 1: no room"),
    ("pass", "ended with code 0: nothing was printed"),
    ("print([1])", "no figures"),
    ("while True: pass", "stopped after 0.3 s"),
])
def test_a_process_that_fails_gives_no_value_and_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str) -> None:
    real = subprocess.run
    monkeypatch.setattr(rooms.subprocess, "run", lambda command, **kwargs: real([sys.executable, "-S", "-c", script], **kwargs))
    begin = perf_counter()
    found = memory_use(saved(tmp_path, dense()), feeds={}, timeout_s=0.3 if "while" in script else 60)[0]
    assert perf_counter() - begin < 8
    assert found.value is None
    assert why in found.why


def test_a_process_that_cannot_start_gives_no_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(rooms.subprocess, "run", full)
    assert "no more processes" in memory_use(saved(tmp_path, dense()), feeds={})[0].why


def test_no_temporary_files_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(rooms.tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(rooms, "_fresh_process", lambda *_: {"why": "not today"})
    memory_use(saved(tmp_path, dense()), feeds={})
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"gone\.onnx"):
        memory_use(tmp_path / "gone.onnx", feeds={})


def test_disk_size_adds_up(tmp_path: Path) -> None:
    paths = [saved(tmp_path, b"x" * size, str(size)) for size in (0, 3, 5000)]
    found = disk_size(paths, at=AT)
    assert (found.name, found.value, found.unit, found.n, found.at) == ("size_bytes", 5003, " B", 3, AT)
    with pytest.raises(Refused, match="no such file"):
        disk_size([*paths, tmp_path / "gone"])
