"""Rounding column after column, each one's error being carried by the columns that are still to come."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import numpy as np

from whet.compress.grid import Array, Floats, Grid, Quantised, quantise, stored_bits, weight_grid
from whet.compress.technique import LANGUAGE_OPS, NOT_BY_TOKEN, Change, Foresight, LayerView, Search, rounded_matrix
from whet.compress.techniques import weight_only
from whet.compress.views import GramView
from whet.compress.weight_search import searched_grid
from whet.core.errors import Refused
from whet.core.inventory import Layer
from whet.core.target import Target

if TYPE_CHECKING:
    from torch import Tensor

# Layers whose output is a sum over inputs that can be lined up as vectors; the others are rounded plainly.
OPS = frozenset({"Conv", "Gemm", "MatMul"})

_log = logging.getLogger(__name__)


def gptq(view: GramView, target: Target, *,
         bits: Annotated[int, Search(4, 2, 3, 5, 6, 7, 8, help="bits a weight")] = 4,
         block: Annotated[int, Search(0, 16, 32, 64, 128, 256, help="weights that share a scale along the summed dimension; 0: one "
                                      "scale an output channel")] = 0,
         symmetric: Annotated[bool, Search(True, False, help="zero point in the middle")] = True,
         search: Annotated[bool, Search(True, False, help="the ends of each grid are searched, else minimum and maximum")] = True,
         order: Annotated[str, Search("activations", "none", help="columns of the largest inputs are rounded first, or as they "
                                      "stand")] = "activations",
         damping: Annotated[float, Search(0.01, 0.1, help="share of the mean second moment that is added to each; raised tenfold "
                                          "while the matrix cannot be factored", only=False, least=0.0, most=10.0)] = 0.01,
         enough: Annotated[float, Search(1.0, 0.0, 4.0, help="input vectors below which a layer is rounded plainly, as a multiple of its "
                                         "inputs", only=False, least=0.0, most=1000.0)] = 1.0,
         accuracy_level: Annotated[int, Search(0, 4, help="MatMulNBits: 0 computes in float32, 4 with int8 activations "
                                               "(faster)")] = 4,
         samples: Annotated[int, Search(300, 32, help="how many calibration samples the second moments are taken over", only=False,
                                        least=1, most=100_000)] = 300,
         activations: Annotated[int, Search(0, 8, help="bits of what a language model's layer reads, rounded for each token; 0: "
                                            "float")] = 0) -> Change:
    """Round the weights one input after the other; what a column's rounding does to the output, the columns after it take back.

    Paper: Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", equations 2
    and 3, section 3.3 (steps 1 to 3); the order by activations is that of the authors' code.
    Needs: calibration.
    Cost: one pass of the calibration data through the model in torch, with second moments [in, in] of each layer's inputs:
    rows * in^2 / 2 multiplications, rows being at most 16384 or 16 * in; then in^3 / 3 for the factor and out * in^2 for the columns.
    Memory of a few samples, five of those matrices, and 32 MB of what waits for the next layer; the rest of that waits in temporary files.
    Limits: convolutions and matrix products with one matrix. Transposed convolutions, recurrent layers, tables and stacks of matrices
    are rounded plainly, one scale an output channel. So is, with a warning, a layer that saw too few vectors: what is fitted to fewer
    than it has inputs is worse than plain rounding on others. Smaller on disk; faster only where ``static`` follows. ``activations``
    goes with 8 symmetric bits, in language models; the moments are those of the inputs in float.

    Least sum of ((W - W') x)^2, H = mean of x x^T + damping * mean(diag H) * I = R R^T with R upper triangular. Column j becomes the
    nearest number of the grid to w_j + sum over i < j of (w_i - w'_i) R_ij / R_jj. The grids, those of blocks too, are those of W
    before anything is rounded, in the order of its columns, whatever ``order`` says.
    """
    import torch

    from whet.compress.column_rounding import solve

    weight, groups, kernel = flat_weight(view.layer), len(view.gram), {"accuracy_level": accuracy_level}
    compute = "dynamic" if activations else "float32"
    block = block if groups else 0
    grid = grid_of(weight, bits=min(bits, target.weight_bits), block=block, symmetric=symmetric, search=search, scales=view.layer.scales,
                   either_sign=view.layer.either_sign)
    if view.rows == 0 or view.rows < enough * weight.shape[1]:
        if groups:
            seen = f"only {view.rows} input vectors for {weight.shape[1]} inputs" if view.rows else "no inputs"
            _log.warning("gptq: %s saw %s; its weights are rounded plainly", view.layer.name, seen)
        return Change(weight=quantise(weight, grid), compute=compute, kernel=kernel)
    found = [solve(_tensor(part), _tensor(gram), each, order=order, damping=damping, name=view.layer.name)
             for part, gram, each in zip(np.split(weight, groups), view.gram, _split(grid, groups), strict=True)]
    return Change(weight=Quantised((found[0] if groups == 1 else torch.cat(found)).numpy(), grid), compute=compute, kernel=kernel)


def foresee(layer: Layer, target: Target, *, bits: int = 4, block: int = 0, symmetric: bool = True, search: bool = True,
            order: str = "activations", damping: float = 0.01, enough: float = 1.0, accuracy_level: int = 4,
            samples: int = 300, activations: int = 0) -> Foresight:
    """Whatever ``weight_only`` would store; plainly rounded where the inputs cannot be lined up."""
    if activations and layer.op != "Linear":
        return Foresight(False, note=NOT_BY_TOKEN)
    if layer.op in LANGUAGE_OPS:
        note = "what multiplies a table of tokens is not known; rtn rounds it"
        return rounded_matrix(bits, block, symmetric, activations) if layer.op == "Linear" else Foresight(False, note=note)
    lined_up, width = _lined_up(layer.op, len(layer.weight_shape)), min(bits, target.weight_bits)
    found = weight_only.foresee(layer, target, bits=width, block=block if lined_up and width in (4, 8) else 0, symmetric=symmetric,
                                accuracy_level=accuracy_level)
    if not found.applies or found.runs_as.startswith("MatMulNBits"):
        return found
    dtype = f"{'' if symmetric else 'u'}int{stored_bits(width)}"
    note = found.note if lined_up else "rounded plainly: it has no columns that could carry errors"
    return Foresight(True, dtype, "float32", stored_bits(width), block if lined_up else 0, found.runs_as, note)


def grid_of(weight: Floats, *, bits: int, block: int, symmetric: bool, search: bool, scales: str = "float32",
            either_sign: bool = False) -> Grid:
    """The grid of a weight [out, in]: a scale for each output channel, or for each block of it. scales, either_sign: as in LayerView."""
    make = searched_grid if search else weight_grid
    return make(weight, bits=bits, symmetric=symmetric, axis=1 if block else 0, block=block, scales=scales, either_sign=either_sign)


def _tensor(array: Array) -> Tensor:
    """The same memory as a tensor, a copy where it may not be written to (weights mapped from a file)."""
    import torch

    return torch.from_numpy(array) if array.flags.writeable else torch.tensor(array)


def _split(grid: Grid, groups: int) -> list[Grid]:
    """The grids of the output channels of each group, in order."""
    scales, zeros = np.split(grid.scale, groups), np.split(grid.zero_point, groups)
    return [replace(grid, scale=scale, zero_point=zero) for scale, zero in zip(scales, zeros, strict=True)]


def flat_weight(layer: LayerView) -> Floats:
    """[out, in] float32."""
    if layer.weight is None:
        raise Refused(f"round the weights of {layer.name}", found="it has none")
    return np.ascontiguousarray(layer.weight.reshape(len(layer.weight), -1), np.float32)


def _lined_up(op: str, dimensions: int) -> bool:
    """Whether the weight is one matrix with whose columns the inputs are multiplied."""
    return op in OPS and (op != "MatMul" or dimensions == 2)
