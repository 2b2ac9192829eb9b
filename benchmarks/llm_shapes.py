"""Checkpoints with the shapes of Llama-2-7B and 13B and random weights: sizes, time and peak memory of rounding them, in fresh processes.

    python benchmarks/llm_shapes.py 7b --technique rtn                    # the whole model; needs 18 GB of disk, given back at the end
    python benchmarks/llm_shapes.py 7b --technique gptq --blocks 2        # two whole blocks, times 16 for all 32
    python benchmarks/llm_shapes.py 13b --plan                            # sizes alone: headers without numbers

Prints one JSON document a run. Times are wall-clock; the page cache is as the making of the checkpoint left it (--cold drops it, where
that is allowed).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

SHAPES = {"7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
          "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40}}  # fmt: skip
VOCABULARY = 32000
SPREAD = 1 << 24  # random numbers that are drawn; every tensor is a piece of them, beginning somewhere else


def config_of(shape: str, blocks: int | None) -> dict[str, object]:
    """config.json, with fewer blocks where that is asked for."""
    sizes = dict(SHAPES[shape])
    sizes["num_hidden_layers"] = blocks or sizes["num_hidden_layers"]
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5,
            "num_key_value_heads": sizes["num_attention_heads"], "max_position_embeddings": 4096, "rope_theta": 10000.0,
            "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float16",
            **sizes}  # fmt: skip


def shapes_of(config: dict[str, object]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a Llama of that config."""
    width, wide = int(str(config["hidden_size"])), int(str(config["intermediate_size"]))
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, width)}
    for index in range(int(str(config["num_hidden_layers"]))):
        block = f"model.layers.{index}"
        found |= {f"{block}.self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        found |= {f"{block}.mlp.{name}_proj.weight": (wide, width) for name in ("gate", "up")}
        found[f"{block}.mlp.down_proj.weight"] = (width, wide)
        found |= {f"{block}.{name}.weight": (width,) for name in ("input_layernorm", "post_attention_layernorm")}
    return {**found, "model.norm.weight": (width,), "lm_head.weight": (VOCABULARY, width)}


def make(folder: Path, config: dict[str, object], *, empty: bool = False) -> None:
    """Write the checkpoint, shard by shard. empty: files of the right size without numbers, which take no disk."""
    import torch

    from whet.compress.checkpoint.tensor_writer import INDEX_NAME, Shape, TensorWriter, index_of, shards_of

    shapes = shapes_of(config)
    shards = shards_of([Shape(name, "F16", shape) for name, shape in shapes.items()])
    (folder / "config.json").write_text(json.dumps(config))
    (folder / INDEX_NAME).write_bytes(index_of(shards))
    drawn = (torch.randn(SPREAD, generator=torch.Generator().manual_seed(0)) * 0.02).half()
    with TensorWriter(folder, shards) as writer:
        for number, (name, shape) in enumerate(shapes.items()):
            if empty:
                continue
            count = int(torch.tensor(shape).prod())
            begin = number * 7919 % SPREAD
            pieces = [drawn[begin:]] + [drawn] * (count // SPREAD + 1)
            writer.write(name, torch.cat(pieces)[:count] if len(shape) > 1 else torch.ones(shape, dtype=torch.float16))


def worked(folder: Path, technique: str, options: dict[str, object], tokens: int) -> None:
    """Apply it in this process and print what it took."""
    import numpy as np

    import whet

    began = perf_counter()
    ids = np.random.default_rng(0).integers(3, VOCABULARY, (max(tokens // 2048, 1), min(tokens, 2048)))
    calibration = ids if whet.technique(technique).needs != "nothing" else None
    whet.apply(str(folder), technique, options=options, calibration=calibration, out=folder.parent / "out")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    cpu = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    size = sum(path.stat().st_size for path in (folder.parent / "out").glob("*.safetensors"))
    print(json.dumps({"seconds": round(perf_counter() - began, 1), "cpu_seconds": round(cpu, 1), "peak_rss_bytes": peak,
                      "size_bytes": size}))  # fmt: skip


def main() -> None:
    """One shape, one technique."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("--technique", default="rtn")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    options = {"bits": given.bits, "block": given.group}
    if given.work:
        return worked(given.work, given.technique, options, given.tokens)
    with tempfile.TemporaryDirectory(prefix="whet-bench-", dir=os.environ.get("TMPDIR")) as place:
        folder = Path(place) / "model"
        folder.mkdir()
        config = config_of(given.shape, given.blocks)
        make(folder, config, empty=given.plan)
        planned = _planned(folder, given.technique, options)
        print(json.dumps({"shape": given.shape, "blocks": config["num_hidden_layers"], **options, **planned}))
        if not given.plan:
            os.sync()
            if given.cold:
                subprocess.run(["sh", "-c", "echo 3 > /proc/sys/vm/drop_caches"], check=False)
            subprocess.run([sys.executable, __file__, given.shape, "--technique", given.technique, "--bits", str(given.bits), "--group",
                            str(given.group), "--tokens", str(given.tokens), "--work", str(folder)], check=True)  # fmt: skip
            shutil.rmtree(Path(place) / "out", ignore_errors=True)


def _planned(folder: Path, technique: str, options: dict[str, object]) -> dict[str, float]:
    """What ``plan`` says beforehand."""
    import whet

    found = whet.plan(str(folder), technique, options=options, samples=2)
    before = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return {"before_bytes": before, **{f"planned_{cost.name}": cost.value or 0.0 for cost in found.costs}}


if __name__ == "__main__":
    main()
