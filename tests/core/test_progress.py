"""Progress: every task that starts also stops, whatever happens, and silence costs nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from whet.core.progress import reporting, task, track


@dataclass
class Recorder:
    """Listens, and writes down what it hears."""

    heard: list[tuple[object, ...]] = field(default_factory=list)

    def start(self, name: str, total: int | None) -> int:
        self.heard.append(("start", name, total))
        return len(self.heard)

    def advance(self, task: int, steps: int, note: str) -> None:
        self.heard.append(("advance", task, steps, note))

    def stop(self, task: int) -> None:
        self.heard.append(("stop", task))


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    listener = Recorder()
    with reporting(listener):
        yield listener


def test_nobody_listens() -> None:
    assert list(track([1, 2], "a")) == [1, 2]
    with task("b") as running:
        running.advance(3, "note")


def test_track_counts_what_has_a_length(recorder: Recorder) -> None:
    assert list(track("xy", "letters")) == ["x", "y"]
    assert recorder.heard == [("start", "letters", 2), ("advance", 1, 1, ""), ("advance", 1, 1, ""), ("stop", 1)]


def test_track_does_not_guess(recorder: Recorder) -> None:
    assert list(track(iter("xy"), "letters")) == ["x", "y"]
    assert list(track(iter("z"), "more", total=5)) == ["z"]
    assert [heard for heard in recorder.heard if heard[0] == "start"] == [("start", "letters", None), ("start", "more", 5)]


def test_a_step_is_done_only_after_its_body(recorder: Recorder) -> None:
    for _ in track([1, 2], "a"):
        assert [heard[0] for heard in recorder.heard].count("advance") <= 1
        break
    with contextlib.suppress(ZeroDivisionError):
        for _ in track([1, 2], "b"):
            raise ZeroDivisionError
    assert [heard[0] for heard in recorder.heard].count("advance") == 0


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_task_stops_by_whatever_way_its_block_ends(recorder: Recorder, error: type[BaseException]) -> None:
    with pytest.raises(error), task("a", 3) as running:  # noqa: PT012
        running.advance(2, "conv1")
        raise error
    assert recorder.heard == [("start", "a", 3), ("advance", 1, 2, "conv1"), ("stop", 1)]


def test_an_abandoned_track_stops(recorder: Recorder) -> None:
    items = track([1, 2, 3], "a")
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert recorder.heard[-1] == ("stop", 1)


def test_tasks_nest_and_keep_their_numbers(recorder: Recorder) -> None:
    with task("outer", 1) as outer, task("inner") as inner:
        inner.advance()
        outer.advance()
    assert recorder.heard == [
        ("start", "outer", 1), ("start", "inner", None), ("advance", 2, 1, ""), ("advance", 1, 1, ""), ("stop", 2), ("stop", 1),
    ]


def test_listening_ends_with_the_block() -> None:
    outer, inner = Recorder(), Recorder()
    with reporting(outer):
        with contextlib.suppress(ValueError), reporting(inner):
            list(track([1], "in"))
            raise ValueError
        list(track([1], "out"))
    list(track([1], "nobody"))
    assert [heard[1] for heard in inner.heard if heard[0] == "start"] == ["in"]
    assert [heard[1] for heard in outer.heard if heard[0] == "start"] == ["out"]
