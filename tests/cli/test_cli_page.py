"""docs/cli.md shows what the commands themselves say."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from whet.cli.group import COMMANDS, main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


def help_of(name: str) -> str:
    """As a terminal of 80 columns shows it; without the list of techniques, for a new one is no change of this page."""
    context = click.Context(main, info_name="whet", terminal_width=78, **main.context_settings)
    if name:
        command = main.get_command(context, name)
        assert command is not None
        context = click.Context(command, parent=context, info_name=name)
    return context.get_help().split("\n\nTechniques (")[0].rstrip()


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_the_page_holds_the_help_of_every_command(name: str) -> None:
    shown = help_of(name)
    blocks = re.findall(r"^```\n(Usage: .*?)\n```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert [block for block in blocks if block == shown] == [shown], f"paste the output of `whet {name} --help` into docs/cli.md"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does_and_shows_an_example(name: str) -> None:
    shown = help_of(name)
    assert re.search(rf"^  whet {name}( |$)", shown, re.MULTILINE), "an example"
    assert max(map(len, shown.splitlines())) <= 80
