"""Fidelity: how close a candidate's outputs are to its parent's, without any label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from whet.compress.evaluate.forms import Form, answers, form_of, is_float, probabilities

Array = np.ndarray[Any, Any]

# The most that fidelity may drop where no labels say what the outputs are worth, and no limit was given:
# flips: 2 % of the answers changed, which bounds the loss of accuracy by 2 points whatever the labels would have been;
# error_energy: 1 % of the parent's output energy, an SQNR of 20 dB.
DEFAULT_FIDELITY: Mapping[str, float] = {"flips": 0.02, "error_energy": 0.01}

FLOOR = 1e-10  # the least probability a candidate is taken to give: an 8-bit softmax gives true zeros, and KL would be infinite
BLOCK_BYTES = 1 << 25


def fidelity_quantity(outputs: Mapping[str, Array]) -> str:
    """Which quantity of DEFAULT_FIDELITY is the drop: "flips" where the only float output holds class scores ([n, C], C >= 2), or
    where there are only answers (whole numbers); else "error_energy"."""
    floats = [array for array in outputs.values() if is_float(array)]
    if len(floats) == 1 and form_of(floats[0]).kind == "scores":
        return "flips"
    return "error_energy" if floats else "flips"


def flipped(parent: Array, candidate: Array, form: Form) -> Array:
    """Bool [n]: whether the answer changed. Outputs of whole numbers have changed where any of them differs."""
    if form.kind == "values":
        return (parent != candidate).reshape(len(parent), -1).any(axis=1)
    changed: Array = answers(parent, form) != answers(candidate, form)
    return changed


def kl_divergence(parent: Array, candidate: Array, form: Form) -> Array:
    """Float64 [n], nats: sum_c p_c log(p_c / q_c), with p the parent's and q the candidate's probabilities, q at least FLOOR."""
    p, q = probabilities(parent, form), np.maximum(probabilities(candidate, form), FLOOR)
    terms: Array = np.where(p > 0, p * (np.log(np.maximum(p, FLOOR)) - np.log(q)), 0.0)
    return np.maximum(terms.sum(axis=1), 0.0)


def energies(parent: Array, candidate: Array) -> tuple[Array, Array]:
    """(error, signal), float64 [n]: sum over a sample's values of (parent - candidate)^2 and of parent^2."""
    step = max(1, BLOCK_BYTES // max(1, parent[:1].nbytes))
    error, signal = np.empty(len(parent)), np.empty(len(parent))
    for start in range(0, len(parent), step):
        rows = slice(start, start + step)
        one = parent[rows].reshape(len(parent[rows]), -1).astype(np.float64)
        other = candidate[rows].reshape(len(one), -1).astype(np.float64)
        with np.errstate(invalid="ignore"):  # infinity minus infinity: whoever asks looks whether the energies are finite
            error[rows], signal[rows] = np.square(one - other).sum(axis=1), np.square(one).sum(axis=1)
    return error, signal


def error_energy(pairs: list[tuple[Array, Array]], weights: Array) -> Array:
    """Float64 [k], for weights [k, n]: error energy over signal energy, 10^(-SQNR / 10), of the output that is worst off."""
    ratios = [(weights @ error) / np.maximum(weights @ signal, np.finfo(np.float64).tiny) for error, signal in pairs]
    return np.max(np.stack(ratios), axis=0)
