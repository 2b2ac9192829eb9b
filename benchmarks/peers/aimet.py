"""AIMET for ONNX (Qualcomm): batch norms folded, ``QuantizationSimModel`` with its defaults, exported as QDQ with integer weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np


def prepare(model: Path, samples: dict[str, np.ndarray], out: Path, *, equalize: bool = False,
            adaround_iterations: int = 0) -> Callable[[], None]:
    """equalize: cross-layer equalisation first. adaround_iterations: of AdaRound for each layer; 0 does without."""
    import aimet_onnx
    import onnx
    from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight
    from aimet_onnx.cross_layer_equalization import equalize_model

    rows = [{name: values[at : at + 1] for name, values in samples.items()} for at in range(len(next(iter(samples.values()))))]

    def work() -> None:
        graph = onnx.load(model)
        fold_all_batch_norms_to_weight(graph)
        if equalize:
            equalize_model(graph)
        sim = aimet_onnx.QuantizationSimModel(graph)
        if adaround_iterations:
            aimet_onnx.apply_adaround(sim, rows, num_iterations=adaround_iterations)
        sim.compute_encodings(rows)
        onnx.save(sim.to_onnx_qdq(prequantize_constants=True), out)

    return work
