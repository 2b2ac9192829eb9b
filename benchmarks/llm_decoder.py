"""One runtime with one language model, in a process of its own. ``llm_decode.py`` starts it:

    python benchmarks/llm_decoder.py KIND MODEL THREADS          KIND: a name of ``OPENED``

It loads the model and says so; then, for each number on a line of its input, it decodes so many tokens behind a prompt and answers with
a line of JSON: tokens_per_s of decoding, without the prompt; peak_bytes of this process. A failure is told as such.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

from worker import resident

Decode = Callable[[int], float]
PROMPT = "Once upon a time, there was a little girl named Lily."
IDS = list(range(300, 332))


def main() -> None:
    kind, model, threads = sys.argv[1:4]
    try:
        decode = OPENED[kind](model, int(threads))
        answer(state="ready")
        for line in sys.stdin:
            answer(tokens_per_s=decode(int(line)), peak_bytes=resident("VmHWM"))
    except Exception as error:  # every library has its own
        answer(failure=f"{type(error).__name__}: {str(error)[:300]}")


def answer(**words: Any) -> None:
    print("\n" + json.dumps({"decoder": 1, **words}), flush=True)


def whet(model: str, threads: int) -> Decode:
    """What ``whet run`` does, with its own figures."""
    from whet.device.language import generate

    def decode(count: int) -> float:
        writing = generate(model, PROMPT, max_tokens=count, threads=threads)
        for _ in writing:
            pass
        rate = writing.generation.decode_tokens_per_s
        assert rate is not None, f"only {writing.generation.tokens} tokens"
        return rate

    generate(model, PROMPT, max_tokens=1, threads=threads)  # whatever is wrong with it is told now
    return decode


def torch(model: str, threads: int) -> Decode:
    """transformers in float32, with a cache of keys and values."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    @torch.inference_mode()
    def decode(count: int) -> float:
        found = network(torch.tensor([IDS]), use_cache=True)

        def step() -> None:
            nonlocal found
            token = found.logits[:, -1:].argmax(-1)
            found = network(token, past_key_values=found.past_key_values, use_cache=True)

        return rate_of(step, count)

    return decode


def genai(model: str, threads: int) -> Decode:
    """onnxruntime-genai."""
    import numpy as np
    import onnxruntime_genai as og

    config = og.Config(model)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    network = og.Model(config)

    def decode(count: int) -> float:
        parameters = og.GeneratorParams(network)
        parameters.set_search_options(max_length=len(IDS) + count + 2, do_sample=False)
        generator = og.Generator(network, parameters)
        generator.append_tokens(np.array(IDS, np.int32))
        generator.generate_next_token()
        return rate_of(generator.generate_next_token, count)

    return decode


def llama_cpp(model: str, threads: int) -> Decode:
    """llama.cpp through llama-cpp-python, token by token."""
    from llama_cpp import Llama

    network = Llama(model, n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)

    def decode(count: int) -> float:
        network.reset()
        tokens: Iterator[int] = network.generate(IDS, temp=0.0)
        next(tokens)
        return rate_of(lambda: next(tokens), count)

    return decode


def rate_of(step: Callable[[], object], count: int) -> float:
    """Tokens a second."""
    began = perf_counter()
    for _ in range(count):
        step()
    return count / (perf_counter() - began)


OPENED = {"whet": whet, "torch": torch, "genai": genai, "llama_cpp": llama_cpp}

if __name__ == "__main__":
    main()
