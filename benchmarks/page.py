"""The page of results as Markdown."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy
import onnx
from behind import MEMORY_TARGET, SPEED_NOISE, TIME_TARGET, speed
from environments import REQUIREMENTS
from judging import Row
from workers import REPEATED_BELOW_S

import whet
from whet.core.measurement import Measurement
from whet.device.machine import describe

COLUMNS = ("way", "accuracy", "drop, points", "speed", "size, kB", "time, s", "peak, MB", "added, MB")


def head(command: str, pythons: Mapping[str, Path | str], repeats: int) -> str:
    machine = describe()
    own = f"onnxruntime {machine.onnxruntime}, onnx {onnx.__version__}, numpy {numpy.__version__}"
    versions = [f"| Whet {whet.__version__}, onnxruntime's own | {own} |"]
    for name, found in pythons.items():
        if name:
            wanted = " ".join(" ".join(packages) for packages in REQUIREMENTS[name]).replace("==", " ")
            versions.append(f"| {name} | {found if isinstance(found, str) else wanted} |")
    return f"""# Post-training quantisation, Whet beside its peers

Made by `{command}` on {datetime.now(UTC):%d %B %Y}: {machine.cpu}, {machine.cores} cores, {machine.memory_bytes / 2**30:.0f} GiB,
Python {".".join(map(str, sys.version_info[:3]))}. All files run in the same onnxruntime ({machine.onnxruntime}), whatever made them.

- accuracy, drop: on the pair's evaluation samples; drop is the float model's less this one's, in points, paired, with its 90 %
  interval (Tango).
- speed: time of the float model / time of this one (above 1 is faster), batch 1, {machine.cores} threads, all files of a table
  interleaved in one run, with its 95 % interval.
- time: of the quantising alone, in a process of its own: from a model's path and at most 300 calibration samples in memory to the
  written file, without imports. The fastest of {repeats} runs of those below {REPEATED_BELOW_S:g} s.
- peak: most resident memory of that process; added: what of it came on top of the imported libraries and the calibration samples.
- Row `float`: the forward passes over the calibration samples alone, one by one: the floor of time and memory.
- `whet-optimize` is a search that measures its candidates on the evaluation data, and its time is that of the whole search; no other
  way sees those data. `whet-optimize-drop` looks for the least drop (`--minimize drop`), so its accuracy is the best of a dozen
  candidates', as the best peer's is. [README.md](README.md) says what each way is.

| environment | versions |
|---|---|
{chr(10).join(versions)}
"""


def behind(found: Mapping[str, list[str]]) -> str:
    lines = [f"- {title}: {text}" for title, texts in found.items() for text in texts]
    noise = f"{100 * SPEED_NOISE:g} %"
    return f"""## Where Whet is behind

Written by the benchmark from its figures: what Whet gives without being asked for more (`whet-static`, `whet-optimize`), and what
it gives who asks for accuracy (`whet-optimize-drop`), against the best peer in each measure, whichever that is. Accuracy: any
difference, with its paired 90 % interval. Speed: more than {noise}.
Time and memory of quantising: peers that calibrate; the target is {TIME_TARGET:g} of the fastest one's time, and the forward passes'
memory + {MEMORY_TARGET / 1e6:.0f} MB.

{chr(10).join(lines) or "Nowhere in this run."}
"""


def section(pair: str, rows: list[Row]) -> str:
    body = [_cells(row) for row in rows]
    return f"## {pair}\n\n{_table(COLUMNS, body)}\n{_notes(rows)}"


def costs(rows: list[Row], floor: str) -> str:
    """The table of time and memory alone."""
    forward = next((row.made.seconds for row in rows if row.way == floor and not row.why), float("nan"))
    body = [[row.way, "-", "-", "-", "-", "-"] if row.why else
            [row.way, f"{row.made.seconds:.2f}", f"{row.made.seconds / forward:.2f}", f"{row.made.peak_bytes / 1e6:.0f}",
             f"{row.made.added_bytes / 1e6:.0f}", _kilobytes(row)] for row in rows]
    columns = ("way", "time, s", "time / forward passes", "peak, MB", "added, MB", "size, kB")
    return f"""## ResNet-50-shaped graph, random weights, 64 images of 224 x 224

Time and memory of quantising only: random weights know nothing that could be lost. Ways that learn (AdaRound) are left out here.

{_table(columns, body)}
{_notes(rows)}"""


def _cells(row: Row) -> list[str]:
    if row.quality is None:
        return [row.way, *["-"] * (len(COLUMNS) - 1)]
    cost = row.made
    first = row.way == "float"
    spent = cost.way.calibrates or cost.way.peer in ("forward", "onnxruntime")
    return [row.way, f"{row.quality.candidate.value:.4f}", "-" if first else _points(row.quality.drop), "1.00" if first else _speed(row),
            _kilobytes(row), f"{cost.seconds:.2f}" if spent else "-", f"{cost.peak_bytes / 1e6:.0f}" if spent else "-",
            f"{cost.added_bytes / 1e6:.0f}" if spent else "-"]


def _kilobytes(row: Row) -> str:
    return f"{row.made.size_bytes / 1e3:.1f}" if row.made.size_bytes else "-"


def _points(drop: Measurement) -> str:
    assert drop.value is not None
    assert drop.interval is not None
    return f"{100 * drop.value:+.2f} [{100 * drop.interval.low:+.2f}, {100 * drop.interval.high:+.2f}]"


def _speed(row: Row) -> str:
    if row.ratio is None or row.ratio.value is None:
        return "-"
    interval = row.ratio.interval
    if interval is None:
        return f"{speed(row):.2f} (own runtime)"
    return f"{speed(row):.2f} [{1 / interval.high:.2f}, {1 / interval.low:.2f}]"


def _notes(rows: list[Row]) -> str:
    lines = [f"- {row.way}: {row.why or row.made.note}" for row in rows if row.why or row.made.note]
    return "\n".join(["", *lines, ""]) if lines else ""


def _table(columns: tuple[str, ...], body: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [list(columns), ["---"] * len(columns), *body])
