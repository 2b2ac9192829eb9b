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
from whet.compress.runtime import one_inference, opened, takes_batch
from whet.core.errors import Unsupported

BATCH = 32


@dataclass
class Stream:
    """values: the living tensors by name, for each batch of samples. constants: float constants by name; a layer whose weight is
    changed has it here. shifts: what is added to the output of an operator, by the output's name.
    """

    steps: Sequence[Step]
    values: list[dict[str, Tensor]]
    constants: dict[str, Tensor]
    shifts: dict[str, Tensor] = field(default_factory=dict)
    position: int = 0

    def outputs(self, step: Step) -> Iterator[Tensor]:
        """What the operator gives, batch by batch, without going on."""
        with torch.no_grad():
            for batch in self.values:
                yield step.run(*self._inputs(step, batch))[0]

    def shift(self, output: str, amount: Tensor, axis: int) -> None:
        """Add [C] along ``axis`` to a tensor that is still to be computed (axis 1 of maps, the last one of rows)."""
        self.shifts[output] = amount if axis == -1 else amount.reshape(-1, *[1] * max(self._positions(output), 0))

    def run_until(self, name: str) -> Step:
        """Go on up to the operator of that name, which is not run yet. Raises Unsupported where there is none ahead."""
        while self.position < len(self.steps):
            step = self.steps[self.position]
            if step.name == name:
                return step
            self._run(step)
            self.position += 1
        raise Unsupported(f"follow {name}", found="the quantised and the float model have their layers in another order")

    def _run(self, step: Step) -> None:
        """One operator on all batches; tensors that nobody reads any more are dropped."""
        with torch.no_grad():
            for batch in self.values:
                found = step.run(*self._inputs(step, batch))
                batch.update(zip(step.outputs, found, strict=False))
                for name in step.outputs:
                    if name in self.shifts:
                        batch[name] = batch[name] + self.shifts[name]
                for name in step.done:
                    batch.pop(name, None)

    def _inputs(self, step: Step, batch: Mapping[str, Tensor]) -> list[Tensor]:
        return [batch[name] if name in batch else self.constants[name] for name in step.inputs]

    def _positions(self, output: str) -> int:
        """How many axes lie behind the channels of the operator that is next."""
        return next(self.outputs(self.steps[self.position])).ndim - 2


@dataclass(frozen=True, eq=False)
class Stop:
    """A place before an operator. found: the stream of the changed model, expected: of the float one, where the operator is ``exact``."""

    step: Step
    exact: Step
    found: Stream
    expected: Stream


def stops(model: GraphModel, names: Sequence[str], data: Dataset, *, reference: GraphModel | None = None,
          exact: bool = True) -> Iterator[Stop]:
    """Go through the graph and stop before each of the named operators, in the order of execution.

    What the caller puts into ``found.constants`` or ``found.shift`` at a stop is what the operator computes with from there on.
    reference: the float model, with operators of the same names in the same order, where ``model`` is changed already.
    exact: where it is not wanted, the float stream is not computed, and ``expected`` is ``found``.
    """
    found = _stream(model, data)
    expected = _stream(reference or model, data) if exact else found
    wanted = set(names)
    for name in [step.name for step in found.steps if step.name in wanted]:
        yield Stop(found.run_until(name), expected.run_until(name), found, expected)


def _stream(model: GraphModel, data: Dataset) -> Stream:
    reflected = mirror(model)
    return Stream(reflected.steps, batches_of(model, data), _constants(reflected))


def _constants(reflected: Mirror) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in reflected.constants().items()}


def batches_of(model: GraphModel, data: Dataset) -> list[dict[str, Tensor]]:
    """The samples as the graph takes them: batches of a fixed size where it has one; the rest that fills none is left out."""
    size = model.fixed_batch or _batch(model, data)
    full = len(data) // size * size
    if model.fixed_batch and full == 0:  # fewer samples than one batch of the graph: it is filled up
        return [_tensors(one_inference(model, data))]
    kept = data.take(range(full)) if model.fixed_batch else data
    return [_tensors(feeds) for feeds in kept.batches(size)]


def _batch(model: GraphModel, data: Dataset) -> int:
    """``BATCH``, or 1 where the graph says to take any batch and does not."""
    if len(data) < 2:
        return 1
    with opened(model) as session:
        return BATCH if takes_batch(session, model, next(data.batches(2))) else 1


def _tensors(feeds: Mapping[str, object]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(array) for name, array in feeds.items()}
