"""Progress bars on stderr: what is running, how far it is, how long still."""

from __future__ import annotations

from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Self

from whet.cli.words import plain, shortened

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

_REDRAW_SECONDS = 0.2
_NAME_LETTERS, _NOTE_LETTERS = 24, 28  # so that a line with its bar and its times fits 80 columns


class Bars:
    """Listens to the library (``whet.core.progress``) and draws a bar for each task that runs.

    It draws only when the work reports: a thread that redraws by the clock would take its share of the machine while latency is
    measured.
    """

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=10), MofNCompleteColumn(), TimeElapsedColumn(),
                   TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False, style="dim"))
        self._progress = Progress(*columns, console=console, auto_refresh=False, transient=True)
        self._drawn = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def start(self, name: str, total: int | None) -> int:
        number = self._progress.add_task(shortened(plain(name), _NAME_LETTERS, keep="start"), total=total, note="")
        self._draw(now=True)
        return number

    def advance(self, task: int, steps: int, note: str) -> None:
        self._progress.update(_id(task), advance=steps)
        if note:
            self._progress.update(_id(task), note=shortened(plain(note), _NOTE_LETTERS, keep="start"))
        self._draw()

    def stop(self, task: int) -> None:
        self._progress.remove_task(_id(task))
        self._draw()

    def _draw(self, *, now: bool = False) -> None:
        if now or monotonic() - self._drawn > _REDRAW_SECONDS:
            self._progress.refresh()
            self._drawn = monotonic()


def _id(task: int) -> TaskID:
    from rich.progress import TaskID

    return TaskID(task)
