"""One step of a generation, whichever runtime took it."""

from __future__ import annotations

from typing import NamedTuple


class Step(NamedTuple):
    """text: what became certain, "" where a letter is not whole. seconds: that it took. ended: why it is the last one, "" where it is
    not. is_token: False where a runtime only says that it is done.
    """

    text: str
    seconds: float
    ended: str
    is_token: bool = True
