"""Splitting data in two, and making sure that two sets have nothing in common."""

from __future__ import annotations

from typing import Any

import numpy as np

from whet.compress.data.dataset import Dataset
from whet.core.errors import Refused

Array = np.ndarray[Any, Any]


def split(dataset: Dataset, *, fraction: float | None = None, count: int | None = None, seed: int = 0) -> tuple[Dataset, Dataset]:
    """(first, second): ``count`` samples, or ``fraction`` of them, and the rest, each in the order of the data.

    The same data and seed give the same split. Where labels are classes, each class is split in the same proportion (largest
    remainders). Samples with identical inputs stay together, as the two parts could else not be told apart; where there are such,
    the first part may be smaller than asked by the size of one such group. Raises Refused where a part would be empty.
    """
    if (fraction is None) == (count is None):
        raise Refused("split the data", found="a fraction and a count, or neither", do="give one of them")
    wanted = round((fraction or 0.0) * len(dataset)) if count is None else count
    if not 0 < wanted < len(dataset):
        raise Refused(f"split off {wanted} samples", found=f"the data has {len(dataset)}", do="leave at least one sample for each part")
    random = np.random.default_rng(seed)
    groups = _groups(dataset)
    classes = _classes(dataset, groups)
    chosen: set[int] = set()
    left = []
    for name, quota in _quotas(dataset, groups, classes, wanted).items():
        members = [group for group, of in zip(groups, classes, strict=True) if of == name]
        members = [members[i] for i in random.permutation(len(members))]
        left += _fill(chosen, members, quota)
    _fill(chosen, left, wanted - len(chosen))
    if not 0 < len(chosen) < len(dataset):
        raise Refused(f"split off {wanted} of {len(dataset)} samples", found="too many of them are identical", do="remove the duplicates")
    inside = np.isin(np.arange(len(dataset)), list(chosen))
    return dataset.take(np.flatnonzero(inside)), dataset.take(np.flatnonzero(~inside))


def check_overlap(calibration: Dataset, evaluation: Dataset) -> None:
    """Raises Refused where a sample (by its inputs, not its label) is in both: a model is not judged on what it was tuned on."""
    known = set(calibration.sample_hashes)
    both = [index for index, sample in enumerate(evaluation.sample_hashes) if sample in known]
    if both:
        found = f"{len(both)} of {len(evaluation)} evaluation samples are also in the calibration data (the first is sample {both[0]})"
        raise Refused("keep calibration and evaluation data apart", found=found,
                      do="give other calibration data, or leave it out and Whet splits it off")


def _groups(dataset: Dataset) -> list[list[int]]:
    """The indices of identical samples together, in the order of their first."""
    groups: dict[str, list[int]] = {}
    for index, sample in enumerate(dataset.sample_hashes):
        groups.setdefault(sample, []).append(index)
    return list(groups.values())


def _classes(dataset: Dataset, groups: list[list[int]]) -> list[int]:
    """The class of each group; one class for all where the labels are no classes."""
    labels = dataset.labels
    if labels is None or labels.dtype.kind != "i" or labels[:1].size != 1:
        return [0] * len(groups)
    flat = labels.reshape(-1)
    return [int(flat[group[0]]) for group in groups]


def _quotas(dataset: Dataset, groups: list[list[int]], classes: list[int], wanted: int) -> dict[int, int]:
    """How many samples of each class: proportional, the largest remainders rounded up."""
    sizes: dict[int, int] = dict.fromkeys(sorted(classes), 0)
    for group, of in zip(groups, classes, strict=True):
        sizes[of] += len(group)
    shares = {of: wanted * size / len(dataset) for of, size in sizes.items()}
    quotas = {of: int(share) for of, share in shares.items()}
    by_remainder = sorted(shares, key=lambda of: (quotas[of] - shares[of], of))
    for of in by_remainder[: wanted - sum(quotas.values())]:
        quotas[of] += 1
    return quotas


def _fill(chosen: set[int], groups: list[list[int]], room: int) -> list[list[int]]:
    """Adds whole groups to ``chosen`` while they fit into ``room``; returns those that did not."""
    left = []
    for group in groups:
        if len(group) <= room:
            chosen.update(group)
            room -= len(group)
        else:
            left.append(group)
    return left
