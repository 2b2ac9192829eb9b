"""A checkpoint of plain numbers read and written, for peers that know weights and no checkpoints. (No peer of its own.)"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = "model.safetensors"
LINEAR = "_proj.weight"  # how the linear layers of a Llama's blocks end; table and head stay as they are in every row


def linear_weights(model: Path) -> dict[str, Tensor]:
    """The weights [out, in] of the linear layers of all blocks, by name, float32."""
    return {name: tensor.float() for name, tensor in load_file(model / WEIGHTS).items() if name.endswith(LINEAR)}


def write(model: Path, out: Path, changed: Mapping[str, Tensor]) -> None:
    """The checkpoint ``model`` with other numbers in the tensors that ``changed`` names, in the folder ``out``."""
    out.mkdir(parents=True)
    tensors = load_file(model / WEIGHTS)
    unknown = sorted(set(changed) - set(tensors))
    assert not unknown, f"no tensors of these names in the model: {unknown[:3]}"
    save_file({name: changed.get(name, tensor).float().reshape(tensor.shape).contiguous() for name, tensor in tensors.items()},
              out / WEIGHTS, metadata={"format": "pt"})
    for file in model.iterdir():
        if file.suffix == ".json":
            shutil.copyfile(file, out / file.name)


def size_bytes(tensors: Mapping[str, Tensor | None]) -> int:
    """Of the tensors that a packed weight lies in."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values() if tensor is not None)
