"""Whether what was exported answers as the checkpoint does that it was made of: both read the same tokens, and the difference is told.

An ONNX folder runs in onnxruntime, as it will on the device. A folder for transformers is read back and runs as checkpoints do here. A
GGUF file is decoded, and its numbers run: what llama.cpp rounds besides, its activations, is not in that.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from whet.compress.checkpoint.checkpoint import CONFIG_NAME, Checkpoint, open_checkpoint
from whet.compress.checkpoint.compare import divergences
from whet.compress.checkpoint.gguf.reading import weights_in
from whet.compress.checkpoint.layers import inventory
from whet.compress.checkpoint.onnx_export.drawing import MODEL_NAME
from whet.compress.checkpoint.running import ran
from whet.compress.checkpoint.skeleton import Skeleton
from whet.compress.checkpoint.states import lost
from whet.compress.checkpoint.text import Windows, room_of
from whet.core.document import Document
from whet.core.errors import WhetError
from whet.device.machine import describe
from whet.device.session import Array, open_session, run

TOKENS = 64
MOST_DECODED = 1 << 28  # numbers of a GGUF file that are decoded into memory, 1 GB; of larger ones the errors of tensors are told


@dataclass(frozen=True)
class Agreement(Document):
    """Of ``tokens`` tokens drawn from the vocabulary.

    largest: the largest difference of two logits, or of two numbers of an encoder's states. kl: mean KL(checkpoint || export) of the
    answers, in nats. same_top_token: share of the tokens for which both would say the same. cosine_lost: of an encoder, the mean of
    1 - cos of the states; kl and same_top_token are None there. why: why nothing was compared.
    """

    tokens: int = 0
    largest: float | None = None
    kl: float | None = None
    same_top_token: float | None = None
    cosine_lost: float | None = None
    why: str = ""


def agreement(checkpoint: Checkpoint, path: Path, form: str) -> Agreement:
    """How the export at ``path`` answers beside the checkpoint as it is simulated. form: "onnx", "hf" or "gguf"."""
    why = _too_large(checkpoint, path, form)
    if why:
        return Agreement(why=why)
    tokens = torch.randint(int(checkpoint.config["vocab_size"]), (min(TOKENS, room_of(checkpoint)),),
                           generator=torch.Generator().manual_seed(0))
    try:
        found = _ANSWERS[form](checkpoint, path, tokens)
    except WhetError as error:
        return Agreement(why=f"it does not run: {error}")
    return compared(answers_of(checkpoint, tokens), found, encoder=checkpoint.family.encoder)


def compared(expected: Tensor, found: Tensor, *, encoder: bool) -> Agreement:
    """expected, found: [tokens, vocabulary] logits, or [tokens, width] states of an encoder; float64."""
    largest = float((found - expected).abs().max())
    if not math.isfinite(largest):
        return Agreement(len(expected), why="NaN or infinity in its answers")
    if encoder:
        return Agreement(len(expected), largest, cosine_lost=float(lost(expected, found).mean()))
    one, other = log_softmax(expected, -1), log_softmax(found, -1)
    same = (one.argmax(-1) == other.argmax(-1)).double().mean()
    return Agreement(len(expected), largest, float(divergences(one, other).mean()), float(same))


def answers_of(checkpoint: Checkpoint, tokens: Tensor) -> Tensor:
    """[tokens, vocabulary] logits, or states [tokens, width], float64; a block of weights in memory at a time. tokens: [n]."""
    windows = Windows(tokens[None], False, "drawn")
    with tempfile.TemporaryDirectory(prefix="whet-") as folder, ran(Skeleton(checkpoint), windows, Path(folder), "checkpoint") as model:
        with torch.no_grad():
            found: Tensor = model.head(model.hidden.read(0, 1))[0]
        return found.double()


def _of_onnx(checkpoint: Checkpoint, path: Path, tokens: Tensor) -> Tensor:
    session = open_session(path / MODEL_NAME)
    ids, feeds = tokens.numpy()[None], dict[str, Array]()
    known: Mapping[str, Array] = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids),
                                  "position_ids": np.arange(len(tokens))[None]}
    for value in session.get_inputs():
        feeds[value.name] = known[value.name] if value.name in known else np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    name = session.get_outputs()[0].name
    return torch.from_numpy(run(session, feeds, [name])[name][0]).double()


def _of_hf(checkpoint: Checkpoint, path: Path, tokens: Tensor) -> Tensor:
    return answers_of(open_checkpoint(path), tokens)


def _of_gguf(checkpoint: Checkpoint, path: Path, tokens: Tensor) -> Tensor:
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(prefix="whet-") as name:
        folder = Path(name)
        save_file({name: weight.contiguous() for name, weight in weights_in(path, checkpoint)}, folder / "model.safetensors")
        config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
        (folder / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")
        return answers_of(open_checkpoint(folder), tokens)


_ANSWERS: Mapping[str, Callable[[Checkpoint, Path, Tensor], Tensor]] = MappingProxyType(
    {"onnx": _of_onnx, "hf": _of_hf, "gguf": _of_gguf})


def _too_large(checkpoint: Checkpoint, path: Path, form: str) -> str:
    """Why the export is not run here, "" where it can be."""
    numbers = inventory(checkpoint).parameters or 0
    if form == "gguf" and numbers > MOST_DECODED:
        return f"its {numbers:,} numbers would have to be decoded into memory"
    size = sum(file.stat().st_size for file in path.iterdir()) if form == "onnx" else 0
    there = describe().memory_bytes
    return f"it is {size / 1e9:.1f} GB, and there are {there / 1e9:.1f} GB of memory" if 1.5 * size > there > 0 else ""
