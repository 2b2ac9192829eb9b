"""Layers as products of input vectors and one matrix: what a convolution or matrix product multiplies its weight [out, in] with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from whet.compress.mirror.windows import same_pads, sides
from whet.compress.weights import constant, float_attribute, int_attribute, slots

CHUNK_BYTES = 64 << 20  # of vectors that are laid out at a time


@dataclass(frozen=True, eq=False)
class Product:
    """y = W x for each of many vectors x; with groups, each group of outputs has its own part of x.

    windows(activation): [positions..., groups, in...] the vectors, seen in the activation as it lies, copied only where padded.
    positions: how many of the leading dimensions number vectors.
    """

    groups: int
    positions: int
    windows: Callable[[Tensor], Tensor]

    def count(self, activation: Tensor) -> int:
        """How many vectors there are."""
        return self.windows(activation).shape[: self.positions].numel()

    def chosen(self, activation: Tensor, index: Tensor) -> Tensor:
        """[len(index), groups, in] the vectors of those numbers."""
        found = self.windows(activation)
        return found[torch.unravel_index(index, found.shape[: self.positions])].flatten(2)

    def chunks(self, activation: Tensor, index: Tensor) -> Iterator[Tensor]:
        """``chosen``, so many at a time as ``CHUNK_BYTES`` holds."""
        found = self.windows(activation)
        one = found.shape[self.positions :].numel() * found.element_size()
        for part in index.split(max(1, CHUNK_BYTES // max(one, 1))):
            yield self.chosen(activation, part)

    def outputs(self, vectors: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """[n, out] from [n, groups, in] and [out, ...]."""
        flat = weight.flatten(1)
        if self.groups == 1:
            found = functional.linear(vectors[:, 0], flat)
            return found if bias is None else found + bias
        if self.groups == len(flat):  # depthwise: matrices of one row are slow
            found = (vectors * flat).sum(2)
            return found if bias is None else found + bias
        found = torch.bmm(vectors.transpose(0, 1), flat.unflatten(0, (self.groups, -1)).transpose(1, 2))  # [groups, n, out / groups]
        found = found.transpose(0, 1).flatten(1)
        return found if bias is None else found + bias


def vectors_drawn(counts: list[int], most: int, generator: torch.Generator) -> Iterator[Tensor]:
    """For each activation, which of its ``counts`` vectors are taken: all, or ``most`` together, at random."""
    share = min(1.0, most / max(sum(counts), 1))
    for count in counts:
        yield torch.arange(count) if share == 1.0 else torch.randperm(count, generator=generator)[: max(1, int(share * count))]


def product_of(node: ir.Node) -> Product | None:
    """How the node multiplies, or None where its weight is not one matrix: transposed convolutions, stacks, recurrent layers, tables."""
    if not slots(node) or constant(node, 0) is not None:
        return None
    if node.op_type == "Conv":
        return _convolution(node)
    if node.op_type == "Gemm":
        return _gemm(node)
    if node.op_type == "MatMul" and _dimensions(node) == 2:
        return Product(1, 1, lambda x: x.reshape(-1, 1, x.shape[-1]))
    return None


def _gemm(node: ir.Node) -> Product:
    turned, alpha = bool(int_attribute(node, "transA", 0)), float_attribute(node, "alpha", 1.0)

    def windows(x: Tensor) -> Tensor:
        rows = (x.t() if turned else x).unsqueeze(1)
        return rows if alpha == 1.0 else alpha * rows

    return Product(1, 1, windows)


def _convolution(node: ir.Node) -> Product:
    """Vectors are patches [in / group, kernel...], in the order of the weight's own dimensions."""
    groups, rank = int_attribute(node, "group", 1), _dimensions(node) - 2
    kernel = _shape(node)[2:]
    strides, dilations = (tuple(node.attributes.get_ints(name, [1] * rank)) for name in ("strides", "dilations"))
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    flat = list(node.attributes.get_ints("pads", [0] * 2 * rank)) if mode == "NOTSET" else [0] * 2 * rank
    fixed = tuple(zip(flat[:rank], flat[rank:], strict=True))

    def windows(x: Tensor) -> Tensor:
        pads = same_pads(x.shape[2:], kernel, strides, dilations, mode == "SAME_UPPER") if mode.startswith("SAME") else fixed
        found = functional.pad(x, sides(pads)) if any(map(any, pads)) else x
        for axis in range(rank):
            reach = (kernel[axis] - 1) * dilations[axis] + 1
            found = found.unfold(2 + axis, reach, strides[axis])[..., :: dilations[axis]]
        # [n, channels, positions..., kernel...] -> [n, positions..., groups, channels / groups, kernel...]
        return found.movedim(1, 1 + rank).unflatten(1 + rank, (groups, -1))

    return Product(groups, 1 + rank, windows)


def _shape(node: ir.Node) -> tuple[int, ...]:
    value = constant(node, slots(node)[0].index)
    assert value is not None
    assert value.const_value is not None
    return tuple(map(int, value.const_value.shape.numpy()))


def _dimensions(node: ir.Node) -> int:
    return len(_shape(node))
