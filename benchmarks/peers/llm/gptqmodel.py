"""GPTQModel: its GPTQ on the CPU, with its defaults but for bits and group."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def prepare(model: Path, samples: dict[str, np.ndarray], out: Path, *, bits: int, group: int) -> Callable[[], dict[str, Any]]:
    """group: 0 for one scale a row."""
    # Without a number of workers it takes one a core of the host, and stalls where the container has fewer.
    os.environ |= {"GPTQMODEL_CPU_WORKERS": "2", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    import torch
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    from __main__ import PEERS, loaded  # worker.py

    plain = loaded(PEERS / "llm" / "plain.py")
    data = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in samples["tokens"]]
    weights = plain.linear_weights(model)
    odd = sorted({len(weight) for weight in weights.values() if bits == 3 and len(weight) % 32})
    if odd:  # an IndexError in its pack(), after all the work
        raise RuntimeError(f"GPTQModel packs 3 bits where the outputs are multiples of 32, and layers here have {odd[0]}")
    columns = {name.split(".")[-2]: weight.shape[1] for name, weight in weights.items()}
    ragged = [name for name, count in columns.items() if group and count % group]  # it takes no ragged last group
    # Its default order, aware of groups, needs some; without any, the plain order by activations costs nothing.
    by_row, grouped = {"group_size": -1, "desc_act": True, "act_group_aware": False}, {"group_size": group}
    special = {rf"+:.*{name}$": by_row for name in ragged}

    def work() -> dict[str, Any]:
        settings = QuantizeConfig(bits=bits, **(grouped if group else by_row), dynamic=special or None)
        network = GPTQModel.load(str(model), settings, device="cpu")
        network.quantize(data, batch_size=8, backend=BACKEND.TORCH)
        folder = out.parent / "packed"
        network.save(str(folder))
        changed, size = dequantised(folder, bits, torch, plain)
        plain.write(model, out, changed)
        return {"size_bytes": size, "note": f"one scale a row where {group} do not divide the columns" if ragged else ""}

    return work


def dequantised(folder: Path, bits: int, torch: Any, plain: Any) -> tuple[dict[str, Any], int]:
    """(weights [out, in], bytes of what they are packed in), from a checkpoint in the layout of GPTQ: qweight [in * bits / 32, out] and
    qzeros [groups, out * bits / 32] int32, lowest bits first, scales [groups, out], g_idx [in].
    """
    older = json.loads((folder / "quantize_config.json").read_text())["checkpoint_format"] == "gptq"  # stores zero points less one
    tensors = {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in plain.load_file(file).items()}
    changed, size = {}, 0
    for name in (name.removesuffix(".qweight") for name in list(tensors) if name.endswith(".qweight")):
        parts = {part: tensors[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx")}
        scales, index = parts["scales"].float(), parts["g_idx"].long()
        codes = unpacked(parts["qweight"].numpy().T, bits, len(index)).T  # [in, out]
        zeros = unpacked(parts["qzeros"].numpy(), bits, scales.shape[1]) + older & (1 << bits) - 1  # [groups, out]
        shift = torch.from_numpy(codes - zeros[index.numpy()]).float()
        changed[f"{name}.weight"] = (shift * scales[index]).T.contiguous()
        size += plain.size_bytes(parts)
    assert changed, f"nothing was quantised in {folder}"
    return changed, size


def unpacked(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """[rows, count] int64 codes of int32 [rows, words], bit after bit without gaps."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    whole = stream[:, : stream.shape[1] // bits * bits].reshape(len(words), -1, bits)
    return (whole @ (1 << np.arange(bits, dtype=np.int64)))[:, :count]
