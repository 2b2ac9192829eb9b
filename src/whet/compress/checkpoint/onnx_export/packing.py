"""Rounded weights as onnxruntime's kernels for few bits read them: exactly our codes, in the next width and block that have a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from whet.compress.grid import Array, Floats, Quantised, block_count

_BLOCKS = (16, 32, 64, 128, 256)
# Level 4 with 2 bits has kernels for these; with other blocks onnxruntime 1.31 computes in float32, 25 times slower.
_BLOCKS_OF_2_BITS = (32, 64, 128)


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight [out, in] for MatMulNBits and GatherBlockQuantized.

    codes: uint8 [out, blocks, block * bits / 8], the first code in the lowest bits. scales: float32 [out, blocks]. zeros: uint8 [out,
    blocks * bits / 8 rounded up], None where every one is 2**(bits-1), which the kernels take without being told.
    """

    bits: int
    block: int
    columns: int
    codes: Array
    scales: Floats
    zeros: Array | None

    @property
    def rows(self) -> int:
        return int(self.codes.shape[0])

    def is_like(self, other: Packed) -> bool:
        """Whether the rows of both can be those of one weight."""
        return (self.bits, self.block, self.columns, self.zeros is None) == (other.bits, other.block, other.columns, other.zeros is None)


def packed(weight: Quantised) -> Packed | None:
    """The weight in the kernels' form; None where its groups hold no number of codes that a block of theirs divides.

    3 bits become 4 and 5 to 7 become 8, with the same scales: the numbers that the codes stand for do not change. A group longer than a
    kernel's block, and a whole row, is several blocks with one scale.
    """
    grid, (rows, columns) = weight.grid, weight.codes.shape
    bits, block = kernel_bits(grid.bits), kernel_block(grid.block, columns, kernel_bits(grid.bits))
    if block is None:
        return None
    blocks, shift = block_count(columns, block), (1 << (bits - 1)) if grid.signed else 0
    of_block = np.arange(blocks) * block // grid.block if grid.block else np.zeros(blocks, np.intp)
    scales = np.broadcast_to(grid.scale.reshape(-1, 1) if not grid.block else grid.scale, (rows, int(of_block[-1]) + 1))[:, of_block]
    zeros = np.broadcast_to(grid.zero_point.reshape(-1, 1) if not grid.block else grid.zero_point, (rows, int(of_block[-1]) + 1))
    zeros = (zeros[:, of_block] + shift).astype(np.uint8)
    full = np.empty((rows, blocks * block), np.uint8)
    np.add(weight.codes.view(np.uint8), np.uint8(shift), out=full[:, :columns])  # modulo 256, so negative codes come out right
    full[:, columns:] = zeros[:, -1:]  # the ragged end is filled with zero points, which stand for 0
    told = None if (zeros == 1 << (bits - 1)).all() else _narrowed(zeros, bits)
    return Packed(bits, block, columns, _narrowed(full, bits).reshape(rows, blocks, -1), np.ascontiguousarray(scales, np.float32), told)


def joined(parts: Sequence[Packed]) -> Packed | None:
    """Weights that read the same tensor as one, their rows one below the other; None where they differ in more than that."""
    first = parts[0]
    if not all(first.is_like(other) for other in parts[1:]):
        return None
    zeros = None if first.zeros is None else np.concatenate([part.zeros for part in parts if part.zeros is not None])
    return Packed(first.bits, first.block, first.columns, np.concatenate([part.codes for part in parts]),
                  np.concatenate([part.scales for part in parts]), zeros)  # fmt: skip


def kernel_bits(bits: int) -> int:
    """The least width with a kernel that holds codes of ``bits``."""
    return next(width for width in (2, 4, 8) if width >= bits)


def kernel_block(group: int, columns: int, bits: int) -> int | None:
    """The longest block with a kernel of which a group (0: the whole row) holds a whole number; None where there is none.

    Longer blocks are faster. But the last block of a row is stored full: one that would lengthen the row by over a quarter is not taken,
    unless every one does.
    """
    fitting = [block for block in _BLOCKS if group % block == 0]
    if bits == 2:
        fitting = [block for block in fitting if block in _BLOCKS_OF_2_BITS] or fitting
    tight = [block for block in fitting if block_count(columns, block) * block <= 1.25 * columns]
    return max(tight) if tight else min(fitting, default=None)


def is_slow(weight: Packed) -> bool:
    """Whether this processor has no integer kernel for it."""
    return weight.bits == 2 and weight.block not in _BLOCKS_OF_2_BITS


def _narrowed(codes: Array, bits: int) -> Array:
    """[rows, n] uint8 below 2**bits, 8 / bits of them in a byte, the first one in the lowest bits; n is rounded up to whole bytes."""
    a_byte = 8 // bits
    if a_byte == 1:
        return codes
    codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % a_byte)))
    found = codes[:, 0::a_byte].copy()
    for index in range(1, a_byte):
        found |= codes[:, index::a_byte] << np.uint8(index * bits)
    return found
