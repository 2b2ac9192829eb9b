"""Two language models by the tasks that people quote: each document is scored for both, so that what was lost is paired."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from whet.compress.checkpoint.checkpoint import Checkpoint
from whet.compress.checkpoint.compare import LanguageComparison
from whet.compress.checkpoint.harness import Marks, Suite, language_model, marked, suites_of
from whet.compress.checkpoint.speaker import Speaker, check_speaks
from whet.compress.evaluate.drops import discordant, measured
from whet.compress.evaluate.intervals import mcnemar_p, two_sided
from whet.compress.evaluate.metrics import Metric, Scored
from whet.compress.evaluate.own import RESAMPLES
from whet.core.document import Document
from whet.core.errors import Refused
from whet.core.measurement import Measurement
from whet.core.progress import track

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class TaskScore(Document):
    """One metric of one task, or of a group of tasks with all of its documents.

    metric: as the task calls it, with the name of the filter where it reads answers in several ways. n: documents. drop: positive is worse,
    whatever the direction. lost, gained: documents that only the original has right, and only the candidate; None where the metric does not
    say right or wrong of each. gated: whether a limit of the drop speaks of it.
    """

    task: str
    metric: str
    n: int
    parent: Measurement
    candidate: Measurement
    drop: Measurement
    mcnemar_p: Measurement
    lost: int | None = None
    gained: int | None = None
    gated: bool = False


@dataclass(frozen=True)
class TaskComparison(Document):
    """scores: of every metric of every task. text: what a text says, where one was given. sizes in bytes of the weights on disk.

    Intervals are two-sided at 2 * confidence - 1, so that ``interval.high`` alone has the confidence that was asked for.
    """

    scores: tuple[TaskScore, ...]
    parent_size: Measurement
    candidate_size: Measurement
    text: LanguageComparison | None = None

    @property
    def drops(self) -> dict[str, Measurement]:
        """What a limit of the drop speaks of, by name: of each task its first metric that says right or wrong of each document."""
        found = {f"{each.task} {each.metric} drop": each.drop for each in self.scores if each.gated}
        told = {each.task for each in self.scores if each.gated}
        missing = Measurement("drop", None, why="none of its metrics says right or wrong of each document")
        return found | {f"{each.task} drop": missing for each in self.scores if each.task not in told}


def compare_by_tasks(parent: Checkpoint, candidate: Checkpoint, tasks: str | Sequence[str], *, limit: int | None = None,
                     shots: int | None = None, confidence: float = 0.95, seed: int = 0) -> TaskComparison:
    """How the candidate does beside its parent at tasks of lm_eval. Each model is whole in memory in its turn, 4 bytes a parameter.

    tasks: as ``suites_of`` takes them, or with commas between them. Raises as ``suites_of``, Unsupported for an encoder.
    """
    level = two_sided(confidence)
    names = [name.strip() for name in tasks.split(",")] if isinstance(tasks, str) else [str(name) for name in tasks]
    for checkpoint in (parent, candidate):
        check_speaks(checkpoint)
    suites = suites_of(names, limit=limit, shots=shots)
    one, other = (_marks(checkpoint, name, suites) for checkpoint, name in ((parent, "parent"), (candidate, "candidate")))
    scores = [score for suite, *pair in zip(suites, one, other, strict=True) for score in _scores(suite, pair, level, seed)]
    size, new_size = (Measurement("size_bytes", float(model.size_bytes), " B") for model in (parent, candidate))
    return TaskComparison(tuple(scores), size, new_size)


def _marks(checkpoint: Checkpoint, name: str, suites: Sequence[Suite]) -> list[list[Marks]]:
    model = language_model(Speaker(checkpoint, name))
    return [marked(suite, model) for suite in track(suites, f"scoring the {name}")]


def _scores(suite: Suite, marks: Sequence[list[Marks]], level: float, seed: int) -> list[TaskScore]:
    """One suite; marks: of the parent, of the candidate."""
    others = {(each.metric, each.filter): each for each in marks[1]}
    found = [_score(suite, each, others[each.metric, each.filter], level, seed) for each in marks[0]
             if (each.metric, each.filter) in others]
    first = next((at for at, each in enumerate(found) if each.lost is not None), None)
    return [replace(each, gated=at == first) for at, each in enumerate(found)]


def _score(suite: Suite, one: Marks, other: Marks, level: float, seed: int) -> TaskScore:
    scored = _scored(one, other)
    name = one.metric + (f" ({one.filter})" if one.filter else "")
    metric = Metric(name, "higher" if one.higher else "lower", lambda case: scored)
    n, data = len(one.values), suite.content_hash
    parent, candidate, drop = (replace(each, n=n, data=data) for each in measured(metric, scored, n, level, seed))
    lost, gained = discordant(metric, scored)
    p = Measurement("mcnemar_p", None, direction="higher", why=f"{name} does not say right or wrong of each document")
    if lost is not None and gained is not None:
        p = Measurement("mcnemar_p", mcnemar_p(lost, gained), direction="higher", n=n, data=data, method="McNemar's exact test, two-sided")
    return TaskScore(suite.name, name, n, parent, candidate, drop, p, lost, gained)


def _scored(one: Marks, other: Marks) -> Scored:
    """Right or wrong of each document, a number of each, or a number of all."""
    method = f"lm_eval's {one.metric}"
    if one.aggregate is None:
        values = [_numbers(each) for each in (one, other)]
        right = all(bool(np.isin(each, (0, 1)).all()) for each in values)
        parent, candidate = (each.astype(bool) if right else each for each in values)
        return Scored(f"{method}, mean over documents", parent, candidate)
    aggregates = [_aggregated(each) for each in (one, other)]
    everything = np.arange(len(one.values))

    def whole(weights: Array) -> Array:
        drawn = [np.repeat(everything, row.astype(np.int64)) for row in weights]
        return np.array([[aggregate(rows) for aggregate in aggregates] for rows in drawn])

    return Scored(method, whole=whole, values=(aggregates[0](everything), aggregates[1](everything)), resamples=RESAMPLES)


def _numbers(marks: Marks) -> Array:
    """[n] float64"""
    try:
        found = np.asarray(marks.values, np.float64)
    except (TypeError, ValueError):
        found = np.empty((0, 0))
    if found.shape != (len(marks.values),) or not np.isfinite(found).all():
        raise Refused(f"score a task by {marks.metric}", found="answers that are no numbers", do="leave that metric, or that task, out")
    return found


def _aggregated(marks: Marks) -> Callable[[Array], float]:
    """The one number that the metric makes of some documents."""
    assert marks.aggregate is not None
    aggregate = marks.aggregate
    return lambda rows: float(aggregate([marks.values[row] for row in rows]))
