"""Layers as products of input vectors and one matrix: what a convolution or matrix product multiplies its weight [out, in] with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from whet.compress.mirror.windows import same_pads, sides
from whet.compress.weights import constant, float_attribute, int_attribute, slots


@dataclass(frozen=True, eq=False)
class Product:
    """y = W x for each of many vectors x; with groups, each group of outputs has its own part of x.

    windows(activation): [positions..., groups, in...] the vectors, seen in the activation as it lies, copied only where padded.
    positions: how many of the leading dimensions number vectors.
    columns(activation, index): [groups, in, len(index)] the vectors of those numbers in any order, fetched as fast as they can be.
    """

    groups: int
    positions: int
    windows: Callable[[Tensor], Tensor]
    columns: Callable[[Tensor, Tensor], Tensor]

    def count(self, activation: Tensor) -> int:
        """How many vectors there are."""
        return self.windows(activation).shape[: self.positions].numel()

    def chosen(self, activation: Tensor, index: Tensor) -> Tensor:
        """[len(index), groups, in] the vectors of those numbers."""
        found = self.windows(activation)
        return found[torch.unravel_index(index, found.shape[: self.positions])].flatten(2)

    def width(self, activation: Tensor) -> int:
        """How many numbers a vector has."""
        return self.windows(activation).shape[self.positions + 1 :].numel()

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
        return _rows(lambda x: x.reshape(-1, 1, x.shape[-1]))
    return None


def _rows(windows: Callable[[Tensor], Tensor]) -> Product:
    """Vectors that lie one behind the other."""
    return Product(1, 1, windows, lambda x, index: windows(x)[index, 0].t().unsqueeze(0))


def _gemm(node: ir.Node) -> Product:
    turned, alpha = bool(int_attribute(node, "transA", 0)), float_attribute(node, "alpha", 1.0)

    def windows(x: Tensor) -> Tensor:
        rows = (x.t() if turned else x).unsqueeze(1)
        return rows if alpha == 1.0 else alpha * rows

    return _rows(windows)


def _convolution(node: ir.Node) -> Product:
    """Vectors are patches [in / group, kernel...], in the order of the weight's own dimensions."""
    groups, rank = int_attribute(node, "group", 1), _dimensions(node) - 2
    kernel = _shape(node)[2:]
    strides, dilations = (tuple(node.attributes.get_ints(name, [1] * rank)) for name in ("strides", "dilations"))
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    flat = list(node.attributes.get_ints("pads", [0] * 2 * rank)) if mode == "NOTSET" else [0] * 2 * rank
    fixed = tuple(zip(flat[:rank], flat[rank:], strict=True))

    def padded(x: Tensor) -> Tensor:
        pads = same_pads(x.shape[2:], kernel, strides, dilations, mode == "SAME_UPPER") if mode.startswith("SAME") else fixed
        return functional.pad(x, sides(pads)) if any(map(any, pads)) else x

    def unfolded(x: Tensor, groups: int) -> Tensor:
        for axis in range(rank):
            reach = (kernel[axis] - 1) * dilations[axis] + 1
            x = x.unfold(2 + axis, reach, strides[axis])[..., :: dilations[axis]]
        # [n, channels, positions..., kernel...] -> [n, positions..., groups, channels / groups, kernel...]
        return x.movedim(1, 1 + rank).unflatten(1 + rank, (groups, -1))

    def columns(x: Tensor, index: Tensor) -> Tensor:
        """A channel's numbers lie together, and numpy fetches some of them five times as fast as torch."""
        x = padded(x)
        numbers = torch.arange(x.shape[2:].numel()).reshape(1, 1, *x.shape[2:])  # of the places in a channel
        places = unfolded(numbers, 1).flatten(0, rank).flatten(1).t()  # [kernel, positions] what each position reads
        samples, positions = index // places.shape[1], index % places.shape[1]
        found = []
        for sample in samples.unique().tolist():
            wanted = places[:, positions[samples == sample]]  # [kernel, k]
            taken = np.take(x[sample].flatten(1).numpy(), wanted.flatten().numpy(), axis=1)  # [channels, kernel * k]
            found.append(torch.from_numpy(taken).reshape(groups, -1, wanted.shape[1]))
        return torch.cat(found, 2)

    return Product(groups, 1 + rank, lambda x: unfolded(padded(x), groups), columns)


def _shape(node: ir.Node) -> tuple[int, ...]:
    value = constant(node, slots(node)[0].index)
    assert value is not None
    assert value.const_value is not None
    return tuple(map(int, value.const_value.shape.numpy()))


def _dimensions(node: ir.Node) -> int:
    return len(_shape(node))
