"""HQQ: ``Quantizer.quantize`` with its defaults, which lays groups over the flattened weight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def prepare(model: Path, samples: dict[str, np.ndarray], out: Path, *, bits: int, group: int) -> Callable[[], dict[str, Any]]:
    """group: 0 for one scale a row."""
    import torch
    from hqq.core.quantize import Quantizer

    from __main__ import PEERS, loaded  # worker.py

    plain = loaded(PEERS / "llm" / "plain.py")

    @torch.no_grad()
    def work() -> dict[str, Any]:
        changed, size = {}, 0
        for name, weight in plain.linear_weights(model).items():
            codes, meta = Quantizer.quantize(weight, nbits=bits, group_size=group or None, axis=1, round_zero=bits == 4, device="cpu",
                                             compute_dtype=torch.float32)
            changed[name] = Quantizer.dequantize(codes, meta)
            # What its layers store has scales and zero points of the dtype that is computed in: 16 bits wherever it is used.
            size += codes.numel() * codes.element_size() + 2 * (meta["scale"].numel() + meta["zero"].numel())
        plain.write(model, out, changed)
        return {"size_bytes": size}

    return work
