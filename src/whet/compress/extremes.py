"""The highest and lowest number of a tensor, found inside the graph by the runtime's own pooling.

onnxruntime holds the activations of a CNN in blocks of channels (NCHWc). To give a tensor out costs another layout, fresh memory and a pass
of numpy over it: a third of a ResNet-50's forward passes. GlobalMaxPool reads the blocks as they lie and gives one number a channel; behind
a factor of -1 (a BatchNormalization, which runs in blocks as well, where a Neg does not) the highest number is the lowest one.

A maximum may pass over a NaN, so this is for tensors that are finite wherever the inputs and the weights are.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from whet.compress.edit import Editor
from whet.compress.grid import Array
from whet.compress.shapes import Typed
from whet.compress.statistics import Seen
from whet.compress.weights import array, constant
from whet.core.document import FrozenMap

LEAST_NUMBERS = 2048  # of one sample: smaller tensors are given out whole as fast
_MOVES = frozenset({"AveragePool", "Concat", "Dropout", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool", "Reshape",
                    "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"})
# What these give is finite where what they read is, short of numbers that float32 does not hold.
_FINITE = _MOVES | {"Add", "BatchNormalization", "Clip", "Constant", "ConstantOfShape", "Conv", "ConvTranspose", "Elu", "Gather", "Gemm",
                    "HardSigmoid", "HardSwish", "LeakyRelu", "MatMul", "Mul", "PRelu", "Pad", "Relu", "Resize", "Shape", "Sigmoid", "Sub",
                    "Sum", "Tanh"}


@dataclass(frozen=True)
class _Place:
    """Where a tensor's numbers are among those of an output. numbers: of the tensor, in one inference of ``batch`` samples."""

    output: str
    highest: int
    lowest: int | None
    numbers: int
    batch: int


@dataclass(frozen=True, eq=False)
class Pools:
    """Outputs of a graph that tell the ranges of tensors. starts: by output ([n, channels, 1, ...]), where in its channels each part
    begins."""

    places: Mapping[str, _Place] = field(default_factory=FrozenMap)
    starts: Mapping[str, Sequence[int]] = field(default_factory=FrozenMap)

    @property
    def bytes(self) -> int:
        """Of the tensors in one inference."""
        return 4 * sum(place.numbers for place in self.places.values())

    def seen(self, values: Mapping[str, Array]) -> dict[str, Seen]:
        """What the outputs say of a batch, by tensor. For what follows a Relu 0 stands for the lowest number. NaN where there is none."""
        most = {name: _most(values[name], starts) for name, starts in self.starts.items()}
        return {name: Seen(0.0 if at.lowest is None else -most[at.output][at.lowest], most[at.output][at.highest],
                           at.numbers * len(values[at.output]) // at.batch) for name, at in self.places.items()}


def _most(channels: Array, starts: Sequence[int]) -> list[float]:
    """The highest number of each tensor. A channel that still has what pooling starts from had no number in it."""
    highest = channels.max(axis=0).ravel()
    highest[highest == np.finfo(np.float32).min] = np.nan
    found: list[float] = np.maximum.reduceat(highest, starts).tolist()
    return found


def pooled(graph: ir.Graph, tensors: Collection[str], shapes: Mapping[str, Typed]) -> Pools:
    """Pool those of the tensors for which that is the faster way; the outputs are added to the graph.

    shapes: of one inference; a tensor that is not in there stays as it is. graph: with its nodes in order.
    """
    finite, positive = _kinds(graph)
    alike: dict[tuple[int, int], list[ir.Value]] = {}  # what one Concat can put together, by dimensions and batch
    for value in [value for node in graph for value in node.outputs if value.name in tensors and value in finite]:
        dtype, shape = shapes.get(value.name or "", ("", ()))
        if dtype == "float32" and len(shape) > 2 and 0 not in shape and math.prod(shape[1:]) >= LEAST_NUMBERS:
            alike.setdefault((len(shape), shape[0]), []).append(value)
    editor = Editor(graph)
    places: dict[str, _Place] = {}
    starts = {}
    for values in alike.values():
        output, begins, found = _together(values, positive, shapes, editor)
        graph.outputs.append(output)
        starts[output.name or ""] = begins
        places |= found
    return Pools(places, starts)


def _together(values: list[ir.Value], positive: Collection[ir.Value], shapes: Mapping[str, Typed],
              editor: Editor) -> tuple[ir.Value, list[int], dict[str, _Place]]:
    """One output for tensors of as many dimensions, where each one's channels begin in it, and their places."""
    highest: list[ir.Value] = []
    begins: list[int] = []
    parts: dict[str, tuple[int, int | None]] = {}
    channels = 0
    for value in values:
        count, first = shapes[value.name or ""][1][1], len(begins)
        reads = [value] if value in positive else [value, _negative(value, count, editor)]
        for read in reads:
            highest.append(editor.node("GlobalMaxPool", [read]))
            begins.append(channels)
            channels += count
        parts[value.name or ""] = first, first + 1 if len(reads) > 1 else None
    output = editor.node("Concat", highest, attributes={"axis": 1}, dtype=ir.DataType.FLOAT)
    sizes = {name: shapes[name][1] for name in parts}
    return output, begins, {name: _Place(output.name or "", *part, math.prod(sizes[name]), sizes[name][0]) for name, part in parts.items()}


def _negative(value: ir.Value, channels: int, editor: Editor) -> ir.Value:
    """-value, to the bit: (value - 0) / sqrt(1 + 0) * -1 + 0."""
    factor, zero, one = (editor.constant(np.full(channels, number, np.float32)) for number in (-1.0, 0.0, 1.0))
    return editor.node("BatchNormalization", [value, factor, zero, zero, one], attributes={"epsilon": 0.0})


def _kinds(graph: ir.Graph) -> tuple[set[ir.Value], set[ir.Value]]:
    """(values that are finite where inputs and weights are, values of which no number is below 0)."""
    finite = {*graph.inputs, *graph.initializers.values()}
    positive: set[ir.Value] = set()
    for node in graph:
        if node.domain != "":
            continue
        read = [value for value in node.inputs if value is not None]
        if node.op_type in _FINITE and finite.issuperset(read):
            finite.update(node.outputs)
        if _cuts_at_zero(node) or (node.op_type in _MOVES and positive.issuperset(_moved(node, read))):
            positive.update(node.outputs)
    return finite, positive


def _moved(node: ir.Node, read: list[ir.Value]) -> Iterable[ir.Value]:
    return read if node.op_type == "Concat" else read[:1]


def _cuts_at_zero(node: ir.Node) -> bool:
    if node.op_type != "Clip":
        return node.op_type == "Relu"
    least = constant(node, 1)
    return least is not None and float(array(least)) >= 0
