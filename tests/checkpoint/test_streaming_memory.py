"""Rounding streams: a process that rounds a checkpoint never holds it, whatever its size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.checkpoint.made_up_models import config_of, made_up
from tests.checkpoint.test_killed_runs import PATH

import whet as library
from whet.compress.checkpoint import open_checkpoint
from whet.compress.checkpoint.tensor_writer import Shape, TensorWriter, shards_of

pytestmark = [pytest.mark.slow, pytest.mark.timing]
WIDTH, INNER, BLOCKS = 1024, 2816, 16
RUN = """
import json, sys
from pathlib import Path
import torch, whet
from whet.compress import checkpoint
from whet.compress.checkpoint import apply
from whet.device.memory import _reset_peak, _status_bytes
torch.set_num_threads(1)
before = _status_bytes("VmRSS")
_reset_peak()
whet.apply(sys.argv[1], "rtn", options={"bits": 4, "group": 128}, target="x86-vnni", out=sys.argv[2])
print(json.dumps({"libraries": before, "peak": _status_bytes("VmHWM")}))
"""


def large(folder: Path) -> Path:
    """A Llama of 400 MB in float16, of random numbers."""
    made_up(folder, "llama", num_hidden_layers=1, attention_bias=False, mlp_bias=False)
    small = open_checkpoint(folder)
    sizes = {32: WIDTH, 44: INNER, 16: WIDTH // 2, 96: 8192}
    inside = [name for name in small.entries if ".layers.0." in name]
    names = [name for name in small.entries if name not in inside]
    names += [name.replace(".0.", f".{index}.", 1) for index in range(BLOCKS) for name in inside]
    shapes = [Shape(name, "F16", tuple(sizes[size] for size in small.entries[_first(name)][1].shape)) for name in names]
    config = {**config_of(folder), "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": BLOCKS, "vocab_size": 8192,
              "head_dim": WIDTH // 4}
    (folder / "model.safetensors").unlink()
    with TensorWriter(folder, shards_of(shapes)) as writer:
        for shape in shapes:
            writer.write(shape.name, torch.randn(shape.shape).half())
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _first(name: str) -> str:
    """The tensor of the first block in the place of that of another one."""
    parts = name.split(".")
    return ".".join("0" if part.isdigit() else part for part in parts)


def test_the_peak_of_rounding_is_a_few_layers(tmp_path: Path) -> None:
    folder = large(tmp_path / "model")
    size = (folder / "model.safetensors").stat().st_size
    assert size > 380_000_000
    done = subprocess.run([sys.executable, "-c", RUN, folder, tmp_path / "out"], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": PATH})
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    growth = found["peak"] - found["libraries"]
    assert growth < size / 2, f"{growth / 1e6:.0f} MB more than the libraries take, for a checkpoint of {size / 1e6:.0f} MB"
    costs = {each.name: each.value for each in library.plan(str(folder), "rtn", options={"bits": 4, "group": 128}).costs}
    assert abs(costs["working_bytes"] / found["peak"] - 1) < 0.1
    made = open_checkpoint(tmp_path / "out")
    assert len(made.layouts) == 7 * BLOCKS
