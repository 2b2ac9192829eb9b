"""The page of language models as Markdown."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch
import transformers
from environments import REQUIREMENTS

import whet
from whet.core.measurement import Measurement
from whet.device.machine import describe

if TYPE_CHECKING:
    from llm import Found
    from llm_decode import Speeds

COLUMNS = ("way", "group", "nats lost", "KL", "same top token", "weights, kB", "time, s", "peak, MB", "added, MB")


def page(command: str, pythons: Mapping[str, Path | str], found: Sequence[Found], windows: str) -> str:
    widths = sorted({each.row.bits for each in found}, reverse=True)
    parts = [_head(command, pythons, found, windows), _behind(found)]
    for bits in widths:
        here = [each for each in found if each.row.bits == bits]
        parts.append(f"## {bits:g} bits\n\n{_table(COLUMNS, [_cells(each) for each in here])}\n{_notes(here)}")
    return "\n".join(parts)


def short(found: Found) -> str:
    """A row in half a line."""
    if found.quality is None:
        return found.failure
    return f"{found.quality.drop.value:+.4f} nats, {found.seconds:.2f} s"


def decoding(command: str, speeds: Speeds) -> str:
    """The page of ``--decode``."""
    rows = [[each.name, f"{each.middle:.0f}", _span(each.ratios), _span(each.ratios_to_best), f"{each.peak_bytes / 1e6:.0f}"]
            if each.rates else [each.name, *["-"] * 4] for each in speeds.contenders]
    notes = "".join(f"- {each.name}: {each.failure}\n" for each in speeds.contenders if each.failure)
    table = _table(("way", "tokens/s", f"against {speeds.baseline}", f"against {speeds.best}", "peak, MB"), rows)
    return f"""# Decoding 4-bit exports, Whet beside other runtimes

{_made(command)}

{speeds.model}.
Each way holds its model in a process of its own; in each of {speeds.rounds} rounds every one writes {speeds.tokens} tokens, one way after
the other, with {speeds.threads} threads. Tokens/s: the median over the rounds, of decoding alone, without the prompt. Ratios are taken
within a round: median [least, most]; the second is to the fastest runtime that is not `whet run`. Peak: most resident memory of
the process, libraries included.

{table}

{notes}"""


def _made(command: str) -> str:
    machine = describe()
    return (f"Made by `{command}` on {datetime.now(UTC):%d %B %Y}: {machine.cpu}, {machine.cores} cores,\n"
            f"{machine.memory_bytes / 2**30:.0f} GiB, Python {'.'.join(map(str, sys.version_info[:3]))}.")


def _head(command: str, pythons: Mapping[str, Path | str], found: Sequence[Found], windows: str) -> str:
    versions = [f"| Whet {whet.__version__}, onnxruntime's own | torch {torch.__version__}, transformers {transformers.__version__}, "
                f"onnxruntime {describe().onnxruntime} |"]
    for name, where in pythons.items():
        if name:
            wanted = " ".join(" ".join(packages) for packages in REQUIREMENTS[name]).replace("==", " ")
            versions.append(f"| {name} | {where if isinstance(where, str) else wanted} |")
    parent = next((each.quality.parent.value for each in found if each.quality), math.nan)
    return f"""# Rounding a language model, Whet beside its peers

{_made(command)}

stories260K: a Llama of 260,032 float32 parameters, five blocks, trained on TinyStories. {windows}.
The linear layers of the blocks are rounded, table and head are not. The float model has
{parent:.4f} nats a token.

- nats lost: a token, beside the float model on the same windows, with its 90 % interval over windows. KL: divergence of the answers from
  the float model's. Same top token: share of tokens for which both would say the same. Whet judges every row; what a peer made is
  judged by the numbers that its packed weights stand for.
- weights: what the rounded weights of the linear layers take, with scales and zero points, as each library packs them (905 kB in
  float32). group: weights that share a scale; 0 is one scale a row.
- time: from the model's folder to a written checkpoint, without imports, in a process of its own; a peer's includes making the plain
  checkpoint (milliseconds here). peak: most resident memory of that process; added: what of it came on top of the imported libraries.
- Layers have 64 columns, one in each block 172, which 32 and 128 do not divide: Whet and onnxruntime end in a shorter group, HQQ and
  bitsandbytes lay groups over the flattened weight, the others cannot; the notes say what they were given in its place.
- gptq+tune-text learns from the text's own tokens beside the float model's answers: what it gains in nats over gptq+tune is partly
  fine-tuning on text of this kind, as its KL shows. No peer here does that.
- A model of this size shows quality and overheads; what large layers cost is in llm_block.py and llm_shapes.py.

| environment | versions |
|---|---|
{chr(10).join(versions)}
"""


def _behind(found: Sequence[Found]) -> str:
    """Where the best of Whet's rows loses more than the best peer's, for each number of bits and group."""
    lines = []
    for bits, group in sorted({(each.row.bits, each.row.group) for each in found}, reverse=True):
        here = [each for each in found if (each.row.bits, each.row.group) == (bits, group) and each.quality is not None]
        own, others = ([each for each in here if each.row.own is mine] for mine in (True, False))
        if not own or not others:
            continue
        ours, theirs = min(own, key=_lost), min(others, key=_lost)
        apart = round(_lost(ours) - _lost(theirs), 4)
        which = "behind" if apart > 0 else "ahead" if apart < 0 else "level"
        lines.append(f"- {bits:g} bits, group {group}: {which}. {ours.row.name} loses {_lost(ours):+.4f} nats ({ours.seconds:.2f} s), "
                     f"{theirs.row.name} {_lost(theirs):+.4f} ({theirs.seconds:.2f} s)")
    return f"""## The best of Whet and the best peer

Written by the benchmark from its figures, for every number of bits and group that both have; any difference counts.

{chr(10).join(lines) or "Nothing to compare in this run."}
"""


def _lost(found: Found) -> float:
    assert found.quality is not None
    assert found.quality.drop.value is not None
    return found.quality.drop.value


def _cells(found: Found) -> list[str]:
    quality = found.quality
    if quality is None:
        return [found.row.name, str(found.row.group), *["-"] * (len(COLUMNS) - 2)]
    return [found.row.name, str(found.row.group), _with_interval(quality.drop), f"{quality.kl.value:.4f}",
            f"{quality.same_top_token.value:.3f}", f"{found.weight_bytes / 1e3:.1f}", f"{found.seconds:.2f}",
            f"{found.peak_bytes / 1e6:.0f}", f"{(found.peak_bytes - found.before_bytes) / 1e6:.0f}"]


def _with_interval(drop: Measurement) -> str:
    between = f" [{drop.interval.low:+.4f}, {drop.interval.high:+.4f}]" if drop.interval else ""
    return f"{drop.value:+.4f}{between}"


def _span(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def _notes(found: Sequence[Found]) -> str:
    lines = [f"- {each.row.name}: {each.failure or each.note}" for each in found if each.failure or each.note]
    return "\n".join(["", *lines, ""]) if lines else ""


def _table(columns: tuple[str, ...], body: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [list(columns), ["---"] * len(columns), *body])
