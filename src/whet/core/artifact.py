"""Artifact: an immutable model on disk, described by its manifest (``whet.json``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from whet.core.document import Document, FrozenMap
from whet.core.errors import Refused
from whet.core.recipe import Recipe

MANIFEST_NAME = "whet.json"


@dataclass(frozen=True)
class TensorSpec(Document):
    """A named input or output. A dimension is a size, or the name of a size that is not fixed ("N"; "?" where it has none)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class ModelFile(Document):
    """A file of the artifact; ``path`` is relative to the manifest and stays inside its folder."""

    path: str
    sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = self.path.replace("\\", "/").split("/")
        if {"", ".", ".."} & set(parts) or ":" in parts[0] or "\0" in self.path:
            raise Refused("read a manifest", found=f"the file path {self.path!r} leaves the artifact's folder")


@dataclass(frozen=True)
class Artifact(Document):
    """The manifest. ``artifact_id`` is its sha256, so any change of file, recipe or lineage is another artifact.

    session_options: what the runtime must be told so that it computes what was measured (an onnxruntime session option each).
    parent: the id of the artifact that this one was made from; None for an original.
    tools: the version of everything that took part in making it.
    """

    format: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: tuple[ModelFile, ...]
    task: str = ""
    parent: str | None = None
    recipe: Recipe | None = None
    target: str = ""
    session_options: Mapping[str, str] = field(default_factory=FrozenMap)
    tools: Mapping[str, str] = field(default_factory=FrozenMap)

    @property
    def artifact_id(self) -> str:
        """64 hex digits."""
        return self.digest

    @property
    def size_bytes(self) -> int:
        """Bytes on disk of all files but the manifest."""
        return sum(file.size_bytes for file in self.files)
