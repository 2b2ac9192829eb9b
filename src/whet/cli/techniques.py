"""``whet techniques``: what can be done to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from whet.cli import options
from whet.cli.screen import Column, Screen
from whet.cli.technique_flags import names, sections

if TYPE_CHECKING:
    from whet.compress.technique import Option, Technique


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in names() if name.startswith(incomplete)]


@click.command(short_help="What can be done to a model.")
@click.argument("name", required=False, metavar="[NAME]", shell_complete=_complete)
@options.standard
def command(screen: Screen, name: str | None) -> None:
    """List the techniques; with NAME explain one: its paper, what it needs, what it costs, its limits and its options.

    \b
    whet techniques
    whet techniques static
    """
    from whet.compress.technique import technique

    if name is not None:
        found = technique(name)
        return screen.document(_plain(found)) if screen.as_json else _show(screen, found)
    every = [technique(each) for each in names()]
    if screen.as_json:
        return screen.document([_plain(each) for each in every])
    columns = (Column("name"), Column("needs"), Column("what it does", flexible=True, keep="start"))
    screen.table(columns, [[each.name, each.needs, each.sentence] for each in every])
    screen.remark("whet techniques NAME explains one; whet apply NAME --help shows its flags.")


def _show(screen: Screen, found: Technique) -> None:
    screen.line(found.sentence)
    screen.gap()
    screen.facts(dict(sections(found)))
    if found.options:
        screen.gap()
        screen.facts({option.name: f"{option.search.help}: {_values(option)}" for option in found.options})


def _values(option: Option) -> str:
    """ "8 (default), 4"."""
    words = [f"{value} (default)" if value == option.default else str(value) for value in option.search.values]
    return ", ".join(words if option.search.only else [*words, f"or another {option.kind.__name__}"])


def _plain(found: Technique) -> dict[str, Any]:
    return {
        "name": found.name, "sentence": found.sentence, "paper": found.paper, "needs": found.needs, "cost": found.cost,
        "limits": found.limits,
        "options": [{"name": option.name, "kind": option.kind.__name__, "default": option.default, "values": list(option.search.values),
                     "only": option.search.only, "help": option.search.help} for option in found.options],
    }  # fmt: skip
