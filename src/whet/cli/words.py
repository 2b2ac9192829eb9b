"""Texts as a terminal shows them: numbers and names in plain letters, whatever came out of a file."""

from __future__ import annotations

import re
from typing import Literal

Part = Literal["start", "ends", "end"]
"""Which part of a text is kept: its start, its end, or both ends."""

# What would steer the terminal (escape sequences come from a file's names), turn the direction of text, or has no UTF-8.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# No-break spaces and the minus sign are right on a page; whoever pipes a table into grep or awk wants those of the keyboard.
_TYPED = str.maketrans({"\u00a0": " ", "\u202f": " ", "\u2212": "-"})


def plain(text: str) -> str:
    """``text`` on one line, with nothing in it that a terminal obeys."""
    return _UNFIT.sub("\ufffd", " ".join(text.translate(_TYPED).split()))


def shortened(text: str, room: int, *, keep: Part = "end") -> str:
    """``text`` in at most ``room`` letters. The end of a layer's name tells more than its beginning."""
    if len(text) <= room:
        return text
    left = {"start": room - 1, "ends": room // 2, "end": 0}[keep]
    right = max(room - 1 - left, 0)
    return f"{text[:max(left, 0)]}…{text[len(text) - right :]}"[:room]


def counted(number: int, one: str, many: str = "") -> str:
    """ "1 layer", "3 layers"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def listed(names: list[str], most: int = 4) -> str:
    """ "a, b, c and 9 more"."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
