"""Layer after layer with the second moments of its inputs, the layers before it being rounded already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from whet.compress.column_rounding import add_moments, mirrored
from whet.compress.graph import GraphModel
from whet.compress.grid import Floats
from whet.compress.layer_products import Product, product_of, vectors_drawn
from whet.compress.technique import Change, LayerView
from whet.compress.views import GramView
from whet.compress.walks import Work
from whet.compress.walks.rounding import rounded_in_turn
from whet.compress.walks.stream import Stop
from whet.compress.weights import Slot

# So many positions of a convolution are drawn, or so many for each number of a vector: more change the result no more than another
# draw does.
MOST_VECTORS, VECTORS_AN_INPUT = 1 << 14, 16
AT_ONCE, SINGLE = 1024, 1 << 13  # columns of one product, and those that are summed in float32


def walk(model: GraphModel, work: Work) -> GraphModel:
    """Show the technique each weight with what its layer reads; where that is no set of vectors, with no moments (groups and rows 0)."""
    def change(stop: Stop, node: ir.Node, slot: Slot, layer: LayerView) -> Change:
        options = work.layers[layer.name]
        made: Change = work.technique.apply(_view(stop, node, layer, float(options["enough"])), work.target, **options)
        return made

    return rounded_in_turn(model, work, change, exact=False)


def _view(stop: Stop, node: ir.Node, layer: LayerView, enough: float) -> GramView:
    product = product_of(node)
    if product is None:
        return GramView(layer, np.zeros((0, 0, 0), np.float32), 0)
    gram, rows = gram_of(product, stop.found.read(stop.step.inputs[0]), enough)
    return GramView(layer, gram, rows)


def gram_of(product: Product, activations: Sequence[Tensor], enough: float = 0.0) -> tuple[Floats, int]:
    """[groups, in, in] mean of x x^T over vectors of the activations, and their number. Sums of chunks in float32, their sum in float64.

    enough: with fewer vectors than this multiple of ``in`` nobody looks at the moments, and they are [groups, 0, 0].
    """
    width = product.width(activations[0])
    most, generator = max(MOST_VECTORS, VECTORS_AN_INPUT * width), torch.Generator().manual_seed(0)
    drawn = list(vectors_drawn([product.count(activation) for activation in activations], most, generator))
    rows = sum(map(len, drawn))
    if rows == 0 or rows < enough * width:
        return np.zeros((product.groups, 0, 0), np.float32), rows
    total = _Sum(product.groups, width)
    for columns in _together(product.columns(x, index) for x, index in zip(activations, drawn, strict=True)):
        total.add(columns.float())
    return total.mean(rows).numpy(), rows


class _Sum:
    """[groups, in, in] the sum of x x^T. Of a single group one half is summed and the other copied in the end."""

    def __init__(self, groups: int, width: int) -> None:
        self._total = torch.zeros(groups, width, width, dtype=torch.float64)
        self._recent, self._count = torch.zeros(groups, width, width), 0

    def add(self, columns: Tensor) -> None:
        """Add those of the columns [groups, in, k]."""
        if len(columns) == 1:
            add_moments(self._recent[0], columns[0].t())
        else:
            self._recent.baddbmm_(columns, columns.transpose(1, 2))
        self._count += columns.shape[2]
        if self._count >= SINGLE:
            self._settle()

    def mean(self, rows: int) -> Tensor:
        """The sum, divided."""
        self._settle()
        found = self._recent.copy_(self._total.div_(rows))
        return mirrored(found[0])[None] if len(found) == 1 else found

    def _settle(self) -> None:
        self._total += self._recent
        self._recent.zero_()
        self._count = 0


def _together(columns: Iterable[Tensor]) -> Iterator[Tensor]:
    """[groups, in, k] put side by side until there are ``AT_ONCE`` of them: products of few columns are slow."""
    waiting: list[Tensor] = []
    for each in columns:
        waiting.append(each)
        if sum(part.shape[2] for part in waiting) >= AT_ONCE:
            yield torch.cat(waiting, 2)
            waiting = []
    if waiting:
        yield torch.cat(waiting, 2)
