"""``whet explain``: who does the damage of a recipe, why, and what would mend it at which price."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from whet.cli import options
from whet.cli.group import typed
from whet.cli.quantities import SECONDS, Shape
from whet.cli.screen import Screen

if TYPE_CHECKING:
    from whet.core.explanation import Explanation


@click.command(short_help="Which layers a recipe hurts, why, and what would mend it.")
@options.from_module
@click.option("--recipe", required=True, metavar="NAME_OR_FILE",
              help="A technique by name, a recipe (TOML), or int8, which is static.")  # fmt: skip
@click.option("--data", required=True, metavar="PATH",
              help="Samples to judge by, with labels if there are any: .npz, .csv, .parquet or a folder.")  # fmt: skip
@click.option("--calibration", metavar="PATH", help="Samples to find ranges by.  [default: split off --data]")
@options.metric
@options.target
@click.option("--layers", type=click.IntRange(1), default=40, show_default=True, metavar="N",
              help="Most layers that are measured one by one; the noisiest come first.")  # fmt: skip
@click.option("--remedies/--no-remedies", default=True, show_default=True, help="Whether remedies are tried and priced.")
@click.option("--time-budget", type=SECONDS, metavar="TIME", help="Begin nothing new after this: 90s, 10m or 1h.")
@options.seconds
@options.threads
@click.option("--seed", type=int, default=0, show_default=True, help="How calibration samples are split off --data.")
@click.option("--report", metavar="FILE", help="Write a page with plots (.html), which opens offline.")
@options.standard
def command(screen: Screen, model: str, weights: str | None, shapes: Sequence[Shape], report: str | None, **asked: Any) -> None:
    """Say which layers and tensors of MODEL a recipe hurts, why, and what would mend it at which price.

    Each layer is quantised alone, and left out alone; the cause is told from its weights and activations; remedies are tried, and
    what they give and cost is measured.

    \b
    whet explain model.onnx --recipe int8 --data eval.npz \\
        --calibration calib.npz --report why.html
    """
    place = None if report is None else options.writable(Path(report))
    with screen.working():
        found = _explained(model, weights, shapes, typed(click.get_current_context()), asked)
        if place is not None:
            from whet.compress.report import render_explanation
            from whet.device.files import write_file

            write_file(place, render_explanation(found))
    if screen.as_json:
        return screen.document({**found.to_plain(), **({"report": str(place)} if place else {})})
    from whet.cli.explanations import show_explanation

    show_explanation(screen, found, {"report": str(place)} if place else {})


def _explained(model: str, weights: str | None, shapes: Sequence[Shape], line: str, asked: dict[str, Any]) -> Explanation:
    import whet
    from whet.cli.models import known_metric, model_of

    target = whet.target(asked["target"])
    if asked["threads"] is not None:
        target = dataclasses.replace(target, threads=asked["threads"])
    given = {name: asked[name] for name in ("calibration", "layers", "remedies", "seconds", "seed")}
    return whet.explain(model_of(model, weights, shapes, asked["data"]), asked["recipe"], data=asked["data"], target=target, command=line,
                        metric=known_metric(asked["metric"]), time_budget_s=asked["time_budget"], **given)  # fmt: skip
