"""Estimates for devices that are not here: never taken for measurements, never nonsense, and honest about what is not known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.compress import digits
from tests.compress.small_graphs import Sketch, samples

import whet
from whet.compress.estimate import Planned, by_name, latency_measurement, latency_ms, memory_measurement
from whet.compress.optimize import searching
from whet.compress.technique import Foresight
from whet.core.document import FrozenMap
from whet.core.errors import Refused
from whet.core.inventory import Inventory, Layer
from whet.core.measurement import Measurement
from whet.core.outcome import GOALS, Outcome
from whet.core.target import Speed, Target
from whet.device.targets import built_in_names

pytestmark = pytest.mark.usefixtures("one_torch_thread")

BARE = Target("bare", "a device of which nothing is known", "onnxruntime", "", 1)
RATED = replace(BARE, macs_per_s=FrozenMap({"float32": 1e9, "int8": 4e9}), bandwidth_bytes_per_s=1e9)
INT8 = Foresight(True, "int8", "uint8", 8, runs_as="int8 Conv")
STORED = Foresight(True, "int8", "float32", 8, runs_as="float32 Conv")


def inventory(*macs: int | None) -> Inventory:
    layers = tuple(Layer(f"conv{at}", "Conv", (10, 10), "float32", 100, 400, each, ("N", 10), 40) for at, each in enumerate(macs))
    return Inventory(layers, file_bytes=5000, peak_activation_bytes=800, peak_layers=("conv0",))


def changed(found: Inventory, foresight: Foresight, technique: str = "static") -> dict[str, Planned]:
    return {layer.name: Planned(technique, foresight) for layer in found.layers}


def number(found: Measurement) -> float:
    assert found.source == "estimated"
    assert found.method
    assert found.value is not None
    return found.value


MACS = st.lists(st.one_of(st.none(), st.integers(0, 10**9)), min_size=1, max_size=5)


@given(MACS, st.floats(0.1, 50), st.data())
def test_the_ratio_is_the_share_of_each_layer_by_its_speed(macs: list[int | None], speed: float, data: st.DataObject) -> None:
    found = inventory(*macs)
    quick = replace(BARE, speeds=(Speed("static", "Conv", speed, "made up"),))
    chosen = data.draw(st.sets(st.sampled_from([layer.name for layer in found.layers])))
    ratio = latency_measurement(found, {name: Planned("static", INT8) for name in chosen}, quick)
    if not found.macs:
        assert ratio.value is None
        assert ratio.why
        return
    share = sum(layer.macs or 0 for layer in found.layers if layer.name in chosen) / found.macs
    assert number(ratio) == pytest.approx(1 - share + share / speed)


def test_a_speed_that_nobody_stated_is_not_made_up() -> None:
    found = inventory(10, 20)
    ratio = latency_measurement(found, changed(found, INT8), BARE)
    assert ratio.value is None
    assert ratio.source == "estimated"
    assert "static Conv" in ratio.why
    assert "bare" in ratio.why


def test_weights_that_are_only_stored_small_change_no_time() -> None:
    found = inventory(10, 20)
    assert number(latency_measurement(found, changed(found, STORED, "weight_only"), BARE)) == 1.0
    assert number(latency_measurement(found, {}, BARE)) == 1.0


def test_milliseconds_are_the_longer_of_arithmetic_and_reading() -> None:
    computing = Inventory((Layer("c", "Conv", (1, 1), "float32", 1, 4, 10**9, ("N",), 0),))
    assert number(latency_ms(computing, {}, RATED)) == pytest.approx(1000.0)  # 1e9 products at 1e9 a second
    assert number(latency_ms(computing, {"c": Planned("static", INT8)}, RATED)) == pytest.approx(250.0)
    reading = Inventory((Layer("c", "Conv", (10**6,), "float32", 10**6, 4 * 10**6, 1, ("N",), 0),))
    assert number(latency_ms(reading, {}, RATED)) == pytest.approx(4.0)  # 4 MB at 1 GB a second
    assert number(latency_ms(reading, {"c": Planned("static", INT8)}, RATED)) == pytest.approx(1.0)


@pytest.mark.parametrize("rates", [{"float32": 1e9}, {"float32": 1e9, "int8": 0.0}])
def test_an_unknown_rate_of_integers_is_taken_to_be_that_of_float(rates: dict[str, float]) -> None:
    found = inventory(10**9)
    place = replace(RATED, macs_per_s=FrozenMap(rates))
    assert number(latency_ms(found, changed(found, INT8), place)) == pytest.approx(1000.0)


@pytest.mark.parametrize("place", [BARE, replace(RATED, bandwidth_bytes_per_s=0.0), replace(RATED, macs_per_s=FrozenMap({"float32": 0.0}))])
def test_without_rates_there_are_no_milliseconds(place: Target) -> None:
    found = latency_ms(inventory(10), {}, place)
    assert (found.value, found.source, found.unit) == (None, "estimated", " ms")
    assert "no rates" in found.why


def test_memory_is_weights_and_the_peak() -> None:
    found = inventory(10, 20)
    assert number(memory_measurement(found, {}, BARE)) == 2 * 400 + 800
    assert number(memory_measurement(found, changed(found, STORED, "weight_only"), BARE)) == 2 * 400 + 800  # float32 again, once loaded
    small = number(memory_measurement(found, changed(found, INT8), BARE))
    assert 2 * 100 + 200 <= small < 2 * 400


def test_by_name() -> None:
    one, two = Measurement("a", 1.0), Measurement("b", 2.0)
    assert by_name([one, two]) == {"a": one, "b": two}


# -- through plan and optimize ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return digits.write(tmp_path_factory.mktemp("digits"))


@pytest.mark.parametrize("place", built_in_names())
@pytest.mark.parametrize("technique", ["static", "weight_only", "float16"])
def test_a_plan_for_any_device(technique: str, place: str, files: dict[str, Path]) -> None:
    found = whet.plan(files["model"], technique, target=place)
    assert found.target == place
    assert {cost.name for cost in found.costs} >= {"size_bytes", "latency_ratio"}
    for cost in found.costs:
        assert cost.source == "estimated"
        assert cost.method or cost.why
        assert cost.value is None or (math.isfinite(cost.value) and cost.value >= 0)


@pytest.fixture(autouse=True)
def nothing_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning to round takes longer than all the rest, and these tests are about what is estimated."""
    monkeypatch.setattr(searching, "technique_names", lambda: ("bias_correct", "clip", "equalize", "static"))


