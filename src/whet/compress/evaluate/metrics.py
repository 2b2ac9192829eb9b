"""Metrics, found by name: what a model is good at, computed for parent and candidate on the same samples.

A metric scores a ``Case`` and gives a ``Scored``: the values of each sample where the metric is a mean over samples, else a function
from bootstrap weights to values. ``compare`` turns either into measurements with intervals.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from whet.compress.evaluate.fidelity import energies, error_energy, fidelity_quantity, flipped, kl_divergence
from whet.compress.evaluate.forms import Form, answers, class_labels, form_of, is_float, probabilities, squeezed, value_labels
from whet.compress.evaluate.whole import weighted_auc, weighted_f1, weighted_macro_auc, weighted_rmse
from whet.core.errors import Refused

Array = np.ndarray[Any, Any]
Direction = Literal["lower", "higher"]


@dataclass(frozen=True)
class Case:
    """What there is to compare: outputs [n, ...] of both models by name, labels, and the output that the metric is about."""

    parents: Mapping[str, Array]
    candidates: Mapping[str, Array]
    labels: Array | None
    output: str

    @property
    def parent(self) -> Array:
        return self.parents[self.output]

    @property
    def candidate(self) -> Array:
        return self.candidates[self.output]

    @property
    def form(self) -> Form:
        return form_of(self.parent)

    def __len__(self) -> int:
        return len(self.parent)


@dataclass(frozen=True)
class Scored:
    """The scores of both models.

    parent, candidate: [n] of each sample, bool (right or wrong, changed or not) or float; parent is None where the metric compares the
    candidate with its parent. whole: in their place, weights [k, n] -> [k, 2] (parent, candidate), or [k, 1] without a parent;
    values: its exact result for the sample as it is; resamples: at most so many. method: how it is computed, in a few words.
    changed, unseen: where a ``whole`` metric depends on answers alone, how many answers differ, and what the candidate's value would be
    if so many more of its right answers were wrong.
    """

    method: str
    parent: Array | None = None
    candidate: Array | None = None
    whole: Callable[[Array], Array] | None = None
    values: tuple[float | None, float] | None = None
    resamples: int | None = None
    changed: int | None = None
    unseen: Callable[[int], float] | None = None


@dataclass(frozen=True)
class Metric:
    """A metric by name. direction: whether more is better."""

    name: str
    direction: Direction
    score: Callable[[Case], Scored]


def find_metric(metric: str | Metric | Callable[..., Any]) -> Metric:
    """The metric of that name: accuracy, top5 (or top-5, any k), f1, auc, mae, rmse; fidelity, flips, kl, sqnr_db; ``module:function``
    or ``path/file.py:function``; of a Python function; or a Metric as it is. Raises Refused, listing what exists."""
    from whet.compress.evaluate.own import load_function, own_metric

    if isinstance(metric, Metric):
        return metric
    if callable(metric):
        return own_metric(metric, getattr(metric, "__name__", "metric"))
    name = metric.strip().lower()
    top = re.fullmatch(r"top[-_ ]?([1-9][0-9]*)", name)
    if top:
        return Metric(f"top{top[1]}", "higher", lambda case: _top(case, int(top[1])))
    if name in _BY_NAME:
        direction, score = _BY_NAME[name]
        return Metric(name, direction, score)
    if ":" in metric:
        return own_metric(load_function(metric), metric)
    raise Refused(f"find the metric {metric!r}", found=f"there are {', '.join(_BY_NAME)}, topK (top5)",
                  do="or give your own as module:function or path/file.py:function")


def _accuracy(case: Case) -> Scored:
    form, labels = case.form, class_labels(case.labels, case.form, len(case), "accuracy")
    right = [answers(output, form, "accuracy") == labels for output in (case.parent, case.candidate)]
    return Scored(f"share of right answers ({form.reading})", right[0], right[1])


def _top(case: Case, k: int) -> Scored:
    form, labels = case.form, class_labels(case.labels, case.form, len(case), f"top{k}")
    if form.kind != "scores":
        raise Refused(f"measure top{k}", found=f"the output {_shown(case)} is not [n, classes]", do="use accuracy")
    if k >= form.classes:
        raise Refused(f"measure top{k}", found=f"with {form.classes} classes every answer is right", do=f"use a k below {form.classes}")
    right = [_rank(squeezed(output), labels) < k for output in (case.parent, case.candidate)]
    return Scored(f"share of labels among the {k} highest scores", right[0], right[1])


def _rank(scores: Array, labels: Array) -> Array:
    """How many classes come before the label's, int64 [n]; of equal scores the first comes first, as in argmax."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    earlier = np.arange(scores.shape[1])[None, :] < labels[:, None]
    rank: Array = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
    return rank


def _f1(case: Case) -> Scored:
    from sklearn.metrics import f1_score

    form, labels = case.form, class_labels(case.labels, case.form, len(case), "f1")
    found = [answers(output, form, "f1") for output in (case.parent, case.candidate)]
    classes = form.classes or int(max(labels.max(), *(each.max() for each in found))) + 1
    binary = classes == 2

    def value(each: Array) -> float:
        return float(f1_score(labels, each, average="binary" if binary else "macro", zero_division=0.0))

    return Scored(
        f"F1 of class 1 ({form.reading})" if binary else f"macro F1 ({form.reading})",
        whole=lambda weights: np.stack([weighted_f1(each, labels, weights, binary) for each in found], axis=1),
        values=(value(found[0]), value(found[1])),
        changed=int((found[0] != found[1]).sum()),
        unseen=lambda more: value(_spoiled(found[1], labels, more, classes)),
    )


