"""How much of the best candidate's accuracy is luck: chosen on one half of the evaluation samples, judged on the other.

    python benchmarks/halves.py                  about 9 minutes; prints a table (--pairs NAME ... for some)

On each half of a pair's samples (even and odd numbers) the winner of ``whet optimize --minimize drop`` is found, and the peer whose file is
best there. Both answer the other half; the table holds their answers to both halves together, every sample judged by a model that was
chosen without it. The peers are those of ptq.py that take seconds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from judging import Outputs, outputs_of
from ptq import ASSETS, PAIRS, PEERS, all_made, environments

import whet
from whet.compress.data import Dataset, load_data
from whet.compress.evaluate import Comparison, compare_outputs
from whet.core.errors import WhetError
from whet.device.session import open_session


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS), metavar="PAIR")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing, for each candidate of optimize (default 1)")
    parser.add_argument("--install", action=argparse.BooleanOptionalAction, default=True, help="make the environments that are missing")
    asked = parser.parse_args()
    asked.ways, asked.timeout, asked.repeats = [name for name, way in PEERS.items() if not way.slow], 1800.0, 1
    pythons = environments(asked)
    print("| pair | float | Whet | best peer | peer - Whet, points | chosen by Whet | best peers |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for pair in asked.pairs:
        with tempfile.TemporaryDirectory() as folder:
            print(row(pair, Path(folder), asked, pythons), flush=True)


def row(pair: str, folder: Path, asked: argparse.Namespace, pythons: dict[str, Path | str]) -> str:
    model, calibration = ASSETS / pair / "model.onnx", ASSETS / pair / "calib.npz"
    data = load_data(ASSETS / pair / "eval.npz", whet.load(model).inputs)
    assert data.labels is not None
    expected = outputs_of(open_session(model, threads=whet.target("host").threads), data)
    peers = peers_of(pair, folder, data, asked, pythons)
    ours: list[tuple[str, Outputs]] = []
    best: list[tuple[str, Outputs]] = []
    for half in (0, 1):
        ours.append(chosen_by_whet(model, calibration, data, half, folder / f"half {half}", asked.seconds))
        best.append(max(peers.items(), key=lambda each, half=half: right(each[1], data, half)))  # type: ignore[misc]
    mine, theirs = (crossed([outputs for _, outputs in each]) for each in (ours, best))
    of_mine, of_theirs = (compare_outputs(expected, each, data.labels, "accuracy") for each in (mine, theirs))
    behind = compare_outputs(theirs, mine, data.labels, "accuracy").drop
    assert behind.value is not None
    assert behind.interval is not None
    return (f"| {pair} | {accuracy(of_mine, parent=True)} | {accuracy(of_mine)} | {accuracy(of_theirs)} | {100 * behind.value:+.2f} "
            f"[{100 * behind.interval.low:+.2f}, {100 * behind.interval.high:+.2f}] | {'; '.join(name for name, _ in ours)} | "
            f"{'; '.join(name for name, _ in best)} |")


def peers_of(pair: str, folder: Path, data: Dataset, asked: argparse.Namespace, pythons: dict[str, Path | str]) -> dict[str, Outputs]:
    """What each peer's file answers to all samples."""
    files = all_made(pair, ASSETS / pair / "model.onnx", ASSETS / pair / "calib.npz", folder, asked, pythons, asked.ways)
    found = {}
    for name in (name for name in asked.ways if not files[name].failure):
        try:
            found[name] = outputs_of(open_session(files[name].file, threads=whet.target("host").threads,
                                                  options=files[name].session_options), data)
        except WhetError as error:
            print(f"{pair} {name}: {error}")
    return found


def chosen_by_whet(model: Path, calibration: Path, data: Dataset, half: int, folder: Path, seconds: float) -> tuple[str, Outputs]:
    """The winner on one half, and what it answers to all samples. The float model where nothing passed."""
    outcome = whet.optimize(model, data=data.take(range(half, len(data), 2)), calibration=calibration, minimize="drop", max_drop=0.05,
                            seconds=seconds, out=folder)
    if not outcome.winner:
        return "nothing", outputs_of(open_session(model, threads=whet.target("host").threads), data)
    made = whet.load(folder / "best")
    return outcome.winner, outputs_of(open_session(folder / "best" / "model.onnx", threads=whet.target("host").threads,
                                                   options=made.session_options), data)


def right(outputs: Outputs, data: Dataset, half: int) -> int:
    """How many samples of the half were answered rightly."""
    assert data.labels is not None
    scores = next(iter(outputs.values()))
    return int((scores.reshape(len(scores), -1).argmax(1) == np.asarray(data.labels).ravel())[half::2].sum())


def crossed(of_halves: list[Outputs]) -> Outputs:
    """The answers to each half of the model that was chosen on the other one."""
    found: dict[str, np.ndarray[Any, Any]] = {}
    for name, values in of_halves[0].items():
        found[name] = values.copy()  # of the model chosen on the even samples: it keeps the odd ones
        found[name][0::2] = of_halves[1][name][0::2]
    return found


def accuracy(found: Comparison, *, parent: bool = False) -> str:
    return f"{(found.parent if parent else found.candidate).value:.4f}"


if __name__ == "__main__":
    main()
