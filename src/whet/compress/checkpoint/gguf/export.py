"""``export_gguf``: a checkpoint as one GGUF file for llama.cpp, a tensor at a time."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from whet.compress.checkpoint.checkpoint import Checkpoint, open_checkpoint
from whet.compress.checkpoint.gguf.blocks import TYPES, decoded, encoded
from whet.compress.checkpoint.gguf.exact import exact_type, from_codes, takes_codes
from whet.compress.checkpoint.gguf.mixes import AUTO, MIXES, Mix, mix_of, type_chosen
from whet.compress.checkpoint.gguf.names import Part, architecture_of, parts_of, place_of
from whet.compress.checkpoint.gguf.package import gguf_package
from whet.compress.checkpoint.gguf.packing import Bytes
from whet.compress.checkpoint.gguf.settings import add_settings, extra_tensors, notes_on
from whet.compress.checkpoint.gguf.tokenizer import vocabulary_of
from whet.compress.grid import Floats, Quantised
from whet.core.errors import Refused
from whet.device.files import new_folder

# Numbers that are in float32 at once: 16 MB, and as much again where they are decoded to see what was lost.
_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the file. layer: the layer of the checkpoint whose weight it is, "" for another tensor. shape: rows first.

    exact: whether it decodes to the numbers of the checkpoint, bit for bit. relative_error: root of the squared differences over root of
    the squares; 0 where exact.
    """

    name: str
    layer: str
    type: str
    shape: tuple[int, ...]
    size_bytes: int
    exact: bool
    relative_error: float


@dataclass(frozen=True)
class GgufReport:
    """What was written. size_bytes: of the file. notes: where llama.cpp will compute something else, in sentences."""

    path: Path
    kind: str
    size_bytes: int
    tensors: tuple[GgufTensor, ...]
    notes: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether every tensor decodes to the numbers of the checkpoint."""
        return all(tensor.exact for tensor in self.tensors)


@dataclass(frozen=True)
class _Planned:
    """A part with the type that it gets. from_codes: made of the codes themselves."""

    part: Part
    type: str
    shape: tuple[int, ...]
    from_codes: bool = False

    @property
    def byte_shape(self) -> tuple[int, ...]:
        return (*self.shape[:-1], TYPES[self.type].row_bytes(self.shape[-1]))


def export_gguf(checkpoint: str | Path | Checkpoint, path: str | os.PathLike[str], *, kind: str = AUTO) -> GgufReport:
    """Write the checkpoint as ``path``, which ends in .gguf, and say of each tensor what it became and what was lost.

    kind: "auto" makes the most faithful file: rounded layers from their codes, in the smallest type that holds them as they are; what is
    plain stays in the type that it has; a layer that no type holds gets 8 bits. The name of a mix ("q4_k_m", "q8_0", "f16", ... of
    ``mixes.KINDS``) rounds to that, except a rounded layer whose exact type is no larger. In memory is one tensor at a time.
    Raises Unsupported where llama.cpp has no such model or tokenizer, Refused where ``path`` or ``kind`` is wrong, the tokenizer is
    missing, or a weight is NaN.
    """
    place, mix = Path(path), mix_of(kind)
    if place.suffix != ".gguf":
        raise Refused(f"export to {place}", found=f"a name that ends in {place.suffix or 'nothing'}", do="end it in .gguf")
    body = open_checkpoint(checkpoint)
    architecture, gguf = architecture_of(body).name, gguf_package()
    vocabulary = vocabulary_of(body.folder, body.size(body.family.embedding)[0])
    planned, extra = [_planned(part, body, mix) for part in parts_of(body)], extra_tensors(body)
    with new_folder(place.parent / f".{place.name}.export") as beside:
        writer = gguf.GGUFWriter(beside / place.name, architecture)
        try:
            add_settings(writer, body, architecture)
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            writer.add_file_type(_file_type(planned, kind))
            vocabulary.add_to(writer, body.folder)
            tensors = tuple(_written(writer, body, planned, extra))
        finally:
            writer.close()
        os.replace(beside / place.name, place)
    (place.parent / f".{place.name}.export").rmdir()
    return GgufReport(place, kind, place.stat().st_size, tensors, notes_on(body))


def _planned(part: Part, body: Checkpoint, mix: Mix | None) -> _Planned:
    if not part.layer:
        return _Planned(part, "F32", body.entries[part.source][1].shape)
    size, layout = body.size(part.layer), body.layouts.get(part.layer)
    if not part.is_matrix:
        return _Planned(part, "F32", size)
    exact = exact_type(layout, size[1]) if layout else None
    dtype = "" if layout else body.entries[f"{part.layer}.weight"][1].dtype
    chosen = type_chosen(mix, place_of(part, body), size[1], exact=exact, dtype=dtype)
    return _Planned(part, chosen, size, layout is not None and takes_codes(layout, size[1], chosen))


def _file_type(planned: list[_Planned], kind: str) -> int:
    """llama.cpp's number for the file, which it only shows: that of the mix, or of the most frequent type of layers."""
    if kind != AUTO:
        return MIXES[kind].file_type
    sizes: Counter[str] = Counter()
    for each in planned:
        if each.part.is_matrix:
            sizes[each.type] += math.prod(each.shape)
    return next(mix.file_type for mix in MIXES.values() if mix.most == sizes.most_common(1)[0][0])


