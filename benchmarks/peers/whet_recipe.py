"""Whet: a recipe done with ``whet.apply``, written with ``whet.export``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def prepare(model: Path, samples: dict[str, np.ndarray], out: Path, *, recipe: str) -> Callable[[], dict[str, Any]]:
    """recipe: as TOML."""
    import onnxruntime  # noqa: F401  what Whet imports when it is first used, as the other libraries do when they are imported

    import whet
    import whet.compress.calibrate
    from whet.compress.walks import walk_of

    steps = whet.Recipe.from_text(recipe)
    for step in steps.steps:
        walk_of(whet.technique(step.technique))  # torch, where the technique computes with it
    apply, export = whet.apply, whet.export

    def work() -> dict[str, Any]:
        made = apply(model, steps, calibration=samples)
        export(made, out)
        return {"session_options": dict(made.session_options)}

    return work
