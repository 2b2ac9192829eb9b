"""Trying remedies: each is done to the model, and what it gives and costs is measured on the file that it makes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter

from whet.compress.apply import apply_recipe
from whet.compress.artifacts import MODEL_NAME
from whet.compress.data import Dataset
from whet.compress.evaluate import Comparison, Metric, compare_outputs
from whet.compress.evaluate.output_error import decibels, relative_error
from whet.compress.explain.remedies import Proposal
from whet.compress.graph import GraphModel
from whet.compress.grid import Array
from whet.compress.report.numbers import DECIBELS, MILLISECONDS, Kind, number
from whet.compress.report.quantities import drop_kind
from whet.compress.runtime import one_inference, outputs_of, stored
from whet.core.errors import WhetError
from whet.core.explanation import Remedy
from whet.core.measurement import Measurement
from whet.core.progress import track
from whet.core.target import Target
from whet.device.latency import interleave
from whet.device.session import SPINNING_STOP, open_session

TIMED = 3  # of the remedies, the best ones


@dataclass(frozen=True, eq=False)
class Shop:
    """What every remedy is held against. original, made: the float and the quantised model. outputs: the original's, on all of ``data``.
    seconds: of timing, all sessions together; 0 times nothing."""

    original: GraphModel
    made: GraphModel
    target: Target
    calibration: Dataset
    data: Dataset
    metric: Metric
    outputs: Mapping[str, Array]
    seconds: float

    @property
    def threads(self) -> int | None:
        return self.target.threads if self.target.here else None

    def quality(self, model: GraphModel) -> tuple[float, Comparison]:
        """(relative error energy at the output, paired comparison with the original), on all samples."""
        found = outputs_of(model, self.data, threads=self.threads)
        return relative_error(self.outputs, found), self.compared(found)

    def compared(self, found: Mapping[str, Array]) -> Comparison:
        return compare_outputs(self.outputs, found, self.data.labels, self.metric, data=self.data.content_hash)


@dataclass
class _Tried:
    remedy: Remedy
    model: GraphModel | None = field(default=None)


def priced(proposed: Sequence[Proposal], shop: Shop, before: tuple[float, Comparison], *, until: float | None = None) -> tuple[Remedy, ...]:
    """The remedies, the most useful first. before: damage and quality of the quantised model without any. until: when to begin none any
    more, by perf_counter."""
    base = file_bytes(shop.made)
    tried: list[_Tried] = []
    for each in track(proposed, "remedies", len(proposed)):
        if tried and until is not None and perf_counter() > until:
            break
        tried.append(_try(each, shop, before, base))
    lost = before[1].drop.interval is not None and before[1].drop.interval.low > 0
    tried.sort(key=lambda each: _worth(each.remedy, lost))
    timed = _timed(tried, shop) if shop.seconds and shop.target.here else {}
    return tuple(_told(replace(each.remedy, latency_ms=timed.get(each.remedy.name)), before[0], shop.metric.name) for each in tried)


def file_bytes(model: GraphModel) -> int:
    """The size of the model as it is written."""
    if not model.is_large:
        return len(model.content)
    with tempfile.TemporaryDirectory(prefix="whet-") as folder:
        model.save(Path(folder) / MODEL_NAME)
        return sum(file.stat().st_size for file in Path(folder).iterdir())


def price(remedy: Remedy, damage: float, metric: str) -> str:
    """ "+3.90 pts, damage -9.1 dB, +1.1 % bytes, +0.2 ms"."""
    said = []
    if remedy.gain is not None:
        said.append(number(remedy.gain, replace(drop_kind(metric), signed=True)))
    less, more = decibels(remedy.damage or 0.0), decibels(damage)
    if less is not None and more is not None:
        said.append(f"damage {number(more - less, replace(DECIBELS, signed=True))}")
    if remedy.size_share is not None:
        said.append(f"{number(remedy.size_share, _BYTES_SHARE)} bytes")
    if remedy.latency_ms is not None:
        said.append(number(remedy.latency_ms, replace(MILLISECONDS, signed=True)) if remedy.latency_ms else "same time")
    return ", ".join(said)


_BYTES_SHARE = Kind(((0.01, "%"),), decimals=1, signed=True)


def _try(proposal: Proposal, shop: Shop, before: tuple[float, Comparison], base: int) -> _Tried:
    found = Remedy(proposal.name, proposal.layer, recipe=proposal.recipe)
    try:
        model = apply_recipe(shop.original, proposal.recipe, shop.target, calibration=shop.calibration)
        damage, quality = shop.quality(model)
    except WhetError as error:
        return _Tried(replace(found, status="failed", note=str(error)))
    drop, old = quality.drop.value, before[1].drop.value
    grown = file_bytes(model) - base
    gain = None if drop is None or old is None else old - drop
    damage_known = damage if damage < float("inf") else None
    return _Tried(replace(found, damage=damage_known, drop=drop, gain=gain, size_bytes=grown, size_share=grown / base), model)


def _worth(remedy: Remedy, lost: bool) -> tuple[bool, float, float]:
    """The metric first where something was lost for sure, then the damage: a difference of a metric that lost nothing is chance."""
    damage = remedy.damage if remedy.damage is not None else float("inf")
    return remedy.status != "measured", -(remedy.gain or 0.0) if lost else 0.0, damage


def _timed(tried: Sequence[_Tried], shop: Shop) -> dict[str, float]:
    """How many ms the best remedies take longer than the quantised model, all interleaved in one run."""
    best = [each for each in tried if each.model is not None and _helps(each.remedy)][:TIMED]
    if not best:
        return {}
    models = {"": shop.made, **{each.remedy.name: each.model for each in best if each.model is not None}}
    with ExitStack() as stack:
        sessions = {name: open_session(stack.enter_context(stored(model)), threads=shop.threads,
                                       options={**model.session_options, SPINNING_STOP: "1"}) for name, model in models.items()}
        feeds = one_inference(shop.original, shop.data)
        times = interleave(sessions, dict.fromkeys(sessions, feeds), parent="", seconds=shop.seconds)
    usual = times[""].median.value or 0.0
    return {name: _longer(found.ratio, usual) for name, found in times.items() if name and found.ratio.value is not None}


def _longer(ratio: Measurement, usual_ms: float) -> float:
    """ms that it takes longer; 0 where the interval of the paired ratio holds 1."""
    same = ratio.interval is not None and ratio.interval.low <= 1 <= ratio.interval.high
    return 0.0 if same or ratio.value is None else (ratio.value - 1) * usual_ms


def _helps(remedy: Remedy) -> bool:
    return remedy.status == "measured" and remedy.damage is not None


def _told(remedy: Remedy, damage: float, metric: str) -> Remedy:
    return remedy if remedy.status != "measured" else replace(remedy, price=price(remedy, damage, metric))
