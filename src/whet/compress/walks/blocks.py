"""Block by block: parts of the graph between places where one tensor is alive, each learned with what the blocks before now give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import onnx_ir as ir
import torch
from torch import Tensor

from whet.compress.calibrate import collect
from whet.compress.fake import on_grid
from whet.compress.graph import GraphModel
from whet.compress.grid import Grid, Quantised
from whet.compress.mirror import Step, mirror
from whet.compress.put.sites import is_mover
from whet.compress.technique import Change, LayerView
from whet.compress.views import Block, Range
from whet.compress.walks import Work
from whet.compress.walks.scratch import Samples
from whet.compress.walks.sites import observed
from whet.compress.walks.stream import batches_of
from whet.compress.weights import Slot, stored_rows
from whet.core.errors import Unsupported
from whet.core.progress import track

Place = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Part:
    """Some steps in order, and the activations that enter and leave them."""

    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def walk(model: GraphModel, work: Work) -> GraphModel:
    """Show the technique each block and keep the weights and ranges it learned. Raises Unsupported where nothing computes in integers."""
    found = model.copied().integer_sites(list(work.layers), work.target)
    views = {name: next(iter(view.items())) for name, view in model.views(list(found)).items()}
    if not views:
        raise Unsupported(f"apply {work.technique.name} to {', '.join(list(work.layers)[:5])}", found="none of them computes in integers")
    data = work.samples
    reading = {value.name or "" for site in found.values() for value in site.tensors}
    statistics = collect(model, [name for name in observed(found) if name in reading], work.calibration, histogram=True)
    reflected = mirror(model)
    constants = {name: tensor.detach() for name, tensor in reflected.constants().items()}
    starts = batches_of(model, data)
    chunk = len(starts[0][data.names[0]])
    fixed = model.fixed_batch or (1 if chunk == 1 else 0)  # it may say to take any batch and not do it
    constants |= {name: tensor for name, tensor in starts[0].items() if name not in data.names}  # inputs that are the same for all samples
    changes: dict[str, dict[Slot, Change]] = {}
    ranges: dict[str, Range] = {}
    inputs = [name for name in reflected.inputs if name in data.names]
    parts = list(parts_of(reflected.steps, inputs, reflected.outputs, set(views)))
    with ExitStack() as stack:
        now = {name: _waiting((batch[name] for batch in starts), stack) for name in inputs}
        exact = now
        for part in track(parts, work.technique.name, len(parts)):
            runner = _Runner(part, model, views, constants, chunk)
            wanted = runner.outputs(exact, {}, _as_it_is, stack)
            learned_weights: dict[str, Tensor] = {}
            grids: dict[str, Grid] = {}
            if runner.layers:
                read = {name for step in part.steps if step.name in found for name in step.inputs}
                block = Block(part.steps[0].name, runner.layers, {name: statistics[name] for name in statistics if name in read},
                              tuple(now[name] for name in part.inputs), tuple(exact[name] for name in part.inputs),
                              _side_by_side([wanted[name] for name in part.outputs]), runner.run, fixed=fixed)
                learned = work.journal.once(block.name, partial(work.technique.apply, block, work.target, **work.options))
                changes |= {name: {views[name][0]: Change(codes)} for name, codes in learned.weights.items()}
                learned_weights = {name: _rows(codes, runner.layers[name]) for name, codes in learned.weights.items()}
                grids = dict(learned.activations)
                ranges |= {name: _range_of(grid) for name, grid in grids.items()}
            before, now = (now, exact), runner.outputs(now, learned_weights, _on_grids(grids), stack)
            exact = wanted
            for each in (*before[0].values(), *before[1].values()):
                each.close()
    made = model.rounded(changes)
    return replace(made, ranges={**model.ranges, **_before_movers(model, ranges, work)})


def _waiting(batches: Iterable[Tensor], stack: ExitStack) -> Samples:
    """All samples of a tensor, which ``stack`` closes where nobody did before."""
    found = Samples()
    stack.callback(found.close)
    for batch in batches:
        found.append(batch)
    return found


def parts_of(steps: Sequence[Step], inputs: Sequence[str], outputs: Sequence[str], layers: set[str]) -> Iterator[Part]:
    """The graph cut wherever just one activation is alive and the steps since the last cut hold a layer of ``layers``."""
    last = {name: index for index, step in enumerate(steps) for name in step.inputs}
    begin, entering, alive = 0, tuple(inputs), set(inputs)
    for index, step in enumerate(steps):
        alive |= set(step.outputs)
        alive = {name for name in alive if last.get(name, -1) > index or name in outputs}
        whole = any(each.name in layers for each in steps[begin : index + 1])
        ahead = any(each.name in layers for each in steps[index + 1 :])
        if len(alive) == 1 and whole and ahead:
            leaving = tuple(alive)
            yield Part(tuple(steps[begin : index + 1]), entering, leaving)
            begin, entering = index + 1, leaving
    yield Part(tuple(steps[begin:]), entering, tuple(outputs))


class _Runner:
    """Runs one part with weights and activations of the caller's. chunk: samples at a time where nothing is learned."""

    def __init__(self, part: Part, model: GraphModel, views: Mapping[str, tuple[Slot, LayerView]], constants: Mapping[str, Tensor],
                 chunk: int) -> None:
        self.part, self.constants, self.chunk = part, constants, chunk
        own = {step.name for step in part.steps}
        nodes = {node.name or "": node for node in model.ir.graph if node.name in own}
        self.slots = {name: slot for name, (slot, _) in views.items() if name in own}
        self.layers = {name: view for name, (_, view) in views.items() if name in own}
        self.weights = {name: _weight_name(nodes[name], slot) for name, slot in self.slots.items()}

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor], place: Place) -> Tensor:
        """The part's output; several side by side."""
        values = self._computed(dict(zip(self.part.inputs, inputs, strict=True)), weights, place)
        return _beside([values[name] for name in self.part.outputs])

    def outputs(self, inputs: Mapping[str, Samples], weights: Mapping[str, Tensor], place: Place, stack: ExitStack) -> dict[str, Samples]:
        """The tensors that leave the part, by name, computed in chunks of samples and without gradients; ``stack`` closes them."""
        count = len(next(iter(inputs.values())))
        found = {name: _waiting((), stack) for name in self.part.outputs}
        with torch.no_grad():
            for begin in range(0, count, self.chunk):
                chunk = {name: inputs[name][begin : begin + self.chunk] for name in self.part.inputs}
                values = self._computed(chunk, weights, place)
                for name, samples in found.items():
                    samples.append(values[name])
        return found

    def _computed(self, inputs: Mapping[str, Tensor], weights: Mapping[str, Tensor], place: Place) -> dict[str, Tensor]:
        values = {name: place(name, tensor) for name, tensor in inputs.items()}
        for step in self.part.steps:
            own = {}
            if step.name in weights:
                stored = self.constants[self.weights[step.name]]
                own[self.weights[step.name]] = stored_rows(weights[step.name], tuple(stored.shape), self.slots[step.name])
            given = [own[name] if name in own else values[name] if name in values else self.constants[name] for name in step.inputs]
            made = zip(step.outputs, step.run(*given), strict=False)
            values.update({name: place(name, tensor) for name, tensor in made})
        return values


