"""Dataset: samples in a fixed order that can be gone through again and again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from whet.core.document import canonical_json
from whet.core.errors import Refused

Array = np.ndarray[Any, Any]

HASH_BLOCK = 16  # samples that are read at a time for hashing: few, because one may be a large picture


class Samples(Protocol):
    """Where samples come from: memory, or files that are decoded when they are asked for."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def read(self, indices: Array) -> dict[str, Array]:
        """The samples ``indices`` [k] as arrays [k, ...] by input name; the arrays belong to the caller."""


class ArraySamples:
    """Samples in memory: arrays [n, ...] by input name, all of the same length."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.names = tuple(arrays)
        self._arrays = dict(arrays)
        self._length = min((len(array) for array in arrays.values()), default=0)

    def __len__(self) -> int:
        return self._length

    def read(self, indices: Array) -> dict[str, Array]:
        return {name: array[indices] for name, array in self._arrays.items()}


class Dataset:
    """Samples in a fixed order.

    names: the model's inputs that differ from sample to sample. labels: [n] or [n, ...], int64 or float64; None without labels.
    constants: inputs that are the same for every sample and have no batch dimension; every batch carries them unchanged.
    source: where it came from, for reports. classes: the names of the classes 0, 1, ... where they are known.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        labels: Array | None = None,
        constants: Mapping[str, Array] | None = None,
        source: str = "memory",
        classes: Sequence[str] = (),
    ) -> None:
        self.names: tuple[str, ...] = tuple(samples.names)
        self.labels = labels
        self.constants: Mapping[str, Array] = dict(constants or {})
        self.source = source
        self.classes = tuple(classes)
        self._samples = samples
        self._indices: Array = np.arange(len(samples))
        self._known_hashes: dict[int, str] = {}

    @classmethod
    def of(cls, arrays: Mapping[str, Array], labels: Array | None = None, *, source: str = "memory") -> Dataset:
        """Arrays [n, ...] by input name, taken as they are. ``load_data`` is the door that checks them against a model."""
        return cls(ArraySamples(arrays), labels=labels, source=source)

    def __len__(self) -> int:
        return len(self._indices)

    def __repr__(self) -> str:
        labels = "no labels" if self.labels is None else "labels"
        return f"Dataset({len(self)} samples of {', '.join(self.names)}, {labels}, from {self.source})"

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Arrays [size, ...] by input name, in order; the last batch holds what is left. Constants come with every batch."""
        if size < 1:
            raise Refused("go through the data in batches", found=f"the batch size {size}", do="use a size of at least 1")
        for start in range(0, len(self), size):
            yield {**self._samples.read(self._indices[start : start + size]), **self.constants}

    def take(self, indices: Iterable[int] | Array) -> Dataset:
        """The samples ``indices`` (or of a bool mask) in that order, without copying any."""
        given = indices if isinstance(indices, np.ndarray) else np.array(list(indices))
        chosen = np.flatnonzero(given) if given.dtype == bool else given.astype(np.int64)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= len(self)):
            found = f"the index {int(chosen.min() if chosen.min() < 0 else chosen.max())} of {len(self)}"
            raise Refused("take samples from the data", found=found)
        labels = None if self.labels is None else self.labels[chosen]
        taken = Dataset(self._samples, labels=labels, constants=self.constants, source=self.source, classes=self.classes)
        taken._indices, taken._known_hashes = self._indices[chosen], self._known_hashes
        return taken

    def first(self, count: int) -> Dataset:
        """The first ``count`` samples, or all where there are fewer."""
        return self.take(range(min(count, len(self))))

    @cached_property
    def sample_hashes(self) -> tuple[str, ...]:
        """sha256 (hex) of each sample's inputs, without labels and constants. Reads every sample that was not hashed before."""
        missing = np.array([i for i in dict.fromkeys(self._indices.tolist()) if i not in self._known_hashes], dtype=np.int64)
        for start in range(0, len(missing), HASH_BLOCK):
            block = missing[start : start + HASH_BLOCK]
            arrays = self._samples.read(block)
            for row, index in enumerate(block.tolist()):
                self._known_hashes[index] = hash_arrays({name: array[row] for name, array in arrays.items()})
        return tuple(self._known_hashes[index] for index in self._indices.tolist())

    @cached_property
    def content_hash(self) -> str:
        """sha256 (hex) of everything that a measurement can depend on: samples in order, labels, constants."""
        labels = {} if self.labels is None else {"labels": self.labels}
        parts = ["whet-data-1", list(self.names), hash_arrays(self.constants), hash_arrays(labels), list(self.sample_hashes)]
        return hashlib.sha256(canonical_json(parts)).hexdigest()


def hash_arrays(arrays: Mapping[str, Array]) -> str:
    """sha256 (hex) of named arrays: names, dtypes, shapes and the values in little-endian C order, whatever the machine."""
    hasher = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        text = array.dtype.kind in "UO"  # a text has no fixed width that would say anything about it
        kind = "text" if text else array.dtype.name
        values = canonical_json(array.tolist()) if text else array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        hasher.update(canonical_json([name, kind, list(array.shape), len(values)]))
        hasher.update(values)
    return hasher.hexdigest()