def _spoiled(found: Array, labels: Array, more: int, classes: int) -> Array:
    """``found`` [n] with ``more`` right answers made wrong, spread over the classes as the right answers are."""
    right = np.flatnonzero(found == labels)
    right = right[np.argsort(labels[right], kind="stable")]
    chosen = right[np.linspace(0, len(right) - 1, min(more, len(right))).round().astype(int)] if len(right) else right
    spoiled = found.copy()
    spoiled[chosen] = (spoiled[chosen] + 1) % classes
    return spoiled


def _auc(case: Case) -> Scored:
    from sklearn.metrics import roc_auc_score

    form, labels = case.form, class_labels(case.labels, case.form, len(case), "auc")
    if form.kind not in ("scores", "score"):
        raise Refused("measure auc", found=f"the output {_shown(case)} holds no scores", do="use accuracy or f1")
    present = np.unique(labels)
    if len(present) < 2:
        raise Refused("measure auc", found="labels of one class only", do="evaluate on data with at least two classes")
    outputs = (case.parent, case.candidate)
    if form.classes == 2:
        scores = [_binary_score(output, form) for output in outputs]
        values = [float(roc_auc_score(labels, score)) for score in scores]
        return Scored("area under the ROC curve", values=(values[0], values[1]),
                      whole=lambda weights: np.stack([weighted_auc(score, labels == 1, weights) for score in scores], axis=1))
    shares = [probabilities(output, form) for output in outputs]
    means = [float(np.mean([roc_auc_score(labels == c, share[:, c]) for c in present])) for share in shares]
    return Scored("area under the ROC curve, one class against the rest, mean over classes", values=(means[0], means[1]), resamples=400,
                  whole=lambda weights: np.stack([weighted_macro_auc(share, labels, weights) for share in shares], axis=1))


def _binary_score(output: Array, form: Form) -> Array:
    values = squeezed(output).astype(np.float64)
    # Of two logits their difference orders the samples as the softmax does, without its rounding to 1.
    score: Array = values if values.ndim == 1 else values[:, 1] if form.probabilities else values[:, 1] - values[:, 0]
    return score


def _errors(case: Case, what: str) -> tuple[Array, Array]:
    """(parent, candidate): differences from the labels, float64 [n, values]."""
    labels = value_labels(case.labels, case.parent, what)
    parent, candidate = (squeezed(output).astype(np.float64) - labels for output in (case.parent, case.candidate))
    return parent.reshape(len(case), -1), candidate.reshape(len(case), -1)


def _mae(case: Case) -> Scored:
    parent, candidate = _errors(case, "mae")
    return Scored("mean absolute error", np.abs(parent).mean(axis=1), np.abs(candidate).mean(axis=1))


def _rmse(case: Case) -> Scored:
    from sklearn.metrics import root_mean_squared_error

    errors = _errors(case, "rmse")
    squared = [np.square(each).mean(axis=1) for each in errors]
    values = [float(root_mean_squared_error(np.zeros(each.size), each.ravel())) for each in errors]
    return Scored("root of the mean squared error", values=(values[0], values[1]),
                  whole=lambda weights: np.stack([weighted_rmse(each, weights) for each in squared], axis=1))


def _shown(case: Case) -> str:
    return f"{case.output!r} of shape {list(case.parent.shape)}"


def _flips(case: Case) -> Scored:
    if case.form.kind == "values" and is_float(case.parent):
        raise Refused("measure flips", found=f"the output {_shown(case)} holds no answers", do="use sqnr_db, or name another output")
    reading = case.form.reading or "any value"
    return Scored(f"share of answers that differ from the parent's ({reading})", candidate=flipped(case.parent, case.candidate, case.form))


def _kl(case: Case) -> Scored:
    form = case.form
    if form.kind not in ("scores", "score") or not is_float(case.parent):
        raise Refused("measure kl", found=f"the output {_shown(case)} is no distribution over classes",
                      do="use sqnr_db, or name another output")
    how = "outputs as probabilities" if form.probabilities else f"{'softmax' if form.kind == 'scores' else 'sigmoid'} of the outputs"
    return Scored(f"mean KL(parent || candidate) in nats, {how}", candidate=kl_divergence(case.parent, case.candidate, form))


def _energy(case: Case) -> Scored:
    """The drop of sqnr_db: relative error energy over all float outputs, of the worst of them."""
    names = [name for name, array in case.parents.items() if is_float(array)]
    if not names:
        raise Refused("measure sqnr_db", found="the model has no float output", do="use flips")
    pairs = [energies(case.parents[name], case.candidates[name]) for name in names]
    if not all(np.isfinite(each).all() for pair in pairs for each in pair):
        raise Refused("measure sqnr_db", found="infinity in an output")
    silent = [name for name, (_, signal) in zip(names, pairs, strict=True) if not signal.any()]
    if silent:
        raise Refused("measure sqnr_db", found=f"the parent's output {silent[0]!r} is all zeros")
    value = float(error_energy(pairs, np.ones((1, len(case))))[0])
    worst = "" if len(names) == 1 else f", the worst of {len(names)} outputs"
    return Scored(f"energy of the error over energy of the parent's output{worst}", values=(None, value),
                  whole=lambda weights: error_energy(pairs, weights)[:, None])


def _fidelity(case: Case) -> Scored:
    return _flips(case) if fidelity_quantity(case.parents) == "flips" else _energy(case)


_BY_NAME: Mapping[str, tuple[Direction, Callable[[Case], Scored]]] = {
    "accuracy": ("higher", _accuracy),
    "f1": ("higher", _f1),
    "auc": ("higher", _auc),
    "mae": ("lower", _mae),
    "rmse": ("lower", _rmse),
    "fidelity": ("lower", _fidelity),
    "flips": ("lower", _flips),
    "kl": ("lower", _kl),
    "sqnr_db": ("higher", _energy),
}
