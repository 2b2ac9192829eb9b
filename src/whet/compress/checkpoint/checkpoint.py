"""The second body: a language model as Hugging Face stores it, a folder with config.json, safetensors files and a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whet.compress.checkpoint import stored
from whet.compress.checkpoint.families import Family, family_of
from whet.compress.checkpoint.stored import Layout
from whet.compress.checkpoint.tensor_files import DTYPES, Entry, TensorFile
from whet.compress.checkpoint.tensor_writer import INDEX_NAME
from whet.compress.codebook import Coded
from whet.compress.grid import Quantised
from whet.core.document import FrozenMap
from whet.core.errors import Refused, Unsupported

CONFIG_NAME = "config.json"
TOKENIZER_NAMES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
# What the first BERTs called the factors of their norms; transformers reads both.
_OLD_NAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A language model on disk. Nothing of its weights is in memory until it is asked for.

    config: config.json. files: the safetensors files. layouts: how the layers that are rounded lie, by name; the others are plain.
    Names of tensors are those of transformers' modules, whatever prefix the files leave out.
    """

    folder: Path
    config: Mapping[str, Any]
    family: Family
    files: tuple[TensorFile, ...]
    layouts: Mapping[str, Layout] = field(default_factory=FrozenMap)

    @cached_property
    def entries(self) -> Mapping[str, tuple[TensorFile, Entry]]:
        """Every tensor by its name in transformers' modules, in the order of the files."""
        found: dict[str, tuple[TensorFile, Entry]] = {}
        for file in self.files:
            for name, entry in file.entries.items():
                whole = self._whole_name(name)
                if whole in found:
                    raise Refused(f"open {self.folder}", found=f"{name} in {found[whole][0].path.name} and in {file.path.name}",
                                  do="download the checkpoint again")
                found[whole] = (file, entry)
        return found

    @property
    def block_count(self) -> int:
        return int(self.config.get("num_hidden_layers", self.config.get("n_layer", 0)))

    @property
    def size_bytes(self) -> int:
        """Bytes of the safetensors files."""
        return sum(file.path.stat().st_size for file in self.files)

    @property
    def identity(self) -> list[Any]:
        """What tells it from others. Files are known by size and time: hashing 13 GB would take longer than rounding them."""
        stats = [(file.path.name, file.path.stat()) for file in self.files]
        return [dict(self.config), [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]]

    @property
    def has_tokenizer(self) -> bool:
        return any((self.folder / name).is_file() for name in TOKENIZER_NAMES)

    @cached_property
    def dtype(self) -> torch.dtype:
        """That of the plain weights, the most frequent one by bytes."""
        sizes: dict[str, int] = {}
        for _, entry in self.entries.values():
            if DTYPES[entry.dtype].is_floating_point:
                sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.size_bytes
        return DTYPES[max(sizes, key=lambda name: sizes[name])] if sizes else torch.float32

    @cached_property
    def tied(self) -> bool:
        """Whether the head is the embedding. A checkpoint that holds a head of its own is not, whatever its config says."""
        head = self.family.head
        return bool(head) and not any(f"{head}.{part}" in self.entries for part in ("weight", "weight_packed"))

    def block_name(self, index: int) -> str:
        return f"{self.family.blocks}.{index}"

    def block_layers(self, index: int) -> tuple[str, ...]:
        """The whole names of a block's linear layers, in order of execution."""
        return tuple(f"{self.block_name(index)}.{name}" for name in self.family.layers)

    def names_under(self, module: str) -> tuple[str, ...]:
        """The whole names of the tensors of a module and of those inside it."""
        return tuple(name for name in self.entries if name.startswith(f"{module}."))

    def tensor(self, name: str) -> Tensor:
        """A tensor as it is stored, a view of the file. Raises Refused where there is none of that name."""
        if name not in self.entries:
            raise Refused(f"read {name}", found=f"no such tensor in {self.folder}", do="compare config.json with the files")
        file, entry = self.entries[name]
        return file.read(entry.name)

    def weight(self, layer: str) -> Tensor:
        """[out, in] float32, of a linear layer or a table [rows, width], whatever way it is stored."""
        rounded = self.rounded(layer)
        if rounded is not None:
            return torch.from_numpy(rounded.values)
        plain = self.tensor(f"{layer}.weight").float()
        return plain.t().contiguous() if self.is_transposed(layer) else plain

    def rows(self, table: str, chosen: Tensor) -> Tensor:
        """[n, width] float32, some rows of a table by their numbers [n]."""
        if table in self.layouts:
            return torch.from_numpy(stored.some_rows(table, self.layouts[table], self.tensor, chosen.numpy()))
        return self.tensor(f"{table}.weight")[chosen].float()

    def rounded(self, layer: str) -> Quantised | Coded | None:
        """The codes of a layer and what they stand for, None where it is plain."""
        return stored.unpacked(layer, self.layouts[layer], self.tensor) if layer in self.layouts else None

    def size(self, layer: str) -> tuple[int, int]:
        """[out, in] of a linear layer or table, without reading it."""
        if layer in self.layouts:
            return stored.size_of(layer, self.layouts[layer], self.tensor)
        shape = self.entries[f"{layer}.weight"][1].shape
        return (shape[1], shape[0]) if self.is_transposed(layer) else (shape[0], shape[1])

    def is_transposed(self, layer: str) -> bool:
        """Whether the plain weight of the layer lies as [in, out]."""
        return self.family.transposed and layer.startswith(f"{self.family.blocks}.")

    def forget(self, module: str) -> None:
        """Let go of the memory that the tensors of a module take."""
        for name in self.names_under(module):
            file, entry = self.entries[name]
            file.forget(entry.name)

    def expect(self, module: str) -> None:
        """Have the tensors of a module read ahead."""
        for name in self.names_under(module):
            file, entry = self.entries[name]
            file.expect(entry.name)

    def _whole_name(self, name: str) -> str:
        """Some checkpoints leave the prefix of the base model out: "h.0.attn..." for "transformer.h.0.attn..."; an encoder's own names
        have none, and some checkpoints put one.
        """
        prefix = self.family.prefix
        if not prefix:
            return name
        if self.family.encoder:
            return next((name.removesuffix(old) + new for old, new in _OLD_NAMES if name.endswith(old)), name).removeprefix(prefix)
        bare = name.startswith(tuple(f"{part.removeprefix(prefix)}." for part in self._bases()))
        return prefix + name if bare else name

    def _bases(self) -> tuple[str, ...]:
        family = self.family
        return (family.blocks, family.embedding, family.norm, *family.positions)


