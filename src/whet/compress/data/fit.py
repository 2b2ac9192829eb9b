"""Do these arrays fit that model? Names, lengths, shapes, dtypes and values, checked once when data is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from whet.compress.data.casting import as_array, cast, check_finite
from whet.compress.data.dataset import ArraySamples, Dataset
from whet.core.artifact import TensorSpec
from whet.core.errors import Refused

Array = np.ndarray[Any, Any]

LABEL_NAMES = ("labels", "label")
UNNAMED = "arr_0"  # what numpy.savez calls an array that was given no name


def fitted(
    arrays: Mapping[str, Any],
    labels: Any,
    inputs: Sequence[TensorSpec],
    *,
    source: str,
    constants: Mapping[str, Any] | None = None,
) -> Dataset:
    """A Dataset of ``arrays`` (by input name, an entry ``labels`` or ``label`` being the labels), checked against ``inputs``.

    An input is per sample ([n, ...], axis 0 is the batch) or a constant: declared in ``constants``, a scalar of the model, or of
    the model's own fixed first size where the other inputs have another length. Raises Refused for whatever does not fit.
    """
    what = f"the data from {source}"
    arrays = {name: as_array(value, f"{name!r} in {what}") for name, value in arrays.items()}
    arrays, labels = _labels_apart(arrays, labels, inputs)
    fixed = fitted_constants(constants or {}, inputs, what)
    varying = [spec for spec in inputs if spec.name not in fixed]
    arrays = _by_name(arrays, varying, what)
    count = _count(arrays, varying, what)
    alone = {spec.name for spec in varying if _is_constant(spec, arrays[spec.name], count, varying)}
    fixed |= fitted_constants({name: arrays[name] for name in arrays if name in alone}, inputs, what)
    samples = {spec.name: fitted_samples(arrays[spec.name], spec, count, what) for spec in varying if spec.name not in alone}
    return Dataset(ArraySamples(samples), labels=checked_labels(labels, count, what), constants=fixed, source=source)


def fitted_samples(array: Array, spec: TensorSpec, count: int, what: str) -> Array:
    """``array`` [count, ...] as the model's dtype, after the checks of length, shape and finite values."""
    what = f"input {spec.name!r} of {what}"
    if array.ndim != len(spec.shape) or not _dims_fit(array.shape[1:], spec.shape[1:]):
        found = f"an array of shape {_shown(array.shape)}"
        raise Refused(f"use {what}: the model takes samples of shape {_shown(spec.shape[1:])}, so {_shown(('n', *spec.shape[1:]))}",
                      found=found, do=_shape_hint(array.shape, spec.shape))
    if len(array) != count:
        raise Refused(f"use {what}", found=f"{len(array)} samples where the other inputs have {count}")
    check_finite(array, what)
    return cast(array, spec.dtype, what)


def fitted_constants(values: Mapping[str, Any], inputs: Sequence[TensorSpec], what: str) -> dict[str, Array]:
    """Constants in the model's shape and dtype; Refused where the model has no such input or the shape does not fit."""
    specs, result = {spec.name: spec for spec in inputs}, {}
    for name, value in values.items():
        if name not in specs:
            raise Refused(f"use the constant {name!r} of {what}", found=f"the model has only {_listed(specs)}")
        array = as_array(value, f"the constant {name!r}")
        if array.size == 1 and not specs[name].shape:
            array = array.reshape(())
        if array.ndim != len(specs[name].shape) or not _dims_fit(array.shape, specs[name].shape):
            raise Refused(f"use the constant {name!r}, for which the model takes {_shown(specs[name].shape)}",
                          found=f"shape {_shown(array.shape)}")
        check_finite(array, f"the constant {name!r}")
        result[name] = cast(array, specs[name].dtype, f"the constant {name!r}")
    return result


