"""Metrics of a whole sample (F1, AUC, RMSE) for many bootstrap samples at once.

scikit-learn gives the value that is shown. Its functions would take minutes for thousands of resamples, so here are the same formulas
on weights [k, n] (how often each sample was drawn) as matrix products; the tests hold them to scikit-learn's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def weighted_f1(found: Array, labels: Array, weights: Array, binary: bool) -> Array:
    """Float64 [k]: F1 of class 1 (binary), or the mean over the classes that occur in answers or labels (macro)."""
    classes = [1] if binary else np.union1d(found, labels).tolist()
    total, present = np.zeros(len(weights)), np.zeros(len(weights))
    for number in classes:
        both = weights @ ((found == number) & (labels == number))
        size = weights @ (found == number) + weights @ (labels == number)  # 2 true positives + false positives + false negatives
        total += np.where(size > 0, 2 * both / np.maximum(size, 1), 0.0)
        present += size > 0
    return total if binary else total / np.maximum(present, 1)


def weighted_auc(scores: Array, positive: Array, weights: Array) -> Array:
    """Float64 [k]: the probability that a positive sample scores above a negative one, equal scores counting half.

    scores: float [n]; positive: bool [n]. NaN where a resample has only one of both.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf) > 0) if len(scores) else np.zeros(0, int)
    starts = np.union1d([0], starts)
    drawn, up = weights[:, order], positive[order]
    ups, downs = np.add.reduceat(drawn * up, starts, axis=1), np.add.reduceat(drawn * ~up, starts, axis=1)
    below = np.cumsum(downs, axis=1) - downs / 2
    pairs = ups.sum(axis=1) * downs.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        area: Array = (ups * below).sum(axis=1) / np.where(pairs > 0, pairs, np.nan)
    return area


def weighted_macro_auc(scores: Array, labels: Array, weights: Array) -> Array:
    """Float64 [k]: the mean of one-against-rest AUC over the classes that occur in ``labels``; scores [n, C]."""
    parts = [weighted_auc(scores[:, number], labels == number, weights) for number in np.unique(labels)]
    result: Array = np.mean(parts, axis=0)
    return result


def weighted_rmse(squared: Array, weights: Array) -> Array:
    """Float64 [k]: the root of the weighted mean of squared errors [n]."""
    result: Array = np.sqrt(weights @ squared / weights.sum(axis=1))
    return result
