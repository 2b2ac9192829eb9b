"""Tensors that wait for the next layer, for all samples: in memory while they are few, beyond that in files that have no name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from whet.compress.walks.scratch import Scratch, no_room

MOST_BYTES = 32 << 20  # that are held in memory; what comes on top goes to a file


@dataclass(frozen=True, eq=False)
class _Written:
    """Where a tensor lies in the file of its name."""

    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Held:
    """Tensors by batch and name.

    There is a file for each name, and it is gone when the last of its tensors is.
    """

    def __init__(self, most_bytes: int | None = None) -> None:
        self._most = MOST_BYTES if most_bytes is None else most_bytes
        self._places: dict[tuple[int, str], Tensor | _Written] = {}
        self._files: dict[str, Scratch] = {}
        self._written: dict[str, int] = {}  # tensors in each file
        self.bytes = 0  # in memory

    def __contains__(self, key: tuple[int, str]) -> bool:
        return key in self._places

    def put(self, batch: int, name: str, values: Tensor) -> None:
        """Keep a tensor. Raises Refused where there is no room for it on disk."""
        self.drop(batch, name)
        if self.bytes + values.nbytes > self._most:
            self._places[batch, name] = self._write(name, values.contiguous())
            return
        alone = values.contiguous()
        if alone.untyped_storage().nbytes() > alone.nbytes:  # a part of a larger tensor, which it would keep in memory
            alone = alone.clone()
        self._places[batch, name] = alone
        self.bytes += alone.nbytes

    def get(self, batch: int, name: str) -> Tensor:
        """The tensor, which is not to be written to. Raises KeyError."""
        place = self._places[batch, name]
        return place if isinstance(place, Tensor) else self._read(name, place)

    def drop(self, batch: int, name: str) -> None:
        """Forget a tensor, if it is here."""
        place = self._places.pop((batch, name), None)
        if isinstance(place, Tensor):
            self.bytes -= place.nbytes
        elif place is not None:
            self._written[name] -= 1
            if not self._written[name]:
                self._files.pop(name).close()

    def forget(self, *names: str) -> None:
        """Forget the tensors of these names, of all batches."""
        for batch, name in [key for key in self._places if key[1] in names]:
            self.drop(batch, name)

    def close(self) -> None:
        """Forget everything."""
        self._places.clear()
        for file in self._files.values():
            file.close()
        self._files.clear()
        self.bytes = 0

    def _write(self, name: str, values: Tensor) -> _Written:
        try:
            if name not in self._files:
                self._files[name], self._written[name] = Scratch(), 0
            start = self._files[name].append(values)
        except OSError as error:
            raise no_room(values.nbytes, error) from error
        self._written[name] += 1
        return _Written(start, tuple(values.shape), values.dtype)

    def _read(self, name: str, place: _Written) -> Tensor:
        return self._files[name].read(place.start, torch.empty(place.shape, dtype=place.dtype))
