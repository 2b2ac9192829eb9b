"""How much of a large model file is structure, found without parsing it.

Weights parse into as many bytes as they take in the file. Structure does not: an empty node is two bytes on disk and a hundred in
memory, so a hostile file of 2 GB could ask for 100 GB. This walk reads protobuf's wire format (tag, length, payload; field numbers
of onnx.proto3) and skips every payload.
"""

from __future__ import annotations

from collections.abc import Iterator

from whet.core.errors import Refused

SMALL_BYTES = 16 * 2**20  # a file up to this size is parsed without a look: fifty times as much still fits
STRUCTURE_BYTES = 64 * 2**20  # some 300,000 nodes
_STEPS = 2_000_000
_OPAQUE_BYTES = 1024  # a message below this size is structure as a whole

# message -> field number -> message; "data" is the numbers of a tensor that parse to about the bytes they had.
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
    "tensor": {4: "data", 5: "data", 9: "data", 10: "data"},
}


def refuse_bloated(data: memoryview, asked: str) -> None:
    """Raises Refused where a file over SMALL_BYTES holds over STRUCTURE_BYTES of something else than weights, or is no protobuf."""
    if len(data) <= SMALL_BYTES:
        return
    try:
        structure = _structure_bytes(data)
    except (IndexError, ValueError) as error:
        raise Refused(asked, found=f"it is not a protobuf file, or it was cut off ({error})", do="export or copy it again") from error
    if structure > STRUCTURE_BYTES:
        raise Refused(asked, found=f"{structure} bytes of graph besides the weights; at most {STRUCTURE_BYTES} are read",
                      do="this is not a model that a runtime could load; export it again")


def _structure_bytes(data: memoryview) -> int:
    structure, steps = len(data), 0
    todo = [("model", 0, len(data))]
    while todo:
        message, start, end = todo.pop()
        for field, _, low, high in delimited(data, start, end):
            steps += 1
            if steps > _STEPS:
                raise ValueError(f"more than {_STEPS} entries")
            inner = _FIELDS[message].get(field)
            if inner == "data":
                structure -= high - low
            elif inner is not None and high - low >= _OPAQUE_BYTES:
                todo.append((inner, low, high))
    return structure


def delimited(data: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field number, start of its tag, start and end of its payload) of every length-delimited field of a message. Raises ValueError and
    IndexError where it is no message, or one of more than ``_STEPS`` fields."""
    for _ in range(_STEPS):
        if at >= end:
            return
        begin = at
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 2:
            length, at = _varint(data, at)
            if at + length > end:
                raise ValueError(f"a field of {length} bytes at {at} ends behind its message")
            yield tag >> 3, begin, at, at + length
            at += length
        elif kind == 0:
            at = _varint(data, at)[1]
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
    raise ValueError(f"more than {_STEPS} entries")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(f"a number of more than 64 bits at byte {at}")
