"""What the terminal shows of language models."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from whet.cli.screen import Column, Screen

if TYPE_CHECKING:
    from whet.compress.checkpoint.agreement import Agreement
    from whet.compress.checkpoint.compare import LanguageComparison
    from whet.compress.checkpoint.gguf import GgufReport
    from whet.compress.checkpoint.hf_export import HfReport
    from whet.compress.checkpoint.onnx_export import OnnxReport
    from whet.compress.checkpoint.states import EncoderComparison
    from whet.compress.checkpoint.tasks import TaskComparison
    from whet.compress.export import Exported
    from whet.core.inventory import Inventory
    from whet.core.measurement import Measurement


def show_comparison(screen: Screen, found: LanguageComparison | EncoderComparison) -> None:
    """What the candidate lost on a text."""
    from whet.compress.checkpoint.states import EncoderComparison

    title, rows = _of_states(found) if isinstance(found, EncoderComparison) else _of_answers(found)
    interval = f"{found.drop.interval.confidence:.0%} interval" if found.drop.interval else "interval"
    how = Column("how", flexible=True, keep="start")
    screen.table((Column(title), Column("value", right=True), Column(interval), how), rows)
    _show_sizes(screen, found)


def _of_answers(found: LanguageComparison) -> tuple[str, list[list[str]]]:

    def row(title: str, each: Measurement, *, perplexity: bool = False) -> list[str]:
        value = math.exp(each.value or 0.0) if perplexity else each.value or 0.0
        ends = () if each.interval is None else (each.interval.low, each.interval.high)
        told = [f"{math.exp(end) if perplexity else end:.4f}" for end in ends]
        return [title, f"{value:.4f}", " .. ".join(told), each.method]

    rows = [row("Perplexity, original", found.parent, perplexity=True), row("Perplexity, candidate", found.candidate, perplexity=True),
            row("Nats lost a token", found.drop), row("KL divergence, nats", found.kl), row("KL, one token in 1000", found.kl_p999),
            row("Same top token", found.same_top_token)]  # fmt: skip
    return f"{found.tokens:,} tokens", rows


def _of_states(found: EncoderComparison) -> tuple[str, list[list[str]]]:
    def row(title: str, each: Measurement) -> list[str]:
        value, ends = each.value, () if each.interval is None else (each.interval.low, each.interval.high)
        digits = 2 if each.name == "sqnr_db" else 5
        return [title, "-" if value is None else f"{value:.{digits}f}", " .. ".join(f"{end:.{digits}f}" for end in ends),
                each.method if value is not None else each.why]

    worst = replace(found.drop_p999, value=1 - (found.drop_p999.value or 0.0))
    rows = [row("Cosine similarity of tokens", found.cosine), row("Of one token in 1000, below", worst),
            row("Of means over windows", found.sentence_cosine), row("SQNR of the states, dB", found.sqnr_db)]  # fmt: skip
    return f"{found.windows:,} windows, {found.tokens:,} tokens", rows


def show_tasks(screen: Screen, found: TaskComparison) -> None:
    """What the candidate lost by each metric of each task, and on the text."""
    if found.text is not None:
        show_comparison(screen, found.text)
        screen.gap()
    rows = []
    for each in found.scores:
        values = (_short(each.parent.value), _short(each.candidate.value), _short(each.drop.value, "+"))
        interval = "" if each.drop.interval is None else f"{_short(each.drop.interval.low)} .. {_short(each.drop.interval.high)}"
        moved = "" if each.lost is None else f"{each.lost} / {each.gained}"
        rows.append([f"{each.task}: {each.metric}", f"{each.n:,}", *values, interval, moved])
    level = next((f"{each.drop.interval.confidence:.0%} " for each in found.scores if each.drop.interval), "")
    titles = ("documents", "original", "candidate", "drop")
    screen.table((Column("task", flexible=True, keep="start"), *(Column(title, right=True) for title in titles),
                  Column(f"{level}interval"), Column("lost / gained", right=True, optional=True)), rows)  # fmt: skip
    if found.text is None:
        _show_sizes(screen, found)


def _short(value: float | None, sign: str = "") -> str:
    """A share with four decimals; a perplexity may have any size."""
    number = value or 0.0
    return f"{number:{sign}.4f}" if abs(number) < 1000 else f"{number:{sign}.4g}"


def _show_sizes(screen: Screen, found: LanguageComparison | EncoderComparison | TaskComparison) -> None:
    from whet.compress.report.numbers import BYTES, TIMES, number

    one, other = found.parent_size.value or 0.0, found.candidate_size.value or 0.0
    screen.facts({"size": f"{number(one, BYTES)} -> {number(other, BYTES)} ({number(one / max(other, 1), TIMES)} smaller)"})


def show_applied(screen: Screen, place: Path, before: Inventory, after: Inventory) -> None:
    """Where a rounded checkpoint lies, and what became of its layers."""
    from whet.cli.words import counted
    from whet.compress.report.numbers import BYTES, TIMES, number

    kinds: dict[str, int] = {}
    for layer in after.layers:
        if layer.op in ("Linear", "Embedding", "Head"):
            kinds[layer.weight_dtype] = kinds.get(layer.weight_dtype, 0) + 1
    old, new = before.file_bytes or 0, after.file_bytes or 0
    stored = ", ".join(f"{dtype} in {counted(count, 'layer')}" for dtype, count in kinds.items())
    size = f"{number(old, BYTES)} -> {number(new, BYTES)} ({number(old / max(new, 1), TIMES)} smaller)"
    screen.facts({"written": str(place), "size": size, "weights": stored})
    screen.remark(f"what it lost: whet compare ORIGINAL {place} --data eval.txt")


def show_exported(screen: Screen, place: Path, format_name: str, found: Exported) -> None:
    """What was written, what is not exactly what the checkpoint holds, and how it answers."""
    from whet.compress.report.numbers import BYTES, number

    report, notes = found.report, exported_notes(found.report)
    if screen.as_json:
        told = {} if found.agreement is None else {"agreement": found.agreement.to_plain()}
        return screen.document({"written": str(place), "format": format_name, "size_bytes": report.size_bytes, "notes": list(notes),
                                **told})  # fmt: skip
    facts = {"written": str(place), "size": number(report.size_bytes, BYTES)}
    screen.facts(facts if found.agreement is None else {**facts, "agreement": agreed(found.agreement)})
    for note in notes:
        screen.remark(f"note: {note}")


def agreed(found: Agreement) -> str:
    """How the export answers beside the checkpoint, in a sentence."""
    if found.why:
        return f"not compared: {found.why}"
    what = f"cosine lost {found.cosine_lost:.2g}" if found.cosine_lost is not None else (
        f"KL {found.kl or 0.0:.2g} nats, same top token {found.same_top_token or 0.0:.1%}")
    return f"{what}, numbers differ by at most {found.largest or 0.0:.2g} ({found.tokens} drawn tokens)"


def exported_notes(report: OnnxReport | GgufReport | HfReport) -> tuple[str, ...]:
    """In sentences, where the file holds other numbers than the checkpoint."""
    from whet.cli.words import counted
    from whet.compress.checkpoint.gguf import GgufReport
    from whet.compress.checkpoint.hf_export import HfReport

    if isinstance(report, GgufReport):
        moved = [tensor for tensor in report.tensors if not tensor.exact]
        worst = max(moved, key=lambda tensor: tensor.relative_error, default=None)
        lost = () if worst is None else (f"{counted(len(moved), 'tensor')} of {len(report.tensors)} rounded again, {worst.name} the most: "
                                         f"{worst.relative_error:.2%} as {worst.type}",)
        return (*report.notes, *lost)
    if isinstance(report, HfReport):
        reasons = dict.fromkeys(report.opened.values())
        return tuple(f"{counted(sum(why == each for each in report.opened.values()), 'layer')} in float again: {why}" for why in reasons)
    return report.remarks
