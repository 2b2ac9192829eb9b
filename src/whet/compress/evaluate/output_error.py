"""How much the outputs of a model changed, in one number."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from whet.compress.evaluate.fidelity import kl_divergence
from whet.compress.evaluate.forms import form_of
from whet.compress.grid import Array


def relative_error(reference: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """The largest of sum |y' - y|^2 / sum |y|^2 over the float outputs, and where there are none, of the share of whole numbers that
    changed. 0 where an output is all zeros and stays so, 1 where it does not; infinity where NaN or infinity came out."""
    floats = [name for name, values in reference.items() if np.issubdtype(values.dtype, np.floating)]
    if not floats:
        return max((float((found[name] != values).mean()) for name, values in reference.items()), default=0.0)
    return max(_energy(reference[name].astype(np.float64), found[name].astype(np.float64)) for name in floats)


def softmax_divergence(reference: Mapping[str, Array], found: Mapping[str, Array]) -> float | None:
    """KL divergence (nats, mean over samples) of the class probabilities, where just one float output holds class scores; else None."""
    floats = [name for name, values in reference.items() if np.issubdtype(values.dtype, np.floating)]
    form = form_of(reference[floats[0]]) if len(floats) == 1 else None
    if form is None or form.kind != "scores" or not np.isfinite(found[floats[0]]).all():
        return None
    return float(kl_divergence(reference[floats[0]], found[floats[0]], form).mean())


def decibels(error: float) -> float | None:
    """Signal to noise of a relative error energy; None where there is none, or where nothing but noise is left."""
    return None if not 0 < error < np.inf else -10 * float(np.log10(error))


def _energy(reference: Array, found: Array) -> float:
    power, error = float((reference**2).sum()), float(((found - reference) ** 2).sum())
    if not np.isfinite(error):
        return float("inf")
    return error / power if power else float(error > 0)
