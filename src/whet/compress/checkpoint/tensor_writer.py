"""Safetensors files whose tensors are known by shape before any of them is: written in any order, each at its place.

The header goes first and never changes, so the size of a file is known to the byte before there is work, and a run that was killed can go
on: what is written again lands where it was.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from whet.compress.checkpoint.tensor_files import DTYPES, NAMES

INDEX_NAME = "model.safetensors.index.json"
# A file on a memory card with FAT holds 4 GiB at most.
SHARD_BYTES = 4_000_000_000


@dataclass(frozen=True)
class Shape:
    """A tensor that will be written. dtype: as safetensors names it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Shard:
    """A file that will be written: its header, and where each tensor begins."""

    name: str
    header: bytes
    begins: Mapping[str, int]
    size_bytes: int


def shards_of(tensors: Iterable[Shape], most_bytes: int = SHARD_BYTES) -> list[Shard]:
    """Files of at most ``most_bytes`` each (a larger tensor gets its own), tensors in the order given; one is "model.safetensors"."""
    together: list[list[Shape]] = [[]]
    for tensor in tensors:
        if together[-1] and sum(each.size_bytes for each in together[-1]) + tensor.size_bytes > most_bytes:
            together.append([])
        together[-1].append(tensor)
    count = len(together)
    names = ["model.safetensors"] if count == 1 else [f"model-{index + 1:05d}-of-{count:05d}.safetensors" for index in range(count)]
    return [_shard(name, group) for name, group in zip(names, together, strict=True)]


def index_of(shards: Iterable[Shard]) -> bytes:
    """The file that says which tensor lies in which shard, as transformers reads it."""
    shards = list(shards)
    total = sum(shard.size_bytes - len(shard.header) for shard in shards)
    places = {name: shard.name for shard in shards for name in sorted(shard.begins)}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=1, sort_keys=True).encode()


class TensorWriter:
    """Writes tensors into their places in the files of a folder. Not a thread's business: two may write different tensors at once."""

    def __init__(self, folder: Path, shards: Iterable[Shard]) -> None:
        self._places: dict[str, tuple[int, int, int]] = {}
        self._open: list[int] = []
        for shard in shards:
            number = os.open(folder / shard.name, os.O_RDWR | os.O_CREAT, 0o644)
            self._open.append(number)
            os.ftruncate(number, shard.size_bytes)
            os.pwrite(number, shard.header, 0)
            ends = [*list(shard.begins.values())[1:], shard.size_bytes]
            self._places |= {name: (number, begin, end) for (name, begin), end in zip(shard.begins.items(), ends, strict=True)}

    def write(self, name: str, tensor: Tensor) -> None:
        """Put a tensor where it belongs. Raises ValueError where it has another size than was planned."""
        number, begin, end = self._places[name]
        data = memoryview(_bytes(tensor).data)
        if len(data) != end - begin:
            raise ValueError(f"{name} has {len(data)} bytes, planned were {end - begin}")
        while data:
            written = os.pwrite(number, data, begin)
            begin, data = begin + written, data[written:]

    def flush(self) -> None:
        """Have everything on the disk."""
        for number in self._open:
            os.fsync(number)

    def close(self) -> None:
        for number in self._open:
            os.close(number)
        self._open = []

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def shape_of(name: str, tensor: Tensor) -> Shape:
    """What it takes to store a tensor."""
    return Shape(name, NAMES[tensor.dtype], tuple(tensor.shape))


def _shard(name: str, tensors: list[Shape]) -> Shard:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for tensor in tensors:
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, begin + tensor.size_bytes]}
        begin += tensor.size_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers begin at a multiple of 8 bytes
    start = 8 + len(text)
    begins = {tensor.name: start + header[tensor.name]["data_offsets"][0] for tensor in tensors}  # type: ignore[index]
    return Shard(name, len(text).to_bytes(8, "little") + text, begins, start + begin)


def _bytes(tensor: Tensor) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    flat = tensor.detach().contiguous().reshape(-1)
    return np.asarray(flat.view(torch.uint8).numpy()) if flat.numel() else np.empty(0, np.uint8)
