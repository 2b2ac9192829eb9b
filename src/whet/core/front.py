"""Front: the artifacts that no other one beats on everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def beats(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether ``one`` is at least as good (lower) everywhere and better somewhere."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))


def front(points: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
    """The names on the Pareto front, in the order given. Every coordinate is better when lower; all have the same length."""
    return tuple(name for name, point in points.items() if not any(beats(other, point) for other in points.values()))
