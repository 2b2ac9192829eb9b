"""Layer after layer with the second moments of its inputs, the layers before it being rounded already."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

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


def walk(model: GraphModel, work: Work) -> GraphModel:
    """Show the technique each weight with what its layer reads; where that is no set of vectors, with no moments (groups and rows 0)."""
    def change(stop: Stop, node: ir.Node, slot: Slot, layer: LayerView) -> Change:
        made: Change = work.technique.apply(_view(stop, node, layer), work.target, **work.layers[layer.name])
        return made

    return rounded_in_turn(model, work, change, exact=False)


def _view(stop: Stop, node: ir.Node, layer: LayerView) -> GramView:
    product = product_of(node)
    if product is None:
        return GramView(layer, np.zeros((0, 0, 0), np.float32), 0)
    gram, rows = gram_of(product, [batch[stop.step.inputs[0]] for batch in stop.found.values])
    return GramView(layer, gram, rows)


def gram_of(product: Product, activations: Sequence[Tensor]) -> tuple[Floats, int]:
    """[groups, in, in] mean of x x^T over vectors of the activations, and their number. Sums of chunks in float32, their sum in float64."""
    width = product.windows(activations[0]).shape[product.positions + 1 :].numel()
    most, generator = max(MOST_VECTORS, VECTORS_AN_INPUT * width), torch.Generator().manual_seed(0)
    drawn = vectors_drawn([product.count(activation) for activation in activations], most, generator)
    total, rows = torch.zeros((), dtype=torch.float64), 0
    for activation, index in zip(activations, drawn, strict=True):
        for vectors in product.chunks(activation, index):  # [n, groups, in]
            by_group = vectors.float().transpose(0, 1)
            total = total + torch.bmm(by_group.transpose(1, 2), by_group).double()
            rows += len(vectors)
    return (total / max(rows, 1)).float().numpy(), rows
