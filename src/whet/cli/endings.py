"""How a command ends when it does not end well: one message on stderr, and a code."""

from __future__ import annotations

from typing import IO, Any

import click

FAILED, REFUSED, GATED, STOPPED = 1, 2, 3, 130
_MOST_LETTERS = 1500  # of a message: a hostile file may put names of any length into it


class Ending(click.ClickException):
    """Shown as ``whet: message``."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click 8.5 declares a ClassVar, and reads the instance's

    def show(self, file: IO[Any] | None = None) -> None:
        from whet.cli.words import plain

        text = plain(self.message)
        short = text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}..."
        click.echo(f"whet: {short}", file=file, err=file is None)
