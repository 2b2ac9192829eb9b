"""llm-compressor: ``oneshot`` with its GPTQ or AWQ modifier, weights only."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

AWQ_WINDOWS = 16  # its search runs each block dozens of times on all windows: minutes with more


def prepare(model: Path, samples: dict[str, np.ndarray], out: Path, *, method: str, bits: int, group: int,
            symmetric: bool = True) -> Callable[[], dict[str, Any]]:
    """method: gptq or awq. group: 0 for one scale a row."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from __main__ import PEERS, loaded  # worker.py

    # Version 0.14's AWQ pins memory for copies to an accelerator, which fails where there is none.
    IntermediatesCache.pin_memory = lambda *_, **__: None
    plain = loaded(PEERS / "llm" / "plain.py")
    tokens = samples["tokens"][: AWQ_WINDOWS if method == "awq" else None]
    data = Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": np.ones_like(tokens).tolist()})

    def scheme(target: str, size: int) -> Any:
        arguments = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="group" if size else "channel", group_size=size or None)
        return QuantizationScheme(targets=[target], weights=arguments)

    sizes = {name: fitting(weight.shape[1], group) for name, weight in plain.linear_weights(model).items()}
    groups = {f"group_{size}": scheme(rf"re:.*({'|'.join(sorted({name.split('.')[-2] for name in sizes if sizes[name] == size}))})$", size)
              for size in sorted(set(sizes.values()))}
    which = {"config_groups": groups, "ignore": ["lm_head"]}
    odd = sorted({size for size in sizes.values() if size not in (group, 0)})

    def work() -> dict[str, Any]:
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        recipe = [GPTQModifier(**which)] if method == "gptq" else [AWQModifier(), QuantizationModifier(**which)]
        oneshot(model=network, tokenizer=AutoTokenizer.from_pretrained(model), dataset=data, recipe=recipe, max_seq_length=tokens.shape[1],
                num_calibration_samples=len(tokens), shuffle_calibration_samples=False, batch_size=8)
        size = 0
        for module in network.modules():
            used = getattr(module, "quantization_scheme", None)
            if used is not None and used.weights is not None:
                values, zero = module.weight.data, getattr(module, "weight_zero_point", None)
                module.weight.data = fake_quantize(values, module.weight_scale, zero, used.weights)
                # As its pack-quantized format stores it: codes in int32 words, float16 scales, zero points packed as codes.
                words = pack_to_int32(torch.zeros(values.shape, dtype=torch.int8), bits)
                size += plain.size_bytes({"codes": words, "scales": module.weight_scale.half()})
                size += 0 if symmetric else -(-module.weight_scale.numel() * bits // 8)
        with torch.no_grad():
            kept = set(plain.load_file(model / plain.WEIGHTS))
            changed = {name: tensor.detach() for name, tensor in network.state_dict().items() if name in kept}
        plain.write(model, out, changed)
        notes = [f"groups of {odd[0]} where {group} do not divide the columns"] * bool(odd)
        notes += [f"calibrated with {AWQ_WINDOWS} windows: its search takes minutes with more"] * (method == "awq")
        return {"size_bytes": size, "note": "; ".join(notes)}

    return work


def fitting(columns: int, group: int) -> int:
    """It takes no ragged last group: the divisor of ``columns`` nearest to ``group``, 0 for one scale a row."""
    if not group or columns <= group:
        return 0
    return min((size for size in range(1, columns) if columns % size == 0), key=lambda size: abs(size - group))
