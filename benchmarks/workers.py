"""Running ``worker.py`` in a peer's environment, and what came of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
REPEATED_BELOW_S = 2.0
ENDING = re.compile(r"^[\w.]*(Error|Exception|Refused|Unsupported|Exit)\b.*")


@dataclass(frozen=True)
class Way:
    """One way of quantising: the environment ("" is Whet's own), the file in ``peers`` and its keywords.

    calibrates: on the samples that are given; only those are compared in time and memory. slow: left out for large graphs.
    labels: it needs labelled data.
    """

    environment: str
    peer: str
    options: Mapping[str, Any] = field(default_factory=dict)
    calibrates: bool = True
    slow: bool = False
    labels: bool = False


@dataclass(frozen=True)
class Made:
    """A model file and what it cost, or why there is none (``failure``)."""

    way: Way
    file: Path
    failure: str = ""
    seconds: float = float("nan")
    import_s: float = float("nan")
    peak_bytes: int = 0
    before_bytes: int = 0
    size_bytes: int = 0
    session_options: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def added_bytes(self) -> int:
        """What the work's peak added to the imported libraries and the calibration samples."""
        return self.peak_bytes - self.before_bytes


def made(way: Way, model: Path, calibration: Path, folder: Path, pythons: Mapping[str, Path | str], timeout_s: float, repeats: int) -> Made:
    """The fastest of ``repeats`` runs, or of one where that takes long enough to be told from noise."""
    python, file = pythons[way.environment], folder / "model.onnx"
    if isinstance(python, str):
        return Made(way, file, failure=python)
    folder.mkdir(exist_ok=True)
    best: dict[str, Any] | None = None
    for _ in range(repeats):
        found = once(way, python, model, calibration, file, timeout_s)
        if isinstance(found, str):
            return Made(way, file, failure=found)
        if best is None or found["seconds"] < best["seconds"]:
            best = found
        if found["seconds"] > REPEATED_BELOW_S:
            break
    assert best is not None
    size = best.get("size_bytes") or size_bytes(file)
    return Made(way, file, "", best["seconds"], best["import_s"], best["peak_bytes"], best["before_bytes"], size,
                best.get("session_options", {}), best.get("note", ""))


def once(way: Way, python: Path, model: Path, calibration: Path, file: Path, timeout_s: float) -> dict[str, Any] | str:
    """The worker's figures, or why there are none."""
    command = [str(python), "-P", str(ROOT / "worker.py"), way.peer, str(model), str(calibration), str(file), json.dumps(dict(way.options))]
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    try:  # in the folder of its own: some peers leave logs and workspaces where they run
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=file.parent, env=own)
    except subprocess.TimeoutExpired:
        return f"took more than {timeout_s:g} s"
    for line in reversed(done.stdout.splitlines()):
        if line.startswith('{"seconds"'):
            return dict(json.loads(line))
    return reason(done.returncode, done.stderr)


def reason(code: int, errors: str) -> str:
    """The exception's line, or else the last one."""
    if code < 0:
        return f"ended by signal {-code}{' (out of memory?)' if code == -9 else ''}"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    named = [line for line in lines if ENDING.match(line)]
    text = (named or lines or ["failed without a word"])[-1]
    return text if len(text) <= 240 else text[:240] + "..."


def size_bytes(file: Path) -> int:
    """Of the model with the files beside it that hold its weights."""
    import onnx

    if not file.is_file():
        return 0
    tensors = onnx.load(file, load_external_data=False).graph.initializer
    beside = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return sum(each.stat().st_size for each in (file, *(file.parent / name for name in beside)))
