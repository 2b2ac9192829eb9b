"""Sample outcomes for the report: plausible figures, ugly and hostile names, and numbers that are missing."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from whet.core.artifact import Artifact, ModelFile, TensorSpec
from whet.core.gate import Gate, judge
from whet.core.measurement import Interval, Measurement
from whet.core.outcome import LayerReport, OperatorReport, Outcome, Trial
from whet.core.recipe import Recipe, Step

HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>\u202egnp.exe\ud800\x00"
SIZE, MS, RSS = 1_083_912.0, 2.9137, 9_650_000.0
NAMES = ("int8", "int8, range by mse", "int8, range by percentile", "int8, /layer3/layer3.2/conv2/Conv and 3 more in float", "float16")
METHODS = {
    "latency_ms": "median over rounds, 2 threads, interleaved with the original",
    "latency_p95_ms": "95th percentile of single inferences",
    "latency_ratio": "median over rounds of candidate / original, interleaved",
    "accuracy": "share of right answers (class of the highest score); Clopper-Pearson interval",
    "drop": "drop of accuracy: share of right answers; Tango's score interval of paired shares",
    "size_bytes": "bytes of all files",
    "model_rss_bytes": "growth of a fresh process over Python with numpy and onnxruntime",
    "peak_rss_bytes": "peak of a fresh process",
    "energy_mj": "0.6 pJ a byte, 4.6 pJ a float32 product, 0.2 pJ an int8 product",
}


def sample(candidates: int = 9, layers: int = 21, *, limit: float = 0.005, wins: bool = True, seed: int = 3) -> Outcome:
    """An outcome of ``candidates`` trials, one of them hostile; ``wins``: whether any passes its gates."""
    random = Random(seed)
    gates = (
        Gate("drop", limit if wins else 0.0001, reason="asked with --max-drop"),
        Gate("latency_ratio", 1.0, reason="not slower than the original"),
        Gate("size_bytes", SIZE, proven=False, reason="not larger than the original"),
        Gate("model_rss_bytes", 16e6, " B", proven=False, reason="asked with --max-memory"),
    )
    trials = [_original()]
    trials += [_candidate(index, random, gates) for index in range(max(candidates - 4, 1))]
    if candidates > 4:
        trials += _odd(gates)
    trials = trials[: max(candidates, 2)]
    passed = [trial for trial in trials if trial.passed and trial.name != "original"]
    best = min(passed, key=lambda trial: trial.value("latency_ratio") or 9.0).name if passed else ""
    refused = [trial for trial in trials[1:] if trial.status == "measured" and trial.verdict]
    closest = "" if best or not refused else min(refused, key=lambda trial: trial.verdict.excess if trial.verdict else 9e9).name
    front = {best, "original", "int8", trials[-1].name}
    marked = tuple(replace(trial, on_front=trial.name in front and trial.status == "measured") for trial in trials)
    won = f"{best} is 2.61 times faster and 3.62 times smaller, and loses at most 0.31 points of accuracy (90 % interval)."
    lost = f"Nothing passed: {closest} came closest, and fails because its drop of accuracy is not proven to be within the limit."
    return Outcome(
        model="resnet20_cifar10.onnx", target="host", goal="latency", metric="accuracy", gates=gates,
        trials=marked, winner=best, closest=closest, headline=won if best else lost,
        blame=("/layer3/layer3.2/conv2/Conv does most harm: left in float32, the drop falls from +0.80 to +0.21 pts.", f"Then {HOSTILE}."),
        layers=tuple(_layer(index, random) for index in range(layers)),
        data={"evaluation": {"source": "cifar10_eval.npz", "samples": 2000, "sha256": "5f" * 32},
              "calibration": {"source": "cifar10_calib.npz", "samples": 256, "sha256": "a7" * 32, "split_off": False}},
        machine={"cpu": "Intel(R) Xeon(R) Platinum 8481C", "isa": ["avx2", "fma", "avx512f", "avx512_vnni"], "cores": 2,
                 "memory_bytes": 25_769_803_776, "os": "Linux 6.1", "onnxruntime": "1.31.1"},
        tools={"whet": "0.1.0", "onnxruntime": "1.31.1", "onnx": "1.23.2", "numpy": "2.3.4"},
        command="whet optimize resnet20_cifar10.onnx --data eval.npz --calibration calib.npz --metric accuracy --max-drop 0.005 -o out/",
        notes=("Energy is an estimate: this machine has no RAPL.", f"A note on {HOSTILE}"), began="2026-11-12T09:30:11Z", seconds=192.4,
        operators=(OperatorReport("Conv", 21, 1, 2410.0, 31.2), OperatorReport("QLinearConv", 0, 20, None, 812.6),
                   OperatorReport("QuantizeLinear", 0, 1, None, 14.1), OperatorReport("Relu", 19, 0, 96.0),
                   OperatorReport("Add", 9, 0, 54.1)),
    )  # fmt: skip


def measurement(name: str, value: float | None, spread: float = 0.0, **more: Any) -> Measurement:
    """A measurement whose interval is ``spread`` wide to both sides."""
    interval = Interval(value - spread, value + spread, 0.9) if value is not None and spread else None
    more = {"n": 400, "method": METHODS.get(name, ""), "device": "Xeon 8481C, 2 cores", "at": "2026-11-12T09:31:02Z", **more}
    return Measurement(name, value, interval=interval, **more)


def costs(ratio: float, size: float, accuracy: float, drop: float, spread: float) -> dict[str, Measurement]:
    """All measurements of one candidate."""
    found = [
        measurement("accuracy", accuracy, 0.011, n=2000, direction="higher", data="5f" * 32),
        measurement("drop", drop, spread, n=2000, data="5f" * 32),
        measurement("latency_ratio", ratio, 0.012),
        measurement("latency_ms", ratio * MS, 0.01),
        measurement("latency_p95_ms", ratio * MS * 1.12, 0.03),
        measurement("size_bytes", size, n=1),
        measurement("model_rss_bytes", RSS * (0.45 + 0.5 * size / SIZE), n=1),
        measurement("peak_rss_bytes", 61e6 + RSS * size / SIZE, n=1),
        measurement("energy_mj", 1.9 * ratio, source="estimated", n=0),
        measurement("sqnr_db", 24.1, 0.3, n=2000),
    ]
    return {each.name: each for each in found}


def _original() -> Trial:
    found = costs(1.0, SIZE, 0.9185, 0.0, 0.0)
    found["latency_ratio"] = Measurement("latency_ratio", 1.0, interval=Interval(1.0, 1.0, 0.95), method="the parent itself")
    return Trial("original", Recipe(), artifact=_artifact(Recipe(), int(SIZE)), measurements=found)


def _candidate(index: int, random: Random, gates: tuple[Gate, ...]) -> Trial:
    name = NAMES[index % len(NAMES)] + (f" ({index})" if index >= len(NAMES) else "")
    half = index % 5 == 4
    drop = random.choice([-0.001, 0.0005, 0.001, 0.0015, 0.003, 0.006, 0.012]) * (0.1 if half else 1) + random.uniform(0, 4e-4)
    ratio, size = (random.uniform(1.05, 1.3), SIZE * 0.502) if half else (random.uniform(0.33, 0.55), SIZE * random.uniform(0.26, 0.34))
    options = {} if half else {"ranges": "mse", "percentile": 99.999}
    recipe = Recipe((Step("float16" if half else "static", exclude=("op:Softmax",), options=options),), name)
    found = costs(ratio, size, 0.9185 - drop, drop, 0.0012 + random.uniform(0, 0.0015))
    return Trial(name, recipe, artifact=_artifact(recipe, int(size)), path=f"{index:016x}/artifact/model.onnx", measurements=found,
                 verdict=judge(gates, found), seconds=4.2 + index)  # fmt: skip


def _odd(gates: tuple[Gate, ...]) -> list[Trial]:
    """One that lost everything, one skipped, one failed, all with what is ugly in their names; numbers missing with a reason."""
    awful = costs(0.31, SIZE * 0.14, 0.3205, 0.598, 0.02)
    awful["energy_mj"] = Measurement("energy_mj", None, why="no rate for 2-bit products")
    awful["model_rss_bytes"] = Measurement("model_rss_bytes", None, why=f"the process died {HOSTILE}")
    del awful["peak_rss_bytes"]
    steps = Recipe((Step("weight_only", ("op:Conv", HOSTILE), options={"bits": 2, "block": 32}),), HOSTILE)
    return [
        Trial(HOSTILE, steps, measurements=awful, verdict=judge(gates, awful)),
        Trial("dynamic int8", Recipe((Step("dynamic"),)), "skipped", "matrix products are 0.2 % of the model's arithmetic"),
        Trial("4-bit packed products", Recipe((Step("weight_only", options={"bits": 4}),)), "failed", f"node {HOSTILE} has no kernel"),
    ]


def _artifact(recipe: Recipe, size: int) -> Artifact:
    spec = TensorSpec("x", "float32", ("N", 3, 32, 32))
    return Artifact("onnx", (spec,), (TensorSpec("y", "float32", ("N", 10)),), (ModelFile("model.onnx", "c3" * 32, size),), recipe=recipe,
                    parent="9e" * 32, session_options={"session.qdq_matmulnbits_accuracy_level": "0"})  # fmt: skip


def _layer(index: int, random: Random) -> LayerReport:
    name = HOSTILE if index == 4 else f"/layer{index // 6 + 1}/layer{index // 6 + 1}.{index % 6}/conv{index % 2 + 1}/Conv"
    size = int(2000 * 1.35 ** min(index, 20) * random.uniform(0.6, 1.4))
    time = random.uniform(20, 240)
    kept = index % 7 == 5
    return LayerReport(
        name, "Gemm" if index % 20 == 19 else "Conv", size, size if kept else size // 4 + 300, dtype_after="float32" if kept else "int8",
        macs=None if index == 2 else size * 196, sqnr_db=None if kept else random.uniform(14, 42),
        time_before_us=None if index % 6 == 3 else time, damage=0.02 if index == 8 else None,
        time_after_us=None if index % 6 == 3 else time * (1.02 if kept else random.uniform(0.25, 0.6)),
    )  # fmt: skip
