"""Intel neural-compressor: static quantisation of an ONNX model with its defaults, in the last version that has it (3.7.1; 3.8 to 3.10
hold no ONNX code any more).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np


def prepare(model: Path, samples: dict[str, np.ndarray], out: Path) -> Callable[[], None]:
    import onnx
    from neural_compressor import PostTrainingQuantConfig, quantization

    count = len(next(iter(samples.values())))

    class Loader:
        """What its calibration asks of a data loader."""

        batch_size = 1

        def __iter__(self) -> Iterator[tuple[dict[str, np.ndarray], int]]:
            for at in range(count):
                yield {name: values[at : at + 1] for name, values in samples.items()}, 0

    def work() -> None:
        settings = PostTrainingQuantConfig(approach="static", quant_format="QDQ", calibration_sampling_size=[count])
        graph = onnx.load(model)
        # It transposes the weights of Gemm and leaves their noted shape as it was, over which shape inference then stumbles.
        del graph.graph.value_info[:]
        made = quantization.fit(graph, settings, calib_dataloader=Loader())
        if made is None:
            raise SystemExit("neural_compressor gave no model back")
        made.save(str(out))

    return work