def optimized(files: dict[str, Path], out: Path, place: str | Target, **options: Any) -> Outcome:
    return whet.optimize(files["model"], data=files["eval"], calibration=files["calib"], out=out, target=place, seconds=0.05, **options)


@pytest.mark.parametrize("place", ["pi5", "mcu", "jetson", "phone-npu"])
def test_any_device_gets_the_smallest_file_and_estimates_that_say_so(place: str, files: dict[str, Path], tmp_path: Path) -> None:
    outcome = optimized(files, tmp_path / "out", place, minimize="size")
    best = outcome.trial(outcome.winner)
    assert best is not None
    assert best.passed
    assert any(f"{place} is not this machine" in note for note in outcome.notes)
    for trial in outcome.trials:
        for found in trial.measurements.values():
            costs = found.name.startswith(("latency", "model_rss", "energy"))
            assert found.source == ("estimated" if costs else "measured"), found.name
            assert found.value is None or math.isfinite(found.value)
    assert "estimate" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(("place", "goal", "possible"), [
    ("pi5", "latency", True), ("pi5", "memory", True), ("pi5", "energy", False), ("mcu", "latency", False), ("phone-npu", "energy", False),
    pytest.param("jetson", "latency", True, marks=pytest.mark.slow), pytest.param("phone-npu", "latency", False, marks=pytest.mark.slow),
    pytest.param("jetson", "memory", True, marks=pytest.mark.slow), pytest.param("mcu", "memory", True, marks=pytest.mark.slow),
])
def test_a_goal_is_met_or_refused_at_once_with_the_reason(place: str, goal: str, possible: bool, files: dict[str, Path],
                                                         tmp_path: Path) -> None:
    if not possible:
        with pytest.raises(Refused, match=rf"minimise {goal} on {place}: .*\. use --minimize size"):
            optimized(files, tmp_path / "out", place, minimize=goal)
        assert not (tmp_path / "out").exists()
        return
    outcome = optimized(files, tmp_path / "out", place, minimize=goal)
    best = outcome.trial(outcome.winner)
    assert best is not None
    assert best.passed
    assert best.measurements[GOALS[goal]].source == "estimated"
    assert (best.value(GOALS[goal]) or math.inf) < (outcome.trials[0].value(GOALS[goal]) or 0.0) or place == "mcu"


def test_a_model_too_large_for_the_microcontroller_is_refused_in_a_sentence_that_says_by_how_much(tmp_path: Path) -> None:
    g = Sketch()
    y = g.node("Relu", g.gemm(g.input("x", ["N", 64]), 64, 5000, name="wide"))
    g.output(g.gemm(y, 5000, 500, name="deep"))
    (tmp_path / "model.onnx").write_bytes(g.proto().SerializeToString())
    data = samples({"x": (64,)}, 40)
    feeds = next(data.batches(40))
    outcome = whet.optimize(tmp_path / "model.onnx", data=feeds, target="mcu", minimize="size", max_drop=0.5, out=tmp_path / "out")
    assert not outcome.winner
    assert "size_bytes at most 1,048,576 B (storage of mcu): found" in outcome.headline
    assert outcome.closest
    assert not (tmp_path / "out" / "best").exists()


def test_activations_too_large_for_the_microcontroller_are_refused(tmp_path: Path) -> None:
    g = Sketch()
    y = g.node("Relu", g.conv(g.input("x", ["N", 1, 144, 144]), (1, 16), name="wide"))
    g.output(g.conv(y, (16, 1), name="narrow"))
    (tmp_path / "model.onnx").write_bytes(g.proto().SerializeToString())
    images = np.random.default_rng(0).normal(size=(12, 1, 144, 144)).astype(np.float32)
    outcome = whet.optimize(tmp_path / "model.onnx", data={"x": images}, target="mcu", minimize="size", max_drop=0.5, out=tmp_path / "out")
    assert not outcome.winner
    assert "model_rss_bytes at most 262,144 B (memory of mcu): found" in outcome.headline
