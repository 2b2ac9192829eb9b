"""NNCF (Intel, OpenVINO): ``nncf.quantize`` on an ONNX model; fast bias correction is on by default."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np


def prepare(model: Path, samples: dict[str, np.ndarray], out: Path, *, preset: str = "performance",
            fast_bias_correction: bool = True) -> Callable[[], None]:
    """preset: "performance" (symmetric activations, the default) or "mixed" (asymmetric ones)."""
    os.environ["NNCF_CI"] = "1"  # no telemetry: it would wait for a network
    import nncf
    import nncf.onnx.quantization.quantize_model
    import onnx
    import onnxruntime  # noqa: F401  what NNCF imports when it runs

    count = len(next(iter(samples.values())))
    rows = [{name: values[at : at + 1] for name, values in samples.items()} for at in range(count)]

    def work() -> None:
        made = nncf.quantize(onnx.load(model), nncf.Dataset(rows), preset=nncf.QuantizationPreset(preset), subset_size=count,
                             fast_bias_correction=fast_bias_correction)
        onnx.save(made, out)

    return work
