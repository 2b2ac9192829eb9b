"""What the API is given for the model and the metric that were named on the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from whet.cli.quantities import Shape
from whet.core.errors import Refused


def model_of(name: str, weights: str | None, shapes: Sequence[Shape], data: str | None = None) -> Any:
    """The path as it is; "package.module:callable" loaded, with example inputs by ``shapes`` or the first sample of ``data``."""
    import whet
    from whet.compress.source.torch_import import is_reference

    if Path(name).exists() or not is_reference(name):
        if weights or shapes:
            flag = "--weights" if weights else "--input-shape"
            raise Refused(f"give {flag} with {name}", found="it goes with a model that is named as package.module:callable",
                          do="leave it out, or name the code of the model")  # fmt: skip
        return name
    return whet.load(name, example_inputs=_examples(shapes, data), weights=weights)


def known_metric(name: str | None) -> str | None:
    """The metric's name, after a look whether there is one, before any work. Raises Refused, listing what exists.

    A ``module:function`` of the user's is looked for in the current folder too, which the installed command does not search by itself.
    """
    from whet.compress.evaluate.metrics import find_metric

    if name is None:
        return None
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        find_metric(name)
    finally:
        sys.path.remove(here)
    return name


def _examples(shapes: Sequence[Shape], data: str | None) -> Any:
    """Tensors by name, or in order; None where there is nothing to make them from."""
    if not shapes:
        return None if data is None or not data.endswith(".npz") else _first_sample(Path(data))
    if len({bool(each.name) for each in shapes}) > 1:
        raise Refused("give example inputs by --input-shape", found="some have a name and some have none", do="name all of them or none")
    tensors = [_tensor(each) for each in shapes]
    return {each.name: tensor for each, tensor in zip(shapes, tensors, strict=True)} if shapes[0].name else tuple(tensors)


def _tensor(wanted: Shape) -> Any:
    """Normal random numbers; zeros for whole numbers, which any table of embeddings can look up."""
    import torch

    dtype = getattr(torch, wanted.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise Refused(f"make an input of {wanted.dtype}", found="torch has no such dtype", do="write float32, float16, int64 or bool")
    if not dtype.is_floating_point:
        return torch.zeros(wanted.sizes, dtype=dtype)
    return torch.randn(wanted.sizes, generator=torch.Generator().manual_seed(0)).to(dtype)


def _first_sample(path: Path) -> Any:
    """[1, ...] of every array but the labels; by name where there are several, for their order in the file says nothing."""
    import torch

    from whet.compress.data.fit import LABEL_NAMES
    from whet.compress.data.npz import read_npz

    if not path.is_file():
        raise Refused(f"load the data {path}", found="there is no such file")
    arrays = {name: array[:1] for name, array in read_npz(path).items() if name not in LABEL_NAMES and array.ndim}
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    return tuple(tensors.values()) if len(tensors) == 1 else tensors
