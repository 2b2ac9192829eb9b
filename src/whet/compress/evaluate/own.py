"""A metric of the user's: a function ``(outputs, labels) -> number, or one number for each sample``."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from whet.compress.evaluate.metrics import Case, Direction, Metric, Scored
from whet.core.errors import Refused
from whet.core.progress import task

Array = np.ndarray[Any, Any]
Function = Callable[..., Any]

RESAMPLES = 200  # each is two calls of a Python function that may take its time


def own_metric(function: Function, name: str) -> Metric:
    """The metric of a function. Higher is better unless the function has the attribute ``direction = "lower"``."""
    direction: Direction = "lower" if getattr(function, "direction", "higher") == "lower" else "higher"
    return Metric(name, direction, partial(_score, function, name))


def load_function(place: str) -> Function:
    """The function at ``module:function`` or ``path/file.py:function``. Raises Refused."""
    where, _, name = place.rpartition(":")
    try:
        module = _load_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
        function = getattr(module, name)
    except Exception as error:  # the user's module may raise anything while it is imported
        raise Refused(f"load the metric {place!r}", found=f"{type(error).__name__}: {error}",
                      do="give module:function of an importable module, or path/file.py:function") from error
    if not callable(function):
        raise Refused(f"load the metric {place!r}", found=f"{name} is a {type(function).__name__}", do="name a function")
    return function


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"whet_metric_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _score(function: Function, name: str, case: Case) -> Scored:
    parent, candidate = (_call(function, name, outputs, case.labels) for outputs in (case.parents, case.candidates))
    if parent.shape != candidate.shape or parent.shape not in ((), (len(case),)):
        raise Refused(f"measure {name}", found=f"it gave {list(parent.shape)} and {list(candidate.shape)} for {len(case)} samples",
                      do="return one number, or one for each sample")
    if parent.ndim == 1:
        right = np.isin(parent, (0, 1)).all() and np.isin(candidate, (0, 1)).all()  # then it is a share, and has an exact interval
        both = [each.astype(bool) if right else each for each in (parent, candidate)]
        return Scored("your function, mean over samples", both[0], both[1])

    def whole(weights: Array) -> Array:
        rows = []
        with task(f"bootstrap of {name}", len(weights)) as progress:
            for row in weights:
                drawn = np.repeat(np.arange(len(case)), row.astype(np.int64))
                labels = None if case.labels is None else case.labels[drawn]
                both = [_take(outputs, drawn) for outputs in (case.parents, case.candidates)]
                rows.append([float(_call(function, name, outputs, labels)) for outputs in both])
                progress.advance()
        return np.array(rows)

    return Scored("your function", values=(float(parent), float(candidate)), whole=whole, resamples=RESAMPLES)


def _take(outputs: Mapping[str, Array], rows: Array) -> dict[str, Array]:
    return {name: array[rows] for name, array in outputs.items()}


def _call(function: Function, name: str, outputs: Mapping[str, Array], labels: Array | None) -> Array:
    """float64 [] or [n]; the function sees the array itself where the model has one output, else all by name."""
    given = next(iter(outputs.values())) if len(outputs) == 1 else dict(outputs)
    try:
        found = np.asarray(function(given, labels), dtype=np.float64)
    except Refused:
        raise
    except Exception as error:  # whatever the user's function raises is said, and not shown as Whet's own traceback
        raise Refused(f"measure {name}", found=f"your function raised {type(error).__name__}: {error}") from error
    if not np.isfinite(found).all():
        raise Refused(f"measure {name}", found="your function gave NaN or infinity")
    return found
