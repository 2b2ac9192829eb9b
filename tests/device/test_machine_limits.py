from __future__ import annotations

import json
from pathlib import Path

import pytest

from whet.core.progress import reporting
from whet.device import machine_limits as rooms
from whet.device.machine import describe
from whet.device.machine_limits import MachineLimits, cache_folder, machine_limits

AT = "2026-01-01T00:00:00Z"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real measuring, over sizes so small that the figures mean nothing."""
    monkeypatch.setattr(rooms, "_SIZES", (32,))
    monkeypatch.setattr(rooms, "_PRODUCT_SECONDS", 0.02)
    monkeypatch.setattr(rooms, "_READ_SECONDS", 0.02)
    monkeypatch.setattr(rooms, "_buffer_bytes", lambda machine: 2**20)


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring again would be noticed."""
    monkeypatch.setattr(rooms, "_measure", lambda *_: pytest.fail("measured again"))


@pytest.mark.usefixtures("quick")
def test_limits_say_what_they_speak_of(tmp_path: Path) -> None:
    found = machine_limits(threads=1, cache=tmp_path, at=AT)
    assert min(found.float32_macs_per_s, found.int8_macs_per_s, found.bandwidth_bytes_per_s) > 1e6
    assert found.macs_per_s == {"float32": found.float32_macs_per_s, "int8": found.int8_macs_per_s}
    assert (found.threads, found.at, found.fingerprint, found.device) == (1, AT, describe().fingerprint, describe().label)
    assert MachineLimits.from_json(found.to_json()) == found


@pytest.mark.usefixtures("quick")
def test_measured_once_for_each_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (machine_limits(threads=threads, cache=tmp_path) for threads in (1, 2))
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(rooms, "_measure", lambda *_: pytest.fail("measured again"))
    assert machine_limits(threads=1, cache=tmp_path) == one
    assert machine_limits(threads=2, cache=tmp_path) == two


@pytest.mark.usefixtures("quick")
def test_refresh_measures_again(tmp_path: Path) -> None:
    machine_limits(threads=1, cache=tmp_path, at="2025-01-01T00:00:00Z")
    assert machine_limits(threads=1, cache=tmp_path, at=AT).at == "2025-01-01T00:00:00Z"
    assert machine_limits(threads=1, cache=tmp_path, refresh=True, at=AT).at == AT
    assert machine_limits(threads=1, cache=tmp_path).at == AT


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("broken", ["", "{", "[]", '{"threads": 1}', "\0\xff", "foreign", "zero"])
def test_a_broken_cache_is_measured_again(tmp_path: Path, broken: str) -> None:
    good = machine_limits(threads=1, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    changed = {"foreign": {"fingerprint": "of another machine"}, "zero": {"int8_macs_per_s": 0.0}}
    path.write_text(json.dumps({**good.to_plain(), **changed[broken]}) if broken in changed else broken)
    again = machine_limits(threads=1, cache=tmp_path, at=AT)
    assert again.at == AT
    assert again.int8_macs_per_s > 0
    assert MachineLimits.from_json(path.read_text()) == again
    assert [file.suffix for file in tmp_path.iterdir()] == [".json"]


@pytest.mark.usefixtures("quick")
def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert machine_limits(threads=1, cache=tmp_path / "file" / "inside").threads == 1


@pytest.mark.usefixtures("quick")
def test_progress_is_told(tmp_path: Path) -> None:
    told: list[object] = []

    class Listener:
        def start(self, name: str, total: int | None) -> int:
            told.append((name, total))
            return 0

        def advance(self, task: int, steps: int, note: str) -> None:
            told.append(steps)

        def stop(self, task: int) -> None:
            told.append("stop")

    with reporting(Listener()):
        machine_limits(threads=1, cache=tmp_path)
    assert told == [("measure the machine", 3), 1, 1, 1, "stop"]


def test_the_folder_is_told_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WHET_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("WHET_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "whet"


def test_the_buffer_outgrows_the_cache_and_spares_the_memory() -> None:
    from dataclasses import replace

    here = describe()
    assert rooms._buffer_bytes(replace(here, cache_bytes=64 * 2**20, memory_bytes=2**36)) == 512 * 2**20
    assert rooms._buffer_bytes(replace(here, cache_bytes=0, memory_bytes=0)) == 2**27
    assert rooms._buffer_bytes(replace(here, cache_bytes=2**30, memory_bytes=2**30)) == 2**27


def test_the_rate_is_of_multiply_accumulates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "_SIZES", (16, 32))
    monkeypatch.setattr(rooms, "_fastest", lambda work, until: 0.001)
    assert rooms._product_rate("MatMul", "float32", "float32", 1) == pytest.approx(32**3 / 0.001)
    assert rooms._read_rate(2**20, 2) == pytest.approx(2**20 / 0.001)


@pytest.mark.slow
@pytest.mark.timing
def test_the_real_thing_is_quick_and_plausible(tmp_path: Path) -> None:
    from time import perf_counter

    begin = perf_counter()
    found = machine_limits(cache=tmp_path)
    assert perf_counter() - begin < 5
    assert 1e8 < found.float32_macs_per_s < 1e14
    assert 1e8 < found.bandwidth_bytes_per_s < 1e13
    if "avx512_vnni" in describe().isa:
        assert found.int8_macs_per_s > 1.5 * found.float32_macs_per_s
