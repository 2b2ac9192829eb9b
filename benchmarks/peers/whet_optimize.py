"""Whet: ``whet optimize`` with its defaults, or with another goal. It measures every candidate on the evaluation data, which no other
way is given.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def prepare(model: Path, samples: dict[str, np.ndarray], out: Path, *, evaluation: str,
            minimize: str = "latency") -> Callable[[], dict[str, Any]]:
    """evaluation: path of the labelled data. minimize: the goal of the search."""
    import scipy.stats  # noqa: F401  what Whet imports when it is first used, as the other libraries do when they are imported

    import whet
    import whet.compress.mirror

    optimize, load = whet.optimize, whet.load
    folder = out.parent / "optimize"

    def work() -> dict[str, Any]:
        outcome = optimize(model, data=evaluation, calibration=samples, minimize=minimize, out=folder)
        if not outcome.winner:
            raise SystemExit(outcome.headline)
        for file in (folder / "best").glob("model.onnx*"):
            shutil.copy(file, out.parent / file.name)
        recipe = next(trial.recipe for trial in outcome.trials if trial.name == outcome.winner)
        steps = " + ".join(step.technique for step in recipe.steps) or "the float model"
        return {"session_options": dict(load(folder / "best").session_options), "note": f"`{outcome.winner}`: {steps}"}

    return work
