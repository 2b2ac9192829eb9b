"""The numbers of large weights, left in the file while its structure is parsed.

protobuf would copy them from the file's pages into its message, and they would be copied out of it again: 3 times their size at the peak.
So their bytes are cut out of what is parsed, and each weight is read once, from the file into memory of its own: 1.1 times.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

from whet.compress.grid import Array
from whet.compress.source.wire import delimited
from whet.core.document import FrozenMap

WORTH_BYTES = 1 << 20  # a smaller file is parsed as it is
READERS = 2
LARGE_BYTES = 1 << 14  # so is a smaller tensor
_GRAPH, _INITIALIZER, _NAME, _RAW = 7, 5, 8, 9  # of ModelProto, GraphProto and TensorProto in onnx.proto3
_PLAIN = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.INT64, ir.DataType.INT32, ir.DataType.INT8,
                    ir.DataType.UINT8})


@dataclass(frozen=True, eq=False)
class Payloads:
    """What was cut out of ``data``: by the name of the initializer, where its bytes begin and end. file: the open file that holds the same
    bytes, where there is one; its pages need not be mapped then."""

    data: memoryview = field(default_factory=lambda: memoryview(b""))
    file: BinaryIO | None = None
    places: Mapping[str, tuple[int, int]] = field(default_factory=FrozenMap)

    def size(self, name: str) -> int | None:
        """Bytes of the initializer, None where they were not cut out."""
        start, end = self.places.get(name, (0, -1))
        return None if end < 0 else end - start

    def numbers(self, tensors: Collection[ir.TensorProtocol]) -> list[Array]:
        """The numbers of these initializers, which must have as many bytes as they declare, in memory of their own.

        They are read on two threads: most of the time goes to fresh pages of memory, which the kernel gives to both at once.
        """
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(self._numbers, tensors))

    def _numbers(self, tensor: ir.TensorProtocol) -> Array:
        dims, content = tuple(map(int, tensor.shape.numpy())), self._bytes(*self.places[tensor.name or ""])
        if tensor.dtype in _PLAIN:
            return np.frombuffer(content, tensor.dtype.numpy()).reshape(dims)
        packed = onnx.TensorProto(data_type=int(tensor.dtype), dims=dims, raw_data=content)  # or of a type that numpy has not
        return ir.serde.TensorProtoTensor(packed).numpy()

    def _bytes(self, start: int, end: int) -> bytes:
        # Into bytes and not into numpy's own memory, for which it asks for huge pages: the kernel may take 100 ms to find some.
        if self.file is None:
            return self.data[start:end].tobytes()
        content = os.pread(self.file.fileno(), end - start, start)
        if len(content) != end - start:
            raise ValueError("the file became shorter while it was read")
        return content


def cut_out(data: memoryview, file: BinaryIO | None = None) -> tuple[memoryview | bytes, Payloads]:
    """(the file without the numbers of its large initializers, those numbers). A file of another form than usual is given back whole."""
    if len(data) < WORTH_BYTES:
        return data, Payloads()
    try:
        return _cut(data, file)
    except (IndexError, ValueError):  # no protobuf: the parser will say so
        return data, Payloads()


def _cut(data: memoryview, file: BinaryIO | None) -> tuple[memoryview | bytes, Payloads]:
    graphs = [place for number, *place in delimited(data, 0, len(data)) if number == _GRAPH]
    if not graphs:
        return data, Payloads()
    begin, low, high = graphs[0]  # what follows are parts of the same graph, which the parser puts together
    places: dict[str, tuple[int, int]] = {}
    pieces: list[memoryview | bytes] = []
    done = low
    for first, start, end, name, raw in _large_initializers(data, low, high):
        if name in places:  # a mistake in the file, which is for the checks to find
            continue
        pieces += [data[done:first], _header(_INITIALIZER, end - start - (raw[2] - raw[0])), data[start : raw[0]], data[raw[2] : end]]
        places[name], done = (raw[1], raw[2]), end
    pieces.append(data[done:high])
    header = _header(_GRAPH, sum(map(len, pieces)))
    return b"".join((data[:begin], header, *pieces, data[high:])), Payloads(data, file, places)


def _large_initializers(data: memoryview, low: int, high: int) -> Iterator[tuple[int, int, int, str, tuple[int, int, int]]]:
    """(start of the field, start and end of the tensor, its name, where the field with its bytes begins, they begin, and end)."""
    for number, first, start, end in delimited(data, low, high):
        if number != _INITIALIZER or end - start < LARGE_BYTES:
            continue
        parts = [part for part in delimited(data, start, end) if part[0] in (_NAME, _RAW)]
        if sorted(part[0] for part in parts) == [_NAME, _RAW]:
            (_, *name), (_, begin, raw, stop) = sorted(parts)
            if stop - raw >= LARGE_BYTES:
                yield first, start, end, data[name[1] : name[2]].tobytes().decode(), (begin, raw, stop)


def _header(number: int, length: int) -> bytes:
    """Of a length-delimited field: tag and length."""
    found = bytearray([number << 3 | 2])
    while length >= 0x80:
        found.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*found, length])
