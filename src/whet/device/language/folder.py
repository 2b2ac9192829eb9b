"""What lies in the folder of an exported language model, told by its genai_config.json (onnxruntime-genai's format)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whet.core.errors import Refused

CONFIG_NAME, TOKENIZER_NAME, TOKENIZER_CONFIG_NAME = "genai_config.json", "tokenizer.json", "tokenizer_config.json"


@dataclass(frozen=True)
class ModelFolder:
    """A decoder in a folder. context: the most tokens. ends: the tokens after which nothing follows. begin: the token in front of
    every text, None where there is none. layers, kv_heads, head_size: of the cache. past, present: names of the cache's tensors, with
    %d for the layer. positions: the name of that input, "" where the model has none.
    """

    folder: Path
    model: Path
    context: int
    ends: frozenset[int]
    begin: int | None
    layers: int
    kv_heads: int
    head_size: int
    past: tuple[str, str]
    present: tuple[str, str]
    ids: str
    mask: str
    positions: str
    logits: str


def open_folder(folder: Path) -> ModelFolder:
    """What is in ``folder``. Raises Refused where it holds no exported language model, or a config that lacks something."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        plain, graph = (folder / "config.json").is_file(), (folder / "model.onnx").is_file()
        bare = f"no {CONFIG_NAME} in it" + (", as an encoder has none, which writes no text" if graph else "")
        raise Refused(f"run {folder}", found="a checkpoint, which needs PyTorch" if plain else bare,
                      do="give a folder that `whet export --to onnx` wrote, or a .gguf file")  # fmt: skip
    try:
        return _folder(folder, json.loads(path.read_text(encoding="utf-8"))["model"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"run {folder}", found=f"a {CONFIG_NAME} that cannot be read ({type(error).__name__}: {error})",
                      do="export the model again") from error  # fmt: skip


def _folder(folder: Path, model: Mapping[str, Any]) -> ModelFolder:
    decoder, ends = model["decoder"], model["eos_token_id"]
    inputs, outputs = decoder["inputs"], decoder["outputs"]
    return ModelFolder(
        folder=folder, model=folder / str(decoder["filename"]), context=int(model["context_length"]),
        ends=frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends]), begin=model.get("bos_token_id"),
        layers=int(decoder["num_hidden_layers"]), kv_heads=int(decoder["num_key_value_heads"]), head_size=int(decoder["head_size"]),
        past=(inputs["past_key_names"], inputs["past_value_names"]), present=(outputs["present_key_names"], outputs["present_value_names"]),
        ids=inputs["input_ids"], mask=inputs["attention_mask"], positions=inputs.get("position_ids", ""), logits=outputs["logits"],
    )  # fmt: skip
