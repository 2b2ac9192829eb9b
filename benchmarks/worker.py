"""One quantiser in a process of its own, so that its time and its peak memory are its own. ``ptq.py`` starts it in each peer's environment:

    python -P benchmarks/worker.py PEER MODEL.onnx CALIBRATION.npz OUT.onnx OPTIONS     OPTIONS: JSON, keywords of the peer's ``prepare``

PEER is a file of ``benchmarks/peers``. (It is loaded by its path and -P keeps this folder off the search path: ``peers/nncf.py`` must not
hide the package nncf.) Its ``prepare`` imports what it needs and gives back the work to be timed, from a model's path and arrays in
memory to a written file. The last line of the output is JSON:

    seconds             of the work, without imports: those that a library puts off until then are timed and taken off, for all alike
    import_s            of all imports; late_import_s: of those that happened during the work (their memory counts as the work's)
    peak_bytes          the most resident memory of the whole process during the work (VmHWM)
    before_bytes        what was resident when the work began: libraries, calibration samples

and whatever the work itself gives back: session_options (onnxruntime's, where the written model needs some), note, size_bytes.

Needs the standard library and numpy only.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

import numpy as np

importing: Any = importlib._bootstrap  # CPython's own import, in Python
PEERS = Path(__file__).resolve().parent / "peers"
MOST_SAMPLES = 300


def main() -> None:
    peer, model, calibration, out = sys.argv[1:5]
    with np.load(calibration) as arrays:
        samples = {name: arrays[name][:MOST_SAMPLES] for name in arrays.files}
    with timed_imports() as imports:
        work = loaded(PEERS / f"{peer}.py").prepare(Path(model), samples, Path(out), **json.loads(sys.argv[5]))
        early_s = imports()
        reset_peak()
        before, began = resident("VmRSS"), perf_counter()
        extra = work()
        late_s = imports() - early_s
        seconds = perf_counter() - began - late_s
        found = {"seconds": seconds, "import_s": early_s + late_s, "late_import_s": late_s, "peak_bytes": resident("VmHWM"),
                 "before_bytes": before}
    print("\n" + json.dumps({**found, **(extra or {})}), flush=True)


def loaded(file: Path) -> ModuleType:
    """The module in ``file``, under a name that no package has."""
    spec = importlib.util.spec_from_file_location(f"whet_benchmark_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def timed_imports() -> Iterator[Callable[[], float]]:
    """Inside, a function that says how many seconds went into importing so far.

    CPython looks up ``_find_and_load`` there for each import of a module that is not loaded yet, statements and
    ``importlib.import_module`` alike; nested imports count once.
    """
    original, depth, total = importing._find_and_load, 0, 0.0

    def timed(*arguments: Any) -> Any:
        nonlocal depth, total
        began, depth = perf_counter(), depth + 1
        try:
            return original(*arguments)
        finally:
            depth -= 1
            total += 0.0 if depth else perf_counter() - began

    importing._find_and_load = timed
    try:
        yield lambda: total
    finally:
        importing._find_and_load = original


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (most since ``reset_peak``), bytes. ``getrusage`` would tell the parent's peak, which a child inherits."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{field}:"))


def reset_peak() -> None:
    """Set the high-water mark back to what is resident now (proc(5), clear_refs: 5)."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
