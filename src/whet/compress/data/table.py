"""CSV and Parquet: one row a sample, one column a feature, a column ``label`` or ``labels`` apart. Read by pyarrow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from whet.compress.data.fit import LABEL_NAMES
from whet.core.artifact import TensorSpec
from whet.core.errors import Refused

Array = np.ndarray[Any, Any]

NUMBER_BYTES = 8


def read_table(path: Path, inputs: Sequence[TensorSpec], max_bytes: int) -> dict[str, Array]:
    """Arrays by input name (and ``labels``): all columns in their order as the model's one input, or, where the columns are
    called like the model's inputs, each column as its input. Raises Refused."""
    table = _read(path, max_bytes)
    names = list(table.column_names)
    if len(set(names)) != len(names):
        raise Refused(f"read {path}", found="two columns of the same name")
    if names and all(_is_number(name) for name in names):
        raise Refused(f"read {path}", found=f"the first line holds numbers ({', '.join(names[:4])}...) and not names",
                      do="write the names of the columns into the first line")
    features_count = len([name for name in names if name not in LABEL_NAMES])
    if not features_count or table.num_rows == 0:
        raise Refused(f"read {path}", found=f"it is empty: {table.num_rows} rows, {features_count} columns of features")
    columns = {name: _column(table, name, path) for name in names}
    labels = {name: columns.pop(name) for name in LABEL_NAMES if name in columns}
    by_name = {spec.name: spec for spec in inputs}
    if set(columns) == set(by_name):
        features = {name: column.reshape(-1, *[1] * (len(by_name[name].shape) - 1)) for name, column in columns.items()}
    elif len(inputs) == 1:
        features = {inputs[0].name: _matrix(list(columns.values()), inputs[0])}
    else:
        raise Refused(f"feed the columns of {path} to a model with the inputs {', '.join(by_name)}",
                      found=f"the columns {', '.join(columns)}", do="call each column like its input, or save arrays as .npz")
    return {**features, **labels}


def _read(path: Path, max_bytes: int) -> Any:
    import pyarrow as arrow
    from pyarrow import csv, parquet

    try:
        if path.suffix.lower() == ".csv":
            _check_size(path, path.stat().st_size, max_bytes)
            return csv.read_csv(path)
        with parquet.ParquetFile(path) as file:
            _check_size(path, file.metadata.num_rows * file.metadata.num_columns * NUMBER_BYTES, max_bytes)
            return file.read()
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise Refused(f"read {path}", found=f"it is no valid {path.suffix} file ({str(error).splitlines()[0]})") from error


def _check_size(path: Path, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise Refused(f"read {path} within {max_bytes / (1 << 30):.3g} GiB", found=f"{size} bytes",
                      do="use fewer rows, or raise `max_bytes`")


def _column(table: Any, name: str, path: Path) -> Array:
    import pyarrow as arrow

    column = table.column(name)
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise Refused(f"read the column {name!r} of {path}", found=f"no value in row {row} (counted from 0)",
                      do="fill it or leave the row out")
    kind = column.type
    if not (arrow.types.is_integer(kind) or arrow.types.is_floating(kind) or arrow.types.is_boolean(kind)):
        do = "give the number of the class, counted from 0" if name in LABEL_NAMES else "turn it into numbers, or leave the column out"
        raise Refused(f"read the column {name!r} of {path}", found=f"values of type {kind}", do=do)
    array: Array = column.to_numpy()
    return array


def _matrix(columns: list[Array], spec: TensorSpec) -> Array:
    """[rows, features], with the axes of size 1 that the model's input has beside its one axis of features."""
    if not any(np.issubdtype(column.dtype, np.floating) for column in columns):
        matrix = np.stack(columns, axis=1)
    else:
        matrix = np.stack([column.astype(np.float64) for column in columns], axis=1)
    wide = [size for size in spec.shape[1:] if size != 1]
    if len(spec.shape) > 2 and wide in ([], [len(columns)]):
        return matrix.reshape(len(matrix), *[len(columns) if size != 1 else 1 for size in spec.shape[1:]])
    return matrix


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
