"""Rounding a large matrix a few rows at a time, two pieces at once: a piece lies in the cache, and float32 is needed of it alone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from torch import Tensor

from whet.compress.grid import Floats, Quantised
from whet.compress.threads import one_thread
from whet.device.machine import usable_cores

PIECE = 1 << 19  # weights: 2 MB in float32; pieces twice as large take three times as long, for their memory is new each time


def rounded_by_rows(weight: Tensor, make: Callable[[Floats], Quantised]) -> Quantised:
    """What ``make`` makes of a weight [out, in] of any float dtype, where the rows know nothing of each other."""
    rows = max(1, PIECE // weight.shape[1])
    begins = range(0, weight.shape[0], rows)
    with one_thread(), ThreadPoolExecutor(min(2, usable_cores())) as pool:
        parts = list(pool.map(lambda begin: make(weight[begin : begin + rows].float().numpy()), begins))
    grid = parts[0].grid
    whole = replace(grid, scale=np.concatenate([part.grid.scale for part in parts]),
                    zero_point=np.concatenate([part.grid.zero_point for part in parts]))
    return Quantised(np.concatenate([part.codes for part in parts]), whole)
