"""What flows from block to block, for all windows, in a file: it may be larger than memory, and a run that was killed goes on from it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

TOKENS_AT_ONCE = 4096  # so many run through a block together


class Hidden:
    """Hidden states [n, length, width] float32. Only what is being read or written is in memory."""

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        self.path, self.shape = path, shape
        self._number = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._number, 4 * math.prod(shape))

    @property
    def parts(self) -> list[tuple[int, int]]:
        """Windows that go through a block together, as [begin, end)."""
        together = max(1, TOKENS_AT_ONCE // self.shape[1])
        return [(begin, min(begin + together, self.shape[0])) for begin in range(0, self.shape[0], together)]

    @property
    def work(self) -> int:
        """About the multiplications of one square layer on what runs through a block together."""
        return min(TOKENS_AT_ONCE, self.shape[0] * self.shape[1]) * self.shape[2] ** 2

    def read(self, begin: int, end: int) -> Tensor:
        """[end - begin, length, width]"""
        size = 4 * math.prod(self.shape[1:])
        data = bytearray((end - begin) * size)
        view, place = memoryview(data), begin * size
        while view:
            count = os.preadv(self._number, [view], place)
            view, place = view[count:], place + count
        return torch.frombuffer(data, dtype=torch.float32).reshape(end - begin, *self.shape[1:])

    def mapped(self) -> Tensor:
        """[n, length, width] all of it, read from the file as it is looked at."""
        return torch.from_file(str(self.path), shared=True, size=math.prod(self.shape), dtype=torch.float32).reshape(self.shape)

    def write(self, begin: int, values: Tensor) -> None:
        """Put the windows from ``begin`` on in."""
        view, place = memoryview(values.contiguous().numpy().data).cast("B"), 4 * begin * math.prod(self.shape[1:])
        while view:
            count = os.pwrite(self._number, view, place)
            view, place = view[count:], place + count

    def __iter__(self) -> Iterator[Tensor]:
        return (self.read(begin, end) for begin, end in self.parts)

    def flush(self) -> None:
        os.fsync(self._number)

    def close(self) -> None:
        os.close(self._number)
