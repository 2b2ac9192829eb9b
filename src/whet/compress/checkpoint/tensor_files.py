"""Safetensors files read by mapping them: a tensor costs memory only while somebody looks at it.

The format (huggingface/safetensors, "Format" in its README): 8 bytes, little-endian, the length of a JSON header; the header, name ->
dtype, shape and [begin, end) counted from its own end; then the numbers. The safetensors package reads such files too, but tells neither
where a tensor lies nor how to let go of its pages, and a model larger than memory needs both.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from whet.core.errors import Refused

DTYPES: Mapping[str, torch.dtype] = MappingProxyType({
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64})
NAMES: Mapping[torch.dtype, str] = MappingProxyType({dtype: name for name, dtype in DTYPES.items()})

# The safetensors package refuses longer headers too: what claims one is no such file.
LONGEST_HEADER = 100 << 20


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies. dtype: as the header names it ("BF16"). begin: of its first byte, from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class TensorFile:
    """One file, mapped. ``read`` gives views of the mapping; ``forget`` gives the memory of a tensor back to the system."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = entries_of(path)
        with path.open("rb") as file:
            # Copy on write: torch wants memory that may be written to, and the file must stay as it is.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def read(self, name: str) -> Tensor:
        """The tensor as it is stored, without copying it. Raises KeyError where there is none of that name."""
        entry = self.entries[name]
        dtype = DTYPES[entry.dtype]
        if entry.size_bytes == 0:
            return torch.empty(entry.shape, dtype=dtype)
        return torch.frombuffer(self._map, dtype=dtype, count=math.prod(entry.shape), offset=entry.begin).reshape(entry.shape)

    def forget(self, name: str) -> None:
        """Drop the pages of a tensor from memory; who still looks at it will read them from the file again."""
        entry = self.entries[name]
        first = entry.begin // mmap.PAGESIZE * mmap.PAGESIZE
        if entry.size_bytes:
            self._map.madvise(mmap.MADV_DONTNEED, first, entry.begin + entry.size_bytes - first)

    def expect(self, name: str) -> None:
        """Tell the system that a tensor will be read soon."""
        entry = self.entries[name]
        first = entry.begin // mmap.PAGESIZE * mmap.PAGESIZE
        if entry.size_bytes:
            self._map.madvise(mmap.MADV_WILLNEED, first, entry.begin + entry.size_bytes - first)


def entries_of(path: Path) -> dict[str, Entry]:
    """The header of a file. Raises Refused where it is no safetensors file, or one that was cut short."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(LONGEST_HEADER, size - 8):
            raise Refused(f"read {path.name}", found=f"no safetensors header in its {size} bytes", do="download the file again")
        header = _header(path, file.read(length))
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, found, 8 + length) for name, found in header.items()}
    end = max((entry.begin + entry.size_bytes for entry in entries.values()), default=0)
    if end > size:
        raise Refused(f"read {path.name}", found=f"{size} bytes where its header speaks of {end}: it was cut short",
                      do="download or copy the file again")
    return entries


def _header(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(f"read {path.name}", found="a safetensors header that is no JSON", do="download the file again") from error
    if not isinstance(header, dict):
        raise Refused(f"read {path.name}", found="a safetensors header that is no table", do="download the file again")
    return header


def _entry(path: Path, name: str, found: Any, start: int) -> Entry:
    try:
        dtype, shape, (begin, end) = str(found["dtype"]), tuple(int(size) for size in found["shape"]), found["data_offsets"]
        entry = Entry(name, dtype, shape, path, start + int(begin))
        fits = entry.size_bytes == int(end) - int(begin) and int(begin) >= 0 and all(size >= 0 for size in shape)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Refused(f"read {name} of {path.name}", found=f"the header entry {found!r}", do="download the file again") from error
    if not fits:
        raise Refused(f"read {name} of {path.name}", found=f"{int(end) - int(begin)} bytes for {dtype} {list(shape)}",
                      do="download the file again")
    return entry
