"""How the rounded weight of a layer lies in a checkpoint: tensors of integers, their scales, and the words in config.json that say so.

Integers lie as in the "pack-quantized" format of the compressed-tensors package, version 0.20 (compressors/pack_quantized/helpers.py),
which transformers and vLLM read: codes counted from 0, bit after bit in int32, so that 3 bits take 3 (older versions left gaps). Where
inputs are rounded too, they lie as in its "int-quantized" format: signed codes, a byte each. Numbers on a code book (NF4, FP4) lie as
bitsandbytes stores its Params4bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whet.compress.checkpoint import bitsandbytes_layout
from whet.compress.checkpoint.tensor_writer import Shape
from whet.compress.codebook import Coded
from whet.compress.grid import Array, Floats, Grid, Quantised, block_count
from whet.core.errors import Unsupported

Read = Callable[[str], Tensor]
# Inputs that are rounded as they come, with a scale for each token, in the words of compressed-tensors; and several formats in one model.
_BY_TOKEN = MappingProxyType({"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True})
_MIXED = "mixed-precision"
PIECE = 1 << 20  # codes that are packed at a time


@dataclass(frozen=True)
class Layout:
    """How a weight [out, in] is stored.

    kind: "int", "nf4" or "fp4". group: numbers of a row that share a scale, 0 for the whole row. symmetric: no zero points are stored.
    double: whether the scales of a code book are rounded too (QLoRA's double quantisation). activations: 8 where the layer reads its inputs
    rounded to int8 for each token (``grid.token_grid``), which goes with 8 symmetric bits; 0 where it reads them as they come.
    """

    kind: str
    bits: int
    group: int = 0
    symmetric: bool = True
    double: bool = False
    activations: int = 0


def layout_of(weight: Quantised | Coded, activations: int = 0) -> Layout:
    """How a rounded weight will be stored."""
    if isinstance(weight, Coded):
        return Layout(weight.book, 4, weight.block, double=weight.double)
    return Layout("int", weight.grid.bits, weight.grid.block, weight.grid.signed, activations=activations)


def shapes(layer: str, size: tuple[int, int], layout: Layout) -> list[Shape]:
    """The tensors that a weight of ``size`` [out, in] becomes, in the order in which they are stored."""
    if layout.kind != "int":
        return bitsandbytes_layout.shapes(layer, size, kind=layout.kind, block=layout.group, double=layout.double)
    rows, columns = size
    groups, bits = block_count(columns, layout.group) if layout.group else 1, layout.bits
    if layout.activations:
        return [Shape(f"{layer}.weight", "I8", size), Shape(f"{layer}.weight_scale", "F16", (rows, groups))]
    found = [Shape(f"{layer}.weight_packed", "I32", (rows, words_for(columns, bits))),
             Shape(f"{layer}.weight_scale", "F16", (rows, groups))]
    if not layout.symmetric:
        found.append(Shape(f"{layer}.weight_zero_point", "I32", (words_for(rows, bits), groups)))
    return [*found, Shape(f"{layer}.weight_shape", "I64", (2,))]


def tensors(layer: str, weight: Quantised | Coded, activations: int = 0) -> dict[str, Tensor]:
    """The same with the numbers in them, for a layer that reads ``activations`` (see ``Layout``)."""
    if isinstance(weight, Coded):
        return bitsandbytes_layout.tensors(layer, weight)
    grid, (rows, columns) = weight.grid, weight.codes.shape
    scale, zero = grid.scale.reshape(rows, -1), grid.zero_point.reshape(rows, -1)
    if activations:
        return {f"{layer}.weight": torch.from_numpy(weight.codes), f"{layer}.weight_scale": torch.from_numpy(scale.astype(np.float16))}
    found = {f"{layer}.weight_packed": torch.from_numpy(packed(weight.codes, grid.bits, grid.lowest)),
             f"{layer}.weight_scale": torch.from_numpy(scale.astype(np.float16))}
    if not grid.signed:
        words = packed(np.ascontiguousarray((zero - grid.lowest).astype(np.uint8).T), grid.bits).T
        found[f"{layer}.weight_zero_point"] = torch.from_numpy(words.copy(order="C"))
    return {**found, f"{layer}.weight_shape": torch.tensor([rows, columns])}


def unpacked(layer: str, layout: Layout, read: Read) -> Quantised | Coded:
    """The rounded weight from the tensors that ``read`` gives by name."""
    return bitsandbytes_layout.unpacked(layer, layout.kind, read) if layout.kind != "int" else _integers(layer, layout, read)


def some_rows(layer: str, layout: Layout, read: Read, chosen: Array) -> Floats:
    """[n, in] some rows of a rounded weight. Of integers no others are unpacked: a table of tokens may be the largest thing in a model."""
    if layout.kind != "int":  # numbers that share a scale run over the ends of rows
        return bitsandbytes_layout.unpacked(layer, layout.kind, read).values[chosen]
    return _integers(layer, layout, read, chosen).values


def _integers(layer: str, layout: Layout, read: Read, chosen: Array | slice = slice(None)) -> Quantised:
    """Rows of a weight of integers."""
    rows, columns = size_of(layer, layout, read)
    scale = read(f"{layer}.weight_scale").numpy()[chosen].astype(np.float32)
    if layout.activations:
        return Quantised(read(f"{layer}.weight").numpy()[chosen], _grid(layout, scale, np.zeros(scale.shape, np.int32)))
    codes = codes_in(read(f"{layer}.weight_packed").numpy()[chosen], layout.bits, columns)
    lowest = -(1 << (layout.bits - 1)) if layout.symmetric else 0
    if layout.symmetric:
        zero = np.zeros(scale.shape, np.int32)
    else:
        words = read(f"{layer}.weight_zero_point").numpy()
        zero = codes_in(np.ascontiguousarray(words.T), layout.bits, rows).T[chosen].astype(np.int32)
    signed = codes.view(np.int8) + np.int8(lowest) if layout.symmetric else codes
    return Quantised(signed, _grid(layout, scale, zero))


def _grid(layout: Layout, scale: Floats, zero: NDArray[np.int32]) -> Grid:
    """scale, zero: [rows, groups]."""
    if layout.group:
        return Grid(layout.bits, layout.symmetric, scale, zero, 1, layout.group)
    return Grid(layout.bits, layout.symmetric, scale.ravel(), zero.ravel(), 0)


def marks(layer: str, layout: Layout) -> tuple[str, ...]:
    """Names of tensors that are there where the weight of a layer lies so."""
    if layout.kind != "int":
        return (f"{layer}.weight", f"{layer}.weight.absmax", f"{layer}.weight.quant_state.bitsandbytes__{layout.kind}")
    if layout.activations:
        return f"{layer}.weight", f"{layer}.weight_scale"
    zeros = () if layout.symmetric else (f"{layer}.weight_zero_point",)
    return (f"{layer}.weight_packed", f"{layer}.weight_scale", f"{layer}.weight_shape", *zeros)


def size_of(layer: str, layout: Layout, read: Read) -> tuple[int, int]:
    """[out, in] of a rounded weight, from what is stored beside it."""
    if layout.kind != "int":
        return bitsandbytes_layout.size_of(layer, layout.kind, read)
    rows, columns = read(f"{layer}.weight").shape if layout.activations else (int(size) for size in read(f"{layer}.weight_shape"))
    return rows, columns


def packed(codes: Array, bits: int, lowest: int = 0) -> Array:
    """[rows, n] codes from ``lowest`` on as int32 [rows, n * bits / 32, rounded up], counted from 0, bit after bit without gaps, the lowest
    ones first. A few rows at a time, so that what is needed on the way lies in the cache.
    """
    rows, count = codes.shape
    found = np.empty((rows, words_for(count, bits)), np.int32)
    step = max(1, PIECE // max(count, 1))
    for begin in range(0, rows, step):
        piece = codes[begin : begin + step].view(np.uint8) + np.uint8(-lowest)
        found[begin : begin + step] = _packed(piece, bits)[:, : found.shape[1]]
    return found


def _packed(codes: Array, bits: int) -> Array:
    """The same for uint8 counted from 0; the last word may be one of nothing but zeros."""
    rows, count = codes.shape
    if count % 32:
        codes = np.pad(codes, ((0, 0), (0, -count % 32)))
    if bits in (4, 8):  # whole codes in each byte: half the work of the general way
        by_byte = codes[:, 0::2] | (codes[:, 1::2] << np.uint8(4)) if bits == 4 else codes
        return np.ascontiguousarray(by_byte).view("<i4")
    groups = codes.reshape(rows, -1, 32)
    found = np.zeros((rows, groups.shape[1], bits), np.uint32)
    for index in range(32):
        word, offset = divmod(index * bits, 32)
        found[..., word] |= groups[..., index].astype(np.uint32) << np.uint32(offset)
        if offset + bits > 32:  # the rest of the code goes into the next word
            found[..., word + 1] |= groups[..., index].astype(np.uint32) >> np.uint32(32 - offset)
    return found.reshape(rows, -1).view(np.int32)


def codes_in(words: Array, bits: int, count: int) -> Array:
    """[rows, count] uint8, the codes that were packed into int32 [rows, words]."""
    rows, mask = words.shape[0], np.uint32((1 << bits) - 1)
    missing = -words.shape[1] % bits
    groups = np.pad(words, ((0, 0), (0, missing))).view(np.uint32).reshape(rows, -1, bits)
    found = np.empty((rows, groups.shape[1], 32), np.uint8)
    for index in range(32):
        word, offset = divmod(index * bits, 32)
        code = groups[..., word] >> np.uint32(offset)
        if offset + bits > 32:
            code |= groups[..., word + 1] << np.uint32(32 - offset)
        found[..., index] = code & mask
    return np.ascontiguousarray(found.reshape(rows, -1)[:, :count])


def words_for(count: int, bits: int) -> int:
    """How many int32 hold so many codes."""
    return -(-count * bits // 32)


def described(layouts: Mapping[str, Layout], others: tuple[str, ...]) -> dict[str, object]:
    """The ``quantization_config`` of config.json for these layers; others: linear layers that stay as they were. Raises Unsupported where
    some are integers and some on a code book: no one format of transformers holds both.
    """
    kinds = {layout.kind for layout in layouts.values()}
    if "int" in kinds and len(kinds) > 1:
        raise Unsupported("store the checkpoint", found=f"layers of integers and layers of {min(kinds - {'int'})}",
                          do="apply nf4 and fp4 to all layers, or to none")
    if kinds and kinds <= {"nf4", "fp4"}:
        one = next(iter(layouts.values()))
        return {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": one.kind,
                "bnb_4bit_use_double_quant": one.double, "bnb_4bit_compute_dtype": "float32",
                "bnb_4bit_quant_storage": "uint8", "llm_int8_skip_modules": list(others),
                "whet_layers": {name: _words(layout) for name, layout in layouts.items()}}
    formats = {_format(layout) for layout in layouts.values()}
    return {"quant_method": "compressed-tensors", "format": formats.pop() if len(formats) == 1 else _MIXED,
            "quantization_status": "compressed", "config_groups": _groups(layouts), "ignore": list(others)}


def layouts_in(config: Mapping[str, object]) -> dict[str, Layout]:
    """The layers that a ``quantization_config`` of Whet's names, and how they lie. Raises Unsupported where it is another tool's."""
    try:
        found = _named(config)
        readable = bool(found) and all(layout.bits in range(2, 9) and layout.group >= 0 and (
            not layout.activations or (layout.bits == 8 and layout.symmetric)) for layout in found.values())
    except (KeyError, TypeError, AttributeError):
        readable = False
    if not readable:
        method = config.get("quant_method") if isinstance(config, Mapping) else config
        raise Unsupported("read the quantization_config in config.json", found=f"layers that were rounded by another tool ({method})",
                          do="give the original model")
    return found


def _named(config: Mapping[str, object]) -> dict[str, Layout]:
    if config.get("quant_method") == "bitsandbytes":
        return {name: Layout(**words) for name, words in config["whet_layers"].items()}  # type: ignore[attr-defined]
    found: dict[str, Layout] = {}
    for group in config["config_groups"].values():  # type: ignore[attr-defined]
        weights = group["weights"]
        inputs = group.get("input_activations") or {}
        layout = Layout("int", weights["num_bits"], weights.get("group_size") or 0, weights["symmetric"], activations=8 if inputs else 0)
        words = {name: inputs[name] for name in _BY_TOKEN if inputs}
        if (words and words != _BY_TOKEN) or (group.get("format") or config.get("format")) != _format(layout):
            raise KeyError("a format that Whet does not write")
        found |= dict.fromkeys(group["targets"], layout)
    return found


def _format(layout: Layout) -> str:
    """What compressed-tensors calls the way in which integers lie."""
    return "int-quantized" if layout.activations else "pack-quantized"


def _words(layout: Layout) -> dict[str, object]:
    return {"kind": layout.kind, "bits": layout.bits, "group": layout.group, "symmetric": layout.symmetric, "double": layout.double}


def _groups(layouts: Mapping[str, Layout]) -> dict[str, object]:
    """One group for each layout, with the layers that have it by name."""
    together: dict[Layout, list[str]] = {}
    for name, layout in layouts.items():
        together.setdefault(layout, []).append(name)
    mixed = len({_format(layout) for layout in together}) > 1
    return {f"group_{index}": {
        "targets": names, "input_activations": dict(_BY_TOKEN) if layout.activations else None, "output_activations": None, "weights": {
            "num_bits": layout.bits, "type": "int", "symmetric": layout.symmetric, "strategy": "group" if layout.group else "channel",
            "group_size": layout.group or None, "dynamic": False, "actorder": None, "observer": "minmax"},
        **({"format": _format(layout)} if mixed else {})} for index, (layout, names) in enumerate(together.items())}
