"""``whet plan``: what a recipe would do to each layer and what it would cost, before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from whet.cli import options
from whet.cli.quantities import Shape
from whet.cli.screen import Column, Screen
from whet.cli.technique_flags import TechniqueCommand, names
from whet.cli.words import counted, listed

if TYPE_CHECKING:
    from whet.core.plan import Plan, PlannedLayer

_TITLES = {"size_bytes": "size of the file", "latency_ratio": "time, against the original", "working_bytes": "memory of the work",
           "working_s": "time of the work"}  # fmt: skip


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in names() if name.startswith(incomplete)]


@click.command(cls=TechniqueCommand, short_help="What a recipe would do and cost; no work is done.")
@options.model
@click.option("--technique", metavar="NAME", shell_complete=_complete, help="One technique; its own options are flags too.")
@click.option("--recipe", metavar="FILE", help="The steps of a recipe (TOML).")
@options.target
@click.option("--calibration-samples", "samples", type=click.IntRange(1), metavar="N", default=300, show_default=True,
              help="Calibration samples that the time is told for.")  # fmt: skip
@click.option("--all", "every", is_flag=True, help="Every layer, not only those with weights.")
@options.weights
@options.input_shape
@options.standard
def command(screen: Screen, model: str, technique: str | None, recipe: str | None, target: str, samples: int, every: bool,
            weights: str | None, shapes: Sequence[Shape], values: Mapping[str, Any]) -> None:  # fmt: skip
    """Tell what a technique or a recipe would do to each layer of MODEL on a target, and what it would cost. No work is done.

    All costs are estimates, and say how they were made.

    \b
    whet plan model.onnx --technique static --target pi5
    whet plan model.onnx --technique weight_only --bits 4 --block 32
    whet plan model.onnx --recipe recipe.toml
    """
    import whet
    from whet.cli.models import model_of

    if (technique is None) == (recipe is None):
        raise click.UsageError("give either --technique or --recipe")
    if technique is not None and technique not in names():
        raise click.UsageError(f"there is no technique {technique!r}; the techniques are {', '.join(names())}")
    chosen = technique if technique is not None else _recipe(recipe or "")
    with screen.working():
        found = whet.plan(model_of(model, weights, shapes), chosen, target=target, samples=samples, options=values)
    if screen.as_json:
        return screen.document({**found.to_plain(), "weight_bytes_before": found.bytes_before, "weight_bytes_after": found.bytes_after})
    _show(screen, found, every)


def _recipe(file: str) -> Any:
    from whet.compress.recipes import as_recipe

    return as_recipe(Path(file))


def _show(screen: Screen, plan: Plan, every: bool) -> None:
    from whet.compress.report.cells import ESTIMATE, cell
    from whet.compress.report.numbers import BYTES, duration, number
    from whet.compress.report.quantities import kind_of

    shown = [layer for layer in plan.layers if every or layer.weights]
    columns = (Column("layer", flexible=True), Column("technique"), Column("runs as"), Column("bytes", True), Column("after", True))
    screen.table(columns, [[layer.name, layer.technique or "-", layer.runs_as or "-", number(layer.bytes_before, BYTES),
                            number(layer.bytes_after, BYTES)] for layer in shown])  # fmt: skip
    if len(shown) < len(plan.layers):
        screen.remark(f"and {counted(len(plan.layers) - len(shown), 'layer')} without weights: {_rest(plan.layers)} (--all shows them)")
    screen.gap()
    facts = {"weights": f"{number(plan.bytes_before, BYTES)} -> {number(plan.bytes_after, BYTES)}"}
    for cost in plan.costs:
        found = cell(cost, kind_of(cost.name, ""))
        told = f"{ESTIMATE} {duration(cost.value)}" if cost.name == "working_s" and cost.value is not None else found.text
        facts[_TITLES.get(cost.name, cost.name)] = f"{told} ({found.title})"
    screen.facts(facts)
    for note, layers in _notes(shown).items():
        screen.remark(f"note: {note}: {counted(len(layers), 'layer')} ({listed(layers, 3)})")
    for warning in plan.warnings:
        screen.line(f"warning: {warning}", "yellow")


def _rest(layers: Sequence[PlannedLayer]) -> str:
    """What becomes of the layers without weights, the most frequent first."""
    kinds: dict[str, int] = {}
    for layer in layers:
        if not layer.weights:
            kind = layer.runs_as or layer.note or layer.op
            kinds[kind] = kinds.get(kind, 0) + 1
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda each: -each[1]))


def _notes(layers: Sequence[PlannedLayer]) -> dict[str, list[str]]:
    """The layers of each note."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        if layer.note:
            found.setdefault(layer.note, []).append(layer.name)
    return found
