"""``whet report``: the report's page again, from its JSON."""

from __future__ import annotations

from pathlib import Path

import click

from whet.cli import options
from whet.cli.screen import Screen


@click.command(short_help="The page of a report again, from its JSON.")
@click.argument("source", metavar="FOLDER")
@click.option("-o", "--out", metavar="FILE", help="The page to write.  [default: report.html beside report.json]")
@options.standard
def command(screen: Screen, source: str, out: str | None) -> None:
    """Render report.html again from the report.json of an optimisation: after an update of Whet, or where only the JSON was kept.

    FOLDER is what `whet optimize -o` wrote, or a report.json itself.

    \b
    whet report out/
    """
    from whet.cli.outcomes import show_outcome
    from whet.compress.report import HTML_NAME, JSON_NAME, render
    from whet.core.errors import Refused
    from whet.core.outcome import Outcome
    from whet.device.files import write_file

    given = Path(source)
    file = given / JSON_NAME if given.is_dir() else given
    if not file.is_file():
        raise Refused(f"read the report {file}", found="there is no such file", do="give the folder that `whet optimize -o` wrote")
    with screen.working():
        outcome = Outcome.from_json(file.read_bytes())
        place = options.writable(Path(out) if out else file.with_name(HTML_NAME))
        write_file(place, render(outcome))
    if screen.as_json:
        return screen.document({"report": str(place), "winner": outcome.winner, "headline": outcome.headline})
    show_outcome(screen, outcome, {"report": str(place)})
