"""Memory and disk: peak resident memory of a model, measured in a fresh process that does nothing else, and bytes of files.

``python -m whet.device.memory request.json`` is that process: it loads, runs and prints two numbers as JSON.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import whet
from whet.core.errors import Refused, WhetError
from whet.core.measurement import Measurement
from whet.device.machine import Stamp, stamp
from whet.device.session import Array, open_session, run

_CPU = ("CPUExecutionProvider",)


def memory_use(
    model: Path,
    *,
    feeds: Mapping[str, Array],
    threads: int | None = None,
    options: Mapping[str, str] | None = None,
    providers: Sequence[str] = _CPU,
    runs: int = 3,
    timeout_s: float = 300.0,
    at: str | None = None,
) -> tuple[Measurement, Measurement]:
    """("peak_rss_bytes", "model_rss_bytes"): the whole process, and its growth over Python with numpy and onnxruntime imported.

    Both hold the session, its weights (repacked for the kernels too), the activations and the feeds. A process that crashes, is
    killed or outlasts ``timeout_s`` gives measurements without a value that say why; only a missing file is Refused.
    """
    if not Path(model).is_file():
        raise Refused(f"measure the memory of {model}", found="there is no such file", do="give the path of an .onnx file")
    where = stamp(at)
    with tempfile.TemporaryDirectory(prefix="whet-memory-") as folder:
        arrays, request = Path(folder, "feeds.npz"), Path(folder, "request.json")
        # Input names may hold any character, which names inside an .npz may not: the arrays go by number.
        np.savez(arrays, **{str(at): np.asarray(value) for at, value in enumerate(feeds.values())})  # type: ignore[arg-type]
        request.write_text(json.dumps({
            "model": str(model), "feeds": str(arrays), "names": list(feeds), "threads": threads,
            "options": dict(options or {}), "providers": list(providers), "runs": runs,
        }))  # fmt: skip
        found = _fresh_process(request, timeout_s)
    method = f"high-water mark of a fresh process: load, then {runs} inferences"
    return (
        _measurement("peak_rss_bytes", found, "peak", method, where),
        _measurement("model_rss_bytes", found, "growth", f"{method}; less the interpreter with numpy and onnxruntime", where),
    )


def disk_size(paths: Iterable[Path], *, at: str | None = None) -> Measurement:
    """``size_bytes``: bytes of all files together, as the file system says (not its blocks). Refused where one is missing."""
    files = [Path(path) for path in paths]
    missing = next((path for path in files if not path.is_file()), None)
    if missing is not None:
        raise Refused(f"measure the size of {missing}", found="there is no such file", do="give the files of one model")
    where = stamp(at)
    return Measurement(
        "size_bytes", float(sum(path.stat().st_size for path in files)), unit=" B", n=len(files), device=where.device, at=where.at,
        method="bytes of the model's files",
    )  # fmt: skip


def _fresh_process(request: Path, timeout_s: float) -> dict[str, Any]:
    """{"peak", "growth", "source"} or {"why"}."""
    # The same whet as here, however it came onto the path; -P keeps the working folder's files from being imported instead.
    path = os.pathsep.join(filter(None, [str(Path(whet.__path__[0]).parent), os.environ.get("PYTHONPATH")]))
    command, env = [sys.executable, "-P", "-m", "whet.device.memory", str(request)], {**os.environ, "PYTHONPATH": path}
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return {"why": f"the process was stopped after {timeout_s:g} s"}
    except OSError as error:
        return {"why": f"a fresh process could not be started ({error})"}
    if done.returncode < 0:
        return {"why": f"the process was killed by signal {-done.returncode}" + (" (out of memory?)" if done.returncode == -9 else "")}
    try:
        found = json.loads(done.stdout.splitlines()[-1])
        return found if isinstance(found, dict) else {"why": "the process printed no figures"}
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or ["nothing was printed"])[-1]
        return {"why": f"the process ended with code {done.returncode}: {last[:300]}"}


def _measurement(name: str, found: Mapping[str, Any], part: str, method: str, where: Stamp) -> Measurement:
    made = Measurement(name, None, unit=" B", device=where.device, at=where.at, method=method)
    if found.get(part) is None:
        return replace(made, why=str(found.get("why", "this system does not tell a process its peak memory")))
    return replace(made, value=float(found[part]), n=1, method=f"{method} ({found['source']})")


def _measured_here(request: Mapping[str, Any]) -> dict[str, Any]:
    """Runs in the fresh process. The high-water mark is set back after the imports, so that theirs cannot hide the model's."""
    before_peak, base = peak_bytes(), _resident_bytes()
    _reset_peak()
    with np.load(request["feeds"]) as arrays:
        feeds = {name: arrays[str(at)] for at, name in enumerate(request["names"])}
    session = open_session(
        request["model"], threads=request["threads"], options=request["options"], providers=tuple(request["providers"])
    )
    for _ in range(request["runs"]):
        run(session, feeds)
    peak = peak_bytes()
    if peak is None or before_peak is None:
        return {"why": "this system does not tell a process its peak memory"}
    start = before_peak if base is None else base
    source = "VmHWM" if base is not None else "getrusage, growth over the peak of the imports"
    return {"peak": max(peak, before_peak), "growth": max(0, peak - start), "source": source}


def peak_bytes() -> int | None:
    if (linux := _status_bytes("VmHWM")) is not None:
        return linux
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def _resident_bytes() -> int | None:
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _reset_peak() -> None:
    """Linux: writing 5 sets VmHWM back to the present (man proc_pid_clear_refs). Where it may not be, the peak stays an upper bound."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _main(request: str) -> None:
    try:
        found = _measured_here(json.loads(Path(request).read_text()))
    except WhetError as error:
        found = {"why": str(error)}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1])
