"""A GGUF file back as numbers: for saying what a file holds, and for running transformers' model with the weights that llama.cpp has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from whet.compress.checkpoint.checkpoint import Checkpoint
from whet.compress.checkpoint.gguf.blocks import decoded
from whet.compress.checkpoint.gguf.names import parts_of
from whet.compress.checkpoint.gguf.package import gguf_package
from whet.core.errors import Refused


def weights_in(path: str | Path, checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that the checkpoint and the file at ``path`` share, decoded: its name in transformers' model, float32 in the shape and
    order in which that model has it. One is in memory at a time.

    Raises Refused where the file is no GGUF file, or one of another model.
    """
    asked = f"read {path}"
    try:
        file = gguf_package().GGUFReader(path)
    except (OSError, ValueError) as error:
        raise Refused(asked, found=f"no GGUF file: {error}", do="export it again") from error
    there = {tensor.name: tensor for tensor in file.tensors}
    for part in parts_of(checkpoint):
        if part.name not in there:
            raise Refused(asked, found=f"no {part.name} in it, as {checkpoint.folder} has", do="give the checkpoint that it was made of")
        found = there[part.name]
        shape = tuple(int(size) for size in reversed(found.shape))
        data = np.ascontiguousarray(found.data).view(np.uint8).reshape(shape[0] if len(shape) > 1 else 1, -1)
        values = np.array(decoded(data, found.tensor_type.name)).reshape(shape)  # a copy: what lies in the file as float32 is a view of it
        order = part.order(shape[0])
        if order is not None:
            back = np.empty_like(values)
            back[order] = values
            values = back
        weight = torch.from_numpy(values - np.float32(part.add) if part.add else values)
        yield part.source, weight.t().contiguous() if part.layer and checkpoint.is_transposed(part.layer) else weight
