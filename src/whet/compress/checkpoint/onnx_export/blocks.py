"""The blocks of a decoder as nodes: attention with its cache, feed-forward, and norms joined with the sums in front of them.

Operators are those that onnxruntime-genai's own models consist of, so that its runtime runs these too.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from whet.compress.checkpoint.checkpoint import Checkpoint
from whet.compress.checkpoint.onnx_export.decoder import Attention, Decoder
from whet.compress.checkpoint.onnx_export.drawing import MICROSOFT, Drawing
from whet.compress.checkpoint.onnx_export.norms import Norms, activated
from whet.compress.checkpoint.onnx_export.products import Products
from whet.core.progress import task

_FLOAT, _INT32, _INT64 = ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64
PAST, PRESENT = "past_key_values.{}.{}", "present.{}.{}"


class Blocks:
    """Draws a decoder from token ids to logits."""

    def __init__(self, checkpoint: Checkpoint, decoder: Decoder, drawing: Drawing, products: Products) -> None:
        self._checkpoint, self._decoder, self._drawing, self._products = checkpoint, decoder, drawing, products
        self._norms = Norms(checkpoint, drawing, kind=decoder.norm, epsilon=decoder.epsilon, offset=decoder.norm_offset)

    def draw(self) -> None:
        """The whole graph: inputs input_ids, attention_mask, position_ids where needed and the cache; outputs logits and the cache."""
        drawing, blocks = self._drawing, self._decoder.blocks
        ids = drawing.input("input_ids", _INT64, ["batch", "tokens"])
        mask = drawing.input("attention_mask", _INT64, ["batch", "total"])
        self._positions = drawing.input("position_ids", _INT64, ["batch", "tokens"]) if self._decoder.reads_positions else None
        self._lengths = self._counted(mask)
        hidden = self._embedded(ids)
        normed = self._norms.norm(hidden, self._norm_before(0))
        with task("export", len(blocks) + 1) as progress:
            for index, attention in enumerate(blocks):
                normed, hidden = self._block(normed, hidden, index, attention)
                progress.advance(note=self._checkpoint.block_name(index))
            drawing.output(self._logits(normed), "logits", _FLOAT, ["batch", "tokens", self._decoder.vocabulary], first=True)
            progress.advance(note="head")

    def _block(self, normed: ir.Value, hidden: ir.Value, index: int, attention: Attention) -> tuple[ir.Value, ir.Value]:
        """From (normed, sum so far) to the same for the next block."""
        parts, name = self._decoder.parts, self._checkpoint.block_name(index)
        attended = self._only(self._attended(normed, index, attention), f"{name}.{parts.out}")
        if parts.after_attention:
            attended = self._norms.norm(attended, f"{name}.{parts.after_attention}")
        if parts.between:
            normed, hidden = self._norms.added(hidden, attended, f"{name}.{parts.between}")
        fed = self._fed_forward(normed, name)
        if parts.after_feed_forward:
            fed = self._norms.norm(fed, f"{name}.{parts.after_feed_forward}")
        if not parts.between:
            fed = self._drawing.one("Add", [attended, fed], f"{name}.sum")
        return self._norms.added(hidden, fed, self._norm_before(index + 1))

    def _attended(self, normed: ir.Value, index: int, attention: Attention) -> ir.Value:
        """GroupQueryAttention over the cache. Rotation inside it where its kernel can, else in front."""
        decoder, parts, name = self._decoder, self._decoder.parts, self._checkpoint.block_name(index)
        made: list[ir.Value | None] = [*self._products.product(normed, [f"{name}.{part}" for part in parts.qkv])]
        rotary = attention.angles != "none"
        normalised = f"{name}.{parts.q_norm}.weight" in self._checkpoint.entries
        if normalised or (rotary and not decoder.rotates_inside):
            query, key, value = self._apart([each for each in made if each], name)
            if normalised:
                query, key = self._head_norm(query, f"{name}.{parts.q_norm}"), self._head_norm(key, f"{name}.{parts.k_norm}")
            if rotary and not decoder.rotates_inside:
                query, key = (self._rotated(each, attention.angles, count, f"{name}.{what}_rotated")
                              for each, count, what in ((query, decoder.heads, "query"), (key, decoder.kv_heads, "key")))
            made = [query, key, value]
        inputs = [*made, *[None] * (3 - len(made)), *self._past(index), *self._lengths]
        if rotary and decoder.rotates_inside:
            inputs += self._angles(attention.angles)
        options = {"softcap": decoder.softcap} if decoder.softcap else {}
        if attention.window:
            options["local_window_size"] = attention.window
        attended, key, value = self._drawing.add(
            "GroupQueryAttention", inputs, f"{name}.attention", count=3, domain=MICROSOFT, num_heads=decoder.heads,
            kv_num_heads=decoder.kv_heads, scale=decoder.scale, do_rotary=int(rotary and decoder.rotates_inside), **options,
        )  # fmt: skip
        for part, cache in (("key", key), ("value", value)):
            self._drawing.output(cache, PRESENT.format(index, part), _FLOAT, ["batch", decoder.kv_heads, "total", decoder.head_dim])
        return attended

    def _past(self, index: int) -> list[ir.Value]:
        shape: list[int | str] = ["batch", self._decoder.kv_heads, "past", self._decoder.head_dim]
        return [self._drawing.input(PAST.format(index, part), _FLOAT, shape) for part in ("key", "value")]

    def _apart(self, made: list[ir.Value], name: str) -> list[ir.Value]:
        if len(made) == 3:
            return made
        query, key = self._decoder.heads * self._decoder.head_dim, self._decoder.kv_heads * self._decoder.head_dim
        return self._drawing.add("Split", [made[0], self._drawing.number([query, key, key], np.int64)], f"{name}.qkv", count=3, axis=-1)

    def _head_norm(self, value: ir.Value, module: str) -> ir.Value:
        """The norm of each head by itself."""
        heads, flat = (self._drawing.number(shape, np.int64) for shape in ([0, 0, -1, self._decoder.head_dim], [0, 0, -1]))
        normed = self._norms.norm(self._drawing.one("Reshape", [value, heads], f"{module}.heads"), module)
        return self._drawing.one("Reshape", [normed, flat], f"{module}.flat")

    def _rotated(self, value: ir.Value, angles: str, heads: int, name: str) -> ir.Value:
        rotated = 2 * self._decoder.tables[angles].half
        partial = {"rotary_embedding_dim": rotated} if rotated < self._decoder.head_dim else {}
        inputs = [value, self._positions, *self._angles(angles)]
        return self._drawing.one("RotaryEmbedding", inputs, name, domain=MICROSOFT, num_heads=heads, **partial)

    def _angles(self, name: str) -> list[ir.Value]:
        """The two tables, written when a block first asks for them."""
        names = [f"{what}{'.' if name else ''}{name}" for what in ("cosines", "sines")]
        found = [self._drawing.known(each) for each in names]
        if None in found:
            return [self._drawing.weight(each, table)
                    for each, table in zip(names, self._decoder.tables[name].tables(self._decoder.context), strict=True)]
        return [each for each in found if each]

    def _fed_forward(self, normed: ir.Value, name: str) -> ir.Value:
        parts = self._decoder.parts
        made = self._products.product(normed, [f"{name}.{part}" for part in parts.widen])
        if parts.gated and len(made) == 1:
            made = self._drawing.add("Split", made, f"{name}.gate_up", count=2, axis=-1, num_outputs=2)
        wide = activated(self._drawing, self._decoder.activation, made[0], f"{name}.activation")
        if parts.gated:
            wide = self._drawing.one("Mul", [wide, made[1]], f"{name}.gated")
        return self._only(wide, f"{name}.{parts.narrow}")

    def _embedded(self, ids: ir.Value) -> ir.Value:
        family = self._checkpoint.family
        hidden = self._products.table(ids, family.embedding, keep=self._checkpoint.tied)
        if self._decoder.embedding_scale != 1.0:
            hidden = self._drawing.one("Mul", [hidden, self._drawing.number(self._decoder.embedding_scale, np.float32)], "embedding.scaled")
        for table in family.positions:
            assert self._positions is not None
            hidden = self._drawing.one("Add", [hidden, self._products.table(self._positions, table)], f"{table}.added")
        return hidden

    def _logits(self, normed: ir.Value) -> ir.Value:
        head, limit = self._checkpoint.family.head, self._decoder.logits_softcap
        tied = self._checkpoint.tied
        logits = self._products.tied_head(normed, self._checkpoint.family.embedding) if tied else self._only(normed, head)
        if not limit:
            return logits
        bound = self._drawing.number(limit, np.float32)
        bent = self._drawing.one("Tanh", [self._drawing.one("Div", [logits, bound], "logits.scaled")], "logits.bent")
        return self._drawing.one("Mul", [bent, bound], "logits.bounded")

    def _only(self, read: ir.Value, layer: str) -> ir.Value:
        return self._products.product(read, [layer])[0]

    def _counted(self, mask: ir.Value) -> list[ir.Value]:
        """What GroupQueryAttention asks of the mask: the last position of each sequence [batch], and the longest length, a number."""
        one, drawing = self._drawing.number([1], np.int64), self._drawing
        last = drawing.one("Sub", [drawing.one("ReduceSum", [mask, one], "mask.lengths", keepdims=0), one], "mask.last")
        total = drawing.one("Squeeze", [drawing.one("Shape", [mask], "mask.total", start=1, end=2)], "mask.longest")
        return [drawing.one("Cast", [each], f"{each.name}.int32", to=_INT32) for each in (last, total)]

    def _norm_before(self, index: int) -> str:
        """The norm in front of block ``index``; behind the last block the final one."""
        final = index == len(self._decoder.blocks)
        return self._checkpoint.family.norm if final else f"{self._checkpoint.block_name(index)}.{self._decoder.parts.before}"