def checked_labels(labels: Any, count: int, what: str) -> Array | None:
    """Labels [count] or [count, ...] as int64 (whole numbers, bools) or float64; Refused for another length, NaN or texts."""
    if labels is None:
        return None
    array, what = as_array(labels, f"the labels of {what}"), f"the labels of {what}"
    if array.dtype.kind not in "biuf":
        raise Refused(f"use {what}", found=f"an array of {array.dtype.name}",
                      do="give the number of the class, counted from 0 in the order of the model's outputs")
    if array.ndim == 0 or len(array) != count:
        length = "one number" if array.ndim == 0 else f"{len(array)} labels"
        raise Refused(f"use {what}", found=f"{length} for {count} samples", do="give one label for each sample, in the same order")
    check_finite(array, what)
    return cast(array, "float64" if array.dtype.kind == "f" else "int64", what)


def _labels_apart(arrays: dict[str, Array], labels: Any, inputs: Sequence[TensorSpec]) -> tuple[dict[str, Array], Any]:
    names = {spec.name for spec in inputs}
    found = [name for name in LABEL_NAMES if name in arrays and name not in names]
    if len(found) + (labels is not None) > 1:
        raise Refused("find the labels", found="they are given twice", do="give them once, as `labels`")
    if found:
        labels = arrays[found[0]]
    return {name: array for name, array in arrays.items() if name not in found}, labels


def _by_name(arrays: dict[str, Array], inputs: Sequence[TensorSpec], what: str) -> dict[str, Array]:
    names = [spec.name for spec in inputs]
    if len(names) == 1 and list(arrays) == [UNNAMED]:
        return {names[0]: arrays[UNNAMED]}
    if set(names) != set(arrays):
        example = f", for example numpy.savez(path, **{{{names[0]!r}: x}}, labels=y)" if names else ""
        raise Refused(f"find the model's inputs ({_listed(names)}) in {what}", found=f"the arrays {_listed(arrays)}",
                      do=f"give arrays under the names of the inputs, and no others{example}")
    return {name: arrays[name] for name in names}


def _count(arrays: Mapping[str, Array], inputs: Sequence[TensorSpec], what: str) -> int:
    """How many samples there are: the length of the input whose first size is most surely a batch."""
    batched = [spec for spec in inputs if spec.shape]
    if not batched:
        raise Refused(f"use {what}", found="the model has no input with a batch dimension")
    surest = min(batched, key=lambda spec: 0 if isinstance(spec.shape[0], str) else 1 if spec.shape[0] == 1 else 2)
    array = arrays[surest.name]
    count = len(array) if array.ndim else 0
    if count == 0:
        raise Refused(f"use {what}", found="it is empty: no samples")
    return count


def _is_constant(spec: TensorSpec, array: Array, count: int, inputs: Sequence[TensorSpec]) -> bool:
    if not spec.shape:
        return True
    first = spec.shape[0]
    if not isinstance(first, int) or array.shape[:1] != (first,):
        return False
    # Beside inputs with a free batch size, a fixed first size above 1 is no batch: silero's state is [2, batch, 128].
    free_batch = any(other.shape and isinstance(other.shape[0], str) for other in inputs)
    return len(array) != count or (free_batch and first > 1)


def _dims_fit(found: Sequence[int], wanted: Sequence[int | str]) -> bool:
    return len(found) == len(wanted) and all(isinstance(w, str) or w == f for f, w in zip(found, wanted, strict=True))


def _shape_hint(found: tuple[int, ...], wanted: tuple[int | str, ...]) -> str:
    if _dims_fit(found, wanted[1:]):
        return "this looks like one sample: add the batch axis, x[None]"
    for order in ((0, 3, 1, 2), (0, 2, 3, 1), (0, 2, 1)):
        if len(order) == len(found) and _dims_fit([found[axis] for axis in order[1:]], wanted[1:]):
            return f"the axes look exchanged: x.transpose{order}"
    return "give the samples in the shape that the model takes"


def _shown(shape: Sequence[int | str]) -> str:
    return "[" + ", ".join(str(size) or "?" for size in shape) + "]"


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "none"