def _written(writer: Any, body: Checkpoint, planned: list[_Planned], extra: dict[str, Floats]) -> Iterator[GgufTensor]:
    """The header, which has all names and sizes in it, then the numbers, a tensor at a time."""
    types = gguf_package().GGMLQuantizationType
    for each in planned:
        writer.add_tensor_info(each.part.name, each.byte_shape, np.dtype(np.uint8), math.prod(each.byte_shape), raw_dtype=types[each.type])
    for name, numbers in extra.items():
        writer.add_tensor_info(name, numbers.shape, numbers.dtype, numbers.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for each in planned:
        data, error = _encoded(each, body)
        writer.write_tensor_data(data)
        body.forget(each.part.layer or each.part.source.rpartition(".")[0])
        yield GgufTensor(each.part.name, each.part.layer, each.type, each.shape, data.nbytes, error == 0, error)
    for name, numbers in extra.items():
        writer.write_tensor_data(numbers)
        yield GgufTensor(name, "", "F32", numbers.shape, numbers.nbytes, True, 0.0)


def _encoded(planned: _Planned, body: Checkpoint) -> tuple[Bytes, float]:
    """The bytes of a tensor, rows in the order of the file, and its relative error."""
    rows = planned.shape[0] if len(planned.shape) > 1 else 1
    data = np.empty((rows, planned.byte_shape[-1]), np.uint8)
    lost = whole = 0.0
    differs = False
    start = 0
    for values, codes in _pieces(planned, body):
        if not np.isfinite(values).all():
            raise Refused(f"export {planned.part.source} to GGUF", found="NaN or infinity in it", do="repair or retrain the model")
        piece = from_codes(codes, planned.type) if codes is not None else encoded(values, planned.type)
        data[start : start + len(piece)] = piece
        start += len(piece)
        difference = decoded(piece, planned.type) - values
        differs |= bool(difference.any())
        lost += float(np.square(difference, dtype=np.float64).sum())
        whole += float(np.square(values, dtype=np.float64).sum())
    order = planned.part.order(rows if len(planned.shape) > 1 else planned.shape[0])
    if order is not None:
        data = data[order] if len(planned.shape) > 1 else data.view(np.float32)[:, order].view(np.uint8)
    return data.reshape(planned.byte_shape), max(math.sqrt(lost / whole), 1e-45) if differs and whole else float(differs)


def _pieces(planned: _Planned, body: Checkpoint) -> Iterator[tuple[Floats, Quantised | None]]:
    """A tensor a few rows at a time: float32 [rows, columns], and the codes where the type is made of them."""
    part = planned.part
    if not part.layer:
        yield np.atleast_2d(body.tensor(part.source).float().numpy() + np.float32(part.add)), None
        return
    rows, columns = planned.shape
    step = max(1, _AT_ONCE // columns)
    if part.layer not in body.layouts:
        stored = body.tensor(f"{part.layer}.weight")
        stored = stored.t() if body.is_transposed(part.layer) else stored
        yield from ((stored[start : start + step].float().contiguous().numpy(), None) for start in range(0, rows, step))
        return
    rounded = body.rounded(part.layer)
    assert rounded is not None
    if not isinstance(rounded, Quantised):
        yield rounded.values, None
        return
    for start in range(0, rows, step):
        piece = _rows_of(rounded, start, start + step)
        yield piece.values, piece if planned.from_codes else None


def _rows_of(weight: Quantised, start: int, end: int) -> Quantised:
    grid = replace(weight.grid, scale=weight.grid.scale[start:end], zero_point=weight.grid.zero_point[start:end])
    return Quantised(weight.codes[start:end], grid)
