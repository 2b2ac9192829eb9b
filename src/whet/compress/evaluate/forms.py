"""How an output is to be read: scores of classes, one score for yes or no, answers, or plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from whet.core.errors import Refused

Array = np.ndarray[Any, Any]

SUM_TOLERANCE = 1e-2  # how far a row may be from the sum 1 and still be probabilities: an 8-bit softmax output is rounded


@dataclass(frozen=True)
class Form:
    """The form of one output, told from the parent's values alone, so that parent and candidate are read alike.

    kind: "scores" [n, C], a score for each of C >= 2 classes; "score" [n], one score, where above ``threshold`` means yes;
    "answers" [n], whole numbers that are classes already; "values", anything else.
    probabilities: whether scores lie in 0..1 (and sum to 1); else they are logits.
    """

    kind: Literal["scores", "score", "answers", "values"]
    classes: int = 0
    probabilities: bool = False

    @property
    def threshold(self) -> float:
        return 0.5 if self.probabilities else 0.0

    @property
    def reading(self) -> str:
        """How an answer is taken from the output, for the ``method`` of a measurement."""
        texts = {"scores": "class of the highest score", "score": f"yes above {self.threshold:g}", "answers": "class as given"}
        return texts.get(self.kind, "")


def squeezed(output: Array) -> Array:
    """Without the axes of size 1, but for axis 0: [n, C, 1, 1] to [n, C], [n, 1] to [n]."""
    return output.reshape(len(output), *[size for size in output.shape[1:] if size != 1])


def form_of(output: Array) -> Form:
    """The form of the parent's output [n, ...]."""
    values = squeezed(output)
    if values.ndim == 1 and values.dtype.kind in "biu":
        return Form("answers")
    if values.ndim == 1 and is_float(values):
        return Form("score", 2, bool(values.size and values.min() >= 0 and values.max() <= 1))
    if values.ndim == 2 and values.shape[1] >= 2:
        sums = values.sum(axis=1, dtype=np.float64)
        shares = is_float(values) and bool(values.min() >= 0 and np.abs(sums - 1).max() <= SUM_TOLERANCE)
        return Form("scores", values.shape[1], shares)
    return Form("values")


def answers(output: Array, form: Form, what: str = "metric") -> Array:
    """The class that the model answers, int64 [n]. Equal scores: the first of them, as numpy.argmax has it. Raises Refused."""
    values = squeezed(output)
    if form.kind == "scores":
        return np.argmax(values, axis=1)
    if form.kind == "score":
        return (values > form.threshold).astype(np.int64)
    if form.kind == "answers":
        return values.astype(np.int64)
    raise Refused(f"take classes from an output for {what}", found=f"its shape is {list(output.shape)}, neither [n, classes] nor [n]",
                  do="name the output that holds the scores, or give your own metric as module:function")


def class_labels(labels: Array | None, form: Form, count: int, what: str) -> Array:
    """Labels as int64 [n], checked against the classes that the output has. Raises Refused, saying how to mend them."""
    flat = squeezed(_given(labels, count, what))
    if flat.ndim != 1:
        raise Refused(f"use labels for {what}", found=f"labels of shape {list(flat.shape)}",
                      do="give one class number a sample; of one-hot labels: y.argmax(1)")
    numbers = flat.astype(np.int64)
    if flat.dtype.kind not in "biu" and not np.array_equal(numbers, flat):
        raise Refused(f"use labels for {what}", found="labels that are no whole numbers", do="use mae or rmse for a regression")
    low, high = int(numbers.min()), int(numbers.max())
    if form.kind in ("scores", "score") and (low < 0 or high >= form.classes):
        do = "count classes from 0: labels - 1" if low == 1 and high == form.classes else "check which classes the model knows"
        raise Refused(f"use labels for {what}: the output knows the classes 0 to {form.classes - 1}",
                      found=f"labels from {low} to {high}", do=do)
    return numbers


def value_labels(labels: Array | None, output: Array, what: str) -> Array:
    """Labels as float64 of the output's own shape, but for axes of size 1. Raises Refused."""
    flat = squeezed(_given(labels, len(output), what))
    if flat.shape != squeezed(output).shape:
        raise Refused(f"use labels for {what}", found=f"labels of shape {list(flat.shape)} for an output of shape {list(output.shape)}",
                      do="give a label for each value, or use a metric for classes")
    return flat.astype(np.float64)


def probabilities(output: Array, form: Form) -> Array:
    """Float64 [n, C], each row of sum 1: the scores themselves, or their softmax; of one score, (1 - p, p) with p or its sigmoid."""
    values = squeezed(output).astype(np.float64)
    if form.kind == "score":
        if form.probabilities:
            values = np.clip(values, 0.0, 1.0)
            return np.stack([1 - values, values], axis=1)
        values = np.stack([np.zeros_like(values), values], axis=1)
    elif form.probabilities:
        values = np.maximum(values, 0.0)
        return values / np.maximum(values.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    result: Array = powers / powers.sum(axis=1, keepdims=True)
    return result


def is_float(array: Array) -> bool:
    return array.dtype.kind == "f" or "float" in array.dtype.name  # bfloat16 is of kind "V"


def _given(labels: Array | None, count: int, what: str) -> Array:
    if labels is None:
        raise Refused(f"measure {what}", found="the data has no labels", do='add `labels` to the data, or use the metric "fidelity"')
    if labels.ndim == 0 or len(labels) != count:
        raise Refused(f"measure {what}", found=f"{labels.size if labels.ndim == 0 else len(labels)} labels for {count} samples")
    return labels
