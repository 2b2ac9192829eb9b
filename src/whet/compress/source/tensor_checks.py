"""Whether a stored tensor is what it says it is: type, dimensions and bytes agree, and data outside the file lies where it may."""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path

import onnx
import onnx_ir as ir

from whet.compress.source.quoting import quoted
from whet.core.errors import Refused, Unsupported

_T = ir.DataType
_IN_INT32 = frozenset({
    _T.INT32, _T.INT16, _T.INT8, _T.UINT16, _T.UINT8, _T.BOOL, _T.FLOAT16, _T.BFLOAT16, _T.INT4, _T.UINT4, _T.INT2, _T.UINT2,
    _T.FLOAT4E2M1, _T.FLOAT6E2M3, _T.FLOAT6E3M2, _T.FLOAT8E4M3FN, _T.FLOAT8E4M3FNUZ, _T.FLOAT8E5M2, _T.FLOAT8E5M2FNUZ, _T.FLOAT8E8M0,
})
_FIELD_TYPES = {
    "float_data": frozenset({_T.FLOAT, _T.COMPLEX64}),
    "int32_data": _IN_INT32,
    "int64_data": frozenset({_T.INT64}),
    "double_data": frozenset({_T.DOUBLE, _T.COMPLEX128}),
    "uint64_data": frozenset({_T.UINT64, _T.UINT32}),
    "string_data": frozenset({_T.STRING}),
}
_MAX_RANK = 64


def check_tensor(tensor: onnx.TensorProto, folder: Path | None, asked: str, cut_out: int | None = None) -> None:
    """Raises Refused where the tensor does not hold the elements it declares.

    folder: where data outside the file may lie; None where there is no file. cut_out: how many bytes of ``raw_data`` were taken out of it.
    """
    where = f"the tensor {quoted(tensor.name)}"
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    if dtype == ir.DataType.UNDEFINED:
        raise Refused(asked, found=f"{where} has the unknown element type {tensor.data_type}", do="export the model again")
    if tensor.HasField("segment"):
        raise Unsupported(asked, found=f"{where} is stored in segments", do="export the model without them")
    if len(tensor.dims) > _MAX_RANK or any(size < 0 for size in tensor.dims):
        raise Refused(asked, found=f"{where} has the dimensions {list(tensor.dims[:_MAX_RANK])}", do="export the model again")
    elements = math.prod(tensor.dims)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _check_external(tensor, dtype, elements, folder, asked)
    else:
        _check_inside(tensor, dtype, elements, asked, cut_out)


def _check_inside(tensor: onnx.TensorProto, dtype: ir.DataType, elements: int, asked: str, cut_out: int | None) -> None:
    if cut_out is not None or tensor.HasField("raw_data"):
        held, wanted, unit = len(tensor.raw_data) if cut_out is None else cut_out, packed_bytes(dtype, elements), "bytes"
        fits = dtype != ir.DataType.STRING and held == wanted
    else:
        filled = [name for name in _FIELD_TYPES if len(getattr(tensor, name))]
        held = sum(len(getattr(tensor, name)) for name in filled)
        wanted, unit = _entries(dtype, elements), "values"
        fits = held == wanted and all(dtype in _FIELD_TYPES[name] for name in filled)
    if not fits:
        raise Refused(asked, found=f"the tensor {quoted(tensor.name)} declares {list(tensor.dims)} elements of {dtype.name}, which are "
                      f"{wanted} {unit}, and holds {held}", do="the file is damaged: copy or export it again")


def packed_bytes(dtype: ir.DataType, elements: int) -> int:
    """Bytes of that many elements; types below 8 bits are packed, the last byte padded."""
    return 0 if dtype == ir.DataType.STRING else (elements * dtype.bitwidth + 7) // 8


def _entries(dtype: ir.DataType, elements: int) -> int:
    if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        return 2 * elements
    if dtype != ir.DataType.STRING and dtype.bitwidth in (2, 4):  # onnx.proto3: an entry of int32_data is one packed byte
        return packed_bytes(dtype, elements)
    return elements


def _check_external(tensor: onnx.TensorProto, dtype: ir.DataType, elements: int, folder: Path | None, asked: str) -> None:
    where = f"the tensor {quoted(tensor.name)}"
    if folder is None:
        raise Refused(asked, found=f"{where} lies in another file, and it is not known where", do="give the path of the .onnx file")
    if dtype == ir.DataType.STRING:
        raise Refused(asked, found=f"{where} holds text in another file, which ONNX does not allow", do="export the model again")
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    offset, wanted = _number(entries, "offset", 0, where, asked), packed_bytes(dtype, elements)
    length = _number(entries, "length", wanted, where, asked)
    size = _size_of(folder, location, where, asked)
    if length != wanted:
        raise Refused(asked, found=f"{where} needs {wanted} bytes and declares {length} in {quoted(location)}", do="export the model again")
    if offset + length > size:
        raise Refused(asked, found=f"{where} ends at byte {offset + length} of {quoted(location)}, which has {size}",
                      do="the data file was cut off or belongs to another model: copy it again")


def _number(entries: dict[str, str], key: str, default: int, where: str, asked: str) -> int:
    text = entries.get(key, "") or str(default)
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise Refused(asked, found=f"{where} has the {key} {text[:40]!r}", do="export the model again")
    return int(text)


def _size_of(folder: Path, location: str, where: str, asked: str) -> int:
    """Bytes of the data file; Refused where it lies outside the model's folder, by whatever way, or cannot be read."""
    found = f"{where} asks for the file {quoted(location)}"
    path = folder / location
    if not location or "\0" in location or os.path.isabs(location) or ".." in Path(location).parts or "\\" in location:
        raise Refused(asked, found=f"{found}, which is not a file inside the model's folder", do="do not use this file: it reaches outside")
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(folder)):
        raise Refused(asked, found=f"{found}, a link that leads out of the model's folder",
                      do="if you trust it (a download cache works with links), copy the model and its data into a folder of their own")
    try:
        status = os.stat(real)
    except OSError as error:
        raise Refused(asked, found=f"{found}, which cannot be read ({error.strerror})", do="put it beside the .onnx file") from error
    if not stat.S_ISREG(status.st_mode):
        raise Refused(asked, found=f"{found}, which is not an ordinary file", do="put the data file beside the .onnx file")
    if status.st_nlink > 1:  # onnx_ir refuses it too, but only when the weights are first read
        raise Refused(asked, found=f"{found}, which has several hard links", do="copy the model and its data into a folder of their own")
    return status.st_size
