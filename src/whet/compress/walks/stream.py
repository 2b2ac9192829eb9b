"""The calibration samples on their way through a graph, from layer to layer, so that a technique can stop at a layer and change it.

Two streams run side by side: what the float model computes, and what the model computes whose earlier layers were changed already.
Between two stops a few samples at a time go through all operators, so that what lies between is never there for all samples.
Memory: a batch of samples, and ``held.MOST_BYTES`` of the tensors that wait at a stop, for each stream; the rest of those waits in files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import MappingProxyType

import onnx_ir as ir
import torch
from torch import Tensor

from whet.compress.data import Dataset
from whet.compress.graph import GraphModel
from whet.compress.mirror import Step, unrolled
from whet.compress.mirror.tensors import seen
from whet.compress.runtime import are_as_many, one_inference
from whet.compress.walks.held import Held
from whet.core.errors import Unsupported, WhetError

LARGEST_BATCH = 32
BATCH_BYTES = 16 << 20  # of the tensors of a batch that are alive at once: they nearly stay in the cache, and more gains no speed


Look = Callable[[Tensor], None]
_NO_LOOKS: Mapping[str, Look] = MappingProxyType({})


class Constants(dict[str, Tensor]):
    """Float constants by name, each made a tensor when it is first asked for, in the memory where it lies. Nobody writes to them."""

    def __init__(self, stored: Mapping[str, ir.TensorProtocol]) -> None:
        super().__init__()
        self._stored = stored

    def __missing__(self, name: str) -> Tensor:
        return self.setdefault(name, seen(self._stored[name], f"follow the constant {name!r}"))


class Batches(Sequence[dict[str, Tensor]]):
    """The samples as the graph takes them, ``size`` at a time, read when they are asked for."""

    def __init__(self, data: Dataset, size: int) -> None:
        self._data, self.size = data, size

    def __len__(self) -> int:
        return -(-len(self._data) // self.size)

    def __getitem__(self, index: int) -> dict[str, Tensor]:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = self._data.take(range(index * self.size, min((index + 1) * self.size, len(self._data))))
        return _tensors(next(part.batches(self.size)))


class Stream:
    """A graph's steps, the samples, and what they have become so far.

    constants: float constants by name; a layer whose weight is changed has it here. position: the step that is next. What waits there
    for it is ``held``; a step that reads constants alone is done once for all samples, and its outputs are constants.
    """

    def __init__(self, model: GraphModel, batches: Sequence[Mapping[str, Tensor]]) -> None:
        self.steps, stored = unrolled(model)
        self.batches, self.held, self.constants = batches, Held(), Constants(stored)
        self.position = 0
        self._shifts: dict[str, tuple[Tensor, int]] = {}
        self._last = {name: index for index, step in enumerate(self.steps) for name in step.inputs}
        self._constant = _constant(self.steps, stored)

    def read(self, name: str) -> Sequence[Tensor]:
        """The tensor as it is here, for each batch, read when it is asked for."""
        return _Read(self, name)

    def value(self, batch: int, name: str) -> Tensor:
        """A tensor that waits here, an input, or a constant."""
        if (batch, name) in self.held:
            values = self.held.get(batch, name)
            if name in self._shifts:
                amount, axis = self._shifts[name]
                values = values + (amount if axis == -1 else amount.reshape(-1, *[1] * (values.ndim - 2)))
            return values
        return self.constants[name] if self.is_constant(name) else self.batches[batch][name]

    def is_constant(self, name: str) -> bool:
        """Whether the tensor is the same for all samples, and no input of the graph."""
        return name in self._constant

    def outputs(self, step: Step) -> Iterator[Tensor]:
        """What the operator that is next gives, batch by batch, without going on."""
        with torch.no_grad():
            for batch in range(len(self.batches)):
                yield step.run(*[self.value(batch, name) for name in step.inputs])[0]

    def shift(self, output: str, amount: Tensor, axis: int) -> None:
        """Add [C] along ``axis`` to a tensor that waits here (axis 1 of maps, the last one of rows)."""
        self._shifts[output] = amount, axis

    def run_until(self, name: str) -> Step:
        """Go on up to the operator of that name, which is not run yet. Raises Unsupported where there is none ahead."""
        end = self._place_of(name)
        self.go(end)
        return self.steps[end]

    def run_through(self, name: str, look: Look) -> Step:
        """Go on up to the operator of that name and run it; ``look`` sees its first output, batch by batch. Raises as ``run_until``."""
        end = self._place_of(name)
        self.go(end + 1, {name: look})
        return self.steps[end]

    def go(self, end: int, looks: Mapping[str, Look] = _NO_LOOKS) -> None:
        """Go on up to the step number ``end``; on the way ``looks`` see the first output of the operators of their names."""
        part = self.steps[self.position : end]
        with torch.no_grad():
            moving = [step for step in part if not self._is_fixed(step)]
            for step in part:
                if self._is_fixed(step):
                    self.constants.update(zip(step.outputs, step.run(*[self.constants[name] for name in step.inputs]), strict=False))
            for batch in range(len(self.batches) if moving else 0):
                self._run(moving, batch, looks)
        self.position = end
        for name in {name for step in part for name in step.inputs if self._last[name] < end}:
            self.constants.pop(name, None)

    def _run(self, steps: Sequence[Step], batch: int, looks: Mapping[str, Look]) -> None:
        """Some operators on one batch; what is still to be read is held, the rest forgotten."""
        known: dict[str, Tensor] = {}
        made: set[str] = set()
        for step in steps:
            for name in step.inputs:
                if name not in known:
                    known[name] = self.value(batch, name)
            known.update(zip(step.outputs, step.run(*[known[name] for name in step.inputs]), strict=False))
            made.update(step.outputs)
            if step.name in looks:
                looks[step.name](known[step.outputs[0]])
            for name in step.done:
                known.pop(name, None)
                self.held.drop(batch, name)
        for name in made & known.keys():
            self.held.put(batch, name, known[name])

    def _is_fixed(self, step: Step) -> bool:
        return bool(step.inputs) and all(map(self.is_constant, step.inputs))

    def _place_of(self, name: str) -> int:
        for index in range(self.position, len(self.steps)):
            if self.steps[index].name == name:
                return index
        raise Unsupported(f"follow {name}", found="the quantised and the float model have their layers in another order")


@dataclass(frozen=True, eq=False)
class _Read(Sequence[Tensor]):
    """A tensor that waits in a stream, batch by batch."""

    stream: Stream
    name: str

    def __len__(self) -> int:
        return len(self.stream.batches)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.stream.value(index, self.name)


@dataclass(frozen=True, eq=False)
class Stop:
    """A place before an operator. found: the stream of the changed model, expected: of the float one, where the operator is ``exact``."""

    step: Step
    exact: Step
    found: Stream
    expected: Stream


def stops(model: GraphModel, names: Collection[str], data: Dataset, *, reference: GraphModel | None = None,
          exact: bool = True) -> Iterator[Stop]:
    """Go through the graph and stop before each of the named operators, in the order of execution.

    What the caller puts into ``found.constants`` at a stop is what the operator computes with from there on.
    reference: the float model, with operators of the same names in the same order, where ``model`` is changed already.
    exact: where it is not wanted, the float stream is not computed, and ``expected`` is ``found``.
    """
    batches = batches_of(model, data)
    with ExitStack() as stack:
        found = stream(model, batches, stack)
        expected = stream(reference or model, batches, stack) if exact else found
        for name in [step.name for step in found.steps if step.name in names]:
            yield Stop(found.run_until(name), expected.run_until(name), found, expected)


def stream(model: GraphModel, batches: Sequence[Mapping[str, Tensor]], stack: ExitStack) -> Stream:
    """A stream that ``stack`` closes."""
    made = Stream(model, batches)
    stack.callback(made.held.close)
    return made


def batches_of(model: GraphModel, data: Dataset) -> Sequence[Mapping[str, Tensor]]:
    """The samples as the graph takes them: batches of a fixed size where it has one; the rest that fills none is left out."""
    size = model.fixed_batch
    if not size:
        return Batches(data, _fitting(model, data))
    full = len(data) // size * size
    if full == 0:  # fewer samples than one batch of the graph: it is filled up
        return [_tensors(one_inference(model, data))]
    return Batches(data.take(range(full)), size)


def _fitting(model: GraphModel, data: Dataset) -> int:
    """So many samples that ``BATCH_BYTES`` hold what is alive of them, or 1 where the graph says to take any batch and does not."""
    if len(data) < 2:
        return 1
    feeds = next(data.batches(2))
    probe = Stream(model, [_tensors(feeds)])
    most = 0
    try:
        for end in range(1, len(probe.steps) + 1):
            probe.go(end)
            most = max(most, probe.held.bytes)
        found = {spec.name: probe.value(0, spec.name).numpy() for spec in model.outputs}
    except (WhetError, RuntimeError, ValueError, IndexError):  # whatever an operator says to sizes that do not fit each other
        return 1
    finally:
        probe.held.close()
    return max(1, min(LARGEST_BATCH, 2 * BATCH_BYTES // max(most, 1))) if are_as_many(model, feeds, found) else 1


def _constant(steps: Sequence[Step], stored: Collection[str]) -> set[str]:
    """The names of the stored constants, and of what is computed from constants alone."""
    known = set(stored)
    for step in steps:
        if step.inputs and all(name in known for name in step.inputs):
            known.update(step.outputs)
    return known


def _tensors(feeds: Mapping[str, object]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(array) for name, array in feeds.items()}
