"""Files without a name for tensors that wait, and a tensor of many samples that lies in one where it is large."""

from __future__ import annotations

import math
import tempfile

import torch
from torch import Tensor

from whet.core.errors import Refused

MOST_BYTES = 32 << 20  # of one tensor that are held in memory


class Scratch:
    """A file that has no name in its folder (``tempfile.TemporaryFile``), so that nothing is left of it whatever ends the process. Its
    pages are the kernel's cache and no memory of the process."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="whet-")  # noqa: SIM115  open as long as its tensors

    def append(self, values: Tensor) -> int:
        """Write a contiguous tensor at the end and give back where it begins. Raises OSError."""
        start = self._file.seek(0, 2)
        self._file.write(_bytes(values))
        self._file.flush()
        return start

    def read(self, start: int, values: Tensor) -> Tensor:
        """Fill a contiguous tensor from there."""
        self._file.seek(start)
        self._file.readinto(_bytes(values))
        return values

    def close(self) -> None:
        self._file.close()


def no_room(size: int, error: OSError) -> Refused:
    """That so many bytes could not be written."""
    return Refused(f"put {size / 1e6:.0f} MB of activations into {tempfile.gettempdir()}", found=str(error),
                   do="name a folder with more room in TMPDIR, or calibrate on fewer samples")


class Samples:
    """A tensor [n, ...] to which samples are appended, and whose samples are read by their numbers: in memory up to ``most_bytes``, beyond
    that all in a file."""

    def __init__(self, most_bytes: int | None = None) -> None:
        self._most = MOST_BYTES if most_bytes is None else most_bytes
        self._parts: list[Tensor] = []
        self._scratch: Scratch | None = None
        self._count, self._like, self._bytes = 0, torch.empty(0), 0

    def __len__(self) -> int:
        return self._count

    def append(self, samples: Tensor) -> None:
        """[k, ...] as many more. Raises Refused where there is no room for them on disk."""
        samples = samples.contiguous()
        self._like, self._count, self._bytes = samples[:0].clone(), self._count + len(samples), self._bytes + samples.nbytes
        self._parts.append(samples.clone() if samples.untyped_storage().nbytes() > samples.nbytes else samples)
        if self._bytes <= self._most:
            return
        try:
            self._scratch = self._scratch or Scratch()
            for part in self._parts:
                self._scratch.append(part)
        except OSError as error:
            raise no_room(self._bytes, error) from error
        self._parts.clear()

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """The samples of these numbers [k] int64, or of a slice, as a tensor of its own or one that is not to be written to."""
        if self._scratch is None:
            if len(self._parts) > 1:
                self._parts = [torch.cat(self._parts)]
            return self._parts[0][index] if self._parts else self._like
        numbers = torch.arange(self._count)[index]
        found = torch.empty((len(numbers), *self._like.shape[1:]), dtype=self._like.dtype)
        size = math.prod(self._like.shape[1:]) * self._like.element_size()
        for sample, number in zip(found, numbers.tolist(), strict=True):
            self._scratch.read(number * size, sample)
        return found

    def close(self) -> None:
        self._parts.clear()
        if self._scratch is not None:
            self._scratch.close()


def _bytes(values: Tensor) -> memoryview:
    found: memoryview = values.reshape(-1).view(torch.uint8).numpy().data
    return found
