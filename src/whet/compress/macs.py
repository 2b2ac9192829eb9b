"""Multiply-accumulates of an operator: a table from operator to formula.

One MAC is one multiplication and one addition of a product of weights with activations, or of two activations (attention).
Everything else (adding, scaling, normalising, activations, pooling, moving data) counts 0, as in fvcore and ptflops. The formulas count
all positions, padding included, as torch's FlopCounterMode does (its FLOPs are twice these).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

Size = tuple[int, ...]


@dataclass(frozen=True)
class Facts:
    """What a formula may look at: shapes of inputs and outputs (None where unknown or absent) and attributes."""

    inputs: Sequence[Size | None]
    outputs: Sequence[Size | None]
    attributes: Mapping[str, Any]

    def shape(self, index: int) -> Size:
        """Raises LookupError where the shape of that input is unknown."""
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            raise LookupError(index)
        return found

    @property
    def result(self) -> Size:
        """The shape of the first output; LookupError where it is unknown."""
        if not self.outputs or self.outputs[0] is None:
            raise LookupError("output")
        return self.outputs[0]


def _convolution(weight: int) -> Callable[[Facts], int]:
    def count(facts: Facts) -> int:  # output [N, M, o...], weight [M, C / groups, k...]
        return math.prod(facts.result) * math.prod(facts.shape(weight)[1:])

    return count


def _transposed_convolution(facts: Facts) -> int:  # input [N, C, i...], weight [C, M / groups, k...]: each input is spread over a kernel
    return math.prod(facts.shape(0)) * math.prod(facts.shape(1)[1:])


def _product(facts: Facts) -> int:  # [..., m, k] x [..., k, n]
    left = facts.shape(0)
    inner = left[-2] if facts.attributes.get("transA") and len(left) > 1 else left[-1]
    return math.prod(facts.result) * inner


def _general_product(facts: Facts) -> int:  # A [m, k], or [k, m] with transA
    inner = facts.shape(0)[0 if facts.attributes.get("transA") else 1]
    return math.prod(facts.result) * inner


def _recurrent(facts: Facts) -> int:  # X [T, B, I] (or [B, T, I]), W [D, gates * H, I], R [D, gates * H, H]: each step is both products
    steps = math.prod(facts.shape(0)[:2])
    return steps * (math.prod(facts.shape(1)) + math.prod(facts.shape(2)))


def _einsum(facts: Facts) -> int:
    """Two operands: the product of the sizes of all letters. One operand is a sum or a transpose and counts 0."""
    equation = str(facts.attributes["equation"]).replace(" ", "")
    terms = equation.split("->")[0].split(",")
    if len(terms) == 1:
        return 0
    if len(terms) > 2 or "." in equation:
        raise LookupError(equation)
    sizes: dict[str, int] = {}
    for index, term in enumerate(terms):
        for letter, size in zip(term, facts.shape(index), strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return math.prod(sizes.values())


def _attention(facts: Facts) -> int:
    """ONNX Attention (opset 23): Q [B, heads, S, d] or [B, S, heads * d], K and V likewise; past keys lengthen them."""
    query, key, value = facts.shape(0), facts.shape(1), facts.shape(2)
    past = _past_length(facts, 4)
    if len(query) == 4:
        batch, heads, steps, size = query
        return batch * heads * steps * (key[2] + past) * (size + value[3])
    batch, steps, width = query
    heads, key_heads = int(facts.attributes["q_num_heads"]), int(facts.attributes["kv_num_heads"])
    return batch * steps * (key[1] + past) * (width + heads * value[2] // key_heads)


def _packed_attention(facts: Facts) -> int:
    """com.microsoft Attention: X [B, S, I] times W [I, Q + K + V], then both products of the attention itself."""
    (batch, steps, inner), width = facts.shape(0), facts.shape(1)[1]
    return batch * steps * inner * width + batch * steps * (steps + _past_length(facts, 4)) * 2 * (width // 3)


def _split_attention(facts: Facts) -> int:
    """com.microsoft MultiHeadAttention: query [B, S, D], key [B, L, D], value [B, L, Dv]."""
    batch, steps, width = facts.shape(0)
    return batch * steps * (facts.shape(1)[1] + _past_length(facts, 6)) * (width + facts.shape(2)[2])


def _grouped_attention(facts: Facts) -> int:
    """com.microsoft GroupQueryAttention: query [B, S, heads * d]; every head sees all keys."""
    batch, steps, width = facts.shape(0)
    heads, key_heads = int(facts.attributes["num_heads"]), int(facts.attributes["kv_num_heads"])
    if facts.inputs[1] is None:  # Q, K and V in one
        width = width * heads // (heads + 2 * key_heads)
    return batch * steps * (steps + _past_length(facts, 3)) * 2 * width


def _past_length(facts: Facts, index: int) -> int:
    past = facts.inputs[index] if index < len(facts.inputs) else None
    return past[-2] if past is not None else 0


def _bits_product(facts: Facts) -> int:
    return math.prod(facts.result) * int(facts.attributes["K"])


def _deformable(facts: Facts) -> int:
    return math.prod(facts.result) * math.prod(facts.shape(1)[1:])


_FORMULAS: dict[tuple[str, str], Callable[[Facts], int]] = {
    ("", "Conv"): _convolution(1), ("", "ConvInteger"): _convolution(1), ("", "QLinearConv"): _convolution(3),
    ("", "DeformConv"): _deformable, ("", "ConvTranspose"): _transposed_convolution,
    ("", "MatMul"): _product, ("", "MatMulInteger"): _product, ("", "Gemm"): _general_product,
    ("", "QLinearMatMul"): _product, ("", "Einsum"): _einsum, ("", "Attention"): _attention,
    ("", "RNN"): _recurrent, ("", "GRU"): _recurrent, ("", "LSTM"): _recurrent,
    ("com.microsoft", "FusedConv"): _convolution(1), ("com.microsoft", "NhwcFusedConv"): _convolution(1),
    ("com.microsoft", "FusedMatMul"): _product, ("com.microsoft", "TransposeMatMul"): _product,
    ("com.microsoft", "FusedGemm"): _general_product, ("com.microsoft", "QGemm"): _general_product,
    ("com.microsoft", "GemmFloat8"): _general_product, ("com.microsoft", "MatMulNBits"): _bits_product,
    ("com.microsoft", "MatMulBnb4"): _bits_product, ("com.microsoft", "MatMulFpQ4"): _product,
    ("com.microsoft", "DynamicQuantizeMatMul"): _product, ("com.microsoft", "MatMulIntegerToFloat"): _product,
    ("com.microsoft", "MatMulInteger16"): _product, ("com.microsoft", "DynamicQuantizeLSTM"): _recurrent,
    ("com.microsoft", "Attention"): _packed_attention, ("com.microsoft", "QAttention"): _packed_attention,
    ("com.microsoft", "MultiHeadAttention"): _split_attention, ("com.microsoft", "GroupQueryAttention"): _grouped_attention,
}


def macs(node: ir.Node, inputs: Sequence[Size | None], outputs: Sequence[Size | None]) -> int | None:
    """MACs of one execution of a node on inputs of these shapes; None where a shape that the formula needs is unknown.

    An operator that is not in the table counts 0.
    """
    formula = _FORMULAS.get((node.domain, node.op_type))
    if formula is None:
        return 0
    attributes = {name: attribute.value for name, attribute in node.attributes.items() if not attribute.is_ref()}
    try:
        return int(formula(Facts(inputs, outputs, attributes)))
    except (LookupError, ValueError, TypeError):
        return None
