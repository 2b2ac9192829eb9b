"""``export``: a model as a file for a runtime."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from whet.compress.artifacts import load
from whet.core.errors import Refused, Unsupported
from whet.device.files import new_folder

FORMATS = ("onnx",)


def export(model: Any, path: str | os.PathLike[str], *, format: str = "onnx", example_inputs: Any = None) -> Path:
    """Write the model for a runtime and give back the path of its file. ``onnx`` is the one format of this version.

    A model beyond 1 GB gets its weights in a file beside it. Session options that the model needs to compute what was measured are
    in its artifact's whet.json; ``whet.load(...).session_options`` shows them.
    Raises Unsupported for another format, Refused where ``path`` does not end in .onnx or cannot be written.
    """
    if format not in FORMATS:
        raise Unsupported(f"export to {format}", found="this version writes onnx", do="use format=\"onnx\"")
    place = Path(path)
    if place.suffix != ".onnx":
        raise Refused(f"export to {place}", found=f"a name that ends in {place.suffix or 'nothing'}", do="end it in .onnx")
    graph = load(model, example_inputs=example_inputs)
    with new_folder(place.parent / f".{place.name}.export") as beside:
        (graph.slimmed() if graph.artifact_id else graph).save(beside / place.name)  # of an artifact, the very bytes that were measured
        for file in beside.iterdir():
            os.replace(file, place.parent / file.name)
    (place.parent / f".{place.name}.export").rmdir()
    return place
