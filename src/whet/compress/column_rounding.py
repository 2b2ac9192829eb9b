"""GPTQ's solver: a weight onto a grid, column after column, for whatever body the weight lives in.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"; that no inverse is needed
shows Chen et al. 2025, "The Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane Algorithm".
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from whet.compress.fake import to_codes_
from whet.compress.grid import Grid
from whet.compress.threads import one_thread
from whet.core.errors import Refused

# Columns at which products become so small that threads only wait for each other.
PANEL = 128

_log = logging.getLogger(__name__)


def solve(weight: Tensor, gram: Tensor, grid: Grid, *, order: str = "activations", damping: float = 0.01, name: str = "") -> Tensor:
    """Codes of ``weight`` on ``grid`` with the least error of the layer's output that rounding column by column finds.

    weight: [out, in] float32. gram: [in, in], any positive multiple of the sum of x x^T. grid: of the weight in the order of its
    columns, one scale a row (axis 0), a block of columns (axis 1) or for all. order, damping: as ``gptq``.
    Returns [out, in] float32, whole numbers. Memory: two more of the weight and two of the gram.

    Nothing is inverted. Frantar et al. carry the error e_j = (w_j - w'_j) / U_jj along the rows of U, the upper Cholesky factor of H^-1:
    w_j's value when its turn comes is w_j - sum over i < j of e_i U_ij. Since W - W' = E U and U = R^-1, that is the same as
    w_j + sum over i < j of (w_i - w'_i) R_ij / R_jj, for which H itself is factored. Columns are kept last first here, where R is
    the lower factor that libraries compute, and those that come first stand at the end.
    """
    moments = gram.diagonal()
    turns = torch.argsort(moments, stable=True) if order == "activations" else torch.arange(len(gram) - 1, -1, -1)
    carried = _carried(gram.index_select(0, turns).index_select(1, turns), damping, name)
    lost = weight.t().index_select(0, turns)  # [in, out] the weight, and in the end what rounding took from it
    codes = lost.clone()  # the weight with what was carried to it, and in the end its codes
    scales, zeros = _by_column(grid, turns, weight.shape[0])
    with torch.no_grad():
        _round(codes, lost, carried, scales, zeros, (grid.lowest, grid.highest))
    return codes.index_select(0, torch.argsort(turns)).t().contiguous()


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


def _carried(moments: Tensor, damping: float, name: str) -> Tensor:
    """[in, in] lower: L_ij / L_jj with L L^T = the damped moments. Raises Refused where they are not finite.

    Inputs that were always 0 have no say: their columns are rounded to the nearest, and carry nothing.
    """
    diagonal = moments.diagonal().clone()
    mean = diagonal[diagonal > 0].mean() if bool((diagonal > 0).any()) else torch.ones((), dtype=moments.dtype)
    diagonal[diagonal <= 0] = mean
    if not bool(torch.isfinite(moments).all()):
        asked = f"round the weights of {name or 'a layer'}"
        raise Refused(asked, found="NaN or infinity among its inputs", do="check the calibration data")
    while True:
        moments.diagonal().copy_(diagonal + damping * mean)
        factor, failed = torch.linalg.cholesky_ex(moments)
        if not int(failed):
            return factor.div_(factor.diagonal().clone())
        damping = max(10.0 * damping, 0.01)
        _log.warning("gptq: the second moments of %s have no Cholesky factor; damping raised to %g", name or "a layer", damping)


def _by_column(grid: Grid, turns: Tensor, rows: int) -> tuple[list[Tensor], list[Tensor]]:
    """For each column in turn: its scales and zero points, [out] or []."""
    scale, zero = (torch.as_tensor(part, dtype=torch.float32) for part in (grid.scale, grid.zero_point))
    if not grid.block:
        return [scale] * len(turns), [zero] * len(turns)
    scale, zero = scale.t().contiguous(), zero.t().contiguous()  # [blocks, out]
    blocks = (turns // grid.block).tolist()
    return [scale[index] for index in blocks], [zero[index] for index in blocks]
