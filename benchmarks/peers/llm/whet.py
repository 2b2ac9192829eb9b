"""Whet: a recipe done with ``whet.apply``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def prepare(model: Path, samples: dict[str, np.ndarray], out: Path, *, recipe: str) -> Callable[[], dict[str, Any]]:
    """recipe: as TOML."""
    import transformers.models.llama.modeling_llama  # noqa: F401  what Whet imports when it is first used, as the other libraries do

    import whet
    import whet.compress.checkpoint.apply

    steps = whet.Recipe.from_text(recipe)
    needy = [step for step in steps.steps if whet.technique(step.technique).needs != "nothing"]
    apply, tokens = whet.apply, samples["tokens"] if needy else None

    def work() -> dict[str, Any]:
        made = apply(str(model), steps, calibration=tokens, out=out)
        linear = tuple(f"{layer}." for index in range(made.block_count) for layer in made.block_layers(index))
        return {"size_bytes": sum(entry.size_bytes for name, (_, entry) in made.entries.items() if name.startswith(linear))}

    return work
