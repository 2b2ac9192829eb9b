"""Arrays as a model wants them: the right dtype, nothing lost on the way, and no NaN."""

from __future__ import annotations

from typing import Any

import numpy as np

from whet.core.errors import Refused, Unsupported

Array = np.ndarray[Any, Any]

BLOCK_BYTES = 1 << 26  # arrays are checked 64 MiB at a time, so that a check never doubles the memory


def as_array(value: Any, what: str) -> Array:
    """Anything array-like (lists, torch tensors on any device) as a numpy array of numbers or texts; Refused for objects."""
    if hasattr(value, "detach"):  # torch, without importing it
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise Refused(f"read {what}", found=f"it is no regular array ({error})", do="give samples of the same shape") from error
    if array.dtype.kind in "OcmM" or (array.dtype.kind == "V" and not _is_float(array.dtype)):
        raise Refused(f"read {what}", found=f"an array of {array.dtype.name}", do="give plain numbers of one dtype")
    return array


def dtype_named(name: str) -> np.dtype[Any]:
    """The numpy dtype of a TensorSpec's dtype name; bfloat16 and the like as onnx_ir knows them. Raises Unsupported."""
    try:
        return np.dtype(name)
    except TypeError:
        pass
    try:
        from onnx_ir import DataType

        return np.dtype(DataType[name.upper()].numpy())
    except (KeyError, TypeError) as error:
        raise Unsupported(f"feed an input of dtype {name}", found="numpy has no such dtype") from error


def cast(array: Array, dtype: str, what: str) -> Array:
    """``array`` as ``dtype``. Between floats the model's own precision decides, but nothing may overflow; all other casts
    must keep every value exactly. Raises Refused, naming the first sample that would change."""
    if dtype in ("string", "str", "object"):
        return _texts(array, what)
    wanted = dtype_named(dtype)
    if array.dtype.kind in "US":
        raise Refused(f"use {what} as {dtype}", found="an array of texts", do="give numbers")
    if array.dtype == wanted:
        return array if array.dtype.isnative else array.astype(wanted)
    result = np.empty(array.shape, wanted)
    both_float = _is_float(array.dtype) and _is_float(wanted)
    for start, block in _blocks(array):
        with np.errstate(all="ignore"):
            changed = block.astype(wanted)
            # There and back finds every loss but the sign: 200 as int8 is -56, and as uint8 that is 200 again.
            exact = (changed.astype(block.dtype) == block) & ((changed < 0) == (block < 0))
            kept = np.isfinite(changed) | ~np.isfinite(block) if both_float else exact
        if not np.all(kept):
            _refuse_cast(block, kept, start, dtype, what)
        result[start : start + len(block)] = changed if result.ndim else changed[0]
    return result


def check_finite(array: Array, what: str) -> None:
    """Refused, naming the first sample (row) and value, where a float array holds NaN or infinity."""
    if not _is_float(array.dtype):
        return
    for start, block in _blocks(array):
        finite = np.isfinite(block)
        if not finite.all():
            row, value = _first(block, finite)
            raise Refused(f"use {what}", found=f"{value} in sample {start + row} (counted from 0)",
                          do="clean the data: a model's answer to NaN or infinity says nothing")


def _blocks(array: Array) -> list[tuple[int, Array]]:
    """(start, rows) over the first axis; a scalar counts as one row."""
    rows = array if array.ndim else array[None]
    step = max(1, BLOCK_BYTES // max(1, rows[:1].nbytes))
    return [(start, rows[start : start + step]) for start in range(0, len(rows), step)]


def _first(block: Array, good: Array) -> tuple[int, Any]:
    where = np.unravel_index(int(np.argmin(good)), good.shape)
    return int(where[0]), block[where]


def _refuse_cast(block: Array, kept: Array, start: int, dtype: str, what: str) -> None:
    row, value = _first(block, kept)
    raise Refused(f"use {what} as {dtype}, the model's dtype", found=f"{value} ({block.dtype.name}) in sample {start + row} would change",
                  do=f"convert the data to {dtype} yourself, the way the model was trained")


def _is_float(dtype: np.dtype[Any]) -> bool:
    # bfloat16, float8 and their like are of kind "V" to numpy, and told by their names.
    return dtype.kind == "f" or "float" in dtype.name


def _texts(array: Array, what: str) -> Array:
    if array.dtype.kind != "U":
        raise Refused(f"use {what} as text, the model's dtype", found=f"an array of {array.dtype.name}", do="give an array of str")
    return array
