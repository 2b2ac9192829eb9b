"""A folder of class folders with pictures or sounds, decoded when they are asked for and never all at once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from whet.compress.data.dataset import Dataset
from whet.compress.data.fit import fitted_constants, fitted_samples
from whet.compress.data.preprocessing import FILE_NAME, Preprocessing, read_picture, read_sound
from whet.core.artifact import TensorSpec
from whet.core.errors import Refused

Array = np.ndarray[Any, Any]

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SOUNDS = (".wav", ".flac", ".ogg")
log = logging.getLogger(__name__)


class FileSamples:
    """One sample a file. ``read`` decodes, checks and casts it for the model's input ``spec``."""

    def __init__(self, files: Sequence[Path], steps: Preprocessing, spec: TensorSpec) -> None:
        self.names = (spec.name,)
        self._files, self._steps, self._spec = tuple(files), steps, spec

    def __len__(self) -> int:
        return len(self._files)

    def read(self, indices: Array) -> dict[str, Array]:
        samples = [self._decoded(self._files[index]) for index in indices.tolist()]
        for index, sample in zip(indices.tolist(), samples, strict=True):
            if sample.shape != samples[0].shape:
                raise Refused(f"put {self._files[index]} into a batch",
                              found=f"it gives {sample.shape} where others give {samples[0].shape}",
                              do=f"declare resize and crop (pictures) or length (sounds) in {FILE_NAME}")
        return {self._spec.name: np.stack(samples)}

    def _decoded(self, file: Path) -> Array:
        read = read_picture if file.suffix.lower() in PICTURES else read_sound
        sample = read(file, self._steps, self._spec)
        checked: Array = fitted_samples(sample[None], self._spec, 1, str(file))[0]
        return checked


def load_folder(
    folder: Path,
    inputs: Sequence[TensorSpec],
    preprocessing: Preprocessing | None = None,
    constants: Mapping[str, Any] | None = None,
) -> Dataset:
    """The files of ``folder``/<class>/ with labels (classes sorted by name, or in the declared order), or those that lie
    directly in ``folder`` without labels. The first file is decoded at once, so that a wrong preprocessing shows early."""
    declared = preprocessing or _declared(folder)
    steps = declared or Preprocessing()
    what = f"the files in {folder}"
    fixed = fitted_constants({**steps.constants, **(constants or {})}, inputs, what)
    varying = [spec for spec in inputs if spec.name not in fixed]
    if len(varying) != 1:
        raise Refused(f"use {what}, which feed one input", found=f"the model has {len(varying)}: {', '.join(s.name for s in varying)}",
                      do=f"declare the others as [constants] in {FILE_NAME}, or save the prepared arrays as .npz")
    classes, files, labels = _listing(folder, steps.classes)
    if declared is None and "float" in varying[0].dtype and files[0].suffix.lower() in PICTURES:
        raise Refused(f"use the pictures in {folder}", found=f"no {FILE_NAME} says how the model wants its pixels",
                      do=f"write one there: scale = 0.00392156862745098 gives 0..1, and resize, crop, mean, std, layout exist; an empty "
                         f"{FILE_NAME} gives pixels of 0..255")
    samples = FileSamples(files, steps, varying[0])
    samples.read(np.array([0]))
    return Dataset(samples, labels=labels, constants=fixed, source=str(folder), classes=classes)


def _declared(folder: Path) -> Preprocessing | None:
    path = folder / FILE_NAME
    try:
        return Preprocessing.from_text(path.read_text("utf-8"), what=str(path)) if path.exists() else None
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"read {path}", found=str(error)) from error


def _listing(folder: Path, declared: Sequence[str]) -> tuple[tuple[str, ...], list[Path], Array | None]:
    """(classes, files in order, labels or None)."""
    entries = sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=lambda entry: entry.name)
    folders, loose = [entry for entry in entries if entry.is_dir()], _media(entries)
    if folders and loose:
        raise Refused(f"read {folder}", found=f"class folders ({folders[0].name}...) beside loose files ({loose[0].name}...)",
                      do="put every file into the folder of its class, or all without folders")
    if not folders and not loose:
        raise Refused(f"read {folder}", found="it is empty: no class folders, pictures or sounds")
    if not folders:
        return (), loose, None
    classes = _class_order([entry.name for entry in folders], declared, folder)
    by_class = {entry.name: _media(sorted(entry.iterdir(), key=lambda file: file.name)) for entry in folders}
    empty = [name for name, files in by_class.items() if not files]
    if empty:
        raise Refused(f"read {folder}", found=f"the class folder {empty[0]!r} holds no pictures or sounds",
                      do=f"remove it and name the model's classes in {FILE_NAME}: classes = [...]")
    pairs = [(file, number) for number, name in enumerate(classes) for file in by_class.get(name, [])]
    return classes, [file for file, _ in pairs], np.array([number for _, number in pairs], np.int64)


def _class_order(found: list[str], declared: Sequence[str], folder: Path) -> tuple[str, ...]:
    if declared:
        unknown = [name for name in found if name not in declared]
        if unknown or len(set(declared)) != len(declared):
            wrong = f"the folder {unknown[0]!r} is none of the declared classes" if unknown else "a class is declared twice"
            raise Refused(f"number the classes of {folder}", found=wrong, do=f"correct classes = [...] in {FILE_NAME}")
        return tuple(declared)
    if all(name.isdecimal() for name in found) and sorted(found, key=int) != found:
        raise Refused(f"number the classes of {folder} by name", found='they are numbers, and "10" comes before "2" by name',
                      do=f"write classes = [...] in {FILE_NAME}, in the order of the model's outputs")
    return tuple(found)


def _media(entries: Sequence[Path]) -> list[Path]:
    files = [entry for entry in entries if entry.is_file() and not entry.name.startswith(".") and entry.name != FILE_NAME]
    media = [file for file in files if file.suffix.lower() in PICTURES + SOUNDS]
    if len(media) < len(files):
        other = next(file for file in files if file not in media)
        count = len(files) - len(media)
        log.warning("%d files in %s are neither pictures nor sounds and are left out (%s...)", count, other.parent, other.name)
    return media
