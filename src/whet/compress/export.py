"""``export``: a model as a file for a runtime."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.compress.artifacts import load
from whet.compress.bodies import checkpoint_in
from whet.core.errors import Refused, Unsupported
from whet.device.files import new_folder

if TYPE_CHECKING:
    from whet.compress.checkpoint import Checkpoint
    from whet.compress.checkpoint.agreement import Agreement
    from whet.compress.checkpoint.gguf import GgufReport
    from whet.compress.checkpoint.hf_export import HfReport
    from whet.compress.checkpoint.onnx_export import OnnxReport

FORMATS = ("onnx", "gguf", "hf")
KIND = "auto"
ACCURACY_LEVEL = 4


@dataclass(frozen=True)
class Exported:
    """What a language model became, and how it answers beside the checkpoint; None where that was not asked for."""

    report: OnnxReport | GgufReport | HfReport
    agreement: Agreement | None = None


def export(model: Any, path: str | os.PathLike[str], *, format: str = "onnx", example_inputs: Any = None, kind: str = KIND) -> Path:
    """Write the model for a runtime and give back the path of its file, or folder.

    A graph goes to ``onnx``, a file that ends in .onnx; beyond 1 GB its weights lie in a file beside it. Session options that the model
    needs to compute what was measured are in its artifact's whet.json; ``whet.load(...).session_options`` shows them.
    A language model goes to ``onnx`` (a folder), ``gguf`` (a file; kind: as ``export_language`` says) or ``hf`` (a folder); what became of
    it, and how the export answers beside it, ``export_language`` tells.
    Raises Unsupported for another format, Refused where ``path`` has another ending or cannot be written.
    """
    language = checkpoint_in(model)
    if language is not None:
        export_language(language, path, format=format, kind=kind, check=False)
        return Path(path)
    if format != "onnx":
        do = "use format=\"onnx\"" if format in FORMATS else f"the formats are {', '.join(FORMATS)}"
        raise Unsupported(f"export to {format}", found="a graph, which goes to onnx", do=do)
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


def export_language(model: Checkpoint, path: str | os.PathLike[str], *, format: str = "onnx", kind: str = KIND,
                    accuracy_level: int = ACCURACY_LEVEL, check: bool = True) -> Exported:
    """Write a language model for a runtime, and say what it became.

    format: "onnx", a folder for onnxruntime, with a cache of keys and values and packed products; "gguf", a file for llama.cpp; "hf", a
    folder that transformers loads. kind: of GGUF, "auto" for codes as they are, or a mix of llama.cpp's ("q4_k_m"). accuracy_level: of
    ONNX, 4 for int8 activations in packed products, 0 or 1 for float32, which is many times slower with 2 and 8 bits. check: whether both
    are asked the same tokens afterwards (``checkpoint.agreement``).
    """
    if format not in FORMATS:
        raise Unsupported(f"export to {format}", found="no such format", do=f"use one of {', '.join(FORMATS)}")
    if kind != KIND and format != "gguf":
        raise Refused(f"export to {format} as {kind}", found="kinds are GGUF's", do="leave it out, or export to gguf")
    if accuracy_level != ACCURACY_LEVEL and format != "onnx":
        raise Refused(f"export to {format} at accuracy level {accuracy_level}", found="levels are onnxruntime's",
                      do="leave it out, or export to onnx")
    report = _written(model, Path(path), format, kind, accuracy_level)
    if not check:
        return Exported(report)
    from whet.compress.checkpoint.agreement import agreement

    return Exported(report, agreement(model, Path(path), format))


def _written(model: Checkpoint, path: Path, format: str, kind: str, accuracy_level: int) -> OnnxReport | GgufReport | HfReport:
    if format == "gguf":
        from whet.compress.checkpoint.gguf import export_gguf

        return export_gguf(model, path, kind=kind)
    if format == "hf":
        from whet.compress.checkpoint.hf_export import export_hf

        return export_hf(model, path)
    from whet.compress.checkpoint.onnx_export import export_onnx

    return export_onnx(model, path, accuracy_level=accuracy_level)
