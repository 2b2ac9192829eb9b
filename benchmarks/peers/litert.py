"""A .tflite file that came with the model, run in LiteRT: outputs on the evaluation data, and its time beside the float file's.

Quantises nothing: what it writes is an .npz with ``outputs`` [n, ...], ``labels`` [n] and ``ratio``, the time of the quantised file over
that of the float one (median of paired rounds, interleaved in one run, batch 1; empty without a float file).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

THREADS = len(os.sched_getaffinity(0))


def prepare(model: Path, samples: dict[str, np.ndarray], out: Path, *, floating: str, evaluation: str,
            seconds: float) -> Callable[[], dict[str, int]]:
    """model: the quantised .tflite. floating: path of its float counterpart, or "". evaluation: path of the labelled data."""
    from ai_edge_litert.interpreter import Interpreter

    def opened(path: str) -> Any:
        interpreter = Interpreter(path, num_threads=THREADS)
        interpreter.allocate_tensors()
        return interpreter

    def work() -> dict[str, int]:
        with np.load(evaluation) as arrays:
            data = {name: arrays[name] for name in arrays.files}
        labels = data.pop("labels")
        (inputs,) = data.values()
        ours = opened(str(model))
        outputs = np.concatenate([run(ours, sample[None]) for sample in inputs])
        ratio = [time_ratio(ours, opened(floating), seconds)] if floating else []
        np.savez(out.with_suffix(".npz"), outputs=outputs, labels=labels, ratio=np.array(ratio))
        return {"size_bytes": model.stat().st_size}

    return work


def run(interpreter: Any, values: np.ndarray) -> np.ndarray:
    """One inference: float32 in, float32 out, rounded to the model's grids where it has integer ends."""
    (entry,), (end,) = interpreter.get_input_details(), interpreter.get_output_details()
    if entry["dtype"] != np.float32:
        scale, zero = entry["quantization"]
        limits = np.iinfo(entry["dtype"])
        values = np.clip(np.round(values / scale) + zero, limits.min, limits.max).astype(entry["dtype"])
    interpreter.set_tensor(entry["index"], values)
    interpreter.invoke()
    found = interpreter.get_tensor(end["index"])
    if end["dtype"] == np.float32:
        return found
    scale, zero = end["quantization"]
    return (found.astype(np.float32) - zero) * scale


def time_ratio(ours: Any, theirs: Any, seconds: float) -> float:
    for interpreter in (ours, theirs):
        for _ in range(10):
            interpreter.invoke()
    end, ratios = perf_counter() + 2 * seconds, []
    while perf_counter() < end or len(ratios) < 40:
        times = []
        for interpreter in (ours, theirs):
            began = perf_counter()
            for _ in range(10):
                interpreter.invoke()
            times.append(perf_counter() - began)
        ratios.append(times[0] / times[1])
    return float(np.median(ratios))
