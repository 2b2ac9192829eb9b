"""The Attention operator of opset 23 and later, and rotary embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from whet.compress.mirror.node import Builder, Function, Node


@dataclass(frozen=True)
class _Rule:
    """The attributes of a node. left, right: how far a query sees, -1 without end."""

    causal: bool
    cap: float
    left: int
    right: int
    precision: torch.dtype | None


def _attention(node: Node) -> Function:
    """softmax(cap(Q K' * scale) + mask) V, with grouped heads, causal and sliding masks, and keys kept from before.

    Q [batch, heads, queries, size] or [batch, queries, heads * size]; K, V likewise with as many heads or a divisor of it.
    """
    scale, heads, kv_heads = node.real("scale", 0.0), node.integer("q_num_heads"), node.integer("kv_num_heads")
    kind, output_mode = node.integer("softmax_precision"), node.integer("qk_matmul_output_mode")
    precision = node.element_type("softmax_precision", ir.DataType.FLOAT) if kind else None
    rule = _Rule(bool(node.integer("is_causal")), node.real("softcap", 0.0), node.integer("left_window_size", -1),
                 node.integer("right_window_size", -1), precision)
    fused = not rule.cap and precision is None and not node.wants(3)

    def run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, past_k: Tensor | None = None,
            past_v: Tensor | None = None, filled: Tensor | None = None) -> tuple[Tensor, ...]:
        flat = q.ndim == 3
        if flat:
            q, k, v = _heads_apart(q, heads), _heads_apart(k, kv_heads), _heads_apart(v, kv_heads)
        before = 0 if past_k is None else past_k.shape[2]
        k, v = k if past_k is None else torch.cat([past_k, k], 2), v if past_v is None else torch.cat([past_v, v], 2)
        groups = q.shape[1] // k.shape[1]
        keys, values = (k, v) if groups == 1 else (k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1))
        bias, factor = _bias(q, k, mask, before, filled, rule), scale or 1 / math.sqrt(q.shape[-1])
        if fused:
            y = functional.scaled_dot_product_attention(q, keys, values, bias, scale=factor)
            return y.transpose(1, 2).flatten(2) if flat else y, k, v
        stages = _scores(q, keys, bias, math.sqrt(factor), rule)
        y = stages[3] @ values
        return y.transpose(1, 2).flatten(2) if flat else y, k, v, stages[output_mode]

    return run


def _heads_apart(x: Tensor, heads: int) -> Tensor:
    """[batch, places, heads * size] -> [batch, heads, places, size]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _bias(q: Tensor, k: Tensor, mask: Tensor | None, before: int, filled: Tensor | None, rule: _Rule) -> Tensor | None:
    """What is added to the products: the mask, and minus infinity where a query must not look. None where there is nothing to add.

    filled [batch]: how many keys are real, where the rest is padding.
    """
    queries, keys = q.shape[2], k.shape[2]
    column = torch.arange(keys, device=q.device)
    offset = before if filled is None else filled.reshape(-1, 1, 1, 1) - queries
    ahead = torch.arange(queries, device=q.device).unsqueeze(1) + offset - column  # by so much the query is later than the key
    allowed = None if filled is None else column < filled.reshape(-1, 1, 1, 1)
    limits = [(rule.causal, ahead >= 0), (rule.left >= 0, ahead <= rule.left), (rule.right >= 0, -ahead <= rule.right)]
    for holds, inside in limits:
        if holds:
            allowed = inside if allowed is None else allowed & inside
    if mask is not None and mask.shape[-1] < keys:
        rest = keys - mask.shape[-1]
        mask = functional.pad(mask, (0, rest), value=False if mask.dtype is torch.bool else -math.inf)
    if mask is not None and mask.dtype is torch.bool:
        allowed, mask = mask if allowed is None else allowed & mask, None
    if allowed is None:
        return mask
    barred = torch.zeros_like(allowed, dtype=q.dtype).masked_fill(~allowed, -math.inf)
    return barred if mask is None else barred + mask


def _scores(q: Tensor, k: Tensor, bias: Tensor | None, root: float, rule: _Rule) -> tuple[Tensor, ...]:
    """The stages that ``qk_matmul_output_mode`` may ask for: products, capped, with the mask, and as weights that sum to one."""
    plain = (q * root) @ (k * root).transpose(-1, -2)
    capped = rule.cap * torch.tanh(plain / rule.cap) if rule.cap else plain
    masked = capped if bias is None else capped + bias
    weights = torch.softmax(masked, -1, rule.precision or masked.dtype)
    if bias is not None:  # a query that may look nowhere gets zeros
        weights = weights.masked_fill((bias == -math.inf).all(-1, keepdim=True), 0)
    return plain, capped, masked, weights.to(q.dtype)


def _rotary(node: Node) -> Function:
    """Pairs of a head's numbers turned by an angle that depends on the place (Su et al. 2021)."""
    interleaved, part, heads = bool(node.integer("interleaved")), node.integer("rotary_embedding_dim"), node.integer("num_heads")

    def run(x: Tensor, cos: Tensor, sin: Tensor, places: Tensor | None = None) -> Tensor:
        flat = x.ndim == 3
        y = x.unflatten(-1, (heads, -1)) if flat else x.transpose(1, 2)  # [batch, places, heads, size]
        size = part or y.shape[-1]
        turned, rest = y[..., :size], y[..., size:]
        c, s = (table if places is None else table[places.long()] for table in (cos, sin))
        c, s = c[..., : size // 2].unsqueeze(2), s[..., : size // 2].unsqueeze(2)
        a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
        pair = (c * a - s * b, s * a + c * b)
        turned = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
        y = torch.cat([turned, rest], -1)
        return y.flatten(2) if flat else y.transpose(1, 2)

    return run


TABLE: dict[str, Builder] = {"Attention": _attention, "RotaryEmbedding": _rotary}
