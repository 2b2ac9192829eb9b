"""One operator of a mirror, ready to run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Step:
    """A pure function of the tensors that it names.

    name, op: of the node. inputs: the tensors that ``run`` wants, in its order: activations and floating point constants; integer
    constants and the like are part of ``run``, absent optional inputs are left out. outputs: what ``run`` gives.
    done: activations that no later step, nor the graph's outputs, reads: they may be forgotten.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Callable[..., tuple[Tensor, ...]]
    done: tuple[str, ...] = ()


def execute(steps: Iterable[Step], values: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """Run the steps on ``values`` (by name), which they add to and take from."""
    for step in steps:
        found = step.run(*[values[name] for name in step.inputs])
        values.update(zip(step.outputs, found, strict=True))
        for name in step.done:
            del values[name]
    return values
