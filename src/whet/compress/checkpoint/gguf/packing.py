"""Where the bits of a block lie in GGUF's types, as ggml-common.h of llama.cpp declares them and ``gguf.quants`` decodes them.

Every function takes n blocks and gives uint8 [n, bytes of a block]. Codes are counted from 0 here, whatever they stand for.
"""

from __future__ import annotations

import numpy as np

from whet.compress.grid import Array

Bytes = Array  # of uint8: numpy's types lose that over shifts


def half_bytes(numbers: Array) -> Bytes:
    """Float16 numbers [n] as [n, 2]."""
    return np.ascontiguousarray(numbers, np.float16).reshape(-1, 1).view(np.uint8)


def q4_0(scale: Array, codes: Bytes) -> Bytes:
    """scale [n], codes [n, 32] below 16, of which 8 stands for 0."""
    return np.hstack([half_bytes(scale), _nibbles(codes, 16)])


def q4_1(scale: Array, low: Array, codes: Bytes) -> Bytes:
    """scale and low [n], codes [n, 32] below 16."""
    return np.hstack([half_bytes(scale), half_bytes(low), _nibbles(codes, 16)])


def q5_0(scale: Array, codes: Bytes) -> Bytes:
    """scale [n], codes [n, 32] below 32, of which 16 stands for 0."""
    return np.hstack([half_bytes(scale), _fifth_bits(codes), _nibbles(codes & 15, 16)])


def q5_1(scale: Array, low: Array, codes: Bytes) -> Bytes:
    """scale and low [n], codes [n, 32] below 32."""
    return np.hstack([half_bytes(scale), half_bytes(low), _fifth_bits(codes), _nibbles(codes & 15, 16)])


def q8_0(scale: Array, codes: Array) -> Bytes:
    """scale [n], codes [n, 32] int8."""
    return np.hstack([half_bytes(scale), codes.view(np.uint8)])


def q2_k(scale: Array, low: Array, scales: Bytes, lows: Bytes, codes: Bytes) -> Bytes:
    """scale and low [n]; scales and lows [n, 16] below 16; codes [n, 256] below 4."""
    return np.hstack([scales | (lows << 4), _pairs_of_bits(codes), half_bytes(scale), half_bytes(low)])


def q3_k(scale: Array, scales: Bytes, codes: Bytes) -> Bytes:
    """scale [n]; scales [n, 16] below 64, of which 32 stands for 0; codes [n, 256] below 8, of which 4 does."""
    low, high = scales & 15, (scales >> 4).reshape(-1, 4, 4)
    rest = high[:, 0] | (high[:, 1] << 2) | (high[:, 2] << 4) | (high[:, 3] << 6)
    return np.hstack([_single_bits(codes >> 2), _pairs_of_bits(codes & 3), low[:, :8] | (low[:, 8:] << 4), rest, half_bytes(scale)])


def q4_k(scale: Array, low: Array, scales: Bytes, lows: Bytes, codes: Bytes) -> Bytes:
    """scale and low [n]; scales and lows [n, 8] below 64; codes [n, 256] below 16."""
    return np.hstack([half_bytes(scale), half_bytes(low), _six_bits(scales, lows), _nibbles(codes, 32)])


def q5_k(scale: Array, low: Array, scales: Bytes, lows: Bytes, codes: Bytes) -> Bytes:
    """As q4_k, codes below 32."""
    return np.hstack([half_bytes(scale), half_bytes(low), _six_bits(scales, lows), _single_bits(codes >> 4), _nibbles(codes & 15, 32)])


def q6_k(scale: Array, scales: Array, codes: Bytes) -> Bytes:
    """scale [n]; scales [n, 16] int8; codes [n, 256] below 64, of which 32 stands for 0."""
    return np.hstack([_nibbles(codes & 15, 64), _pairs_of_bits(codes >> 4), scales.view(np.uint8), half_bytes(scale)])


def _nibbles(codes: Bytes, run: int) -> Bytes:
    """Runs of ``run`` codes in turn in the low and the high halves of as many bytes."""
    halves = codes.reshape(len(codes), -1, 2, run)
    return (halves[:, :, 0] | (halves[:, :, 1] << 4)).reshape(len(codes), -1)


def _pairs_of_bits(codes: Bytes) -> Bytes:
    """Four runs of 32 codes below 4 in 32 bytes, the first in the lowest bits."""
    runs = codes.reshape(len(codes), -1, 4, 32)
    return (runs[:, :, 0] | (runs[:, :, 1] << 2) | (runs[:, :, 2] << 4) | (runs[:, :, 3] << 6)).reshape(len(codes), -1)


def _single_bits(bits: Bytes) -> Bytes:
    """Eight runs of 32 bits in 32 bytes, the first in the lowest bit."""
    return np.packbits(bits.reshape(-1, 8, 32), axis=1, bitorder="little").reshape(len(bits), 32)


def _fifth_bits(codes: Bytes) -> Bytes:
    """The highest bits of 32 codes of 5 as a number of 32 bits, the first in the lowest."""
    return np.packbits(codes >> 4, axis=1, bitorder="little")


def _six_bits(scales: Bytes, lows: Bytes) -> Bytes:
    """Eight scales and eight lows of 6 bits in 12 bytes: the first four of each whole, with the upper bits of the others above them."""
    return np.hstack([scales[:, :4] | ((scales[:, 4:] >> 4) << 6), lows[:, :4] | ((lows[:, 4:] >> 4) << 6),
                      (scales[:, 4:] & 15) | ((lows[:, 4:] & 15) << 4)])
