"""``load_data``: one door for every kind of data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from whet.compress.data.batches import named_batch, read_batches
from whet.compress.data.dataset import Dataset
from whet.compress.data.fit import fitted
from whet.compress.data.folder import load_folder
from whet.compress.data.npz import MAX_BYTES, read_npz
from whet.compress.data.preprocessing import Preprocessing
from whet.compress.data.table import read_table
from whet.core.artifact import TensorSpec
from whet.core.errors import Refused


def load_data(
    source: Any,
    inputs: Sequence[TensorSpec],
    *,
    preprocessing: Preprocessing | None = None,
    constants: Mapping[str, Any] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Dataset:
    """The data of ``source``, checked against the model's ``inputs``.

    source: a path to .npz, .npy, .csv, .parquet or a folder; a Dataset; one array (a model of one input); a dict of arrays by input
    name, with ``labels`` if there are any; a tuple (inputs, labels); or an iterable of batches (arrays, dicts, tuples, torch
    tensors), which is read once and kept. preprocessing: for folders, in place of their whet-data.toml. constants: inputs that
    are the same for every sample. max_bytes: what the arrays may take in memory; folders are never held there.

    Raises Refused, saying what was asked and found, for anything missing, damaged, empty, too large, not finite or not fitting.
    """
    if isinstance(source, Dataset):
        return _checked(source, inputs, constants)
    if isinstance(source, str | os.PathLike):
        return _load_path(Path(source), inputs, preprocessing, constants, max_bytes)
    varying = [spec for spec in inputs if spec.name not in (constants or {}) and spec.shape]
    if isinstance(source, Mapping | tuple | np.ndarray) or hasattr(source, "detach"):
        arrays, labels = named_batch(source, varying)
        return fitted(arrays, labels, inputs, source="arrays in memory", constants=constants)
    if not isinstance(source, Iterable) and not hasattr(source, "__getitem__"):
        raise Refused("load the data", found=f"a {type(source).__name__}", do="give a path, arrays, or an iterable of batches")
    arrays, labels = read_batches(source, varying, max_bytes)
    return fitted(arrays, labels, inputs, source=f"a Python {type(source).__name__}", constants=constants)


def _load_path(
    path: Path, inputs: Sequence[TensorSpec], preprocessing: Preprocessing | None, constants: Mapping[str, Any] | None, max_bytes: int
) -> Dataset:
    if not path.exists():
        raise Refused(f"load the data {path}", found="there is no such file or folder")
    if path.is_dir():
        return load_folder(path, inputs, preprocessing, constants)
    kind = path.suffix.lower()
    if kind in (".npz", ".npy"):
        arrays = read_npz(path, max_bytes)
    elif kind in (".csv", ".parquet", ".pq"):
        varying = [spec for spec in inputs if spec.name not in (constants or {}) and spec.shape]
        arrays = read_table(path, varying, max_bytes)
    else:
        raise Refused(f"load the data {path}", found=f"a file of kind {kind or 'unknown'}",
                      do="give .npz, .npy, .csv, .parquet or a folder")
    return fitted(arrays, None, inputs, source=str(path), constants=constants)


def _checked(dataset: Dataset, inputs: Sequence[TensorSpec], constants: Mapping[str, Any] | None) -> Dataset:
    """A Dataset that was made elsewhere: its names and its first sample are compared with the model."""
    names = {*dataset.names, *dataset.constants}
    if constants or names != {spec.name for spec in inputs}:
        wanted = ", ".join(spec.name for spec in inputs)
        found = "constants, which belong to the Dataset" if constants else f"it has {', '.join(sorted(names))}"
        raise Refused(f"use a Dataset for the model's inputs ({wanted})", found=found)
    if len(dataset) == 0:
        raise Refused("use a Dataset", found="it is empty: no samples")
    first = next(dataset.take([0]).batches(1))
    varying = [spec for spec in inputs if spec.name in dataset.names]
    fitted({name: first[name] for name in dataset.names}, None, varying, source=dataset.source)
    return dataset
