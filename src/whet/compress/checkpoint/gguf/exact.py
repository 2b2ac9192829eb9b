"""Which GGUF type holds codes of ours as they are, and the blocks made from the codes themselves: nothing is rounded again.

What a weight of ours is:  (code - zero) scale,  scale a float16 number for each group. Types without an offset hold the integers
code - zero of a group that is a multiple of their block, if these fit; so an asymmetric weight of 4 bits, -15..15, fits the 5 bits of Q5_0.
Types with super-blocks of 256 hold a group that is a multiple of 256: the float16 number of the super-block is the scale, and the small
scales of its sub-blocks are 1. Q2_K, Q4_K and Q5_K have an offset as well: scale times an integer, which is the zero point.

Q4_1 has one too, but as a float16 number: exact only where scale times zero point is one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whet.compress.checkpoint.gguf import packing
from whet.compress.checkpoint.gguf.blocks import TYPES
from whet.compress.checkpoint.gguf.packing import Bytes
from whet.compress.checkpoint.stored import Layout
from whet.compress.grid import Array, Quantised


@dataclass(frozen=True)
class _Room:
    """The integers that a type holds: code - zero from lowest to highest; or, with ``bits``, codes of so many and a zero point."""

    kind: str
    lowest: int = 0
    highest: int = 0
    bits: int = 0


# The smallest first; of the same size, the one whose kernels are faster in llama.cpp.
_ROOMS = (_Room("Q2_K", bits=2), _Room("Q3_K", -4, 3), _Room("Q4_0", -8, 7), _Room("Q4_K", bits=4), _Room("Q5_0", -16, 15),
          _Room("Q5_K", bits=5), _Room("Q6_K", -32, 31), _Room("Q8_0", -128, 127))


def exact_type(layout: Layout, columns: int) -> str | None:
    """The smallest type that holds every weight stored in this way, None where none does."""
    if layout.kind != "int":
        return None
    most = (1 << layout.bits) - 1
    lowest, highest = (-(most + 1) // 2, most // 2) if layout.symmetric else (-most, most)
    for room in _ROOMS:
        holds = layout.bits <= room.bits if room.bits else room.lowest <= lowest and highest <= room.highest
        if holds and _whole(layout, columns, room.kind):
            return room.kind
    return None


def takes_codes(layout: Layout, columns: int, kind: str) -> bool:
    """Whether ``from_codes`` makes this type of a weight stored in this way, exactly or, for Q4_1, but for its offset."""
    return kind == exact_type(layout, columns) or (
        kind == "Q4_1" and layout.kind == "int" and layout.bits <= 4 and _whole(layout, columns, kind))


def from_codes(weight: Quantised, kind: str) -> Bytes:
    """uint8 [rows, bytes of a row] of a weight [rows, columns] that the type takes the codes of."""
    blocks = TYPES[kind]
    rows, columns = weight.codes.shape
    count = columns // blocks.numbers
    scale, zero = (_for_each_block(each, weight.grid.block // blocks.numbers, rows, count)
                   for each in (weight.grid.scale, weight.grid.zero_point))
    unsigned = (weight.codes.astype(np.int16) - weight.grid.lowest).reshape(rows * count, -1)
    return _packed(kind, scale.astype(np.float16), unsigned, zero - weight.grid.lowest).reshape(rows, count * blocks.size_bytes)


def _packed(kind: str, scale: Array, codes: Array, zero: Array) -> Bytes:
    """scale [n] float16; codes [n, numbers] counted from 0; zero [n], the code that stands for 0."""
    if kind in ("Q2_K", "Q4_K", "Q5_K"):
        pack = {"Q2_K": packing.q2_k, "Q4_K": packing.q4_k, "Q5_K": packing.q5_k}[kind]
        ones = np.ones((len(codes), 16 if kind == "Q2_K" else 8), np.uint8)
        return pack(scale, scale, ones, ones * zero.astype(np.uint8)[:, None], codes.astype(np.uint8))
    if kind == "Q4_1":
        return packing.q4_1(scale, -zero * scale.astype(np.float32), codes.astype(np.uint8))
    signed = codes - zero[:, None]
    if kind == "Q8_0":
        return packing.q8_0(scale, signed.astype(np.int8))
    if kind == "Q3_K":
        return packing.q3_k(scale, np.full((len(codes), 16), 33, np.uint8), (signed + 4).astype(np.uint8))
    if kind == "Q6_K":
        return packing.q6_k(scale, np.ones((len(codes), 16), np.int8), (signed + 32).astype(np.uint8))
    if kind == "Q5_0":
        return packing.q5_0(scale, (signed + 16).astype(np.uint8))
    return packing.q4_0(scale, (signed + 8).astype(np.uint8))


def _whole(layout: Layout, columns: int, kind: str) -> bool:
    """Whether rows and groups are whole blocks of the type. A group of 0 is the row; the last group may be shorter than the others."""
    numbers = TYPES[kind].numbers
    return columns % numbers == 0 and layout.group % numbers == 0


def _for_each_block(numbers: Array, blocks_a_group: int, rows: int, count: int) -> Array:
    """[rows * count] from one number for each group, or for each row where there are no groups (0 blocks in one)."""
    table = np.repeat(numbers.reshape(rows, -1), blocks_a_group or count, axis=1)
    return table[:, :count].ravel()
