"""The floor: the float model's forward passes over the calibration samples in onnxruntime, one by one in one session. Writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np


def prepare(model: Path, samples: dict[str, np.ndarray], out: Path) -> Callable[[], dict[str, int]]:
    import onnxruntime

    def work() -> dict[str, int]:
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        for at in range(len(next(iter(samples.values())))):
            session.run(None, {name: values[at : at + 1] for name, values in samples.items()})
        return {"size_bytes": model.stat().st_size}

    return work
