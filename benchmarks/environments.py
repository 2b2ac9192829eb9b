"""The peers' environments: virtual environments made once with pip, each with exact versions, and used again.

They lie in ``benchmarks/.envs`` (or $WHET_BENCH_ENVS), which git ignores. A peer that does not install is left out with pip's reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(os.environ.get("WHET_BENCH_ENVS", Path(__file__).resolve().parent / ".envs"))
# A looser request for torch can pull several GB of CUDA: every environment is held to this one, and those that need it get it first.
TORCH = "torch==2.13.0"
# Name of the environment -> what pip is asked for, one call after the other.
REQUIREMENTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "nncf": (("nncf==3.4.0", "onnx==1.23.2", "onnxruntime==1.31.1", "numpy==2.4.6"),),
    # The last version with an ONNX quantiser (3.8 and later have none), with libraries of its time; six is missing in its own list.
    "neural_compressor": (("neural-compressor==3.7.1", "onnx==1.16.2", "onnxruntime==1.18.1", "numpy==1.26.4", "six==1.17.0"),),
    "quark": ((TORCH,), ("amd-quark==0.13", "onnx==1.22.0", "onnxruntime==1.31.1", "numpy==2.4.6")),
    "aimet": ((TORCH,), ("aimet-onnx==2.42.0", "onnx==1.23.2", "onnxruntime==1.31.1", "numpy==2.4.6")),
    "litert": (("ai-edge-litert==2.3.0", "numpy==2.4.6"),),
    # Peers for language models (llm.py).
    "hqq": ((TORCH,), ("hqq==0.2.8.post1", "safetensors==0.8.0")),
    "bitsandbytes": ((TORCH,), ("bitsandbytes==0.50.2", "safetensors==0.8.0")),
    "gptqmodel": ((TORCH,), ("gptqmodel==7.6.0",)),
    "llmcompressor": ((TORCH,), ("llmcompressor==0.14.0.1",)),
    "genai": (("onnxruntime-genai==0.18.0", "onnxruntime==1.31.1", "numpy==2.4.6"),),
}
INSTALL_TIMEOUT_S = 1800


def python_of(name: str, *, install: bool = True) -> Path:
    """The interpreter of an environment, made now where it is not there. Raises RuntimeError with the reason where it cannot be had."""
    folder, wanted = FOLDER / name, _wanted(name)
    python, stamp = folder / "bin" / "python", folder / "installed"
    if stamp.is_file() and stamp.read_text() == wanted and python.is_file():
        return python
    if not install:
        raise RuntimeError(f"its environment is not there (--no-install): {folder}")
    print(f"making the environment {name}: {wanted.strip()}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    constraint = FOLDER / "torch.txt"
    constraint.write_text(TORCH + "\n")
    try:
        _run([sys.executable, "-m", "venv", str(folder)])
        for packages in REQUIREMENTS[name]:
            _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(constraint), *packages])
    except RuntimeError:
        shutil.rmtree(folder, ignore_errors=True)  # half an environment would be taken for one
        raise
    stamp.write_text(wanted)
    return python


def _wanted(name: str) -> str:
    return " ".join(package for packages in REQUIREMENTS[name] for package in packages) + "\n"


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{' '.join(command[:4])} took more than {INSTALL_TIMEOUT_S} s") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        reason = next((line for line in said if line.startswith("ERROR")), said[-1])
        raise RuntimeError(f"pip: {reason.removeprefix('ERROR: ')}")
