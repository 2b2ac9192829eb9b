"""The calibration samples on their way through a graph, operator by operator, so that a technique can stop at a layer and change it.

Two streams run side by side: what the float model computes, and what the model computes whose earlier layers were changed already.
Memory: the tensors that are alive at one point of the graph, for all samples, twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from whet.compress.data import Dataset
from whet.compress.graph import GraphModel
from whet.compress.mirror import Mirror, Step, mirror
from whet.compress.runtime import one_inference

BATCH = 32


@dataclass
class Stream:
    """values: the living tensors by name, for each batch of samples. constants: float constants by name; a layer that is changed has its
    own here.
    """

    values: list[dict[str, Tensor]]
    constants: dict[str, Tensor] = field(default_factory=dict)

    def tensor(self, name: str) -> Tensor:
        """[n, ...] of all samples."""
        return torch.cat([batch[name] for batch in self.values])

    def run(self, step: Step) -> None:
        """One operator on all batches; tensors that nobody reads any more are dropped."""
        with torch.no_grad():
            for batch in self.values:
                found = step.run(*(batch[name] if name in batch else self.constants[name] for name in step.inputs))
                batch.update(zip(step.outputs, found, strict=False))
                for name in step.done:
                    batch.pop(name, None)


@dataclass(frozen=True, eq=False)
class Stop:
    """A place before an operator. found: the stream of the changed model, expected: of the float one."""

    step: Step
    found: Stream
    expected: Stream


def stops(model: GraphModel, names: Sequence[str], data: Dataset, *, reference: GraphModel | None = None) -> Iterator[Stop]:
    """Go through the graph and stop before each of the named operators, in the order of execution.

    What the caller puts into ``found.constants`` at a stop is what the operator computes with from there on.
    reference: the float model, with the same tensors, where ``model`` has rounded weights already.
    """
    reflected = mirror(model)
    exact = reflected if reference is None else mirror(reference)
    found, expected = (Stream(_batches(model, data), _constants(each)) for each in (reflected, exact))
    wanted = set(names)
    for step, plain in zip(reflected.steps, exact.steps, strict=True):
        if step.name in wanted:
            yield Stop(step, found, expected)
        found.run(step)
        expected.run(plain)


def _constants(reflected: Mirror) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in reflected.constants().items()}


def _batches(model: GraphModel, data: Dataset) -> list[dict[str, Tensor]]:
    size = model.fixed_batch or BATCH
    full = len(data) // size * size
    if model.fixed_batch and full == 0:  # fewer samples than one batch of the graph: it is filled up
        return [_tensors(one_inference(model, data))]
    kept = data.take(range(full)) if model.fixed_batch else data
    return [_tensors(feeds) for feeds in kept.batches(size)]


def _tensors(feeds: Mapping[str, object]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(array) for name, array in feeds.items()}
