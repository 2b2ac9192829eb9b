"""GPTQ's solver: a weight onto a grid, column after column, for whatever body the weight lives in.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"; that no inverse is needed
shows Chen et al. 2025, "The Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane Algorithm".
"""

from __future__ import annotations

import logging
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from whet.compress.fake import to_codes_
from whet.compress.grid import Grid
from whet.compress.threads import one_thread
from whet.core.errors import Refused

# Columns at which products become so small that threads only wait for each other.
PANEL = 128
# Rows that are gathered at a time, and parts into which a matrix of second moments is cut to compute one half of it.
GATHERED, PARTS = 64, 8
NARROW = 128  # inputs of such a part: smaller pieces would gain nothing

_log = logging.getLogger(__name__)


def solve(weight: Tensor, gram: Tensor, grid: Grid, *, order: str = "activations", damping: float = 0.01, name: str = "") -> Tensor:
    """Codes of ``weight`` on ``grid`` with the least error of the layer's output that rounding column by column finds.

    weight: [out, in] float32. gram: [in, in], any positive multiple of the sum of x x^T. grid: of the weight in the order of its
    columns, one scale a row (axis 0), a block of columns (axis 1) or for all. order, damping: as ``gptq``.
    Returns [out, in] int8, or uint8 where the grid is unsigned. Memory: two more of the weight and one of the gram.

    Nothing is inverted. Frantar et al. carry the error e_j = (w_j - w'_j) / U_jj along the rows of U, the upper Cholesky factor of H^-1:
    w_j's value when its turn comes is w_j - sum over i < j of e_i U_ij. Since W - W' = E U and U = R^-1, that is the same as
    w_j + sum over i < j of (w_i - w'_i) R_ij / R_jj, for which H itself is factored. Columns are kept last first here, where R is
    the lower factor that libraries compute, and those that come first stand at the end.
    """
    moments = gram.diagonal()
    turns = torch.argsort(moments, stable=True) if order == "activations" else torch.arange(len(gram) - 1, -1, -1)
    with torch.no_grad():
        carried = _carried(gram, turns, damping, name)
        lost = _columns(weight, turns)  # [in, out] the weight, and in the end what rounding took from it
        codes = lost.clone()  # the weight with what was carried to it, and in the end its codes
        _round(codes, lost, carried, *_by_column(grid, turns, weight.shape[0]), (grid.lowest, grid.highest))
        del lost, carried
        found = codes.to(torch.int8 if grid.signed else torch.uint8)
    return found.index_select(0, torch.argsort(turns)).t().contiguous()


def moments_of(vectors: Tensor) -> Tensor:
    """[in, in] the sum of x x^T over the rows x of [n, in]. It is symmetric: only one half is multiplied, the other is copied."""
    total = vectors.new_zeros(vectors.shape[1], vectors.shape[1])
    add_moments(total, vectors)
    return mirrored(total)


def add_moments(total: Tensor, vectors: Tensor) -> None:
    """Add the sum of x x^T over the rows of [n, in] to ``total`` [in, in], of which only one half is right until it is ``mirrored``."""
    for first, last in _parts(len(total)):
        total[first:last, :last].addmm_(vectors[:, first:last].t(), vectors[:, :last])


def mirrored(total: Tensor) -> Tensor:
    """In place, the half that ``add_moments`` left out is copied from the other one."""
    for first, last in _parts(len(total)):
        total[:first, first:last].copy_(total[first:last, :first].t())
    return total


def _parts(width: int) -> list[tuple[int, int]]:
    count = min(PARTS, max(1, width // NARROW))
    return list(pairwise(width * part // count for part in range(count + 1)))


def _round(codes: Tensor, lost: Tensor, carried: Tensor, scales: list[Tensor], zeros: list[Tensor], ends: tuple[int, int]) -> None:
    """Columns (rows here) from the last to the first. Halving makes of all carrying large products; within a half it is done alike."""
    count = len(codes)
    if count == 1:
        to_codes_(codes[0], scales[0], zeros[0], *ends)
        lost[0].addcmul_(codes[0] - zeros[0], scales[0], value=-1.0)
        return
    if count <= PANEL and torch.get_num_threads() > 1:
        with one_thread():
            _round(codes, lost, carried, scales, zeros, ends)
        return
    half = count // 2
    _round(codes[half:], lost[half:], carried[half:, half:], scales[half:], zeros[half:], ends)
    codes[:half].addmm_(carried[half:, :half].t(), lost[half:])
    _round(codes[:half], lost[:half], carried[:half, :half], scales[:half], zeros[:half], ends)


def _columns(weight: Tensor, turns: Tensor) -> Tensor:
    """[in, out] the columns of a weight in the order of ``turns``; a few rows at a time, which stay in the cache meanwhile."""
    found = weight.new_empty(weight.shape[1], weight.shape[0])
    for first in range(0, len(weight), GATHERED):
        some = slice(first, first + GATHERED)
        with one_thread():
            found[:, some] = torch.from_numpy(np.take(weight[some].numpy(), turns.numpy(), axis=1)).t()
    return found


def _carried(gram: Tensor, turns: Tensor, damping: float, name: str) -> Tensor:
    """[in, in] lower: L_ij / L_jj with L L^T = the damped moments in the order of ``turns``. Raises Refused where they are not finite.

    Inputs that were always 0 have no say: their columns are rounded to the nearest, and carry nothing.
    """
    if not bool(torch.isfinite(torch.stack(torch.aminmax(gram))).all()):  # both pass NaN on
        asked = f"round the weights of {name or 'a layer'}"
        raise Refused(asked, found="NaN or infinity among its inputs", do="check the calibration data")
    diagonal = gram.diagonal()[turns]
    mean = diagonal[diagonal > 0].mean() if bool((diagonal > 0).any()) else torch.ones((), dtype=gram.dtype)
    diagonal[diagonal <= 0] = mean
    while True:
        moments = _in_order(gram, turns)
        moments.diagonal().copy_(diagonal + damping * mean)
        # Factored in its own memory: libraries want columns one behind the other, which is what the transpose of a symmetric matrix is.
        factor, failed = torch.linalg.cholesky_ex(moments.t(), out=(moments.t(), torch.empty((), dtype=torch.int32)))
        if not int(failed):
            return factor.div_(factor.diagonal().clone())
        damping = max(10.0 * damping, 0.01)
        _log.warning("gptq: the second moments of %s have no Cholesky factor; damping raised to %g", name or "a layer", damping)


def _in_order(gram: Tensor, turns: Tensor) -> Tensor:
    """Rows and columns of the gram in the order of ``turns``, without a third matrix on the way."""
    found = torch.empty_like(gram)
    for first in range(0, len(turns), GATHERED):
        some = slice(first, first + GATHERED)
        # Five times as fast as torch's indexing.
        np.take(gram[turns[some]].numpy(), turns.numpy(), axis=1, out=found[some].numpy(), mode="clip")
    return found


def _by_column(grid: Grid, turns: Tensor, rows: int) -> tuple[list[Tensor], list[Tensor]]:
    """For each column in turn: its scales and zero points, [out] or []."""
    scale, zero = (torch.as_tensor(part, dtype=torch.float32) for part in (grid.scale, grid.zero_point))
    if not grid.block:
        return [scale] * len(turns), [zero] * len(turns)
    scale, zero = scale.t().contiguous(), zero.t().contiguous()  # [blocks, out]
    blocks = (turns // grid.block).tolist()
    return [scale[index] for index in blocks], [zero[index] for index in blocks]
