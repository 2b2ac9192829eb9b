"""``whet compare``: two models on the same samples and in the same run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from whet.cli import options
from whet.cli.endings import GATED
from whet.cli.languages import show_comparison, show_tasks
from whet.cli.quantities import LOSS, Shape
from whet.cli.screen import Column, Screen

if TYPE_CHECKING:
    from whet.compress.checkpoint.compare import LanguageComparison
    from whet.compress.checkpoint.states import EncoderComparison
    from whet.compress.checkpoint.tasks import TaskComparison
    from whet.compress.compare import SideBySide
    from whet.compress.evaluate import Comparison
    from whet.core.gate import Gate, Verdict
    from whet.core.measurement import Measurement

_COSTS = ("latency_ms", "latency_p95_ms", "throughput_per_s", "size_bytes", "model_rss_bytes", "peak_rss_bytes")


@click.command(short_help="Two models on the same samples and in the same run.")
@click.argument("original", metavar="ORIGINAL")
@click.argument("candidate", metavar="CANDIDATE")
@options.data
@options.metric
@click.option("--tasks", metavar="NAMES",
              help="Of language models: tasks of lm-eval, with commas between them, YAML files or folders of your own. Needs whet[eval].")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="So many documents of each task.  [default: all]")
@click.option("--shots", type=click.IntRange(min=0), metavar="K", help="Examples before each question.  [default: as the task says]")
@click.option("--max-drop", type=LOSS, metavar="LOSS",
              help="End with code 3 where it is not proven that no more is lost: 0.01, 1% or 0.5% (with --tasks: by each task); of "
                   "language models kl<0.02 or nats<0.02, of encoders cosine<0.01 or sentence<0.01.")  # fmt: skip
@options.confidence
@options.threads
@options.seconds
@options.weights
@options.input_shape
@options.standard
def command(screen: Screen, original: str, candidate: str, data: str | None, metric: str | None, tasks: str | None, limit: int | None,
            shots: int | None, max_drop: float | str | None, confidence: float, threads: int | None, seconds: float, weights: str | None,
            shapes: Sequence[Shape]) -> None:  # fmt: skip
    """Compare CANDIDATE with ORIGINAL: quality on the same samples (paired), latency interleaved in one run, memory and size.

    Without --data only the costs are compared. --weights and --input-shape speak of ORIGINAL. Two folders of language models are compared
    on a text: perplexity, divergence, and the share of tokens for which both would say the same; by --tasks, document by document; or both.
    Two folders of encoders (BERT) are compared by the cosine similarity of the states of tokens and sentences.

    \b
    whet compare float.onnx small.onnx --data eval.npz --metric accuracy
    whet compare float.onnx out/best --data eval.npz --max-drop 0.5%
    whet compare ./llama-dir out/ --data eval.txt --max-drop "kl<0.02"
    whet compare ./bert-dir out/ --data eval.txt --max-drop "cosine<0.01"
    whet compare ./llama-dir out/ --tasks arc_easy,hellaswag --limit 500
    """
    import whet
    from whet.cli.models import known_metric, model_of
    from whet.cli.optimize import check_drop
    from whet.compress.checkpoint.compare import LanguageComparison
    from whet.compress.checkpoint.states import EncoderComparison
    from whet.compress.compare import SideBySide

    _check_question(data, metric, tasks, limit, shots, max_drop)
    check_drop(max_drop, metric)
    gate = _gate(original, max_drop)
    with screen.working():
        found = whet.compare(model_of(original, weights, shapes, data), candidate, data=data, metric=known_metric(metric), threads=threads,
                             confidence=confidence, seconds=seconds, tasks=tasks, limit=limit, shots=shots)  # fmt: skip
    verdict = None if gate is None else _verdict(found, gate, each=not isinstance(max_drop, str))
    if screen.as_json:
        screen.document({**found.to_plain(), **({} if verdict is None else {"verdict": verdict.to_plain()})})
    elif isinstance(found, SideBySide):
        _show(screen, found)
    elif isinstance(found, LanguageComparison | EncoderComparison):
        show_comparison(screen, found)
    else:
        show_tasks(screen, found)
    if verdict is not None and not screen.as_json:
        screen.gap()
        for reason in verdict.reasons:
            word, style = ("passed", "bold green") if reason.passed else ("refused", "bold red")
            screen.line(f"{word}: {reason.text}", style)
    if verdict is not None and not verdict.passed:
        click.get_current_context().exit(GATED)


def _check_question(data: str | None, metric: str | None, tasks: str | None, limit: int | None, shots: int | None,
                    max_drop: float | str | None) -> None:
    """What speaks of something needs it."""
    if data is None and (metric is not None or isinstance(max_drop, str)):
        raise click.UsageError(f"{'--metric' if metric is not None else f'--max-drop {max_drop}'} needs --data")
    if data is None and tasks is None and max_drop is not None:
        raise click.UsageError("--max-drop needs --data or --tasks")
    if tasks is None and (limit is not None or shots is not None):
        raise click.UsageError(f"{'--limit' if limit is not None else '--shots'} needs --tasks")


def _gate(original: str, asked: float | str | None) -> Gate | None:
    """What may be lost, refused before any work where it is not measured of such a model."""
    from whet.compress.bodies import checkpoint_in
    from whet.core.gate import loss_gate

    if asked is None:
        return None
    model = checkpoint_in(original)
    return loss_gate(asked, encoder=model is not None and model.family.encoder)


def _verdict(found: SideBySide | LanguageComparison | EncoderComparison | TaskComparison, gate: Gate, *, each: bool) -> Verdict:
    """each: whether a number was asked for, which speaks of each task where there are tasks; "kl<0.02" speaks of the text."""
    from whet.compress.checkpoint.tasks import TaskComparison
    from whet.compress.compare import SideBySide
    from whet.core.gate import judge

    if isinstance(found, TaskComparison) and each:
        return judge(tuple(replace(gate, measurement=name) for name in found.drops), found.drops)
    quality = found.quality if isinstance(found, SideBySide) else found.text if isinstance(found, TaskComparison) else found
    return judge((gate,), {} if quality is None else quality.measurements)


def _show(screen: Screen, found: SideBySide) -> None:
    if found.quality is not None:
        _show_quality(screen, found.quality)
        screen.gap()
    _show_costs(screen, found)


def _show_quality(screen: Screen, found: Comparison) -> None:
    from whet.compress.report.cells import cell
    from whet.compress.report.quantities import kind_of, title_of

    def row(title: str, each: Measurement) -> list[str]:
        told = cell(each, kind_of(each.name, found.metric), digits=4)
        return [title, told.text, told.detail, told.title if told.missing else each.method]

    title = title_of(found.candidate.name, found.metric)
    rows = [row(f"{title}, original", found.parent), row(f"{title}, candidate", found.candidate), row("Drop", found.drop)]
    rows += [row(title_of(each.name, ""), each) for each in (found.flips, found.kl, found.sqnr_db) if each.name != found.metric]
    interval = f"{found.drop.interval.confidence:.0%} interval" if found.drop.interval else "interval"
    how = Column("how", flexible=True, keep="start")
    screen.table((Column(f"{found.n:,} samples"), Column("value", right=True), Column(interval), how), rows)
    if found.lost is not None and found.gained is not None and found.mcnemar_p.value is not None:
        screen.remark(f"{found.lost} samples lost, {found.gained} gained; McNemar's p = {found.mcnemar_p.value:.3g}")


def _show_costs(screen: Screen, found: SideBySide) -> None:
    from whet.compress.report.cells import cell
    from whet.compress.report.numbers import TIMES, number
    from whet.compress.report.quantities import kind_of, title_of

    rows = []
    for name in _COSTS:
        one, other = found.parent.get(name), found.candidate.get(name)
        if one is None or other is None:
            continue
        change = number(other.value / one.value, TIMES) if one.value and other.value is not None else "-"
        rows.append([title_of(name, ""), *(cell(each, kind_of(name, "")).text for each in (one, other)), change, ""])
    ratio = found.candidate.get("latency_ratio")
    if ratio is not None:
        told = cell(ratio, TIMES)
        rows.insert(0, ["Time, paired", "", "", told.text, told.detail])
    screen.table((Column("costs"), Column("original", right=True), Column("candidate", right=True), Column("change", right=True),
                  Column("95% interval")), rows)  # fmt: skip
