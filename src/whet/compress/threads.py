"""How many threads torch computes with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Multiplications below which a product is done before its threads have found each other; where others work on the machine too,
# each such meeting costs milliseconds.
SMALL = 1 << 24


@contextmanager
def one_thread(multiplications: int = 0) -> Iterator[None]:
    """Compute with one thread, where products are ``SMALL``."""
    before = torch.get_num_threads()
    if before == 1 or multiplications > SMALL:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
