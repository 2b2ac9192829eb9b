"""bitsandbytes: ``quantize_4bit`` with its own block of 64, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def prepare(model: Path, samples: dict[str, np.ndarray], out: Path, *, book: str, double: bool) -> Callable[[], dict[str, Any]]:
    """book: nf4 or fp4. double: the scales are rounded too."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    from __main__ import PEERS, loaded  # worker.py

    plain = loaded(PEERS / "llm" / "plain.py")

    def work() -> dict[str, Any]:
        changed, size = {}, 0
        for name, weight in plain.linear_weights(model).items():
            codes, state = quantize_4bit(weight, blocksize=64, quant_type=book, compress_statistics=double)
            changed[name] = dequantize_4bit(codes, state)
            size += plain.size_bytes({"weight": codes, **state.as_dict(packed=True)})  # what a checkpoint of it holds
        plain.write(model, out, changed)
        return {"size_bytes": size}

    return work
