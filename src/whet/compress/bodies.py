"""Which of the two bodies a model is: a graph, or the checkpoint of a language model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whet.compress.checkpoint import Checkpoint


def checkpoint_in(source: Any) -> Checkpoint | None:
    """The checkpoint that ``source`` is or whose folder it names; None where it is something else."""
    named = isinstance(source, str | os.PathLike) and (Path(source) / "config.json").is_file()
    if not named and type(source).__name__ != "Checkpoint":
        return None
    from whet.compress.checkpoint import open_checkpoint

    return open_checkpoint(source)
