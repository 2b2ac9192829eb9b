"""The table of operators, put together from the families."""

from __future__ import annotations

from whet.compress.mirror import (
    activations,
    attention,
    convolution,
    elementwise,
    indexing,
    normalisation,
    pooling,
    products,
    quantisation,
    recurrent,
    reduction,
    resize,
    shapes,
)
from whet.compress.mirror.node import Builder, Node

FAMILIES = (elementwise, activations, shapes, indexing, convolution, pooling, resize, normalisation, products, reduction,
             recurrent, attention, quantisation)
TABLE: dict[str, Builder] = {op: builder for family in FAMILIES for op, builder in family.TABLE.items()}


def builder_of(node: Node, domain: str) -> Builder:
    """What builds the function of the node. Raises Unsupported where the table has none."""
    if domain not in ("", "ai.onnx"):
        node.refuse(f"it is an operator of {domain!r}, and the mirror has those of ONNX itself")
    if node.op not in TABLE:
        node.refuse(f"the mirror's table has no {node.op}")
    return TABLE[node.op]
