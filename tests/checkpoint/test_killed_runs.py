"""kill -9, whenever it comes, costs at most a block: who asks again gets what an unbroken run writes, byte for byte."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoint import killed_runs
from tests.checkpoint.conftest import Models
from tests.checkpoint.made_up_models import files_of, made_up, saved_tokens

import whet

# Name of a technique, its options, and the layers, where not all that it takes by itself.
Steps = list[tuple[Any, ...]]
RECIPES: dict[str, Steps] = {
    "rtn": [("rtn", {"bits": 3, "block": 16})],
    "gptq": [("gptq", {"bits": 4, "block": 16, "enough": 0.0})],
    "awq then gptq": [("awq", {"block": 16}), ("gptq", {"block": 16, "enough": 0.0})],
    "smoothquant then rtn": [("smoothquant", {}), ("rtn", {"bits": 8, "activations": 8})],
    "gptq behind a rounded table": [("rtn", {"bits": 3}, "op:Embedding", "op:Head"), ("gptq", {"bits": 4, "block": 16, "enough": 0.0})],
}
# The same whet as here, which may be a copy under test.
PATH = os.pathsep.join([str(Path(whet.__path__[0]).parent), *filter(None, [os.environ.get("PYTHONPATH")])])


def killed(model: Path, folder: Path, steps: Steps, kills: list[tuple[float, ...]]) -> dict[str, Any]:
    calibration = None if {step[0] for step in steps} == {"rtn"} else str(saved_tokens(folder))
    request = {"model": str(model), "folder": str(folder), "steps": steps, "calibration": calibration, "kills": kills}
    (folder / "request.json").write_text(json.dumps(request))
    done = subprocess.run([sys.executable, killed_runs.__file__, folder / "request.json"], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def all_went_on(found: dict[str, Any]) -> None:
    assert [each["same"] for each in found["broken"]] == [True] * len(found["broken"])
    assert not any(each["left"] for each in found["broken"])
    assert {end for each in found["broken"] for end in each["ends"]} <= {-signal.SIGKILL, 0}
    assert all(each["ends"][0] == -signal.SIGKILL for each in found["broken"])


@pytest.mark.parametrize("name", ["rtn", pytest.param("gptq", marks=pytest.mark.slow),
                                  pytest.param("smoothquant then rtn", marks=pytest.mark.slow)])
def test_runs_that_are_killed_are_gone_on_with(models: Models, tmp_path: Path, name: str) -> None:
    kills: list[tuple[float, ...]] = [(0.0,), (0.3,), (0.45,), (0.6, 0.1), (0.75,), (0.97,), (1.0,)]
    found = killed(models("llama"), tmp_path, RECIPES[name], kills)
    all_went_on(found)
    assert {each["blocks"][0] for each in found["broken"]} >= {1, 2}  # some were killed with blocks behind them


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("rtn", "qwen3"), ("gptq", "gpt2"), ("awq then gptq", "qwen3"),
                                            ("smoothquant then rtn", "gemma"),
                                            ("gptq behind a rounded table", "llama")])
def test_a_kill_anywhere_is_survived(models: Models, tmp_path: Path, name: str, kind: str) -> None:
    number = random.Random(1)
    kills: list[tuple[float, ...]] = [(at / 40,) for at in range(41)]
    kills += [tuple(number.random() for _ in range(3)) for _ in range(8)]
    all_went_on(killed(models(kind), tmp_path, RECIPES[name], kills))


@pytest.mark.slow
def test_killed_from_outside_while_it_works(tmp_path: Path) -> None:
    """A process that rounds a model of twelve blocks is watched through its journal and killed in the middle of the next one."""
    model = made_up(tmp_path / "model", "llama", num_hidden_layers=12, hidden_size=128, intermediate_size=344)
    calibration, out = saved_tokens(tmp_path, 64, 64), tmp_path / "out"
    words = [sys.executable, "-m", "whet.cli", "apply", "gptq", model, "--calibration", calibration, "--bits", "4", "--group", "32"]
    command = [sys.executable, "-c", "from whet.cli import main; main()", *map(str, words[3:])]
    environment = {**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"}
    journal = tmp_path / ".out.whet-part" / "journal.json"

    def blocks() -> int:
        try:
            return int(json.loads(journal.read_text())["done"])
        except (OSError, ValueError, KeyError):
            return 0

    seen = []
    for least in (2, 5, 8):
        with subprocess.Popen([*command, "-o", str(out)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            end = time.monotonic() + 120
            while blocks() < least and process.poll() is None and time.monotonic() < end:
                time.sleep(0.005)
            process.kill()
        seen.append(blocks())
        assert not out.exists()
    assert seen == sorted(seen)
    assert 2 <= seen[0] < seen[-1] < 12
    for place in (out, tmp_path / "whole"):
        subprocess.run([*command, "-o", str(place)], env=environment, check=True, capture_output=True)
    assert files_of(out) == files_of(tmp_path / "whole")
