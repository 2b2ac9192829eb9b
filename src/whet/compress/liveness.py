"""Peak activation memory from who reads what last; the model of a runtime that frees a tensor after its last reader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One execution of an operator.

    reads, writes: names of activations (weights are no activations). view: the output is its first input looked at otherwise, and
    takes no memory. inner_bytes: the peak of the graphs inside it (of a branch, a body), beside what it reads and writes.
    """

    layer: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    view: bool = False
    inner_bytes: int = 0


@dataclass(frozen=True)
class Peak:
    """The bytes, and who made what is alive at that moment, largest first (an input of the model stands for itself)."""

    size_bytes: int
    layers: tuple[str, ...]


def peak(steps: Sequence[Step], inputs: Iterable[str], outputs: Iterable[str], sizes: Mapping[str, int]) -> Peak:
    """The largest sum of bytes alive during a step: everything made before that is still read later, and what the step writes.

    Inputs are alive from the start, outputs to the end. sizes: bytes of every activation. Operators that a runtime runs in place
    (ReLU on its own input) count twice here: the figure is an upper bound for those.
    """
    inputs = tuple(inputs)
    roots, maker = _roots(steps), {name: name for name in inputs}
    last = {roots.get(name, name): len(steps) for name in outputs}
    for index, step in enumerate(steps):
        for name in (*step.reads, *step.writes):
            root = roots.get(name, name)
            last[root] = max(last.get(root, -1), index)
    leaving: dict[int, list[str]] = {}
    for name, index in last.items():
        leaving.setdefault(index, []).append(name)
    alive = {roots.get(name, name): sizes[name] for name in inputs}
    total = sum(alive.values())
    best, best_alive = total, dict(alive)
    for index, step in enumerate(steps):
        for name in step.writes:
            if name not in roots:
                alive[name], maker[name] = sizes[name], step.layer
                total += sizes[name]
        if total + step.inner_bytes > best:
            best, best_alive = total + step.inner_bytes, dict(alive)
        for name in leaving.get(index, ()):
            total -= alive.pop(name, 0)
    makers: dict[str, int] = {}
    for name, size in best_alive.items():
        makers[maker[name]] = makers.get(maker[name], 0) + size
    return Peak(best, tuple(name for name in sorted(makers, key=lambda name: -makers[name]) if makers[name]))


def _roots(steps: Sequence[Step]) -> dict[str, str]:
    """The activation whose memory each view looks at."""
    roots: dict[str, str] = {}
    for step in steps:
        if step.view and step.reads and step.writes:
            roots[step.writes[0]] = roots.get(step.reads[0], step.reads[0])
    return roots
