"""A model that is really good at a made-up task, its data, and the command ``whet`` in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from whet.device.machine import usable_cores
from whet.device.machine_limits import MachineLimits

CLASSES, SIDE = 10, 8


@dataclass(frozen=True)
class Task:
    """A folder with model.onnx (input x [N, 1, 8, 8], output y [N, 10], 150 kB), eval.npz (400 samples, labels) and calib.npz (60)."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def data(self) -> Path:
        return self.folder / "eval.npz"

    @property
    def calibration(self) -> Path:
        return self.folder / "calib.npz"


Whet = Callable[..., Result]


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Ten patterns in noise; two random layers, and a third one that is solved for: nearly always right, and no training."""
    found, generator = Task(tmp_path_factory.mktemp("task")), np.random.default_rng(0)
    patterns = generator.standard_normal((CLASSES, 1, SIDE, SIDE), dtype=np.float32)
    sets = {}
    for name, count in (("train", 600), ("eval", 400), ("calib", 60)):
        labels = generator.integers(0, CLASSES, count)
        sets[name] = patterns[labels] + 0.3 * generator.standard_normal((count, 1, SIDE, SIDE), dtype=np.float32), labels
    sizes = (((16, 1, 3, 3), 3), ((64, 1024), 32))
    weights = [generator.standard_normal(shape, dtype=np.float32) / np.float32(scale) for shape, scale in sizes]
    hidden = _hidden(sets["train"][0], *weights)
    answers = np.linalg.lstsq(np.c_[hidden, np.ones(len(hidden))], np.eye(CLASSES)[sets["train"][1]], rcond=None)[0].astype(np.float32)
    onnx.save(_model([*weights, answers[:-1].T.copy(), answers[-1]]), found.model)
    np.savez(found.data, x=sets["eval"][0], labels=sets["eval"][1])
    np.savez(found.calibration, x=sets["calib"][0])
    return found


def _hidden(x: np.ndarray, kernel: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[n, 64]: what comes out of the second layer."""
    padded = np.pad(x[:, 0], ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))  # [n, 8, 8, 3, 3]
    first = np.maximum(np.einsum("nabij,cij->ncab", windows, kernel[:, 0]), 0).reshape(len(x), -1)
    return np.maximum(first @ second.T, 0)


def _model(weights: list[np.ndarray]) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "W0"], ["a"], name="first/conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="first/relu"),
        helper.make_node("Flatten", ["b"], ["c"], name="flatten"),
        helper.make_node("Gemm", ["c", "W1"], ["d"], name="second/product", transB=1),
        helper.make_node("Relu", ["d"], ["e"], name="second/relu"),
        helper.make_node("Gemm", ["e", "W2", "W3"], ["y"], name="answers", transB=1),
    ]
    shapes = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, SIDE, SIDE]),
              helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES])]  # fmt: skip
    stored = [numpy_helper.from_array(each, f"W{at}") for at, each in enumerate(weights)]
    graph = helper.make_graph(nodes, "g", shapes[:1], shapes[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def whet(monkeypatch: pytest.MonkeyPatch) -> Whet:
    """The command, in this process; on a machine whose limits are known, for measuring them takes seconds."""

    def limits(*, threads: int | None = None) -> MachineLimits:
        return MachineLimits(5e10, 2e11, 3e10, threads or usable_cores(), "f", "d", onnxruntime="o", at="2026-11-01T00:00:00Z")

    monkeypatch.setattr("whet.device.machine_limits.machine_limits", limits)
    monkeypatch.setattr("whet.compress.measure.machine_limits", limits)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words: object) -> Result:
        from whet.cli import main

        return CliRunner().invoke(main, [str(word) for word in words], prog_name="whet")

    return run


@pytest.fixture(scope="session")
def optimised(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``whet optimize`` wrote. For a target elsewhere, so that only quality and size are measured, which takes a second."""
    from whet.cli import main

    out = tmp_path_factory.mktemp("optimised") / "out"
    words = ["optimize", task.model, "--data", task.data, "--calibration", task.calibration, "--target", "pi5", "--minimize", "size",
             "--max-drop", "5%", "--quiet", "-o", out]  # fmt: skip
    done = CliRunner().invoke(main, [*map(str, words)])
    assert done.exit_code == 0, done.output
    return out
