"""If, Loop and Scan: inner graphs become steps of their own, which read what the graph around them computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from whet.compress.mirror.build import Scope, bound, build, unfreed
from whet.compress.mirror.node import Node
from whet.compress.mirror.step import Step, execute
from whet.compress.mirror.tensors import Baked, torch_type


class _Body:
    """An inner graph. free: the names that it reads from around it, in the order in which ``run`` takes their tensors."""

    def __init__(self, graph: ir.Graph, scope: Scope) -> None:
        self.steps = build(graph, scope.inner())
        self.ends = list(graph.outputs)
        self.inputs = [value.name or "" for value in graph.inputs]
        self.outputs = [value.name or "" for value in graph.outputs]
        made = {*self.inputs, *(name for step in self.steps for name in step.outputs)}
        read = dict.fromkeys((*(name for step in self.steps for name in step.inputs), *self.outputs))
        self.free = tuple(name for name in read if name not in made)
        for name in self.free:
            scope.weights.read.update({name: None} if name in scope.weights.stored else {})

    def run(self, inputs: Sequence[Tensor], around: dict[str, Tensor]) -> list[Tensor]:
        values = execute(self.steps, {**around, **dict(zip(self.inputs, inputs, strict=True))})
        return [values[name] for name in self.outputs]

    def stacked(self, rows: Sequence[Sequence[Tensor]], axes: Sequence[int]) -> list[Tensor]:
        """The last outputs of each pass along a new axis; of no pass at all, as empty as the graph says."""
        if rows:
            return [torch.stack(list(column), axis) for column, axis in zip(zip(*rows, strict=True), axes, strict=True)]
        return [_nothing(value, axis) for value, axis in zip(self.ends[len(self.ends) - len(axes):], axes, strict=True)]


def _nothing(value: ir.Value, axis: int) -> Tensor:
    """No slices of a body's output; a size that is open counts as none."""
    sizes = [size if isinstance(size, int) else 0 for size in value.shape or ()]
    sizes.insert(axis % (len(sizes) + 1), 0)
    return torch.empty(sizes, dtype=torch_type(value.dtype or ir.DataType.FLOAT, f"mirror the output {value.name!r} of a loop"))


def _if(node: ir.Node, scope: Scope) -> Iterator[Step]:
    seen = Node(node, scope.opset, _constants(node, scope))
    branches = seen.graph("else_branch"), seen.graph("then_branch")
    known = seen.take(0)
    if known is not None:
        yield from _decided(node, branches[bool(known)], scope)
        return
    bodies = [_Body(branch, scope) for branch in branches]
    free = tuple(dict.fromkeys(name for body in bodies for name in body.free))

    def run(condition: Tensor, *around: Tensor) -> tuple[Tensor, ...]:
        return tuple(bodies[bool(condition)].run((), dict(zip(free, around, strict=True))))

    yield bound(seen, run, scope, free)


def _decided(node: ir.Node, branch: ir.Graph, scope: Scope) -> Iterator[Step]:
    """The branch takes the place of the If: its steps, and what it gives under the names of the If's outputs."""
    yield from unfreed(branch, scope)
    for inner, outer in zip(branch.outputs, node.outputs, strict=True):
        name, wanted = inner.name or "", outer.name or ""
        if name in scope.baked:
            scope.baked[wanted] = scope.baked[name]
        elif wanted:
            if name in scope.weights.stored:
                scope.weights.read[name] = None
                scope.weights.trained.add(name)
            yield Step(node.name or "", "Identity", (name,), (wanted,), lambda x: (x,))


def _loop(node: ir.Node, scope: Scope) -> Iterator[Step]:
    """Inputs: the most passes (or none), whether to begin (or none), values carried over. Outputs: those, and one row a pass."""
    seen = Node(node, scope.opset, {})
    body = _Body(seen.graph("body"), scope)
    carried, inputs = len(body.inputs) - 2, len(node.inputs)

    def run(*tensors: Tensor | None) -> tuple[Tensor, ...]:
        most, going, *rest = tensors[:inputs]
        state: list[Tensor] = [tensor for tensor in rest if tensor is not None]
        around = dict(zip(body.free, tensors[inputs:], strict=True))
        rows: list[list[Tensor]] = []
        go_on = torch.tensor(True) if going is None else going.reshape(())
        while bool(go_on) and (most is None or len(rows) < int(most)):
            go_on, *found = body.run((torch.tensor(len(rows)), go_on, *state), around)  # type: ignore[arg-type]
            state = found[:carried]
            rows.append(found[carried:])
        return (*state, *body.stacked(rows, (0,) * (len(body.outputs) - 1 - carried)))

    yield bound(seen, run, scope, body.free)


def _scan(node: ir.Node, scope: Scope) -> Iterator[Step]:
    """Inputs: states, then sequences, of which each pass sees one slice. Outputs: states, then one slice a pass, put together."""
    seen = Node(node, scope.opset, {})
    if scope.opset < 9:
        seen.refuse("Scan of opset 8 has a batch dimension of its own")
    body, sequences = _Body(seen.graph("body"), scope), seen.integer("num_scan_inputs")
    inputs = len(node.inputs)
    carried = inputs - sequences
    rows_out = len(body.outputs) - carried
    axes_in, back_in = (seen.integers(f"scan_input_{what}") or (0,) * sequences for what in ("axes", "directions"))
    axes_out, back_out = (seen.integers(f"scan_output_{what}") or (0,) * rows_out for what in ("axes", "directions"))
    seen.check_attributes()

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        state, around = list(tensors[:carried]), dict(zip(body.free, tensors[inputs:], strict=True))
        slices = [_slices(x, axis, back) for x, axis, back in zip(tensors[carried:inputs], axes_in, back_in, strict=True)]
        rows = []
        for parts in zip(*slices, strict=True):
            found = body.run((*state, *parts), around)
            state = found[:carried]
            rows.append(found[carried:])
        columns = body.stacked(rows, axes_out)
        return (*state, *[column.flip(axis) if back else column for column, axis, back in zip(columns, axes_out, back_out, strict=True)])

    yield bound(seen, run, scope, body.free)


def _slices(x: Tensor, axis: int, backwards: int) -> Sequence[Tensor]:
    parts = x.unbind(axis)
    return parts[::-1] if backwards else parts


def _constants(node: ir.Node, scope: Scope) -> dict[int, Baked | ir.TensorProtocol]:
    return {index: known for index, value in enumerate(node.inputs) if (known := scope.known(value)) is not None}


CONTROL = {"If": _if, "Loop": _loop, "Scan": _scan}
