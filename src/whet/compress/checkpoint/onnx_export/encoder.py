"""What an encoder's graph is made of, told by its config.json, and its drawing: from tokens to the states of the last layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from whet.compress.checkpoint.checkpoint import Checkpoint
from whet.compress.checkpoint.onnx_export.drawing import MICROSOFT, Drawing
from whet.compress.checkpoint.onnx_export.norms import ACTIVATIONS, Norms, activated
from whet.compress.checkpoint.onnx_export.products import Products
from whet.core.errors import Unsupported
from whet.core.progress import task

MODEL_TYPES = ("bert",)
_INT32, _INT64 = ir.DataType.INT32, ir.DataType.INT64
_QKV = ("attention.self.query", "attention.self.key", "attention.self.value")
_TYPES, _POSITIONS, _NORM = "embeddings.token_type_embeddings", "embeddings.position_embeddings", "embeddings.LayerNorm"
_SWITCHES = ("is_decoder", "add_cross_attention")  # what turns BERT into something that this graph is not


@dataclass(frozen=True)
class Encoder:
    """heads: of hidden / heads numbers each. types: how many kinds of tokens there are; with one, the graph does not ask for them."""

    heads: int
    hidden: int
    types: int
    epsilon: float
    activation: str


def encoder_of(checkpoint: Checkpoint) -> Encoder:
    """The graph's make-up. Raises Unsupported by name for what the graph cannot do."""
    from transformers import CONFIG_MAPPING

    told, kind = checkpoint.config, str(checkpoint.config.get("model_type"))
    if kind not in MODEL_TYPES:
        raise _unsupported(f'model_type "{kind}"')
    config = CONFIG_MAPPING[kind](**{name: value for name, value in told.items() if name not in ("quantization_config", "model_type")})
    switched = [name for name in _SWITCHES if getattr(config, name, False)]
    if told.get("position_embedding_type", "absolute") != "absolute":
        switched.append(f"positions that are {told['position_embedding_type']}")
    if switched:
        raise _unsupported(f"{switched[0]} in the config.json of this {kind}")
    if config.hidden_act not in ACTIVATIONS:
        raise _unsupported(f'the activation "{config.hidden_act}"')
    return Encoder(int(config.num_attention_heads), int(config.hidden_size), int(config.type_vocab_size), float(config.layer_norm_eps),
                   ACTIVATIONS[config.hidden_act])  # fmt: skip


def _unsupported(found: str) -> Unsupported:
    do = f"use one of {', '.join(MODEL_TYPES)} as it usually is; or --to hf"
    return Unsupported("export this encoder to ONNX", found=found, do=do)


class EncoderBlocks:
    """Draws an encoder: inputs input_ids, attention_mask (1 for a token, 0 for padding) and token_type_ids where the model has several,
    [batch, tokens] int64; output last_hidden_state [batch, tokens, hidden] float32. Any batch, and lengths up to the model's positions.
    """

    def __init__(self, checkpoint: Checkpoint, encoder: Encoder, drawing: Drawing, products: Products) -> None:
        self._checkpoint, self._encoder, self._drawing, self._products = checkpoint, encoder, drawing, products
        self._norms = Norms(checkpoint, drawing, kind="layer", epsilon=encoder.epsilon)

    def draw(self) -> None:
        """The whole graph."""
        drawing, count = self._drawing, self._checkpoint.block_count
        ids, mask = (drawing.input(name, _INT64, ["batch", "tokens"]) for name in ("input_ids", "attention_mask"))
        hidden = self._embedded(ids)
        seen = drawing.one("Cast", [mask], "attention_mask.int32", to=_INT32)
        with task("export", count) as progress:
            for index in range(count):
                name = self._checkpoint.block_name(index)
                hidden = self._block(hidden, seen, name)
                progress.advance(note=name)
        drawing.output(hidden, "last_hidden_state", ir.DataType.FLOAT, ["batch", "tokens", self._encoder.hidden])

    def _embedded(self, ids: ir.Value) -> ir.Value:
        """The sum of the rows of three tables, normed; of positions those from 0 on."""
        drawing, words = self._drawing, self._products.table(ids, self._checkpoint.family.embedding)
        first, step = (drawing.number(each, np.int64) for each in (0, 1))
        count = drawing.one("Squeeze", [drawing.one("Shape", [ids], "tokens", start=1, end=2)], "tokens.count")
        positions = drawing.one("Range", [first, count, step], "positions")
        placed = drawing.one("Add", [words, self._products.table(positions, _POSITIONS)], f"{_POSITIONS}.added")
        types = drawing.input("token_type_ids", _INT64, ["batch", "tokens"]) if self._encoder.types > 1 else first
        kinds = self._products.table(types, _TYPES)
        return self._norms.norm(drawing.one("Add", [placed, kinds], f"{_TYPES}.added"), _NORM)

    def _block(self, hidden: ir.Value, seen: ir.Value, name: str) -> ir.Value:
        """Attention and feed-forward, each added to what it read and normed behind that."""
        attended = self._only(self._attended(hidden, seen, name), f"{name}.attention.output.dense")
        hidden, _ = self._norms.added(hidden, attended, f"{name}.attention.output.LayerNorm")
        wide = activated(self._drawing, self._encoder.activation, self._only(hidden, f"{name}.intermediate.dense"), f"{name}.activation")
        hidden, _ = self._norms.added(hidden, self._only(wide, f"{name}.output.dense"), f"{name}.output.LayerNorm")
        return hidden

    def _attended(self, hidden: ir.Value, seen: ir.Value, name: str) -> ir.Value:
        """Every token looks at all tokens of its text that are no padding."""
        made = self._products.product(hidden, [f"{name}.{part}" for part in _QKV])
        if len(made) == 1:
            each = self._drawing.number([self._encoder.hidden] * 3, np.int64)
            made = self._drawing.add("Split", [made[0], each], f"{name}.qkv", count=3, axis=-1)
        return self._drawing.one("MultiHeadAttention", [*made, None, seen], f"{name}.attention", domain=MICROSOFT,
                                 num_heads=self._encoder.heads, mask_filter_value=float(np.finfo(np.float32).min))  # fmt: skip

    def _only(self, read: ir.Value, layer: str) -> ir.Value:
        return self._products.product(read, [layer])[0]
