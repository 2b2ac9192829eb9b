"""Accuracy and speed of all files of a pair: the same samples, and one interleaved run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from workers import Made

import whet
from whet.compress.data import Dataset, load_data
from whet.compress.evaluate import Comparison, compare_outputs, predict
from whet.core.errors import WhetError
from whet.core.measurement import Measurement
from whet.device.latency import interleave
from whet.device.session import open_session, run

BATCH = 32
Outputs = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Row:
    """One way on one model. ratio: its time / the float model's. What could not be had is None, and ``failure`` says why."""

    way: str
    made: Made
    failure: str = ""
    quality: Comparison | None = None
    outputs: Outputs | None = None
    ratio: Measurement | None = None

    @property
    def why(self) -> str:
        return self.made.failure or self.failure


def judged(files: Mapping[str, Made], source: Path, floor: str, seconds: float) -> tuple[list[Row], np.ndarray[Any, Any]]:
    """(a row for each of ``files``, labels). Files are run as they were written, not as Whet would read them."""
    original = source / "model.onnx"
    data = load_data(source / "eval.npz", whet.load(original).inputs)
    assert data.labels is not None
    threads = whet.target("host").threads
    expected = outputs_of(open_session(original, threads=threads), data)
    rows, sessions = [], {}
    for way, made in files.items():
        if made.failure:
            rows.append(Row(way, made))
            continue
        try:
            if made.file.with_suffix(".npz").is_file():  # another runtime's file: its outputs were computed there
                rows.append(elsewhere(way, made, expected))
                continue
            session = open_session(original if way == floor else made.file, threads=threads, options=made.session_options)
            outputs = outputs_of(session, data)
            quality = compare_outputs(expected, outputs, data.labels, "accuracy")
        except WhetError as error:
            rows.append(Row(way, made, failure=str(error)))
            continue
        sessions[way] = session
        rows.append(Row(way, made, quality=quality, outputs=outputs))
    times = interleave(sessions, dict.fromkeys(sessions, next(iter(data.batches(1)))), parent=floor, seconds=seconds * len(sessions))
    timed = [Row(row.way, row.made, row.failure, row.quality, row.outputs, times[row.way].ratio if row.way in times else row.ratio)
             for row in rows]
    return timed, data.labels


def outputs_of(session: Any, data: Dataset) -> Outputs:
    """[n, ...] by name; one by one where the file does not take batches."""
    try:
        return predict(lambda feeds: run(session, feeds), data, batch_size=BATCH)
    except WhetError:
        return predict(lambda feeds: run(session, feeds), data, batch_size=1)


def elsewhere(way: str, made: Made, expected: Outputs) -> Row:
    """A file of another runtime, whose speed is against its own float file there."""
    with np.load(made.file.with_suffix(".npz")) as arrays:
        labels, ratio = arrays["labels"], arrays["ratio"]
        outputs = {next(iter(expected)): arrays["outputs"].reshape(next(iter(expected.values())).shape)}
    quality = compare_outputs(expected, outputs, labels, "accuracy")
    measured = Measurement("latency_ratio", float(ratio[0]), method="in its own runtime") if len(ratio) else None
    return Row(way, made, quality=quality, outputs=outputs, ratio=measured)
