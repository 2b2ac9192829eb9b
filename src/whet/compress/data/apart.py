"""Samples to judge by and samples to calibrate by, which have none in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from whet.compress.data.dataset import Dataset
from whet.compress.data.load import load_data
from whet.compress.data.split import check_overlap, split
from whet.core.artifact import TensorSpec
from whet.core.errors import Refused

CALIBRATION_SAMPLES = 300


def apart(data: Any, calibration: Any, inputs: Sequence[TensorSpec], *, seed: int = 0) -> tuple[Dataset, Dataset, tuple[str, ...]]:
    """(evaluation, calibration, notes). Calibration is split off where it is not given; an overlap is Refused."""
    evaluation = load_data(data, tuple(inputs))
    if calibration is not None:
        calibrating = load_data(calibration, tuple(inputs))
        check_overlap(calibrating, evaluation)
        return evaluation, calibrating, ()
    if len(evaluation) < 4:
        raise Refused("split calibration samples off the data", found=f"{len(evaluation)} samples", do="give more data, or --calibration")
    count = min(CALIBRATION_SAMPLES, max(len(evaluation) // 5, 2))
    calibrating, rest = split(evaluation, count=count, seed=seed)
    return rest, calibrating, (f"{len(calibrating)} samples were split off the evaluation data for calibration; they are not evaluated on",)
