"""onnxruntime's own: ``quantize_static`` (QDQ) and ``quantize_dynamic``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np


def prepare(model: Path, samples: dict[str, np.ndarray], out: Path, *, method: str = "MinMax", u8s8: bool = True, dynamic: bool = False,
            preprocess: bool = False, batch: int = 1) -> Callable[[], None]:
    """method: of calibration. u8s8: the types and granularity that an expert would ask for on x86 (activations uint8, weights int8 per
    channel) in place of the defaults. preprocess: ``quant_pre_process`` first, as its documentation advises. batch: samples at a time.
    """
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if preprocess:
        import onnxruntime.tools.symbolic_shape_infer  # noqa: F401  what the pre-processing imports when it runs

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = batches(samples, batch)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

    options: dict[str, Any] = {"calibrate_method": CalibrationMethod[method]}
    if u8s8:
        options |= {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}

    def work() -> None:
        if dynamic:
            quantize_dynamic(str(model), str(out))
            return
        source = out.with_suffix(".pre.onnx") if preprocess else model
        if preprocess:
            quant_pre_process(str(model), str(source))
        quantize_static(str(source), str(out), Reader(), **options)

    return work


def batches(samples: dict[str, np.ndarray], size: int) -> Iterator[dict[str, np.ndarray]]:
    for at in range(0, len(next(iter(samples.values()))), size):
        yield {name: values[at : at + size] for name, values in samples.items()}
