"""Whet beside onnxruntime's own quantisers on every labelled pair of ../shared/assets, in one run:

    python benchmarks/ptq_assets.py [--seconds 2] [NAME ...]      writes benchmarks/RESULTS.md

Each quantiser works in a process of its own (benchmarks/quantise.py). The files are then compared with the float model on the same
samples (paired), and all of a pair's models are timed interleaved in one run, so latency is a ratio to float.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import astuple, dataclass
from pathlib import Path

import whet
from whet.compress.data import load_data
from whet.compress.evaluate import compare_outputs
from whet.compress.runtime import outputs_of
from whet.core.errors import WhetError
from whet.core.measurement import Measurement
from whet.device.latency import interleave
from whet.device.machine import describe
from whet.device.session import SPINNING_STOP, open_session

ROOT = Path(__file__).resolve().parent
ASSETS = Path(os.environ.get("WHET_ASSETS", ROOT.parents[1] / "shared" / "assets"))
PAIRS = ("resnet20_cifar10", "resnet8_mlperf_tiny", "kws_mlperf_tiny", "sisfall_falls", "cwru_bearing", "fsdd_digits")
WAYS = ("whet-static", "ort-static-u8s8", "ort-static", "ort-dynamic")
COMMAND = "python benchmarks/ptq_assets.py"


@dataclass(frozen=True)
class Row:
    """One model made of a pair's float model."""

    way: str
    accuracy: str
    drop: str
    speed: str
    size: str
    seconds: str
    memory: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=PAIRS)
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing, for each model of a pair")
    arguments = parser.parse_args()
    parts = [_head(arguments.seconds)]
    for name in arguments.names:
        print(f"{name} ...", flush=True)
        parts.append(_section(name, arguments.seconds))
        print(parts[-1], flush=True)
    if tuple(arguments.names) == PAIRS:
        (ROOT / "RESULTS.md").write_text("\n".join(parts), encoding="utf-8")


def _head(seconds: float) -> str:
    machine = describe()
    return f"""# Post-training quantisation beside onnxruntime's

Made by `{COMMAND}`{"" if seconds == 2.0 else f" --seconds {seconds:g}"} on {machine.cpu}, {machine.cores} cores,
onnxruntime {machine.onnxruntime}. Drop: accuracy of the float model less that of the quantised one, in points, on the same
samples, with its 90 % interval (Tango). Speed: time of the float model / time of this one (above 1 is faster), batch 1,
{machine.cores} threads, all models of a table interleaved in one run, with its 95 % interval. Time and memory: of the quantising
alone, in a process of its own; memory is what its peak added to the imported libraries.
`whet optimize` tries several candidates, so its time is that of the whole search with all its measuring.
"""


def _section(name: str, seconds: float) -> str:
    with tempfile.TemporaryDirectory() as folder:
        made, costs = _made(name, Path(folder))
        rows = _rows(name, made, costs, seconds)
    table = "\n".join(f"| {' | '.join(astuple(row))} |" for row in rows)
    return (f"## {name}\n\n| way | accuracy | drop, points | speed | size, kB | time, s | memory, MB |\n"
            f"|---|---|---|---|---|---|---|\n{table}\n")


def _made(name: str, folder: Path) -> tuple[dict[str, Path], dict[str, dict[str, float] | str]]:
    """The models by way, and what making them cost (a text where it failed)."""
    source = ASSETS / name
    made, costs = {}, {}
    outcome = whet.optimize(source / "model.onnx", data=source / "eval.npz", calibration=source / "calib.npz", out=folder / "optimize")
    if outcome.winner:
        made["whet optimize"] = folder / "optimize" / "best"
        costs["whet optimize"] = {"seconds": outcome.seconds}
    else:
        costs["whet optimize"] = outcome.headline
    for way in WAYS:
        out = folder / f"{way}.onnx"
        command = [sys.executable, str(ROOT / "quantise.py"), way, str(source / "model.onnx"), str(source / "calib.npz"), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            made[way], costs[way] = out, json.loads(done.stdout.splitlines()[-1])
        else:
            costs[way] = (done.stderr.strip().splitlines() or ["failed"])[-1]
    return made, costs


def _rows(name: str, made: dict[str, Path], costs: dict[str, dict[str, float] | str], seconds: float) -> list[Row]:
    original = whet.load(ASSETS / name / "model.onnx")
    data = load_data(ASSETS / name / "eval.npz", original.inputs)
    expected = outputs_of(original, data)
    paths = {"float": ASSETS / name / "model.onnx", **{way: path / "model.onnx" if path.is_dir() else path for way, path in made.items()}}
    loaded = {way: whet.load(made.get(way, path)) for way, path in paths.items()}
    sessions = {way: open_session(path, threads=whet.target("host").threads, options={**loaded[way].session_options, SPINNING_STOP: "1"})
                for way, path in paths.items()}
    feeds = next(iter(data.batches(1)))
    times = interleave(sessions, dict.fromkeys(sessions, feeds), parent="float", seconds=seconds * len(sessions))
    rows = []
    for way in ("float", *costs):
        if way not in paths:
            rows.append(Row(way, "-", "-", "-", "-", "-", f"failed: {costs[way]}"))
            continue
        try:
            quality = compare_outputs(expected, outputs_of(loaded[way], data), data.labels, "accuracy")
        except WhetError as error:
            rows.append(Row(way, "-", "-", "-", "-", "-", f"failed: {error}"))
            continue
        cost = costs.get(way)
        spent = cost if isinstance(cost, dict) else {}
        memory = f"{(spent['peak_bytes'] - spent['before_bytes']) / 1e6:.0f}" if "peak_bytes" in spent else "-"
        size = paths[way].stat().st_size
        rows.append(Row(way, f"{quality.candidate.value:.4f}", _points(quality.drop) if way != "float" else "-",
                        _speed(times[way].ratio), f"{size / 1e3:.1f}", f"{spent['seconds']:.2f}" if "seconds" in spent else "-", memory))
    return rows


def _points(drop: Measurement) -> str:
    assert drop.value is not None
    assert drop.interval is not None
    return f"{100 * drop.value:+.2f} [{100 * drop.interval.low:+.2f}, {100 * drop.interval.high:+.2f}]"


def _speed(ratio: Measurement) -> str:
    assert ratio.value is not None
    interval = f" [{1 / ratio.interval.high:.2f}, {1 / ratio.interval.low:.2f}]" if ratio.interval and ratio.value != 1.0 else ""
    return f"{1 / ratio.value:.2f}{interval}"


if __name__ == "__main__":
    main()
