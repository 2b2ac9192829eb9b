"""``whet profile``: how a model does on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from whet.cli import options
from whet.cli.quantities import Shape
from whet.cli.screen import Column, Screen
from whet.cli.words import counted

if TYPE_CHECKING:
    from whet.device.profile import Profile

TOP = 8


@click.command(short_help="Latency, memory, energy and operators on this machine.")
@options.from_module
@options.data
@options.threads
@options.seconds
@click.option("--all", "every", is_flag=True, help=f"Every executed node, not the {TOP} that take longest.")
@options.standard
def command(screen: Screen, model: str, weights: str | None, shapes: Sequence[Shape], data: str | None, threads: int | None,
            seconds: float, every: bool) -> None:  # fmt: skip
    """Measure MODEL on this machine: latency, throughput, memory, energy, the time of each operator, and how near it comes to what
    the machine can do at best.

    Without --data the inputs are made up. What was not measured is marked as an estimate.

    \b
    whet profile model.onnx
    whet profile model.onnx --data eval.npz --threads 1 --seconds 5
    """
    import whet
    from whet.cli.models import model_of

    with screen.working():
        found = whet.measure(model_of(model, weights, shapes, data), data=data, threads=threads, seconds=seconds)
    if screen.as_json:
        return screen.document(found.to_plain())
    _show_numbers(screen, found)
    if not screen.quiet:
        screen.gap()
        _show_operators(screen, found, every)


def _show_numbers(screen: Screen, found: Profile) -> None:
    from whet.compress.report.cells import cell
    from whet.compress.report.quantities import kind_of, title_of

    rows = []
    for name, measurement in found.measurements.items():
        each = cell(measurement, kind_of(name, ""))
        why = each.title if each.missing else "estimate" if each.estimated else "measured"
        rows.append([title_of(name, ""), each.text, each.detail, f"{why}; {measurement.method}" if measurement.method else why])
    columns = (Column(""), Column("value", right=True), Column("95% interval"), Column("how", flexible=True, keep="start"))
    screen.table(columns, rows)
    limits = found.limits
    threads = f" on {counted(limits.threads, 'thread')}" if limits else ""
    screen.remark(f"{found.machine.cpu or found.machine.arch}{threads}, onnxruntime {found.machine.onnxruntime}"
                  + ("; the inputs are made up" if found.synthetic else ""))  # fmt: skip


def _show_operators(screen: Screen, found: Profile, every: bool) -> None:
    from whet.compress.report.numbers import MICROSECONDS, PERCENT, number

    shown = found.operators if every else found.operators[:TOP]
    columns = (Column("executed node", flexible=True), Column("operator"), Column("time", right=True), Column("share", right=True))
    screen.table(columns, [[each.name, each.op, number(each.mean_us, MICROSECONDS), number(each.share, PERCENT)] for each in shown])
    rest = found.operators[len(shown) :]
    if rest:
        share = number(sum(each.share for each in rest), PERCENT)
        screen.remark(f"and {counted(len(rest), 'node')} with {share} of the time (--all shows them)")
