"""Whet beside the other quantisers of language models, on stories260K in ../shared/assets: quality, size, time and memory in one go:

    python benchmarks/llm.py                       everything; makes the peers' environments, writes benchmarks/LLM.md and LLM.json
    python benchmarks/llm.py --quick               the main rows, about three minutes
    python benchmarks/llm.py --only whet --rows '*gptq*'       those rows; prints the page
    python benchmarks/llm.py --decode              how fast 4-bit exports of a 134M-shaped model decode, beside other runtimes

Each row works in a process of its own (worker.py), in the environment of its package (environments.py), and leaves a checkpoint: Whet's
as it ships, a peer's with the numbers that its packed weights stand for. Whet judges all on the same text. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from time import perf_counter
from typing import Any

import llm_decode
import llm_page
import numpy as np
import torch
from environments import REQUIREMENTS, python_of
from llm_rows import Row, rows
from workers import once

from whet.compress.checkpoint.checkpoint import Checkpoint, open_checkpoint
from whet.compress.checkpoint.compare import LanguageComparison, judging
from whet.compress.checkpoint.text import windows_of

ROOT = Path(__file__).resolve().parent
ASSETS = Path(os.environ.get("WHET_ASSETS", ROOT.parents[1] / "shared" / "assets")).resolve()
BEGINNINGS = ("Once upon a time", "One day,")
EVALUATED, MOST_WINDOWS = 200, 128  # stories to judge by, the others are for calibration; windows of those that rows are given
REPEATED_BELOW_S = 2.0
Judge = Callable[[Checkpoint], LanguageComparison]


@dataclass(frozen=True)
class Found:
    """What became of a row: figures of the worker and the comparison with the float model, or why there are none."""

    row: Row
    failure: str = ""
    seconds: float = float("nan")
    peak_bytes: int = 0
    before_bytes: int = 0
    weight_bytes: int = 0
    note: str = ""
    quality: LanguageComparison | None = None

    def to_plain(self) -> dict[str, Any]:
        quality = {} if self.quality is None else {name: each.to_plain() for name, each in self.quality.measurements.items()}
        return {"row": self.row.name, "bits": self.row.bits, "group": self.row.group, "options": dict(self.row.way.options),
                "failure": self.failure, "note": self.note, "seconds": None if self.failure else self.seconds,
                "peak_bytes": self.peak_bytes or None, "before_bytes": self.before_bytes or None,
                "weight_bytes": self.weight_bytes or None, "quality": quality}


def main() -> None:
    asked = arguments()
    command = shlex.join(["python", "benchmarks/llm.py", *sys.argv[1:]])
    with tempfile.TemporaryDirectory(prefix="whet-bench-") as folder:
        if asked.decode:
            pythons = environments({"genai"}, asked)
            speeds = llm_decode.measured(Path(folder), pythons["genai"], asked.llama_cpp, asked.rounds, said)
            written(asked, "decode", llm_page.decoding(command, speeds), speeds.to_plain())
            return
        chosen = selected(asked)
        pythons = environments({row.way.environment for row in chosen}, asked)
        found, windows = all_found(chosen, pythons, Path(folder), asked)
    page = llm_page.page(command, pythons, found, windows)
    written(asked, "rows", page, [each.to_plain() for each in found])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the main rows alone, about three minutes")
    parser.add_argument("--only", choices=("whet", "peers"), help="Whet's rows, or the peers'")
    parser.add_argument("--rows", nargs="+", metavar="PATTERN", help="rows of these names, with * and ?; --list shows the names")
    parser.add_argument("--list", action="store_true", help="show the names of the rows and end")
    parser.add_argument("--slow", action=argparse.BooleanOptionalAction, default=True, help="techniques that learn, a minute or more each")
    parser.add_argument("--repeats", type=int, default=1, help=f"of a row below {REPEATED_BELOW_S:g} s; the fastest counts (default 1)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one row (default 600)")
    parser.add_argument("--install", action=argparse.BooleanOptionalAction, default=True, help="make the environments that are missing")
    parser.add_argument("--decode", action="store_true", help="measure decoding in place of quantising")
    parser.add_argument("--llama-cpp", type=Path, metavar="FOLDER", help="folder with the package llama_cpp, where it is not installed")
    parser.add_argument("--rounds", type=int, default=8, help="of --decode (default 8)")
    parser.add_argument("--out", type=Path, help="file for the page (default: benchmarks/LLM.md where nothing is left out)")
    asked = parser.parse_args()
    if asked.list:
        print(*(row.name for row in rows()), sep="\n")
        raise SystemExit(0)
    if asked.out is None and asked.slow and not (asked.quick or asked.only or asked.rows):
        asked.out = ROOT / ("LLM-DECODE.md" if asked.decode else "LLM.md")
    return asked


def selected(asked: argparse.Namespace) -> list[Row]:
    """The rows that are asked for."""
    chosen = [row for row in rows() if (asked.slow or not row.slow) and (row.quick or not asked.quick)
              and (asked.only is None or row.own == (asked.only == "whet"))
              and (not asked.rows or any(fnmatchcase(row.name, pattern) for pattern in asked.rows))]
    if not chosen:
        raise SystemExit("no such rows: --list shows their names")
    return chosen


def environments(needed: set[str], asked: argparse.Namespace) -> dict[str, Path | str]:
    """The interpreter of each environment that is needed, or why there is none. "" is the one that runs this."""
    found: dict[str, Path | str] = {"": Path(sys.executable)}
    for name in (name for name in REQUIREMENTS if name in needed):
        try:
            found[name] = python_of(name, install=asked.install)
        except (RuntimeError, OSError) as error:
            found[name] = f"not installed: {error}"
            said(f"{name}: {found[name]}")
    return found


def all_found(chosen: list[Row], pythons: dict[str, Path | str], folder: Path, asked: argparse.Namespace) -> tuple[list[Found], str]:
    """(what became of each row, the windows in words)."""
    model = ASSETS / "stories260K"
    evaluation, calibration = split(model / "tinystories_val.txt", folder)
    parent = open_checkpoint(model)
    torch.set_num_threads(1)  # products this small are slower with more
    judged, learned = windows_of(parent, evaluation), windows_of(parent, calibration)
    some = windows_of(parent, calibration, most=MOST_WINDOWS)
    for name, windows in (("all", learned), ("some", some)):
        np.savez(folder / f"{name}.npz", tokens=windows.tokens.numpy())
    found, began = [], perf_counter()
    with judging(parent, judged) as judge:
        for at, row in enumerate(chosen, 1):
            found.append(of_row(row, model, folder, pythons, judge, asked))
            said(f"[{at}/{len(chosen)}, {perf_counter() - began:.0f} s] {row.name}: {llm_page.short(found[-1])}")
    words = (f"{len(judged)} windows of {judged.length} tokens ({EVALUATED} stories) to judge by, {len(some)} of the\n"
             f"{len(learned)} windows of the other stories to calibrate with (all of them for what learns: autoround and tune)")
    return found, words


def split(text: Path, folder: Path) -> tuple[Path, Path]:
    """The stories as .jsonl files: (to judge by, to calibrate with). Each begins behind a blank line with one of two phrases."""
    stories: list[str] = []
    for part in text.read_text(encoding="utf-8").split("\n\n"):
        if part.startswith(BEGINNINGS) or not stories:
            stories.append(part)
        else:
            stories[-1] += f"\n\n{part}"
    places = folder / "evaluation.jsonl", folder / "calibration.jsonl"
    for place, chosen in zip(places, (stories[:EVALUATED], stories[EVALUATED:]), strict=True):
        place.write_text("".join(json.dumps({"text": story.strip()}) + "\n" for story in chosen), encoding="utf-8")
    return places


def of_row(row: Row, model: Path, folder: Path, pythons: dict[str, Path | str], judge: Judge, asked: argparse.Namespace) -> Found:
    """What became of it: the fastest of the runs, judged. Nothing that goes wrong here ends the run."""
    place = folder / row.name
    best: dict[str, Any] | None = None
    try:
        for _ in range(max(asked.repeats, 1)):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            python = pythons[row.way.environment]
            text = folder / ("all.npz" if row.slow else "some.npz")
            figures = python if isinstance(python, str) else once(row.way, python, model, text, place / "out", asked.timeout)
            if isinstance(figures, str):
                return Found(row, figures)
            best = figures if best is None or figures["seconds"] < best["seconds"] else best
            if figures["seconds"] > REPEATED_BELOW_S:
                break
        assert best is not None
        quality = judge(open_checkpoint(place / "out"))
    except Exception as error:  # whatever it is, the other rows are worth having
        return Found(row, f"{type(error).__name__}: {error}")
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return Found(row, "", best["seconds"], best["peak_bytes"], best["before_bytes"], best["size_bytes"], best.get("note", ""), quality)


def written(asked: argparse.Namespace, name: str, page: str, document: Any) -> None:
    if asked.out is None:
        print(page)
        return
    asked.out.write_text(page, encoding="utf-8")
    beside = asked.out.with_suffix(".json")
    beside.write_text(json.dumps({name: document}, indent=1) + "\n", encoding="utf-8")
    said(f"written: {asked.out}, {beside}")


def said(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
