"""A whole model on windows of text, block after block: what leaves its last block, and its head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from whet.compress.checkpoint.hidden import Hidden
from whet.compress.checkpoint.skeleton import Skeleton
from whet.compress.checkpoint.text import Windows
from whet.compress.threads import one_thread
from whet.core.progress import task


@dataclass(frozen=True, eq=False)
class Ran:
    """What left a model's last block, and its head, as ``Skeleton.head`` gives it."""

    hidden: Hidden
    head: Any


@contextmanager
def ran(skeleton: Skeleton, windows: Windows, folder: Path, name: str) -> Iterator[Ran]:
    """The model on all windows; what flows between its blocks lies in the file ``folder``/``name``."""
    checkpoint = skeleton.checkpoint
    shape = (len(windows), windows.length, checkpoint.size(checkpoint.family.embedding)[1])
    hidden = Hidden(folder / name, shape)
    for begin, end in hidden.parts:
        hidden.write(begin, skeleton.embed(windows.tokens[begin:end]))
    with task(f"running the {name}", checkpoint.block_count) as progress, torch.no_grad(), one_thread(hidden.work):
        for index in range(checkpoint.block_count):
            skeleton.block(index)
            for begin, end in hidden.parts:
                hidden.write(begin, skeleton.run(index, hidden.read(begin, end)))
            skeleton.empty(index)
            progress.advance(note=checkpoint.block_name(index))
    with skeleton.head() as head:
        yield Ran(hidden, head)
    hidden.close()
