"""Whet beside the other quantisers of ONNX graphs, on every labelled pair of ../shared/assets and on a ResNet-50-shaped graph:

    python benchmarks/ptq.py                       everything; makes the peers' environments and writes benchmarks/RESULTS.md
    python benchmarks/ptq.py --pairs fsdd_digits --ways whet-static ort-static-u8s8 --no-resnet50      prints that much only

Each way works in a process of its own (worker.py), in the environment of its package (environments.py). The files are then judged on
the same samples (paired), and all of a pair's files are timed interleaved in one run (judging.py). See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from pathlib import Path

import page
import resnet50
from behind import behind, behind_in_cost
from environments import REQUIREMENTS, python_of
from judging import Row, judged
from workers import Made, Way, made

from whet.core.document import FrozenMap
from whet.core.recipe import Recipe, Step

ROOT = Path(__file__).resolve().parent
ASSETS = Path(os.environ.get("WHET_ASSETS", ROOT.parents[1] / "shared" / "assets")).resolve()


def step(technique: str, **options: object) -> Step:
    return Step(technique, options=FrozenMap(options))


# Whet's recipes. A row that is not possible yet (a technique that is not there) becomes a row with the reason.
WHET: dict[str, tuple[Step, ...]] = {
    "whet-static": (step("static"),),
    "whet-static-percentile": (step("static", ranges="percentile"),),
    "whet-static-mse": (step("static", ranges="mse"),),
    "whet-clip": (step("clip"), step("static")),
    "whet-bias": (step("static"), step("bias_correct")),
    "whet-w4a8-gptq": (step("gptq", bits=4), step("static")),
    "whet-w4a8-gptq-bias": (step("gptq", bits=4), step("static"), step("bias_correct")),
    "whet-adaround": (step("adaround", bits=8), step("static")),
    "whet-w4a8-adaround": (step("adaround", bits=4), step("static")),
}
# Those that stand for Whet in "where Whet is behind": what one gets without asking for anything, and by asking for accuracy.
DEFAULTS = ("whet-static", "whet-optimize", "whet-optimize-drop")
OPTIMIZE = {"whet-optimize": Way("", "whet_optimize", {"evaluation": "{pair}/eval.npz"}, labels=True),
            "whet-optimize-drop": Way("", "whet_optimize", {"evaluation": "{pair}/eval.npz", "minimize": "drop"}, labels=True)}
PEERS: dict[str, Way] = {
    "ort-static-u8s8": Way("", "onnxruntime"),
    "ort-static-u8s8-batch32": Way("", "onnxruntime", {"batch": 32}),
    "ort-static-u8s8-preprocess": Way("", "onnxruntime", {"preprocess": True}),
    "ort-static": Way("", "onnxruntime", {"u8s8": False}),
    "ort-percentile": Way("", "onnxruntime", {"method": "Percentile"}),
    "ort-entropy": Way("", "onnxruntime", {"method": "Entropy"}),
    "ort-dynamic": Way("", "onnxruntime", {"dynamic": True}, calibrates=False),
    "nncf": Way("nncf", "nncf"),
    "nncf-mixed": Way("nncf", "nncf", {"preset": "mixed"}),
    "nncf-mixed-accurate-bias": Way("nncf", "nncf", {"preset": "mixed", "fast_bias_correction": False}, slow=True),
    "neural-compressor": Way("neural_compressor", "neural_compressor"),
    "quark": Way("quark", "quark", {"config": "INT8_CNN_DEFAULT"}),
    "quark-accurate": Way("quark", "quark", {"config": "INT8_CNN_ACCURATE"}, slow=True),
    "aimet": Way("aimet", "aimet"),
    "aimet-equalize": Way("aimet", "aimet", {"equalize": True}),
    "aimet-adaround": Way("aimet", "aimet", {"adaround_iterations": 1000}, slow=True),
}
WAYS = {name: Way("", "whet_recipe", {"recipe": Recipe(steps).to_text()}, slow="adaround" in name)
        for name, steps in WHET.items()} | OPTIMIZE | PEERS
# Not quantisers: the floor that any calibration stands on, and the int8 file that came with a model.
FLOOR, REFERENCE = "float", "reference int8"
# Pair -> the .tflite in float that its reference_int8.tflite is timed against; "" has none.
PAIRS = {"resnet20_cifar10": "", "resnet8_mlperf_tiny": "model.tflite", "kws_mlperf_tiny": "reference_float32.tflite", "sisfall_falls": "",
         "cwru_bearing": "", "fsdd_digits": ""}  # fmt: skip


def main() -> None:
    asked = arguments()
    pythons = environments(asked)
    parts, behinds = [], {}
    for pair in asked.pairs:
        section, behinds[pair] = of_pair(pair, asked, pythons)
        parts.append(section)
        print(section, flush=True)
    if asked.resnet50:
        section, behinds["ResNet-50-shaped"] = of_resnet50(asked, pythons)
        parts.append(section)
        print(section, flush=True)
    command = shlex.join(["python", "benchmarks/ptq.py", *sys.argv[1:]])
    text = "\n".join([page.head(command, pythons, asked.repeats), page.behind(behinds), *parts])
    if asked.out:
        asked.out.write_text(text, encoding="utf-8")
        print(f"written: {asked.out}")
    else:
        print(page.behind(behinds))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", nargs="*", choices=PAIRS, default=list(PAIRS), metavar="PAIR")
    parser.add_argument("--ways", nargs="+", choices=[*WAYS, REFERENCE], default=[*WAYS, REFERENCE], metavar="WAY")
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing, for each file of a pair (default 2)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of a way that takes less than 2 s; the fastest counts (default 3)")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one way (default 1800)")
    parser.add_argument("--slow", action=argparse.BooleanOptionalAction, default=True, help="ways that learn, minutes each (AdaRound)")
    parser.add_argument("--install", action=argparse.BooleanOptionalAction, default=True, help="make the environments that are missing")
    parser.add_argument("--resnet50", action=argparse.BooleanOptionalAction, default=True, help="the ResNet-50-shaped graph, 64 images")
    parser.add_argument("--out", type=Path, help="file for the page (default: benchmarks/RESULTS.md where everything is asked for)")
    asked = parser.parse_args()
    if asked.out is None and asked.resnet50 and set(asked.pairs) == set(PAIRS) and set(asked.ways) == {*WAYS, REFERENCE}:
        asked.out = ROOT / "RESULTS.md"
    asked.ways = [name for name in asked.ways if asked.slow or name not in WAYS or not WAYS[name].slow]
    return asked


def environments(asked: argparse.Namespace) -> dict[str, Path | str]:
    """The interpreter of each environment that is needed, or why there is none. "" is the one that runs this."""
    needed = {WAYS[name].environment for name in asked.ways if name in WAYS} | ({"litert"} if REFERENCE in asked.ways else set())
    found: dict[str, Path | str] = {"": Path(sys.executable)}
    for name in (name for name in REQUIREMENTS if name in needed):
        try:
            found[name] = python_of(name, install=asked.install)
        except RuntimeError as error:
            found[name] = f"not installed: {error}"
            print(f"{name}: {found[name]}", flush=True)
    return found


def of_pair(pair: str, asked: argparse.Namespace, pythons: dict[str, Path | str]) -> tuple[str, list[str]]:
    """(section of the page, where Whet is behind)."""
    source = ASSETS / pair
    with tempfile.TemporaryDirectory() as folder:
        files = all_made(pair, source / "model.onnx", source / "calib.npz", Path(folder), asked, pythons,
                         [name for name in asked.ways if name in WAYS])
        reference = source / "reference_int8.tflite"
        if REFERENCE in asked.ways and reference.is_file():
            floating = str(source / PAIRS[pair]) if PAIRS[pair] else ""
            options = {"floating": floating, "evaluation": str(source / "eval.npz"), "seconds": asked.seconds}
            files[REFERENCE] = made(Way("litert", "litert", options, calibrates=False), reference, source / "calib.npz",
                                    Path(folder, "reference"), pythons, asked.timeout, 1)
        rows, labels = judged(files, source, FLOOR, asked.seconds)
    return page.section(pair, rows), behind(rows, labels, [name for name in DEFAULTS if name in asked.ways], FLOOR)


def of_resnet50(asked: argparse.Namespace, pythons: dict[str, Path | str]) -> tuple[str, list[str]]:
    """Time and memory only: a network with random weights knows nothing that could be lost."""
    with tempfile.TemporaryDirectory() as folder:
        model, calibration = resnet50.prepare(Path(folder), 64)
        ways = [name for name in asked.ways if name in WAYS and WAYS[name].calibrates and not WAYS[name].slow and not WAYS[name].labels]
        files = all_made("ResNet-50-shaped", model, calibration, Path(folder), asked, pythons, ways)
    rows = [Row(name, found) for name, found in files.items()]
    return page.costs(rows, FLOOR), behind_in_cost(rows, [name for name in DEFAULTS if name in ways], FLOOR)


def all_made(title: str, model: Path, calibration: Path, folder: Path, asked: argparse.Namespace, pythons: dict[str, Path | str],
             ways: list[str]) -> dict[str, Made]:
    """What each way made, the floor's forward passes first."""
    found = {}
    for at, (name, way) in enumerate([(FLOOR, Way("", "forward", calibrates=False)), *((name, WAYS[name]) for name in ways)]):
        print(f"{title} [{at}/{len(ways)}] {name} ... ", end="", flush=True)
        here = Way(way.environment, way.peer, {key: value.replace("{pair}", str(model.parent)) if isinstance(value, str) else value
                                               for key, value in way.options.items()}, way.calibrates, way.slow, way.labels)
        found[name] = made(here, model, calibration, folder / name, pythons, asked.timeout, asked.repeats)
        print(found[name].failure or f"{found[name].seconds:.2f} s", flush=True)
    return found


if __name__ == "__main__":
    main()
