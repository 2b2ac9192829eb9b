"""The few bytes of ONNX that the device floor writes and reads by itself: the ``onnx`` package is not on a small board.

Protobuf's wire format is a list of (field number, wire type, value). Field numbers are those of onnx.proto3
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3). Written: a model of one product. Read: which operators a file holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whet.core.errors import Unsupported

FLOAT, UINT8, INT8, INT32 = 1, 2, 3, 6  # TensorProto.DataType
_NUMBER_OF = {"float32": FLOAT, "uint8": UINT8, "int8": INT8, "int32": INT32}
_GRAPH, _NODES, _SUBGRAPH, _SUBGRAPHS = 7, 1, 6, 11  # ModelProto.graph, GraphProto.node, AttributeProto.g and .graphs


@dataclass(frozen=True)
class Operator:
    """A node: its name (may be ""), its domain ("" is ONNX's own) and its operator."""

    name: str
    domain: str
    op: str


def product_model(op: str, rows: int, left_dtype: str, right: NDArray[np.generic]) -> bytes:
    """A model ``y = op(x, W)``: op is "MatMul" or "MatMulInteger", x is [rows, k] of ``left_dtype``, W [k, n] is stored inside.

    A stored W is what layers have, and lets the runtime lay it out for its kernel once, as it does for them.
    """
    inner, columns = right.shape
    result = "int32" if op == "MatMulInteger" else left_dtype
    node = _text(1, "x") + _text(1, "W") + _text(2, "y") + _text(4, op)
    weights = b"".join(_number(1, size) for size in right.shape)
    weights += _number(2, _NUMBER_OF[right.dtype.name]) + _text(8, "W") + _bytes(9, np.ascontiguousarray(right).tobytes())
    graph = _bytes(_NODES, node) + _text(2, "product") + _bytes(5, weights)
    graph += _bytes(11, _value("x", left_dtype, (rows, inner))) + _bytes(12, _value("y", result, (rows, columns)))
    return _number(1, 8) + _bytes(_GRAPH, graph) + _bytes(8, _text(1, "") + _number(2, 13))  # IR version 8, opset 13


def operators_in(model: bytes | memoryview) -> tuple[Operator, ...]:
    """Every node of a ModelProto in file order, those of the branches of If and the bodies of Loop included.

    Raises Unsupported where the bytes are no protobuf. Weights are skipped, not copied.
    """
    try:
        return tuple(node for graph in _submessages(memoryview(model), _GRAPH) for node in _operators(graph))
    except (IndexError, UnicodeDecodeError, RecursionError) as error:
        raise Unsupported("read the operators of a model", found=f"the bytes are not an ONNX model ({error})") from error


def _operators(graph: memoryview) -> Iterator[Operator]:
    for node in _submessages(graph, _NODES):
        fields = list(_fields(node))
        texts = {number: str(value, "utf-8") for number, value in fields if number in (3, 4, 7) and isinstance(value, memoryview)}
        yield Operator(texts.get(3, ""), texts.get(7, ""), texts.get(4, ""))
        for number, attribute in fields:
            if number == 5 and isinstance(attribute, memoryview):
                for kind in (_SUBGRAPH, _SUBGRAPHS):
                    for subgraph in _submessages(attribute, kind):
                        yield from _operators(subgraph)


def _submessages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    return (value for number, value in _fields(message) if number == wanted and isinstance(value, memoryview))


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of one message; IndexError where it ends too early or holds a wire type that ONNX does not use."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        wire = tag & 7
        if wire == 0:
            value, at = _read_varint(message, at)
            yield tag >> 3, value
            continue
        if wire not in (1, 2, 5):
            raise IndexError(f"wire type {wire} at byte {at}")
        size, at = _read_varint(message, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
        if at + size > len(message):
            raise IndexError(f"it ends {at + size - len(message)} bytes too early")
        yield tag >> 3, message[at : at + size]
        at += size


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
        if shift > 63:
            raise IndexError(f"a number of more than 64 bits at byte {at}")


def _value(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    """A ValueInfoProto: name and tensor type."""
    dims = b"".join(_bytes(1, _number(1, size)) for size in shape)
    return _text(1, name) + _bytes(2, _bytes(1, _number(1, _NUMBER_OF[dtype]) + _bytes(2, dims)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
