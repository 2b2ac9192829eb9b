"""Placing labels beside points so that no two run into each other: greedy, the most important first, and pure.

A point offers several texts (its name, then its number); the first that fits somewhere near is taken, further off with a thin
leader line if need be. Nothing fits in the worst crowd: then the point stays without one, and its tooltip and the table name it.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

FONT = 11.5  # px in the units of the viewBox; the style sheet says the same
LINE = 14.0
_GAP = 1.5  # free room around a label


@dataclass(frozen=True)
class Box:
    """A rectangle; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box, gap: float = 0.0) -> bool:
        across = self.left < other.right + gap and other.left < self.right + gap
        return across and self.top < other.bottom + gap and other.top < self.bottom + gap

    def within(self, other: Box) -> bool:
        return other.left <= self.left and self.right <= other.right and other.top <= self.top and self.bottom <= other.bottom


@dataclass(frozen=True)
class Wish:
    """A point that wants a label: its place and radius, and the texts that would do, the best first."""

    x: float
    y: float
    radius: float
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Label:
    """A label with its box; ``text`` starts at (x, y), y being the base line. leader: a line (x1, y1, x2, y2) to the point."""

    text: str
    x: float
    y: float
    box: Box
    leader: tuple[float, float, float, float] | None = None


def text_width(text: str) -> float:
    """Px that ``text`` takes at most in the common system fonts (Verdana and DejaVu Sans are the widest)."""
    return FONT * sum(_letter_width(letter) for letter in text)


def shortened(text: str, most: int = 26) -> str:
    """``text`` on one line of at most ``most`` letters, the middle left out: names differ at both ends."""
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    head = (most - 1) // 2
    return f"{line[:head]}…{line[len(line) - (most - 1 - head):]}"


def place(wishes: Sequence[Wish], frame: Box, taken: Sequence[Box], lines: Sequence[Box] = ()) -> tuple[Label | None, ...]:
    """A label for each wish, in the order given; None where none fits.

    frame: labels stay inside. taken: boxes that no label may cover (the points themselves are added). lines: boxes that labels
    keep clear of while they can.
    """
    blocked = [*taken, *(Box(wish.x - wish.radius, wish.y - wish.radius, wish.x + wish.radius, wish.y + wish.radius) for wish in wishes)]
    found: list[Label | None] = []
    for wish in wishes:
        label = _place_one(wish, frame, blocked, lines)
        found.append(label)
        if label is not None:
            blocked.append(label.box)
            blocked += _leader_boxes(label)
    return tuple(found)


def _place_one(wish: Wish, frame: Box, blocked: Sequence[Box], lines: Sequence[Box]) -> Label | None:
    for text in wish.texts:
        for avoided in (lines, ()):
            for label in _places(wish, text):
                if not label.box.within(frame) or any(label.box.overlaps(box, _GAP) for box in blocked):
                    continue
                if any(label.box.overlaps(line) for line in avoided) or _leader_meets(label, wish, blocked):
                    continue
                return label
    return None


def _places(wish: Wish, text: str) -> Iterator[Label]:
    """Right, left, above, below and between; then on circles further off, with a leader."""
    width = text_width(text)
    near = wish.radius + 3.0
    side, up = near, wish.radius + LINE / 2 + 1
    for dx, dy in ((side, 0.0), (-side - width, 0.0), (-width / 2, -up), (-width / 2, up),
                   (side - 3, -up + 2), (side - 3, up - 2), (3 - side - width, -up + 2), (3 - side - width, up - 2)):  # fmt: skip
        yield _label(text, wish.x + dx, wish.y + dy, width)
    for reach in (20.0, 30.0, 42.0, 56.0):
        for turn in range(16):
            dx, dy = reach * math.cos(turn * math.pi / 8), -reach * math.sin(turn * math.pi / 8)
            end_x, end_y = wish.x + dx, wish.y + dy
            start_x, start_y = wish.x + dx * wish.radius / reach, wish.y + dy * wish.radius / reach
            left = end_x + 2 if dx > 4 else end_x - 2 - width if dx < -4 else end_x - width / 2
            middle = end_y if abs(dx) > 4 else end_y + math.copysign(LINE / 2, dy)
            label = _label(text, left, middle, width)
            yield Label(label.text, label.x, label.y, label.box, tuple(round(each, 1) for each in (start_x, start_y, end_x, end_y)))  # type: ignore[arg-type]


def _label(text: str, left: float, middle: float, width: float) -> Label:
    box = Box(round(left, 1), round(middle - LINE / 2, 1), round(left + width, 1), round(middle + LINE / 2, 1))
    return Label(text, box.left, round(middle + FONT * 0.36, 1), box)


def _leader_boxes(label: Label) -> list[Box]:
    """The leader as a row of small boxes."""
    if label.leader is None:
        return []
    x1, y1, x2, y2 = label.leader
    points = [(x1 + (x2 - x1) * step / 8, y1 + (y2 - y1) * step / 8) for step in range(9)]
    return [Box(x - 1, y - 1, x + 1, y + 1) for x, y in points]


def _leader_meets(label: Label, wish: Wish, blocked: Sequence[Box]) -> bool:
    own = Box(wish.x - wish.radius, wish.y - wish.radius, wish.x + wish.radius, wish.y + wish.radius)
    return any(piece.overlaps(box) for piece in _leader_boxes(label) for box in blocked if box != own)


def _letter_width(letter: str) -> float:
    """In units of the font's size."""
    if unicodedata.combining(letter) or unicodedata.category(letter) == "Mn":
        return 0.0
    if unicodedata.east_asian_width(letter) in "WF" or ord(letter) > 0xFFFF:
        return 1.15
    if letter in "MW@%mw…—":
        return 1.0
    if letter in "ijlI.,:;'|!()[] -ft/":
        return 0.42
    return 0.76 if letter.isupper() or ord(letter) > 0x2FF else 0.66
