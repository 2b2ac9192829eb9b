"""Products of matrices and tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from whet.compress.mirror.node import Builder, Function, Node


def _gemm(node: Node) -> Function:
    """alpha A' B' + beta C; the usual form of a linear layer is torch's own."""
    alpha, beta = node.real("alpha", 1.0), node.real("beta", 1.0)
    left, right = bool(node.integer("transA")), bool(node.integer("transB"))
    if not left and alpha == beta == 1:
        def plain(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
            weight = b if right else b.T
            return functional.linear(a, weight, c) if c is None or c.ndim == 1 else functional.linear(a, weight) + c
        return plain

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        found = (a.T if left else a) @ (b.T if right else b)
        found = found if alpha == 1 else alpha * found
        return found if c is None else found + (c if beta == 1 else beta * c)

    return run


def _einsum(node: Node) -> Function:
    equation = node.text("equation", "")
    return lambda *tensors: torch.einsum(equation, *tensors)


TABLE: dict[str, Builder] = {"Gemm": _gemm, "MatMul": lambda node: torch.matmul, "Einsum": _einsum}
