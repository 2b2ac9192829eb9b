"""A checkpoint that transformers loads: rounded layers stay packed where that can read them, the others become float again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from whet.compress.checkpoint import stored
from whet.compress.checkpoint.apply import copy_small_files, plain_layers
from whet.compress.checkpoint.checkpoint import CONFIG_NAME, Checkpoint
from whet.compress.checkpoint.destination import Destination
from whet.compress.checkpoint.stored import Layout
from whet.compress.checkpoint.tensor_files import NAMES
from whet.compress.checkpoint.tensor_writer import Shape
from whet.core.errors import Refused
from whet.core.progress import track
from whet.device.files import new_folder, write_file


@dataclass(frozen=True)
class HfReport:
    """packed: layers that stay as they are. opened: layers that are float again, and why."""

    path: str
    size_bytes: int
    packed: tuple[str, ...]
    opened: Mapping[str, str]


def export_hf(checkpoint: Checkpoint, folder: Path) -> HfReport:
    """Write the checkpoint into ``folder`` for ``AutoModelForCausalLM.from_pretrained`` (an encoder: ``AutoModel``), which needs the
    compressed-tensors package for packed integers and bitsandbytes for code books. Layers that become float again are rounded to the
    dtype of the plain weights. In memory is one layer at a time. Raises Refused where the folder holds other files.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise Refused(f"export to {folder}", found="a folder with files in it", do="choose another folder")
    opened = {layer: why + _and_its_inputs(layout) for layer, layout in checkpoint.layouts.items()
              if (why := _why_not(checkpoint, layer, layout))}
    owners = {shape.name: layer for layer in opened
              for shape in stored.shapes(layer, checkpoint.size(layer), checkpoint.layouts[layer])}
    names = list(dict.fromkeys(f"{owners[name]}.weight" if name in owners else name for name in checkpoint.entries))
    with new_folder(folder) as beside:
        destination = Destination(beside, "", [_shape(checkpoint, name, opened) for name in names])
        try:
            for name in track(names, "writing", len(names)):
                destination.put({name: _tensor(checkpoint, name, opened)})
        finally:
            destination.close()
        _write_config(checkpoint, beside, opened)
        copy_small_files(checkpoint, beside)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return HfReport(str(folder), size, tuple(layer for layer in checkpoint.layouts if layer not in opened), opened)


def _why_not(checkpoint: Checkpoint, layer: str, layout: Layout) -> str:
    """Why transformers could not read the layer as it is; "" where it can."""
    family, columns = checkpoint.family, checkpoint.size(layer)[1]
    if not layer.startswith(f"{family.blocks}.") and (layer != family.head or checkpoint.tied):
        return "tables of tokens are read as plain numbers"
    if family.transposed:
        return f"{family.name} keeps its weights in modules that the packed formats do not know"
    if layout.kind == "int" and layout.group and columns % layout.group:
        return f"groups of {layout.group} do not divide its {columns} columns"
    return ""


def _and_its_inputs(layout: Layout) -> str:
    return ", and it reads floats again" if layout.activations else ""


def _shape(checkpoint: Checkpoint, name: str, opened: Mapping[str, str]) -> Shape:
    layer = name.removesuffix(".weight")
    if layer in opened:
        rows, columns = checkpoint.size(layer)
        return Shape(name, NAMES[checkpoint.dtype], (columns, rows) if checkpoint.is_transposed(layer) else (rows, columns))
    entry = checkpoint.entries[name][1]
    return Shape(name, entry.dtype, entry.shape)


def _tensor(checkpoint: Checkpoint, name: str, opened: Mapping[str, str]) -> Tensor:
    layer = name.removesuffix(".weight")
    if layer not in opened:
        return checkpoint.tensor(name)
    weight = checkpoint.weight(layer).to(checkpoint.dtype)
    return weight.t().contiguous() if checkpoint.is_transposed(layer) else weight


def _write_config(checkpoint: Checkpoint, folder: Path, opened: Mapping[str, str]) -> None:
    kept = {layer: layout for layer, layout in checkpoint.layouts.items() if layer not in opened}
    config = {name: value for name, value in checkpoint.config.items() if name != "quantization_config"}
    if kept:
        config["quantization_config"] = stored.described(kept, plain_layers(checkpoint, kept))
    write_file(folder / CONFIG_NAME, json.dumps(config, indent=1))
