"""The end of an optimisation on the terminal: the verdict, the candidates, and where everything lies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from whet.cli.screen import Column, Screen

if TYPE_CHECKING:
    from whet.compress.report.rows import Row
    from whet.core.outcome import Outcome

_STYLES = {"winner": "green", "refused": "dim", "skipped": "dim", "failed": "red"}


def show_outcome(screen: Screen, outcome: Outcome, places: Mapping[str, str]) -> None:
    """places: what lies where ("best model", "report")."""
    from whet.compress.report.rows import rows

    screen.line(outcome.headline, "bold green" if outcome.winner else "bold red")
    if not screen.quiet:
        found = rows(outcome)
        screen.gap()
        _show_candidates(screen, outcome, found)
        _show_reasons(screen, found)
        for blame in outcome.blame:
            screen.line(f"to blame: {blame}")
        for note in outcome.notes:
            screen.remark(f"note: {note}")
        screen.gap()
    screen.facts(places)


def _show_candidates(screen: Screen, outcome: Outcome, found: tuple[Row, ...]) -> None:
    from whet.compress.report.rows import columns

    measured = [row for row in found if row.trial.status == "measured"]
    titles = {key: heading for key, (heading, _) in columns(outcome).items()}
    shown = (Column(""), Column("candidate", flexible=True, keep="ends"), Column(titles["quality"], right=True), Column("drop"),
             Column("speed", right=True), Column("size", right=True), Column("memory", right=True, optional=True))  # fmt: skip
    texts = [[row.verdict[:1], row.trial.name, row.cells["quality"].text, row.cells["drop"].line,
              *(row.cells[key].text for key in ("faster", "size", "memory"))] for row in measured]  # fmt: skip
    screen.table(shown, texts, [_STYLES.get(row.standing, "") for row in measured])


def _show_reasons(screen: Screen, found: tuple[Row, ...]) -> None:
    """A line for each candidate that was refused, skipped or could not be made."""
    for row in found:
        if row.reasons:
            screen.remark(f"{row.verdict[:1]} {row.trial.name}: {'; '.join(row.reasons)}")
