"""Writing on from a prompt: pieces of text as they come, and afterwards how fast it went."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Self

import numpy as np

from whet.core.document import Document
from whet.core.errors import Refused
from whet.device.language.decoder import OnnxDecoder
from whet.device.language.folder import open_folder
from whet.device.language.gguf import gguf_file, gguf_steps
from whet.device.language.sampling import Sampling, chosen
from whet.device.language.step import Step
from whet.device.language.texts import Pieces, open_tokenizer, tokens_of
from whet.device.memory import peak_bytes


@dataclass(frozen=True)
class Generation(Document):
    """How a generation went. prompt_tokens, tokens: counts. Rates in tokens a second, without the time in which the caller had the pieces;
    the first token is the prompt's. None where there was nothing to time. peak_rss_bytes: of this process until now, None where the
    system does not tell. ended: "end" (of the text, by the model), "length" (max_tokens), "context" (the model holds no more), "" still
    going.
    """

    prompt_tokens: int = 0
    tokens: int = 0
    prompt_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    peak_rss_bytes: int | None = None
    ended: str = ""


class Writing(Iterator[str]):
    """Pieces of text, each of whole letters. ``generation`` tells at any time how it goes, and after the last piece how it went."""

    def __init__(self, prompt_tokens: int, steps: Iterator[Step]) -> None:
        self._prompt_tokens, self._steps = prompt_tokens, steps
        self._seconds: list[float] = []
        self._ended = ""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        for step in self._steps:
            self._seconds += [step.seconds] if step.is_token else []
            self._ended = step.ended
            if step.text:
                return step.text
        raise StopIteration

    @property
    def generation(self) -> Generation:
        first, rest = sum(self._seconds[:1]), self._seconds[1:]
        prompt_rate, rate = self._prompt_tokens / first if first else None, len(rest) / sum(rest) if rest else None
        return Generation(self._prompt_tokens, len(self._seconds), prompt_rate, rate, peak_bytes(), self._ended)


def generate(
    folder: str | Path,
    prompt: str,
    *,
    max_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    threads: int | None = None,
    wait: str = "auto",
) -> Writing:
    """Write on from ``prompt`` with the model in ``folder`` (as `whet export --to onnx` writes it), or with a .gguf file.

    temperature 0 takes the likeliest token each time; seed: for the others. threads: None is every physical core. wait: "awake" keeps
    threads that wait for each other spinning, "asleep" lets them sleep, "auto" looks whether other programs need the cores; llama.cpp
    has its own way. The model is loaded and checked before this returns; the prompt is read when the first piece is asked for.
    Raises Refused for a prompt that is empty or too long, for a missing tokenizer or package; Unsupported where the model cannot be run.
    """
    sampling = Sampling(temperature, top_k, top_p)
    if max_tokens < 1:
        raise Refused(f"write {max_tokens} tokens", found="there must be at least 1", do="give a larger number")
    path = Path(folder)
    if file := gguf_file(path):
        count, steps = gguf_steps(file, prompt, sampling=sampling, max_tokens=max_tokens, seed=seed, threads=threads)
        return Writing(count, steps)
    where = open_folder(path)
    tokenizer = open_tokenizer(path)
    tokens = tokens_of(tokenizer, prompt, begin=where.begin, folder=path) or ([] if where.begin is None else [where.begin])
    if not tokens:
        raise Refused("write on from an empty prompt", found="this model has no token for a beginning", do="give a prompt")
    if len(tokens) >= where.context:
        raise Refused("read the prompt", found=f"{len(tokens)} tokens, and the model holds {where.context}", do="give a shorter prompt")
    decoder = OnnxDecoder(where, capacity=min(len(tokens) + max_tokens, where.context), threads=threads, wait=wait)
    steps = _steps(decoder, tokens, where.ends, Pieces(tokenizer, tokens), sampling, np.random.default_rng(seed), max_tokens)
    return Writing(len(tokens), steps)


def _steps(decoder: OnnxDecoder, tokens: list[int], ends: frozenset[int], pieces: Pieces, sampling: Sampling,
           generator: np.random.Generator, max_tokens: int) -> Iterator[Step]:  # fmt: skip
    for count in range(1, max_tokens + 1):
        started = perf_counter()
        token = chosen(decoder.read(tokens), sampling, generator)
        full = decoder.length >= decoder.capacity
        ended = "end" if token in ends else "length" if count == max_tokens else "context" if full else ""
        text = pieces.next(token, last=bool(ended))
        yield Step(text, perf_counter() - started, ended)
        if ended:
            return
        tokens = [token]
