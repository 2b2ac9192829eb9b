"""The screen: results on stdout (for people, or as JSON), everything else on stderr."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TextIO

from whet.cli.words import Part, plain, shortened

if TYPE_CHECKING:
    from rich.console import Console

_UNLIMITED = 10_000  # columns, where no terminal sets a limit: what is piped is neither wrapped nor cut
_GAP = 2
_LEAST_ROOM, _GOOD_ROOM = 12, 24


@dataclass(frozen=True)
class Column:
    """right: numbers. flexible: the one that is cut where the terminal is too narrow, so that ``keep`` is left. optional: left out
    where the flexible one would have little room."""

    title: str
    right: bool = False
    flexible: bool = False
    keep: Part = "end"
    optional: bool = False


@dataclass(frozen=True)
class Screen:
    """as_json: one JSON document and nothing else. quiet: no progress and no remarks. verbose: warnings too."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False

    @cached_property
    def console(self) -> Console:
        """stdout. Rich drops colours where it is no terminal and where NO_COLOR is set."""
        from rich.console import Console

        return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else _UNLIMITED)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Around everything that takes time: progress on stderr, and no foreign word on stdout."""
        with ExitStack() as stack:
            stack.enter_context(redirect_stdout(sys.stderr))
            stack.enter_context(warnings.catch_warnings())
            if not self.verbose:
                warnings.simplefilter("ignore")
            stack.enter_context(_logging_to_stderr(self.verbose))
            if not self.as_json and not self.quiet and sys.stderr.isatty():
                from rich.console import Console

                from whet.cli.progress import Bars
                from whet.core.progress import reporting

                stack.enter_context(reporting(stack.enter_context(Bars(Console(stderr=True, highlight=False)))))
            yield

    def document(self, plain_document: Any) -> None:
        """The JSON document. Letters beyond ASCII are escaped: a pipe may have any encoding."""
        sys.stdout.write(json.dumps(plain_document, indent=2, allow_nan=False) + "\n")

    def line(self, text: str = "", style: str = "") -> None:
        """A line of the result; wrapped between words on a terminal."""
        from rich.text import Text

        self._write(Text(plain(text), style=style))

    def remark(self, text: str, style: str = "dim") -> None:
        """A line that --quiet leaves out."""
        if not self.quiet:
            self.line(text, style)

    def gap(self) -> None:
        if not self.quiet:
            sys.stdout.write("\n")

    def facts(self, facts: Mapping[str, str]) -> None:
        """Names and what is said of them, in two columns."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, _GAP, 0, 0))
        table.add_column(no_wrap=True, style="bold")
        table.add_column(overflow="fold")
        for name, said in facts.items():
            table.add_row(Text(plain(name)), Text(plain(said)))
        self._write(table)

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[str]], styles: Sequence[str] = ()) -> None:
        """A table that fits the terminal. styles: of each row."""
        from rich.table import Table
        from rich.text import Text

        columns, cells = fitted(columns, [[plain(cell) for cell in row] for row in rows], self.console.width)
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        for column in columns:
            table.add_column(Text(column.title), justify="right" if column.right else "left", no_wrap=True, overflow="ellipsis")
        for row, style in zip(cells, styles or [""] * len(cells), strict=True):
            table.add_row(*map(Text, row), style=style)
        self._write(table)

    def _write(self, renderable: Any) -> None:
        """Without the spaces with which Rich fills up the last column."""
        with self.console.capture() as captured:
            self.console.print(renderable)
        _writable(sys.stdout)
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def fitted(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> tuple[list[Column], list[list[str]]]:
    """The columns and rows, the flexible column cut to what the others leave of ``width``."""
    widths = [max([len(column.title), *(len(row[at]) for row in rows)]) for at, column in enumerate(columns)]
    flexible = next((at for at, column in enumerate(columns) if column.flexible), None)
    if flexible is None:
        return list(columns), [list(row) for row in rows]
    kept, wanted = list(range(len(columns))), min(widths[flexible], _GOOD_ROOM)
    while _room(kept, widths, flexible, width) < wanted and any(columns[at].optional for at in kept):
        kept.remove(next(at for at in reversed(kept) if columns[at].optional))
    room, part = max(_room(kept, widths, flexible, width), _LEAST_ROOM), columns[flexible].keep
    cut = [[shortened(cell, room, keep=part) if at == flexible else cell for at, cell in enumerate(row)] for row in rows]
    return [columns[at] for at in kept], [[row[at] for at in kept] for row in cut]


def _room(kept: Sequence[int], widths: Sequence[int], flexible: int, width: int) -> int:
    """What the other columns that are kept leave to the flexible one."""
    return width - sum(widths[at] for at in kept if at != flexible) - _GAP * (len(kept) - 1)


@contextmanager
def _logging_to_stderr(verbose: bool) -> Iterator[None]:
    """Warnings of the libraries with --verbose; nothing without it (Python alone would print them)."""
    root = logging.getLogger()
    own: logging.Handler = logging.StreamHandler(sys.stderr) if verbose else logging.NullHandler()
    own.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    own.setLevel(logging.WARNING)
    root.addHandler(own)
    try:
        yield
    finally:
        root.removeHandler(own)


def _writable(stream: TextIO) -> None:
    """A terminal without × or ★ shows a question mark, and no traceback."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure and (stream.encoding or "").lower().replace("-", "") not in ("utf8", "utf16", "utf32"):
        reconfigure(errors="replace")