def _as_it_is(name: str, values: Tensor) -> Tensor:
    return values


def _on_grids(grids: Mapping[str, Grid]) -> Place:
    def place(name: str, values: Tensor) -> Tensor:
        return on_grid(values, grids[name]) if name in grids else values

    return place


def _side_by_side(tensors: Sequence[Samples]) -> Samples | Tensor:
    """Several outputs of the graph, which are small, as one."""
    return tensors[0] if len(tensors) == 1 else _beside([samples[:] for samples in tensors])


def _beside(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat([tensor.flatten(1).float() for tensor in tensors], 1)


def _rows(codes: Quantised, layer: LayerView) -> Tensor:
    assert layer.weight is not None
    return torch.tensor(codes.values.reshape(layer.weight.shape))


def _weight_name(node: ir.Node, slot: Slot) -> str:
    value = node.inputs[slot.index]
    assert value is not None
    return value.name or ""


def _range_of(grid: Grid) -> Range:
    """What ``from_range`` makes the grid of again."""
    scale, zero = float(grid.scale), int(grid.zero_point)
    return (grid.lowest - zero) * scale, (grid.highest - zero) * scale


def _before_movers(model: GraphModel, ranges: Mapping[str, Range], work: Work) -> dict[str, Range]:
    """The ranges, and the same for the tensors before operators that only move data: there the grid begins."""
    found = dict(ranges)
    values = {value.name: value for node in model.ir.graph for value in node.outputs}
    for name, known in ranges.items():
        value = values.get(name)
        while value is not None and (made := value.producer()) is not None and is_mover(made, work.target):
            value = made.inputs[0]
            if value is not None:
                found[value.name or ""] = known
    return found
