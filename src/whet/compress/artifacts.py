"""Models on disk: a folder with ``model.onnx`` and its manifest ``whet.json``, written whole or not at all, checked when read."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import onnx_ir as ir

import whet
from whet.compress.graph import GraphModel
from whet.core.artifact import MANIFEST_NAME, Artifact, ModelFile
from whet.core.document import FrozenMap
from whet.core.errors import Refused, Untrusted
from whet.core.recipe import Recipe
from whet.device.files import new_folder, write_file

MODEL_NAME = "model.onnx"
_TOOLS = ("onnx", "onnx_ir", "onnxruntime", "numpy")


def load(source: Any, *, example_inputs: Any = None, weights: str | os.PathLike[str] | None = None) -> GraphModel:
    """A model, ready to be worked on.

    source: an ``.onnx`` file or its bytes, the folder of an artifact that Whet wrote, an ``onnx.ModelProto``, an
    ``onnx_ir.Model``, a ``torch.nn.Module`` (with ``example_inputs``, a tuple of tensors), or "package.module:callable" (with
    ``weights``). A GraphModel is given back as it is.
    Raises Refused or Unsupported, naming the node and operator, where it cannot be had; Untrusted where an artifact's files are
    not those of its manifest.
    """
    from whet.compress.source import normalise, read_model

    if isinstance(source, GraphModel):
        return source
    artifact = None
    if isinstance(source, str | os.PathLike):
        source, artifact = _inside_artifact(Path(source)) if Path(source).exists() else (source, None)
    model = read_model(source, example_inputs=example_inputs, weights=weights)
    if artifact is None:  # what Whet wrote is as it should be, and is run as it is
        model = normalise(model)
    options = artifact.session_options if artifact else FrozenMap()
    return GraphModel(model, options, _origin(source), artifact.artifact_id if artifact else "")


def source_file(source: Any) -> Path | None:
    """The ``.onnx`` file behind what ``load`` was given; None where it is no file."""
    if not isinstance(source, str | os.PathLike) or not Path(source).exists():
        return None
    return _inside_artifact(Path(source))[0]


def files_of(model: GraphModel, path: Path) -> list[Path]:
    """The file that the model was read from, and those beside it that hold its weights."""
    tensors = [value.const_value for value in model.ir.graph.initializers.values()]
    return sorted({path, *(path.parent / os.fspath(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor))})


def write_artifact(model: GraphModel, folder: Path, *, parent: str | None, recipe: Recipe | None = None, target: str = "") -> Artifact:
    """Write the model and its manifest as ``folder``, in one step.

    An artifact that is there is replaced. Raises Refused where the folder holds anything else, and where the disk is full.
    """
    check_free(folder)
    with new_folder(folder) as beside:
        model.save(beside / MODEL_NAME)
        files = tuple(described_file(path, beside) for path in sorted(beside.iterdir()))
        artifact = describe(model, files, parent=parent, recipe=recipe, target=target)
        write_file(beside / MANIFEST_NAME, artifact.to_json())
    return artifact


def check_free(folder: Path) -> None:
    """Raises Refused where something lies in the artifact's place that is no artifact."""
    if folder.exists() and not folder.is_dir():
        raise Refused(f"write an artifact to {folder}", found="a file of that name", do="choose another output folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST_NAME).is_file():
        raise Refused(f"write an artifact to {folder}", found="a folder with other files in it, which would be lost",
                      do="choose another output folder")


def describe(model: GraphModel, files: tuple[ModelFile, ...], *, parent: str | None, recipe: Recipe | None = None,
             target: str = "") -> Artifact:
    """The manifest of a model whose files are known."""
    return Artifact("onnx", model.inputs, model.outputs, files, parent=parent, recipe=recipe, target=target,
                    session_options=model.session_options, tools=FrozenMap(tool_versions()))


def original_artifact(model: GraphModel, path: Path | None) -> Artifact:
    """The manifest of a model that Whet did not make: its file where it has one, else the bytes it would be written as."""
    if path is not None and path.is_file():
        files = [described_file(file, path.parent) for file in files_of(model, path)]
    elif not model.is_large:
        files = [ModelFile(MODEL_NAME, hashlib.sha256(model.content).hexdigest(), len(model.content))]
    else:
        with tempfile.TemporaryDirectory(prefix="whet-") as folder:
            model.save(Path(folder) / MODEL_NAME)
            files = [described_file(file, Path(folder)) for file in sorted(Path(folder).iterdir())]
    return Artifact("onnx", model.inputs, model.outputs, tuple(files), session_options=model.session_options)


def read_artifact(folder: Path) -> Artifact:
    """The manifest of ``folder``, after checking that its files are those that it names. Raises Untrusted where they are not."""
    artifact = Artifact.from_json((folder / MANIFEST_NAME).read_bytes())
    for file in artifact.files:
        path = folder / file.path
        if not path.is_file():
            raise Refused(f"read the artifact {folder}", found=f"{file.path} is missing", do="copy the whole folder")
        if _sha256(path) != file.sha256:
            raise Untrusted(f"read the artifact {folder}", found=f"{file.path} is not the file that the manifest describes",
                            do="get the artifact again from where it was made")
    return artifact


def tool_versions() -> dict[str, str]:
    """The versions of everything that takes part in making an artifact."""
    found = {"whet": whet.__version__, "python": platform.python_version(), "platform": f"{sys.platform}-{platform.machine()}"}
    return found | {name: importlib.metadata.version(name.replace("_", "-")) for name in _TOOLS}


@cache
def code_version() -> str:
    """Whet's version and the sha256 of its sources: what other code made is made again."""
    root = Path(whet.__file__).parent
    hasher = hashlib.sha256(whet.__version__.encode())
    for path in sorted(path for floor in ("core", "device", "compress") for path in (root / floor).rglob("*.py")):
        hasher.update(path.read_bytes())
    return hasher.hexdigest()


def _inside_artifact(path: Path) -> tuple[Path, Artifact | None]:
    """The model file of an artifact's folder, or of the file itself where a manifest that names it lies beside it."""
    folder = path if path.is_dir() else path.parent
    if not (folder / MANIFEST_NAME).is_file():
        return path, None
    artifact = read_artifact(folder)
    names = [file.path for file in artifact.files if file.path.endswith(".onnx")]
    if path.is_file():
        return path, artifact if path.name in names else None
    if not names:
        raise Refused(f"load {path}", found="an artifact without an .onnx file")
    return path / names[0], artifact


def described_file(path: Path, folder: Path) -> ModelFile:
    """A file of an artifact: its path inside ``folder``, its hash and its size."""
    return ModelFile(path.relative_to(folder).as_posix(), _sha256(path), path.stat().st_size)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _origin(source: object) -> str:
    if isinstance(source, str | os.PathLike):
        return str(source)
    return type(source).__name__
