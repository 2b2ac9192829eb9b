"""AMD Quark for ONNX: ``ModelQuantizer`` with one of its named configurations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np


def prepare(model: Path, samples: dict[str, np.ndarray], out: Path, *, config: str = "INT8_CNN_DEFAULT") -> Callable[[], None]:
    """config: INT8_CNN_DEFAULT (uint8 activations, int8 weights, min-max) or INT8_CNN_ACCURATE (percentile and AdaRound)."""
    import onnxslim  # noqa: F401  what Quark imports when it runs
    from onnxruntime.quantization import CalibrationDataReader
    from quark.onnx import ModelQuantizer
    from quark.onnx.quantization.config import Config, get_default_config

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rows = self._from_start()

        def _from_start(self) -> Iterator[dict[str, np.ndarray]]:
            for at in range(len(next(iter(samples.values())))):
                yield {name: values[at : at + 1] for name, values in samples.items()}

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._rows, None)

        def reset_iter(self) -> None:
            self._rows = self._from_start()

    def work() -> None:
        quantizer = ModelQuantizer(Config(global_quant_config=get_default_config(config)))
        quantizer.quantize_model(str(model), str(out), Reader())

    return work
