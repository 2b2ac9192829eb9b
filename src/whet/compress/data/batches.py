"""Any Python iterable of batches, read once and kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from whet.compress.data.casting import as_array
from whet.compress.data.fit import LABEL_NAMES, UNNAMED
from whet.core.artifact import TensorSpec
from whet.core.errors import Refused
from whet.core.progress import track

Array = np.ndarray[Any, Any]


def named_batch(batch: Any, inputs: Sequence[TensorSpec]) -> tuple[dict[str, Any], Any]:
    """(arrays by input name, labels or None) of one batch, which is an array, a dict by name, a tuple of one array for each
    input and perhaps the labels last, or (dict, labels). Raises Refused for anything else."""
    if isinstance(batch, Mapping):
        return dict(batch), None
    if not isinstance(batch, tuple | list):
        return {_only(inputs, batch): batch}, None
    if len(batch) == 2 and isinstance(batch[0], Mapping):
        return dict(batch[0]), batch[1]
    if len(batch) == 2 and isinstance(batch[0], tuple | list) and len(inputs) > 1:
        return _by_position(list(batch[0]), inputs), batch[1]
    if len(batch) == len(inputs) + 1:
        return _by_position(list(batch[:-1]), inputs), batch[-1]
    return _by_position(list(batch), inputs), None


def read_batches(batches: Iterable[Any], inputs: Sequence[TensorSpec], max_bytes: int) -> tuple[dict[str, Array], Array | None]:
    """All batches one after the other: (arrays by input name, labels or None).

    An iterable may be used up by reading it, and Whet goes through its data many times, so the arrays are kept in memory. Raises
    Refused where they take more than ``max_bytes``, which also ends an iterable that never ends.
    """
    parts: list[dict[str, Array]] = []
    size = 0
    for number, batch in enumerate(track(batches, "reading the data")):
        arrays, labels = named_batch(batch, inputs)
        if labels is not None:
            arrays[LABEL_NAMES[0]] = labels
        part = {name: _rows(value, f"{name!r} of batch {number}") for name, value in arrays.items()}
        if parts and set(part) != set(parts[0]):
            raise Refused(f"read batch {number}", found=f"it has {', '.join(part)} where the first batch has {', '.join(parts[0])}")
        size += sum(array.nbytes for array in part.values())
        if size > max_bytes:
            raise Refused(f"keep the data within {max_bytes / (1 << 30):.3g} GiB", found=f"{number + 1} batches take {size} bytes",
                          do="give fewer batches, or raise `max_bytes`")
        parts.append(part)
    if not parts:
        raise Refused("read the data", found="it is empty: the iterable gave no batch")
    joined = {name: _joined([part[name] for part in parts], name) for name in parts[0]}
    return joined, None


def _joined(parts: list[Array], name: str) -> Array:
    try:
        return np.concatenate(parts)
    except ValueError as error:
        raise Refused(f"put the batches of {name!r} together", found=f"their samples differ in shape ({error})") from error


def _rows(value: Any, what: str) -> Array:
    array = as_array(value, what)
    if array.ndim == 0:
        raise Refused(f"read {what}", found="a single number where an array [batch, ...] was expected",
                      do="give batches (a torch Dataset gives single samples: wrap it into a DataLoader)")
    return array


def _only(inputs: Sequence[TensorSpec], batch: Any) -> str:
    if len(inputs) == 1:
        return inputs[0].name
    return UNNAMED  # several inputs and one array: the check of the names says what is missing


def _by_position(values: list[Any], inputs: Sequence[TensorSpec]) -> dict[str, Any]:
    if len(values) != len(inputs):
        raise Refused(f"give each input of the model ({', '.join(spec.name for spec in inputs)}) its array", found=f"{len(values)} arrays",
                      do="give a tuple of one array for each input, labels last, or a dict by input name")
    return {spec.name: value for spec, value in zip(inputs, values, strict=True)}