def is_checkpoint(path: object) -> bool:
    """Whether it is a folder that holds a Hugging Face checkpoint."""
    return isinstance(path, Checkpoint) or (isinstance(path, (str, Path)) and (Path(path) / CONFIG_NAME).is_file())


def open_checkpoint(path: str | Path | Checkpoint) -> Checkpoint:
    """The checkpoint in a folder. Raises Refused where a file is missing, cut short or contradicts another, Unsupported for an unknown
    family.
    """
    if isinstance(path, Checkpoint):
        return path
    folder = Path(path)
    config = _config(folder)
    made = Checkpoint(folder, config, family_of(config), tuple(TensorFile(file) for file in _files(folder)),
                      stored.layouts_in(config["quantization_config"]) if "quantization_config" in config else FrozenMap())
    _check(made)
    return made


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise Refused(f"open {folder}", found=f"no {CONFIG_NAME} in it", do="give a folder as save_pretrained writes it")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Refused(f"open {folder}", found=f"a {CONFIG_NAME} that is no JSON: {error}", do="download it again") from error
    if not isinstance(config, dict):
        raise Refused(f"open {folder}", found=f"a {CONFIG_NAME} that is no table", do="download it again")
    return config


def _files(folder: Path) -> list[Path]:
    """The safetensors files; where an index names them, those."""
    index = folder / INDEX_NAME
    if not index.is_file():
        found = sorted(folder.glob("*.safetensors"))
        if not found:
            raise Refused(f"open {folder}", found="no safetensors files in it",
                          do="save the model with transformers' save_pretrained(safe_serialization=True)")
        return found
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise ValueError("a file of another folder")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise Refused(f"open {folder}", found=f"a broken {INDEX_NAME}", do="download it again") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise Refused(f"open {folder}", found=f"{len(missing)} of {len(names)} files missing, first {missing[0]}", do="download the rest")
    return [folder / name for name in names]


def _check(made: Checkpoint) -> None:
    """Raises Refused where config.json contradicts the tensors in what shows without building the model."""
    asked = f"open {made.folder}"
    count = made.config.get("num_hidden_layers", made.config.get("n_layer"))
    if not isinstance(count, int):
        raise Refused(asked, found=f"{count!r} for num_hidden_layers in its config.json", do="use the config.json of these files")
    _check_rounded(made)
    blocks = f"{made.family.blocks}."
    parts = {name.removeprefix(blocks).split(".")[0] for name in made.entries if name.startswith(blocks)}
    numbers = {int(part) for part in parts if part.isdigit()}
    if numbers != set(range(made.block_count)):
        missing = sorted(set(range(made.block_count)) - numbers)
        found = f"no tensors of block {missing[0]}" if missing else f"tensors of block {max(numbers)}"
        raise Refused(asked, found=f"{found}, and config.json speaks of {made.block_count} blocks", do="use the config.json of these files")
    table = f"{made.family.embedding}.weight"
    if made.family.embedding not in made.layouts and (table not in made.entries or len(made.entries[table][1].shape) != 2):
        raise Refused(asked, found=f"no table {table}", do="download the checkpoint again")
    rows, width = made.size(made.family.embedding)
    said = (made.config.get("vocab_size"), made.config.get("hidden_size", made.config.get("n_embd")))
    if (rows, width) != said:
        raise Refused(asked, found=f"a table of {rows} tokens of {width} numbers, and config.json says {said[0]} and {said[1]}",
                      do="use the config.json of these files")


def _check_rounded(made: Checkpoint) -> None:
    """Raises Unsupported where the layers that config.json calls rounded do not lie as Whet writes them."""
    for layer, layout in made.layouts.items():
        missing = [name for name in stored.marks(layer, layout) if name not in made.entries]
        if missing:
            raise Unsupported(f"open {made.folder}", do="give the original model",
                              found=f"no {missing[0]}, and config.json says that {layer} is rounded; another tool may have done that")
        if layout.activations:
            _check_bytes(made, layer, layout)


def _check_bytes(made: Checkpoint, layer: str, layout: Layout) -> None:
    """Raises Unsupported where codes of a byte each, or their scales, are not of the dtype and shape that they should have."""
    codes = made.entries[f"{layer}.weight"][1]
    rows, columns = codes.shape if len(codes.shape) == 2 else (0, 0)
    for wanted in stored.shapes(layer, (rows, columns), layout):
        entry = made.entries[wanted.name][1]
        if (entry.dtype, entry.shape) != (wanted.dtype, wanted.shape):
            raise Unsupported(f"open {made.folder}", do="give the original model",
                              found=f"{wanted.name} of {entry.dtype} {list(entry.shape)}, where Whet writes {wanted.dtype}")
