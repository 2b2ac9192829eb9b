"""GGUF files, run by llama.cpp where its Python package is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

from whet.core.errors import Refused, Unsupported
from whet.device.language.sampling import Sampling
from whet.device.language.step import Step
from whet.device.machine import usable_cores

_ENDS = {"stop": "end", "length": "length"}


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that is meant by ``path``: itself, or the only one in the folder. None where it is another kind of model."""
    if path.suffix == ".gguf":
        if not path.is_file():
            raise Refused(f"run {path}", found="there is no such file", do="give the path of a .gguf file")
        return path
    found = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if len(found) > 1:
        raise Refused(f"run {path}", found=f"{len(found)} .gguf files in it", do=f"name one, as {found[0]}")
    return found[0] if found else None


def gguf_steps(
    file: Path, prompt: str, *, sampling: Sampling, max_tokens: int, seed: int, threads: int | None
) -> tuple[int, Iterator[Step]]:
    """(tokens of the prompt, steps). Raises Refused where llama-cpp-python is not installed."""
    try:
        from llama_cpp import Llama  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        do = "pip install llama-cpp-python (it is built from source, about ten minutes), or export to ONNX instead"
        raise Refused(f"run {file}", found="llama-cpp-python is not installed", do=do) from error
    count = threads or usable_cores()
    try:
        model = Llama(str(file), n_ctx=0, n_threads=count, n_threads_batch=count, seed=seed, verbose=False)
    except Exception as error:  # the package raises ValueError, AssertionError and more for what it cannot read
        raise Unsupported(f"load {file} in llama.cpp", found=str(error)[:200], do="export it again") from error
    tokens = model.tokenize(prompt.encode(), special=True)
    stream = model.create_completion(tokens, max_tokens=max_tokens, temperature=sampling.temperature, top_k=sampling.top_k,
                                     top_p=sampling.top_p, seed=seed, stream=True)  # fmt: skip
    return len(tokens), _timed(stream)


def _timed(stream: Iterator[Any]) -> Iterator[Step]:
    started = perf_counter()
    for part in stream:
        choice = part["choices"][0]
        why = choice.get("finish_reason")
        yield Step(choice["text"], perf_counter() - started, _ENDS.get(why or "", ""), is_token=why is None or bool(choice["text"]))
        started = perf_counter()
