"""``whet optimize``: the best version of a model for a device, measured, gated and explained."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from whet.cli import options
from whet.cli.endings import GATED, REFUSED, STOPPED, Ending
from whet.cli.group import typed
from whet.cli.quantities import LATENCY, LOSS, SECONDS, SIZE, Shape
from whet.cli.screen import Screen
from whet.cli.words import counted

if TYPE_CHECKING:
    from whet.core.outcome import Outcome

GOALS = ("latency", "size", "memory", "energy", "drop")


@click.command(short_help="The best version for a target, measured and gated.")
@options.from_module
@click.option("--data", required=True, metavar="PATH",
              help="Samples to judge by, with labels if there are any: .npz, .csv, .parquet or a folder.")  # fmt: skip
@click.option("--calibration", metavar="PATH", help="Samples to find ranges by.  [default: split off --data]")
@options.metric
@options.target
@click.option("--minimize", type=click.Choice(GOALS), help="What there should be least of.  [default: latency; size of a language model]")
@click.option("--max-drop", type=LOSS, metavar="LOSS",
              help="Most of the metric that may be lost: 0.01, 1% or 0.5%; of a language model kl<0.02 or nats<0.02, of an encoder "
                   "cosine<0.01 or sentence<0.01.  [default: 1%; kl<0.02; cosine<0.01]")  # fmt: skip
@click.option("--max-latency", type=LATENCY, metavar="TIME", help="Longest time of one inference: 20ms, 1.5s or 300us.")
@click.option("--max-size", type=SIZE, metavar="SIZE", help="Largest size on disk: 300kB, 2MB or 1MiB.")
@click.option("--max-memory", type=SIZE, metavar="SIZE", help="Most memory that the model may take: 64MB.")
@options.confidence
@options.seconds
@click.option("--time-budget", type=SECONDS, metavar="TIME", help="Begin nothing new after this: 90s, 10m or 1h.")
@options.threads
@click.option("--seed", type=int, default=0, show_default=True, help="How calibration samples are split off --data.")
@click.option("-o", "--out", required=True, metavar="FOLDER", help="Where the best model, the report and all trials go.")
@options.standard
def command(screen: Screen, model: str, weights: str | None, shapes: Sequence[Shape], out: str, **asked: Any) -> None:
    """Find the best version of MODEL for a target, measure everything, and ship nothing that is worse than asked.

    Writes FOLDER/best (the model and its manifest), recipe.toml, report.html and report.json. Every finished trial is kept in
    FOLDER/trials: stopped with Ctrl-C, the same command goes on from there. Ends with code 3, and without a best model, where no
    candidate passes; the report then says what came closest and why.

    \b
    whet optimize model.onnx --data eval.npz --calibration calib.npz \\
        --metric accuracy --max-drop 1% --target host -o out/
    whet optimize ./llama-dir --data eval.txt --calibration text.txt \\
        --max-drop "kl<0.02" --minimize size -o out/
    """
    ctx = click.get_current_context()
    check_drop(asked["max_drop"], asked["metric"])
    place = _folder(out)
    try:
        with screen.working():
            outcome = _optimized(model, weights, shapes, place, typed(ctx), asked)
    except KeyboardInterrupt as error:
        raise Ending(_kept(place), STOPPED) from error
    _show(screen, outcome, place)
    if not outcome.winner:
        ctx.exit(GATED)


def _optimized(model: str, weights: str | None, shapes: Sequence[Shape], place: Path, line: str, asked: dict[str, Any]) -> Outcome:
    import whet
    from whet.cli.models import known_metric, model_of

    given = {name: asked[name] for name in ("calibration", "minimize", "max_drop", "confidence", "seconds", "seed")}
    target = whet.target(asked["target"])
    if asked["threads"] is not None:
        target = dataclasses.replace(target, threads=asked["threads"])
    return whet.optimize(
        model_of(model, weights, shapes, asked["data"]), data=asked["data"], out=place, metric=known_metric(asked["metric"]), target=target,
        max_latency_ms=asked["max_latency"], max_size_bytes=asked["max_size"], max_memory_bytes=asked["max_memory"],
        time_budget_s=asked["time_budget"], command=line, **given,
    )  # fmt: skip


def check_drop(limit: float | str | None, metric: str | None) -> None:
    """A whole point of a share is all of it: whoever writes 5 means 5%."""
    from whet.compress.report.numbers import POINTS
    from whet.compress.report.quantities import drop_kind

    if isinstance(limit, float) and limit >= 1 and (metric is None or drop_kind(metric) is POINTS):
        said = f"a drop of {limit:g} would be all there is; write {limit:g}% for {limit / 100:g}"
        raise click.BadParameter(said, param_hint="'--max-drop'")


def _folder(out: str) -> Path:
    """The output folder, if something may be written there: told before the work."""
    place = options.writable(Path(out))
    if place.exists() and not place.is_dir():
        raise Ending(f"write the folder {place}: there is a file of that name. choose another output folder", REFUSED)
    return place


def _kept(place: Path) -> str:
    done = len(list((place / "trials").glob("*/trial.json")))
    if not done:
        return "stopped before the first candidate was finished"
    return f"stopped; {counted(done, 'finished candidate')} kept in {place / 'trials'}, and the same command goes on from there"


def _show(screen: Screen, outcome: Outcome, place: Path) -> None:
    from whet.cli.outcomes import show_outcome

    places = {"report": str(place / "report.html")}
    if outcome.winner:
        graph = place / "best" / "model.onnx"  # a language model is the whole folder
        places = {"best model": str(graph if graph.is_file() else graph.parent), "recipe": str(place / "recipe.toml"), **places}
    if screen.as_json:
        from whet.compress.report import finite

        return screen.document({**finite(outcome).to_plain(), "places": places})
    show_outcome(screen, outcome, places)
