"""GGUF's blocks and the search for their scales, written slowly: one block, one number at a time.

The layouts are those of ggml-common.h of llama.cpp (block_q4_0, block_q2_K, ...), read as its dequantize_row_* functions do.
"""

from __future__ import annotations

import struct

import numpy as np


def half(data: bytes) -> float:
    return float(struct.unpack("<e", data)[0])


def q4_0(block: bytes) -> list[float]:
    d, qs = half(block[:2]), block[2:18]
    return [d * ((q & 15) - 8) for q in qs] + [d * ((q >> 4) - 8) for q in qs]


def q5_0(block: bytes) -> list[float]:
    d, high, qs = half(block[:2]), int.from_bytes(block[2:6], "little"), block[6:22]
    low = [q & 15 for q in qs] + [q >> 4 for q in qs]
    return [d * (low[i] + 16 * (high >> i & 1) - 16) for i in range(32)]


def q8_0(block: bytes) -> list[float]:
    return [half(block[:2]) * q for q in struct.unpack("32b", block[2:34])]


def scale_and_min(j: int, q: bytes) -> tuple[int, int]:
    """Of sub-block j from the 12 bytes of block_q4_K.scales."""
    if j < 4:
        return q[j] & 63, q[j + 4] & 63
    return (q[j + 4] & 15) | (q[j - 4] >> 6) << 4, (q[j + 4] >> 4) | (q[j] >> 6) << 4


def q4_k(block: bytes, fifth: bool = False) -> list[float]:
    """block_q4_K, or block_q5_K with ``fifth`` bits after the scales."""
    d, dmin, scales = half(block[:2]), half(block[2:4]), block[4:16]
    qh, qs = (block[16:48], block[48:176]) if fifth else (bytes(32), block[16:144])
    found = []
    for j in range(8):
        sc, m = scale_and_min(j, scales)
        for i in range(32):
            q = (qs[32 * (j // 2) + i] >> 4 * (j % 2)) & 15
            q += 16 * (qh[i] >> j & 1)
            found.append(d * sc * q - dmin * m)
    return found


def q2_k(block: bytes) -> list[float]:
    scales, qs, d, dmin = block[:16], block[16:80], half(block[80:82]), half(block[82:84])
    found = []
    for n in range(256):
        part, shift, i = n // 128, n % 128 // 32, n % 32
        q = qs[32 * part + i] >> 2 * shift & 3
        found.append(d * (scales[n // 16] & 15) * q - dmin * (scales[n // 16] >> 4))
    return found


def q3_k(block: bytes) -> list[float]:
    mask, qs, packed, d = block[:32], block[32:96], block[96:108], half(block[108:110])
    found = []
    for n in range(256):
        part, shift, i, s = n // 128, n % 128 // 32, n % 32, n // 16
        q = (qs[32 * part + i] >> 2 * shift & 3) - (0 if mask[i] >> (n // 32) & 1 else 4)
        low = packed[s] & 15 if s < 8 else packed[s - 8] >> 4
        found.append(d * ((low | (packed[8 + s % 4] >> 2 * (s // 4) & 3) << 4) - 32) * q)
    return found


def q6_k(block: bytes) -> list[float]:
    ql, qh, scales, d = block[:128], block[128:192], struct.unpack("16b", block[192:208]), half(block[208:210])
    found = []
    for n in range(256):
        part, rest = n // 128, n % 128
        low = ql[64 * part + rest % 64] >> 4 * (rest // 64) & 15
        high = qh[32 * part + rest % 32] >> 2 * (rest // 32) & 3
        found.append(d * scales[n // 16] * ((low | high << 4) - 32))
    return found


def signed_scale(x: list[float], half_range: int, trials: tuple[float, ...]) -> float:
    """The scale for codes -half..half-1 with the least squared error of those that the trials lead to."""
    farthest = max(x, key=abs)
    if farthest == 0:
        return 0.0
    best, least = 0.0, np.inf
    for steps in [*(-half_range - more for more in trials), *(half_range - 1 + more for more in trials)]:
        q = [min(max(round(each * steps / farthest), -half_range), half_range - 1) for each in x]
        if not any(q):
            continue
        s = sum(a * b for a, b in zip(q, x, strict=True)) / sum(a * a for a in q)
        lost = sum((b - s * a) ** 2 for a, b in zip(q, x, strict=True))
        if lost < least:
            best, least = s, lost
    return best


def affine_line(x: list[float], highest: int, trials: tuple[float, ...]) -> tuple[float, float]:
    """Scale and offset (not above 0) for codes 0..highest with the least squared error of those that the trials lead to."""
    low = min(*x, 0.0)
    span = max(x) - low
    best, least = (span / highest, low), np.inf
    for more in (0.0, *trials):
        q = [min(max(round((each - low) * (highest + more) / span), 0), highest) for each in x]
        if len(set(q)) == 1:
            continue
        s, m = np.polyfit(q, x, 1)
        if m > 0:
            s, m = sum(a * b for a, b in zip(q, x, strict=True)) / sum(a * a for a in q), 0.0
        lost = sum((b - s * a - m) ** 2 for a, b in zip(q, x, strict=True))
        if lost < least and s > 0:
            best, least = (float(s), float(m)), lost
    return best
