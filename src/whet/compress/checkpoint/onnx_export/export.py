"""Writing a checkpoint as a folder that onnxruntime runs, a decoder onnxruntime-genai too: graph, weights, tokenizer, config."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whet.compress.checkpoint.checkpoint import Checkpoint
from whet.compress.checkpoint.onnx_export.blocks import PAST, PRESENT, Blocks
from whet.compress.checkpoint.onnx_export.decoder import Decoder, decoder_of
from whet.compress.checkpoint.onnx_export.drawing import MODEL_NAME, Drawing
from whet.compress.checkpoint.onnx_export.encoder import Encoder, EncoderBlocks, encoder_of
from whet.compress.checkpoint.onnx_export.products import Products
from whet.compress.checkpoint.text import special_tokens
from whet.core.document import Document, FrozenMap
from whet.core.errors import Refused
from whet.device.files import new_folder

GENAI_CONFIG_NAME = "genai_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "vocab.txt", "merges.txt",
                   "tokenizer.model", "chat_template.jinja", "generation_config.json")  # fmt: skip
ACCURACY_LEVELS = (0, 1, 4)


@dataclass(frozen=True)
class OnnxReport(Document):
    """What was written. files: names and bytes. kernels: how many nodes of each operator read weights.

    remarks: where what was written is not what the checkpoint holds in number format (never in value).
    """

    files: Mapping[str, int] = field(default_factory=FrozenMap)
    kernels: Mapping[str, int] = field(default_factory=FrozenMap)
    accuracy_level: int = 4
    remarks: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        return sum(self.files.values())


def export_onnx(checkpoint: Checkpoint, folder: str | Path, *, accuracy_level: int = 4, cache: str = "float32") -> OnnxReport:
    """Write ``checkpoint`` into ``folder``: model.onnx, model.onnx.data, the tokenizer's files, and genai_config.json but for an encoder.

    Rounded layers keep their codes and scales exactly and are computed by MatMulNBits; the embedding by GatherBlockQuantized, from the same
    bytes where the head is tied to it. Plain weights keep their dtype on disk and are computed in float32. accuracy_level: how MatMulNBits
    computes: 4 rounds what it reads to int8 (fast; outputs move a little), 0 and 1 do not; layers whose inputs are int8 in the checkpoint
    compute at 4 whatever is asked for. cache: dtype of keys and values; float32 is
    what onnxruntime's attention on CPUs keeps without calibration.

    Memory: one layer and its packed form. An old folder stays whole until the new one is finished. Raises Refused for another
    accuracy level or cache, Unsupported for a model that the graph cannot express.
    """
    if accuracy_level not in ACCURACY_LEVELS:
        raise Refused(f"export with accuracy level {accuracy_level}", found=f"levels are {', '.join(map(str, ACCURACY_LEVELS))}",
                      do="use 4 for speed, or 0 for float32 arithmetic")  # fmt: skip
    if cache != "float32":
        raise Refused(f'export with a cache of "{cache}"', found="keys and values are kept in float32", do='use cache="float32"')
    made = encoder_of(checkpoint) if checkpoint.family.encoder else decoder_of(checkpoint)
    with new_folder(Path(folder)) as beside:
        with Drawing(beside, "encoder" if isinstance(made, Encoder) else "decoder") as drawing:
            products = Products(checkpoint, drawing, accuracy_level)
            blocks = EncoderBlocks(checkpoint, made, drawing, products) if isinstance(made, Encoder) else (
                Blocks(checkpoint, made, drawing, products))
            blocks.draw()
            drawing.save({"whet.accuracy_level": str(accuracy_level)})
        remarks = products.remarks + _copy_tokenizer(checkpoint, beside)
        if isinstance(made, Decoder):
            (beside / GENAI_CONFIG_NAME).write_text(json.dumps(_genai_config(checkpoint, made), indent=2) + "\n", encoding="utf-8")
        sizes = FrozenMap({file.name: file.stat().st_size for file in sorted(beside.iterdir())})
    return OnnxReport(sizes, FrozenMap(products.kernels), accuracy_level, remarks)


def _copy_tokenizer(checkpoint: Checkpoint, folder: Path) -> tuple[str, ...]:
    """The tokenizer's files; tokenizer.json is made where the checkpoint has another kind only. What is missing, as remarks."""
    for name in TOKENIZER_FILES:
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, folder / name)
    if (folder / TOKENIZER_FILES[0]).is_file():
        return ()
    late = "texts must be made tokens elsewhere" if checkpoint.family.encoder else "whet run will not take a text"
    if not checkpoint.has_tokenizer:
        return (f"the checkpoint has no tokenizer: {late}",)
    from transformers import AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(checkpoint.folder).backend_tokenizer.save(str(folder / TOKENIZER_FILES[0]))
    except Exception as error:  # whatever a foreign tokenizer's conversion may raise
        return (f"its tokenizer could not be made a tokenizer.json ({type(error).__name__}): {late}",)
    return ()


def _genai_config(checkpoint: Checkpoint, decoder: Decoder) -> dict[str, Any]:
    """What onnxruntime-genai reads, and Whet's own runner: names, sizes and special tokens."""
    inputs = {"input_ids": "input_ids", "attention_mask": "attention_mask"}
    if decoder.reads_positions:
        inputs["position_ids"] = "position_ids"
    special = special_tokens(checkpoint)
    ends = special["eos_token_id"]
    return {
        "model": {
            **special, "pad_token_id": special["pad_token_id"] or (ends[0] if isinstance(ends, list) else ends) or 0,
            "context_length": decoder.context, "type": str(checkpoint.config["model_type"]), "vocab_size": decoder.vocabulary,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []}, "filename": MODEL_NAME,
                "head_size": decoder.head_dim, "hidden_size": decoder.hidden, "num_attention_heads": decoder.heads,
                "num_hidden_layers": len(decoder.blocks), "num_key_value_heads": decoder.kv_heads,
                "inputs": {**inputs, "past_key_names": PAST.format("%d", "key"), "past_value_names": PAST.format("%d", "value")},
                "outputs": {"logits": "logits", "present_key_names": PRESENT.format("%d", "key"),
                            "present_value_names": PRESENT.format("%d", "value")},
            },
        },
        "search": {"do_sample": False, "max_length": decoder.context, "past_present_share_buffer": True},
    }  # fmt: skip
