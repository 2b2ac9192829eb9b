"""A model's outputs on every sample of a dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from whet.compress.data.dataset import Dataset
from whet.core.errors import Refused
from whet.core.progress import task

Array = np.ndarray[Any, Any]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]


def predict(
    run: Run,
    dataset: Dataset,
    *,
    batch_size: int,
    outputs: Sequence[str] | None = None,
    name: str = "evaluating",
    fixed: bool = False,
) -> dict[str, Array]:
    """The outputs [n, ...] by name, in the order of the data.

    run: arrays by input name -> arrays by output name. outputs: which to keep; None keeps all.
    fixed: the model takes exactly ``batch_size`` samples, so the last batch is filled up with its last sample and cut again.
    An output without a batch dimension can be told only where samples go in one by one (batch size 1): each is then kept whole,
    as [n, *its shape]. With larger batches it is Refused, as are NaN in an output, and outputs whose shape changes.
    """
    if len(dataset) == 0:
        raise Refused("evaluate a model", found="the data is empty: no samples")
    kept: dict[str, Array] = {}
    start = 0
    with task(name, len(dataset)) as progress:
        for batch in dataset.batches(batch_size):
            count = len(batch[dataset.names[0]])
            fed = _filled(batch, dataset.names, batch_size) if fixed and count < batch_size else batch
            fed_count = batch_size if fixed else count
            found = run(fed)
            for output in _chosen(found, outputs):
                rows = _rows(np.asarray(found[output]), output, fed_count)[:count]
                _check_numbers(rows, output, start)
                if output not in kept:
                    kept[output] = np.empty((len(dataset), *rows.shape[1:]), rows.dtype)
                _store(kept[output], rows, start, output)
            start += count
            progress.advance(count)
    return kept


def _filled(batch: Mapping[str, Array], names: Sequence[str], size: int) -> dict[str, Array]:
    """The batch with its last sample repeated up to ``size``; constants stay as they are."""
    last = {name: np.repeat(batch[name][-1:], size - len(batch[name]), axis=0) for name in names}
    return {**batch, **{name: np.concatenate([batch[name], last[name]]) for name in names}}


def _chosen(found: Mapping[str, Array], outputs: Sequence[str] | None) -> Sequence[str]:
    missing = [name for name in outputs or () if name not in found]
    if missing:
        raise Refused(f"evaluate the output {missing[0]!r}", found=f"the model has {', '.join(found)}")
    return outputs if outputs is not None else list(found)


def _rows(array: Array, name: str, count: int) -> Array:
    """``array`` as [count, ...]."""
    if array.ndim and len(array) == count:
        return array
    if count == 1:
        return array[None]
    raise Refused(f"read the output {name!r} for each of {count} samples",
                  found=f"its shape is {list(array.shape)}, without a batch dimension",
                  do="evaluate with batch size 1, or name the outputs that count")


def _check_numbers(rows: Array, name: str, start: int) -> None:
    if rows.dtype.kind != "f":
        return
    wrong = np.isnan(rows)
    if wrong.any():
        row = int(np.argmax(wrong.reshape(len(rows), -1).any(axis=1)))
        raise Refused("evaluate a model", found=f"NaN in the output {name!r} for sample {start + row} (counted from 0)",
                      do="the model breaks on this input: look for overflow (float16) or a scale of zero")


def _store(kept: Array, rows: Array, start: int, name: str) -> None:
    if rows.shape[1:] != kept.shape[1:]:
        raise Refused(f"put the outputs {name!r} of all samples together",
                      found=f"sample {start} gives {list(rows.shape[1:])} where the first gave {list(kept.shape[1:])}",
                      do="give samples of one shape, or name the outputs that count")
    kept[start : start + len(rows)] = rows
