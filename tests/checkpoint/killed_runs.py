"""``python killed_runs.py request.json``: runs of ``whet.apply`` that are killed at the n-th thing they ask of the disk, and gone on with.

Each run is a fork of one process that has imported everything, so that a hundred of them take seconds. Prints, as JSON, what an unbroken
run asks of the disk, and of each broken one whether it was killed, how many blocks its journal had, and whether the result is the same.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from whet.compress.apply import apply
from whet.compress.checkpoint import open_checkpoint
from whet.compress.checkpoint.skeleton import Skeleton
from whet.core.document import FrozenMap
from whet.core.recipe import Recipe, Step
from whet.device.targets import target

CALLS = ("pwrite", "replace", "fsync", "unlink")


def in_a_fork(work: Callable[[], None]) -> int:
    """Its exit status, negative where a signal ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(last: int, count_in: Path) -> None:
    """From now on this process ends with its ``last``-th call; half of what that one wanted to write is written."""
    lock, count = threading.Lock(), 0

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def asked(*given: Any, **named: Any) -> Any:
            nonlocal count
            with lock:
                count += 1
                count_in.write_text(str(count))
                if count == last:
                    if name == "pwrite":
                        call(given[0], bytes(given[1])[: len(bytes(given[1])) // 2], given[2])
                    os.kill(os.getpid(), signal.SIGKILL)
            return call(*given, **named)

        return asked

    for name in CALLS:
        setattr(os, name, watched(name, getattr(os, name)))


def main(request: dict[str, Any]) -> dict[str, Any]:
    folder = Path(request["folder"])
    recipe = Recipe(tuple(Step(name, tuple(layers) or ("*",), (), FrozenMap(options)) for name, options, *layers in request["steps"]))

    Skeleton(open_checkpoint(request["model"]))  # so that transformers' code of the model is imported before the forks

    def run(out: Path, last: int) -> int:
        def work() -> None:
            if last:
                killed_at(last, folder / "count")
            apply(request["model"], recipe, calibration=request["calibration"], target=target("x86-vnni"), out=out)

        return in_a_fork(work)

    assert run(folder / "whole", 1 << 30) == 0
    calls, wanted = int((folder / "count").read_text()), files_of(folder / "whole")
    broken = []
    for shares in request["kills"]:
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        ends, blocks = [], []
        for share in shares:
            ends.append(run(out, 1 + round(share * (calls - 1))))
            journal = folder / ".out.whet-part" / "journal.json"
            blocks.append(json.loads(journal.read_text())["done"] if journal.is_file() else -1)
        finished = run(out, 0)
        same = finished == 0 and files_of(out) == wanted
        broken.append({"ends": ends, "blocks": blocks, "same": same, "left": (folder / ".out.whet-part").exists()})
    return {"calls": calls, "broken": broken}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))) + "\n")
