from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.device.tiny_models import dense, relu

from whet.core.errors import Refused
from whet.core.progress import Task, reporting
from whet.device import latency as rooms
from whet.device.latency import SESSION_SPREAD, Latency, interleave, time_rounds
from whet.device.machine import describe
from whet.device.session import SPINNING_STOP, Array, example_feeds, open_session, specs
from whet.device.timing_intervals import median_interval

AT = "2026-01-01T00:00:00Z"
SILENT = Task(None, "", None)


def rows(count: int, size: int = 64) -> dict[str, Array]:
    return {"x": np.ones((count, size), np.float32)}


class Clock:
    """A clock that only the fake models move, so that a test knows every time beforehand."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def model(self, name: str, cost_ns: Callable[[], float], log: list[str]) -> Callable[[], None]:
        def run() -> None:
            log.append(name)
            self.now += round(cost_ns())

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(rooms, "perf_counter_ns", made)
    return made


def test_pairing_cancels_drift(clock: Clock) -> None:
    """The machine becomes five times slower meanwhile; the ratio stays what it is."""
    log: list[str] = []
    slowing = lambda ms: lambda: ms * 1e6 * (1 + len(log) / 100)  # noqa: E731
    models = {"p": clock.model("p", slowing(2), log), "c": clock.model("c", slowing(1), log)}
    times = time_rounds(models, 0, 100, 100, 2, SILENT)
    parent, candidate = (np.array([np.median(timing) for timing in times[name]]) for name in "pc")
    assert parent.max() > 3 * parent.min()
    found = median_interval(candidate / parent, 0.95)
    assert found is not None
    assert found.low < 0.5 < found.high
    assert found.high - found.low < 0.02


def test_order_is_shuffled_so_that_no_one_always_follows_the_same(clock: Clock) -> None:
    log: list[str] = []
    models = {name: clock.model(name, lambda: 60e6, log) for name in "abc"}  # long: no settling, one inference a round
    time_rounds(models, 0, 120, 120, 1, SILENT)
    rounds = np.reshape(log[-360:], (120, 3))
    for name in "abc":
        for place in range(3):
            assert 20 < (rounds[:, place] == name).sum() < 60
        before = [log[at - 1] for at in range(len(log) - 359, len(log)) if log[at] == name]
        assert all(before.count(other) > 20 for other in "abc" if other != name)
    again: list[str] = []
    time_rounds({name: clock.model(name, lambda: 60e6, again) for name in "abc"}, 0, 120, 120, 1, SILENT)
    assert again == log


@pytest.mark.parametrize(("cost_ns", "settle", "repeats"), [(10e3, 100, 100), (300e3, 4, 4), (2e6, 1, 1), (60e6, 0, 1)])
def test_a_timing_lasts_a_millisecond_after_settling(clock: Clock, cost_ns: float, settle: int, repeats: int) -> None:
    log: list[str] = []
    times = time_rounds({"a": clock.model("a", lambda: cost_ns, log)}, 0, 10, 10, 1, SILENT)["a"]
    assert [len(timing) for timing in times] == [repeats] * 10
    assert len(log) == 1 + 3 + 10 * (settle + repeats)  # warm-up, plan, rounds
    np.testing.assert_allclose(np.concatenate(times), cost_ns / 1e6)


@pytest.mark.parametrize(("seconds", "expected"), [(0, 40), (0.5, 100), (100, 500)])
def test_rounds_follow_the_time_between_their_limits(clock: Clock, seconds: float, expected: int) -> None:
    log: list[str] = []
    models = {name: clock.model(name, lambda: 1.25e6, log) for name in "ab"}  # with settling 5 ms a round
    rounds = len(time_rounds(models, seconds, 40, 500, 1, SILENT)["a"])
    assert expected <= rounds <= expected + 1


def test_the_ratio_is_candidate_over_parent() -> None:
    session, other = open_session(dense(128, 8), threads=1), open_session(dense(128, 2), threads=1)
    feeds = {"x": np.ones((16, 128), np.float32)}
    found = interleave({"old": session, "new": other}, {"old": feeds, "new": feeds}, parent="old", seconds=0.1, at=AT)
    ratio = found["new"].ratio
    assert ratio.value is not None
    assert 0.1 < ratio.value < 0.6
    assert ratio.interval is not None
    assert ratio.interval.low <= ratio.value / (1 + SESSION_SPREAD)
    assert ratio.interval.high >= ratio.value * (1 + SESSION_SPREAD)
    assert found["old"].ratio.value == 1.0
    assert found["old"].ratio.interval is None


def test_measurements_are_complete() -> None:
    session = open_session(dense(), threads=1)
    (found,) = interleave({"m": session}, {"m": rows(1)}, parent="m", seconds=0.05, at=AT).values()
    named = {one.name: one for one in found.measurements}
    assert list(named) == ["latency_ms", "latency_p95_ms", "throughput_per_s", "latency_ratio"]
    assert [one.unit for one in found.measurements] == [" ms", " ms", " /s", ""]
    assert [one.direction for one in found.measurements] == ["lower", "lower", "higher", "lower"]
    for one in found.measurements:
        assert (one.at, one.device, one.source) == (AT, describe().label, "measured")
        assert one.n >= 40
        assert "rounds" in one.method
        if one.name != "latency_ratio":
            assert one.interval is not None
            assert one.interval.low < (one.value or 0) < one.interval.high
    median, p95, throughput = (one.value or 0 for one in found.measurements[:3])
    assert p95 >= median > 0
    assert 0.02 < throughput / (1000 / median) < 1.5  # the mean is above the median, on a busy machine by far
    assert Latency.from_json(found.to_json()) == found


def test_the_collector_rests_while_timing_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(rooms, "time_rounds", lambda *_: seen.append(gc.isenabled()) or {"m": [np.ones(1)] * 40})
    session = {"m": open_session(relu(), threads=1)}
    interleave(session, {"m": rows(1, 3)}, parent="m")
    assert seen == [False]
    assert gc.isenabled()
    gc.disable()
    interleave(session, {"m": rows(1, 3)}, parent="m")
    assert not gc.isenabled()
    gc.enable()
    monkeypatch.setattr(rooms, "time_rounds", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        interleave(session, {"m": rows(1, 3)}, parent="m")
    assert gc.isenabled()


def test_wrong_requests_are_refused() -> None:
    session, feeds = open_session(relu(), threads=1), rows(1, 3)
    with pytest.raises(Refused, match=r"compare latency with 'q'.*\['m'\]"):
        interleave({"m": session}, {"m": feeds}, parent="q")
    with pytest.raises(Refused, match="no inputs for 'n'"):
        interleave({"m": session, "n": session}, {"m": feeds}, parent="m")
    with pytest.raises(Refused, match="min_rounds 9 and max_rounds 3"):
        interleave({"m": session}, {"m": feeds}, parent="m", min_rounds=9, max_rounds=3)
    with pytest.raises(Refused, match="input 'x': shape"):
        interleave({"m": session}, {"m": rows(1, 4)}, parent="m")


def test_sessions_that_spin_on_are_refused_side_by_side() -> None:
    spinning, quiet = open_session(relu(), threads=2, options={SPINNING_STOP: "0"}), open_session(relu(), threads=2)
    with pytest.raises(Refused, match=f"'s' spin on.*{SPINNING_STOP}"):
        interleave({"q": quiet, "s": spinning}, {"q": rows(1, 3), "s": rows(1, 3)}, parent="q")
    assert interleave({"s": spinning}, {"s": rows(1, 3)}, parent="s", seconds=0.01)["s"].median.value


def test_progress_is_told() -> None:
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
        interleave({"m": open_session(relu(), threads=1)}, {"m": rows(1, 3)}, parent="m", seconds=0, max_rounds=500)
    assert told == [("measure latency", None), 20, 20, "stop"]


@pytest.mark.slow
@pytest.mark.timing
@pytest.mark.parametrize("threads", [1, 2])
def test_a_session_against_itself_is_found_equal_as_often_as_promised(assets: Path, threads: int) -> None:
    """One session under two names: 95 % of the intervals should hold 1 (93 to 95 % were measured, docs/measuring.md).

    The bound lies far below, for a neighbour on the machine costs some.
    """
    session = open_session(assets / "cwru_bearing" / "model.onnx", threads=threads)
    inference = rooms._inference(session, example_feeds(specs(session)[0]))
    hits = 0
    with rooms.collector_off():
        for _ in range(60):
            times = time_rounds({"a": inference, "b": inference}, 0.2, 40, 5000, 3, SILENT)
            first, second = (np.array([np.median(timing) for timing in times[name]]) for name in "ab")
            found = median_interval(second / first, 0.95)
            assert found is not None
            hits += found.low <= 1 <= found.high
    assert hits >= 48


@pytest.mark.slow
@pytest.mark.timing
def test_two_sessions_over_one_file_are_found_equal(assets: Path) -> None:
    """They truly differ a little (memory layout); SESSION_SPREAD must cover it: without it 2 to 10 of 20 hold 1, with it 19 or 20 on a
    quiet machine and 16 were seen on a busy one."""
    model, hits = assets / "kws_mlperf_tiny" / "model.onnx", 0
    for _ in range(20):
        sessions = {name: open_session(model, threads=2) for name in "ab"}
        feeds = example_feeds(specs(sessions["a"])[0])
        found = interleave(sessions, dict.fromkeys("ab", feeds), parent="a", seconds=0.4)["b"].ratio.interval
        assert found is not None
        hits += found.low <= 1 <= found.high
    assert hits >= 13
