from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.device.tiny_models import relu

from whet.core.errors import Refused
from whet.device import energy as rooms
from whet.device.energy import energy, estimated_energy, packages, rapl_energy, spent_uj
from whet.device.session import open_session

FEEDS = {"x": np.ones((1, 3), np.float32)}
AT = "2026-01-01T00:00:00Z"


def powercap(root: Path, **domains: str) -> Path:
    """intel-rapl folders: ``p0="package-0"`` becomes intel-rapl:0; a name with an underscore a part of it."""
    for folder, name in domains.items():
        path = root / ("intel-rapl:" + folder[1:].replace("_", ":"))
        path.mkdir()
        for file, text in (("name", name), ("energy_uj", "0"), ("max_energy_range_uj", "1000000")):
            (path / file).write_text(text + "\n")
    return root


def test_only_packages_are_added_up(tmp_path: Path) -> None:
    found = packages(powercap(tmp_path, p0="package-0", p1="package-1", p2="psys", p0_0="core", p0_1="dram"))
    assert [domain.name for domain in found] == ["package-0", "package-1"]
    assert found[0].range_uj == 1_000_000


@given(start=st.integers(0, 999), spent=st.integers(0, 999))
def test_a_counter_that_wraps_still_tells_the_difference(start: int, spent: int) -> None:
    assert spent_uj(start, (start + spent) % 1000, 1000) == spent


def test_measured_is_the_energy_of_one_inference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two packages whose counters move by 5 mJ at each reading, and wrap meanwhile; windows of a single inference."""
    root, state = powercap(tmp_path, p0="package-0", p1="package-1"), {"package-0": 990_000, "package-1": 0}

    def read(domain: rooms.Domain) -> int:
        state[domain.name] = (state[domain.name] + 5000) % domain.range_uj
        return state[domain.name]

    monkeypatch.setattr(rooms, "_read_uj", read)
    found = rapl_energy(open_session(relu(), threads=1), FEEDS, seconds=0, powercap=root, at=AT)
    assert found.value == pytest.approx(10)
    assert (found.source, found.unit, found.n, found.at) == ("measured", " mJ", 6, AT)
    assert found.interval is not None
    assert (found.interval.low, found.interval.high, found.interval.confidence) == (10, 10, 1 - 2**-5)
    assert "package-0, package-1" in found.method


def test_more_inferences_share_the_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, ticks = powercap(tmp_path, p0="package-0"), iter(range(10**6))
    monkeypatch.setattr(rooms, "perf_counter", lambda: next(ticks) / 4)  # a window of 1 s holds four inferences
    readings = iter([0, *(at // 2 * 8000 + at % 2 * 8000 for at in range(12))])
    monkeypatch.setattr(rooms, "_read_uj", lambda domain: next(readings))
    found = rapl_energy(open_session(relu(), threads=1), FEEDS, seconds=6, powercap=root)
    assert found.n == 24
    assert found.value == pytest.approx(2)


def test_without_a_counter_the_reason_is_given(tmp_path: Path) -> None:
    found = rapl_energy(open_session(relu(), threads=1), FEEDS, powercap=tmp_path / "none")
    assert found.value is None
    assert "no energy counter" in found.why


def test_without_the_right_to_read_the_reason_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(domain: rooms.Domain) -> int:
        raise PermissionError(13, "Permission denied", str(domain.counter))

    monkeypatch.setattr(rooms, "_read_uj", forbidden)
    found = rapl_energy(open_session(relu(), threads=1), FEEDS, powercap=powercap(tmp_path, p0="package-0"))
    assert found.value is None
    assert "may not be read" in found.why
    assert "energy_uj" in found.why


def test_a_counter_of_nonsense_is_no_crash(tmp_path: Path) -> None:
    root = powercap(tmp_path, p0="package-0")
    (root / "intel-rapl:0" / "energy_uj").write_text("none")
    assert "cannot be read" in rapl_energy(open_session(relu(), threads=1), FEEDS, powercap=root).why


def test_the_stated_model_by_hand() -> None:
    """1e9 float32 products at 4.6 pJ are 4.6 mJ; 1e6 bytes at (162.5 + 325) / 2 pJ are 0.24375 mJ."""
    found = estimated_energy({"float32": 10**9}, 10**6, at=AT)
    assert found.value == pytest.approx(4.6 + 0.24375)
    assert (found.source, found.at, found.unit) == ("estimated", AT, " mJ")
    assert "Horowitz" in found.method
    assert estimated_energy({"int8": 10**9}, 0).value == pytest.approx(0.3)
    assert estimated_energy({"float16": 10**9, "uint8": 10**9}, 0).value == pytest.approx(1.5 + 0.3)
    assert estimated_energy({}, 0).value == 0


def test_what_has_no_price_is_refused() -> None:
    with pytest.raises(Refused, match="no published price for complex64"):
        estimated_energy({"complex64": 1}, 0)
    with pytest.raises(Refused, match="negative"):
        estimated_energy({"int8": -1}, 0)


def test_the_estimate_stands_in_only_where_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, nowhere = open_session(relu(), threads=1), tmp_path / "none"
    assert energy(session, FEEDS, macs={"int8": 10**9}, bytes_moved=0, powercap=nowhere).source == "estimated"
    assert energy(session, FEEDS, powercap=nowhere).value is None
    unpriced = energy(session, FEEDS, macs={"complex64": 1}, bytes_moved=0, powercap=nowhere)
    assert unpriced.value is None
    assert "no energy counter" in unpriced.why
    assert "complex64" in unpriced.why
    readings = iter(range(1000))
    monkeypatch.setattr(rooms, "_read_uj", lambda domain: next(readings))
    counted = energy(session, FEEDS, macs={"int8": 10**9}, bytes_moved=0, seconds=0, powercap=powercap(tmp_path, p0="package-0"))
    assert counted.source == "measured"
