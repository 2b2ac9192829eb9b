"""The one seam through which long work says what is running, how far it is and how much there is.

The library calls ``track`` or ``task``; whoever wants to see it (a terminal, a notebook, a test) listens with ``reporting``.
Nobody listening costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Listener(Protocol):
    """What a progress display must do. ``total`` is None where the amount of work is not known."""

    def start(self, name: str, total: int | None) -> int:
        """A new task begins; the number that is returned names it from now on."""

    def advance(self, task: int, steps: int, note: str) -> None:
        """``steps`` more are done; ``note`` says on what."""

    def stop(self, task: int) -> None:
        """The task ended, finished or not."""


_listener: ContextVar[Listener | None] = ContextVar("whet_progress", default=None)


@contextmanager
def reporting(listener: Listener) -> Iterator[None]:
    """Send the progress of everything inside to ``listener``."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class Task:
    """A piece of long work; ``advance`` after each step."""

    def __init__(self, listener: Listener | None, name: str, total: int | None) -> None:
        self._listener = listener
        self._number = listener.start(name, total) if listener else 0

    def advance(self, steps: int = 1, note: str = "") -> None:
        if self._listener:
            self._listener.advance(self._number, steps, note)

    def stop(self) -> None:
        if self._listener:
            self._listener.stop(self._number)


@contextmanager
def task(name: str, total: int | None = None) -> Iterator[Task]:
    """A task that ends when the block does, by whatever way."""
    running = Task(_listener.get(), name, total)
    try:
        yield running
    finally:
        running.stop()


def track(items: Iterable[Item], name: str, total: int | None = None) -> Iterator[Item]:
    """The items, one after the other, with the progress told."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with task(name, total) as running:
        for item in items:
            yield item
            running.advance()
