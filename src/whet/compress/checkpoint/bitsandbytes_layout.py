"""Weights on a code book as bitsandbytes stores its Params4bit, which transformers loads (functional.py, QuantState.as_dict(packed=True)).

    weight                                  uint8 [n / 2, 1], the first code of two in the upper bits
    weight.absmax                           float32 [blocks]; with double quantisation uint8, and then also
    weight.nested_absmax, .nested_quant_map float32 [blocks / 256], [256]
    weight.quant_map                        float32 [16], what the codes stand for
    weight.quant_state.bitsandbytes__nf4    uint8: the rest as JSON
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whet.compress.checkpoint.tensor_writer import Shape
from whet.compress.codebook import OUTER_BLOCK, Coded, Codes, RoundedScales, dynamic_map, levels
from whet.compress.grid import block_count

Read = Callable[[str], Tensor]

# The longest that JSON makes of a float32 number, "-1.1754943508222875e-38" and the like: the file's size is known before its numbers.
_LONGEST_NUMBER = 24


def shapes(layer: str, size: tuple[int, int], *, kind: str, block: int, double: bool) -> list[Shape]:
    """The tensors that a weight of ``size`` [out, in] becomes, in the order in which they are stored."""
    count = size[0] * size[1]
    blocks = block_count(count, block)
    found = [Shape(f"{layer}.weight", "U8", ((count + 1) // 2, 1)), Shape(f"{layer}.weight.absmax", "U8" if double else "F32", (blocks,)),
             Shape(f"{layer}.weight.quant_map", "F32", (16,))]
    if double:
        found += [Shape(f"{layer}.weight.nested_absmax", "F32", (block_count(blocks, OUTER_BLOCK),)),
                  Shape(f"{layer}.weight.nested_quant_map", "F32", (256,))]
    length = len(_state(size, kind, block, 0.0 if double else None))
    return [*found, Shape(_state_name(layer, kind), "U8", (length,))]


def tensors(layer: str, weight: Coded) -> dict[str, Tensor]:
    """The same with the numbers in them."""
    rows, columns = weight.codes.shape
    scales = weight.scales
    offset = scales.offset if isinstance(scales, RoundedScales) else None
    found = {"weight": _packed(weight), "weight.absmax": scales.codes if isinstance(scales, RoundedScales) else scales,
             "weight.quant_map": levels(weight.book)}
    if isinstance(scales, RoundedScales):
        found |= {"weight.nested_absmax": scales.peaks, "weight.nested_quant_map": dynamic_map()}
    state = _state((rows, columns), weight.book, weight.block, offset)
    named = {f"{layer}.{name}": torch.from_numpy(numbers.copy()) for name, numbers in found.items()}
    return {**named, _state_name(layer, weight.book): torch.from_numpy(np.frombuffer(state, np.uint8).copy())}


def unpacked(layer: str, kind: str, read: Read) -> Coded:
    """The coded weight from the tensors that ``read`` gives by name."""
    state = _read_state(layer, kind, read)
    rows, columns = state["shape"]
    absmax = read(f"{layer}.weight.absmax").numpy()
    nested = "nested_offset" in state
    scales = RoundedScales(absmax, read(f"{layer}.weight.nested_absmax").numpy(), state["nested_offset"]) if nested else absmax
    two = read(f"{layer}.weight").numpy().reshape(-1)
    codes = np.stack([two >> np.uint8(4), two & np.uint8(15)], axis=1).reshape(-1)[: rows * columns]
    return Coded(codes.reshape(rows, columns), kind, state["blocksize"], scales)


def size_of(layer: str, kind: str, read: Read) -> tuple[int, int]:
    """[out, in] of a coded weight, from its JSON alone."""
    rows, columns = _read_state(layer, kind, read)["shape"]
    return int(rows), int(columns)


def _packed(weight: Coded) -> Codes:
    """Two codes in a byte, [n / 2, rounded up, 1]; what is left of the last one stands for 0."""
    flat = weight.codes.reshape(-1)
    if len(flat) % 2:
        flat = np.append(flat, np.uint8(np.flatnonzero(levels(weight.book) == 0)[0]))
    return ((flat[0::2] << np.uint8(4)) | flat[1::2])[:, None]


def _state_name(layer: str, kind: str) -> str:
    return f"{layer}.weight.quant_state.bitsandbytes__{kind}"


def _state(size: tuple[int, int], kind: str, block: int, offset: float | None) -> bytes:
    """The words in the order of bitsandbytes, and blanks to a length that does not depend on the offset. float32: the numbers come back as
    they were simulated, and are cast to the dtype of the product then.
    """
    words: dict[str, object] = {"quant_type": kind, "blocksize": block, "dtype": "float32", "shape": list(size)}
    if offset is None:
        return json.dumps(words).encode()
    words |= {"nested_blocksize": OUTER_BLOCK, "nested_dtype": "float32", "nested_offset": 0}
    longest = len(json.dumps(words)) - 1 + _LONGEST_NUMBER
    return json.dumps(words | {"nested_offset": offset}).ljust(longest).encode()


def _read_state(layer: str, kind: str, read: Read) -> dict[str, Any]:
    found = json.loads(read(_state_name(layer, kind)).numpy().tobytes())
    assert isinstance(found, dict)
    return found
