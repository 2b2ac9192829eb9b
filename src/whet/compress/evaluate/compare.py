"""Two models on the same samples: how much worse is the candidate, and how sure is that?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from whet.compress.evaluate.drops import discordant, measured
from whet.compress.evaluate.fidelity import DEFAULT_FIDELITY, fidelity_quantity
from whet.compress.evaluate.intervals import mcnemar_p, needed_samples, two_sided
from whet.compress.evaluate.metrics import Case, Metric, find_metric
from whet.core.document import Document
from whet.core.errors import Refused
from whet.core.measurement import Measurement

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Comparison(Document):
    """Parent and candidate, paired.

    parent, candidate: the metric of each. drop: how much worse the candidate is, positive = worse, whatever the direction of the metric;
    for fidelity metrics the share of flipped answers, the KL divergence, or the relative error energy 10^(-SQNR / 10).
    flips, kl: on the output that was compared; sqnr_db: the worst of all float outputs. mcnemar_p: exact, two-sided. Where one of
    them makes no sense its value is None and ``why`` says so. lost, gained: samples that only the parent, or only the candidate, has
    right (metrics of right and wrong only). limit: the default limit of the drop where the metric is "fidelity".

    The intervals are two-sided at 2 * confidence - 1 (0.90 by default), so that ``interval.high`` alone, which is all a gate looks
    at, has the confidence that was asked for (0.95).
    """

    metric: str
    n: int
    parent: Measurement
    candidate: Measurement
    drop: Measurement
    flips: Measurement
    kl: Measurement
    sqnr_db: Measurement
    mcnemar_p: Measurement
    lost: int | None = None
    gained: int | None = None
    limit: float | None = None
    share: bool = False

    @property
    def measurements(self) -> dict[str, Measurement]:
        """The candidate's measurements by name, as gates ask for them."""
        return {each.name: each for each in (self.candidate, self.flips, self.kl, self.sqnr_db, self.mcnemar_p, self.drop)}

    def needed(self, limit: float) -> int | None:
        """About how many samples would prove the drop to be within ``limit``; None where it is not within, or not known."""
        if self.drop.value is None or self.drop.interval is None:
            return None
        high, confidence = self.drop.interval.high, self.drop.interval.confidence
        return needed_samples(self.drop.value, high, self.n, limit, confidence=confidence, share=self.share)


def compare_outputs(
    parent: Mapping[str, Array],
    candidate: Mapping[str, Array],
    labels: Array | None,
    metric: str | Metric | Callable[..., Any],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    output: str | None = None,
    data: str = "",
    artifact: str = "",
) -> Comparison:
    """The candidate against its parent, from what ``predict`` gave for each: arrays [n, ...] by output name.

    metric: see ``find_metric``; "fidelity" needs no labels. output: which one the metric is about; the first by default, and all float
    outputs for "fidelity" and "sqnr_db". confidence: of ``interval.high`` alone, see ``Comparison``. data, artifact: noted in the
    measurements. Right-or-wrong metrics get Tango's score interval, means over samples a bootstrap of the paired differences, and
    F1, AUC, RMSE a paired bootstrap over samples. The same arguments give the same numbers. Raises Refused.
    """
    level, found = two_sided(confidence), find_metric(metric)
    case = _case(parent, candidate, labels, output)
    scored = found.score(case)
    before, after, drop = measured(found, scored, len(case), level, seed)
    lost, gained = discordant(found, scored)
    extras = [_extra(name, case, level, seed) for name in ("flips", "kl", "sqnr_db")]
    if found.name in ("mae", "rmse"):
        extras[:2] = [Measurement(name, None, why="the output is a value and no answer") for name in ("flips", "kl")]

    def noted(each: Measurement) -> Measurement:
        return replace(each, n=len(case), data=data, artifact=artifact)

    return Comparison(
        metric=found.name,
        n=len(case),
        parent=replace(before, n=len(case), data=data),
        candidate=noted(after),
        drop=noted(drop),
        flips=noted(extras[0]),
        kl=noted(extras[1]),
        sqnr_db=noted(extras[2]),
        mcnemar_p=noted(_mcnemar(lost, gained, found.name)),
        lost=lost,
        gained=gained,
        limit=DEFAULT_FIDELITY[fidelity_quantity(case.parents)] if found.name == "fidelity" else None,
        share=scored.candidate is not None and scored.candidate.dtype == bool,
    )


def _case(parent: Mapping[str, Array], candidate: Mapping[str, Array], labels: Array | None, output: str | None) -> Case:
    if not parent:
        raise Refused("compare two models", found="the parent has no outputs")
    if output is not None and output not in parent:
        raise Refused(f"compare the output {output!r}", found=f"the parent has {', '.join(parent)}")
    names = [output] if output is not None else list(parent)
    for name in names:
        if name not in candidate:
            raise Refused(f"compare the output {name!r}", found=f"the candidate has {', '.join(candidate) or 'none'}")
        if parent[name].shape != candidate[name].shape:
            found = f"shape {list(parent[name].shape)} of the parent and {list(candidate[name].shape)} of the candidate"
            raise Refused(f"compare the output {name!r}", found=found, do="evaluate both on the same data")
    count = len(parent[names[0]]) if parent[names[0]].ndim else 0
    if count == 0:
        raise Refused("compare two models", found="no samples")
    return Case({name: parent[name] for name in names}, {name: candidate[name] for name in names}, labels, names[0])


def _extra(name: str, case: Case, level: float, seed: int) -> Measurement:
    """flips, kl or sqnr_db of the candidate; without a value, and with the reason, where the output has none."""
    metric = find_metric(name)
    try:
        return measured(metric, metric.score(case), len(case), level, seed)[1]
    except Refused as refusal:
        return Measurement(name, None, direction=metric.direction, why=refusal.found)


def _mcnemar(lost: int | None, gained: int | None, metric: str) -> Measurement:
    if lost is None or gained is None:
        return Measurement("mcnemar_p", None, direction="higher", why=f"{metric} does not say right or wrong of each sample")
    method = f"McNemar's exact test, two-sided: {lost} samples lost, {gained} gained"
    return Measurement("mcnemar_p", mcnemar_p(lost, gained), direction="higher", method=method)
