from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.device.tiny_models import dense

from whet.core.errors import Refused
from whet.core.measurement import Interval, Measurement
from whet.device import profile as rooms
from whet.device.machine import Stamp, describe
from whet.device.machine_limits import MachineLimits
from whet.device.profile import Profile, profile, roofline_share

AT = "2026-01-01T00:00:00Z"
LIMITS = MachineLimits(1e9, 4e9, 1e8, threads=1, fingerprint="f", device="d", onnxruntime="o", at=AT)
MEDIAN = Measurement("latency_ms", 20.0, " ms", Interval(16, 25, 0.95), n=7)
WHERE = Stamp("d", AT)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(dense(64))
    return tmp_path / "model.onnx"


def test_the_whole_profile(model: Path) -> None:
    macs = 2 * 64 * 64
    found = profile(model, threads=1, seconds=0.05, limits=LIMITS, macs=macs, weight_bytes=4 * macs, at=AT)
    numbers = found.measurements
    assert list(numbers) == ["latency_ms", "latency_p95_ms", "throughput_per_s", "size_bytes", "peak_rss_bytes", "model_rss_bytes",
                             "energy_mj", "roofline_share"]
    for number in numbers.values():
        assert number.value is not None, number.why
        assert (number.at, number.device) == (AT, describe().label)
        assert number.method
    assert numbers["size_bytes"].value == model.stat().st_size
    assert numbers["roofline_share"].value == pytest.approx(1000 * macs / 1e9 / (numbers["latency_ms"].value or 0))
    assert {one.op for one in found.operators} == {"MatMul", "Relu"}
    assert found.synthetic
    assert found.limits == LIMITS
    assert Profile.from_json(found.to_json()) == found


def test_feeds_and_weight_files_that_are_given_are_used(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model.parent / "weights").write_bytes(b"1234567")
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(rooms, "memory_use", lambda _, feeds, **__: seen.append(feeds["x"].shape) or (MEDIAN, MEDIAN))
    found = profile(model, feeds={"x": np.ones((5, 64), np.float32)}, threads=1, seconds=0.02, files=[model.parent / "weights"])
    assert seen == [(5, 64)]
    assert not found.synthetic
    assert found.size.value == model.stat().st_size + 7
    assert found.roofline.value is None
    assert "multiply-accumulates" in found.roofline.why


def test_the_share_is_of_what_binds() -> None:
    products = roofline_share(MEDIAN, {"float32": 10**7}, 10**5, LIMITS, 0, WHERE)  # 10 ms against 1 ms
    assert products.value == pytest.approx(0.5)
    assert "products bind" in products.method
    assert products.interval == Interval(10 / 25, 10 / 16, 0.95)
    assert (products.direction, products.n, products.at) == ("higher", 7, AT)
    weights = roofline_share(MEDIAN, {"float32": 10**6}, 10**6, LIMITS, 0, WHERE)  # 1 ms against 10 ms
    assert weights.value == pytest.approx(0.5)
    assert "weights bind" in weights.method


def test_each_dtype_has_its_rate() -> None:
    assert roofline_share(MEDIAN, {"int8": 4 * 10**7}, None, LIMITS, 0, WHERE).value == pytest.approx(0.5)
    mixed = roofline_share(MEDIAN, {"int8": 2 * 10**7, "float16": 5 * 10**6}, None, LIMITS, 0, WHERE)
    assert mixed.value == pytest.approx(0.5)
    with pytest.raises(Refused, match="no rate for complex64"):
        roofline_share(MEDIAN, {"complex64": 1}, None, LIMITS, 0, WHERE)


def test_weights_in_the_cache_are_not_bound_by_the_memory() -> None:
    assert roofline_share(MEDIAN, {"float32": 10**6}, 10**6, LIMITS, 10**6, WHERE).value == pytest.approx(1 / 20)


@pytest.mark.parametrize(("median", "macs", "limits", "why"), [
    (MEDIAN, None, LIMITS, "multiply-accumulates"), (MEDIAN, {"int8": 1}, None, "limits of this machine"),
    (replace(MEDIAN, value=None, why="it crashed"), {"int8": 1}, LIMITS, "it crashed"),
])
def test_what_is_lacking_is_said(median: Measurement, macs: dict[str, int] | None, limits: MachineLimits | None, why: str) -> None:
    found = roofline_share(median, macs, 1, limits, 0, WHERE)
    assert found.value is None
    assert why in found.why


def test_limits_for_other_threads_are_refused(model: Path) -> None:
    with pytest.raises(Refused, match=r"on 2 threads.*measured on 1"):
        profile(model, threads=2, limits=LIMITS)
