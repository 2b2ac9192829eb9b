"""Reading .npz and .npy files that one did not write oneself: sizes are checked before anything is allocated, and nothing is unpickled."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from whet.core.errors import Refused

Array = np.ndarray[Any, Any]

MAX_BYTES = 16 << 30  # what all arrays of one source may take in memory, unless the caller says otherwise
MAX_ARRAYS = 1000
# Everything that a damaged or foreign file has been seen to raise in zipfile, zlib and numpy's parser.
DAMAGE = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, KeyError, TypeError, IndexError, OverflowError,
          NotImplementedError, RuntimeError, SyntaxError, MemoryError)


def read_npz(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, Array]:
    """The arrays of a .npz file by name, or {"arr_0": array} of a .npy file.

    Raises Refused where the file is no such file, is damaged, holds Python objects or would take more than ``max_bytes``.
    """
    try:
        return _read_npy_file(path, max_bytes) if path.suffix == ".npy" else _read_zip(path, max_bytes)
    except Refused:
        raise
    except DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise Refused(f"read {path}", found=f"it is no valid {path.suffix} file, or is cut off ({reason})",
                      do="write it again with numpy.savez") from error


def _read_zip(path: Path, max_bytes: int) -> dict[str, Array]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        total = sum(member.file_size for member in members)
        if total > max_bytes or len(members) > MAX_ARRAYS:
            raise _too_large(path, f"{len(members)} arrays, {total} bytes when unpacked", max_bytes)
        arrays = {}
        for member in members:
            name = member.filename.removesuffix(".npy")
            with archive.open(member) as stream:
                arrays[name] = _read_array(stream, member.file_size, path, name)
                if stream.read(1):  # also makes zipfile compare the checksum
                    raise ValueError(f"more bytes than {name!r} declares")
        return arrays


def _read_npy_file(path: Path, max_bytes: int) -> dict[str, Array]:
    size = path.stat().st_size
    if size > max_bytes:
        raise _too_large(path, f"{size} bytes", max_bytes)
    with path.open("rb") as stream:
        return {"arr_0": _read_array(stream, size, path, path.stem)}


def _read_array(stream: IO[bytes], size: int, path: Path, name: str) -> Array:
    """One array whose header and data take ``size`` bytes. The declared shape must agree with that before memory is taken."""
    version = npy.read_magic(stream)
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read_header is None:
        raise ValueError(f"{name!r} is of npy version {version}")
    shape, fortran, dtype = read_header(stream)
    if dtype.hasobject:
        raise Refused(f"read {path}", found=f"{name!r} is an array of Python objects, which would have to be unpickled",
                      do="save plain numbers: numpy.asarray(x, dtype=...)")
    count = 1
    for length in shape:  # Python's integers cannot overflow, as numpy's product could
        count *= length
    data_bytes = count * dtype.itemsize
    if min(shape, default=1) < 0 or data_bytes > size:
        raise ValueError(f"{name!r} declares {data_bytes} bytes where the file has {size}")
    data = np.empty(data_bytes, np.uint8)  # the system gives the pages only as they are filled, so a lie about the size costs nothing
    filled = _fill(stream, data.data)
    if filled != data_bytes:
        raise ValueError(f"{name!r} ends after {filled} of {data_bytes} bytes")
    array: Array = data.view(dtype) if data_bytes else np.empty(count, dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def _fill(stream: IO[bytes], view: memoryview) -> int:
    filled = 0
    while filled < len(view):
        piece = stream.read(min(1 << 22, len(view) - filled))
        if not piece:
            break
        view[filled : filled + len(piece)] = piece
        filled += len(piece)
    return filled


def _too_large(path: Path, found: str, max_bytes: int) -> Refused:
    return Refused(f"read {path} within {max_bytes / (1 << 30):.3g} GiB", found=found, do="use fewer samples, or raise `max_bytes`")
