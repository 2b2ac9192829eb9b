"""Which operators compute in integers together, and on which tensors their grids lie.

The rules are those of the target's runtime, probed for onnxruntime 1.31 (docs/targets.md):
- an operator runs in integers when every activation it reads comes from DequantizeLinear and its output goes to QuantizeLinear
  alone; a matrix product may also give its output in float;
- Relu and Clip(0, x) between an operator and its QuantizeLinear vanish, when the grid already cuts where they do;
- an operator that only moves data runs on the codes, when its input and output share a grid.
An operator without weights follows its neighbours: between two conversions it would gain nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from whet.compress.fold import only_reader
from whet.compress.weights import array, constant, float_attribute, int_attribute, is_row, slots
from whet.core.target import Target

PRODUCTS = frozenset({"MatMul", "Gemm"})  # may end in float
WEIGHTED = frozenset({"Conv", "MatMul", "Gemm"})
# They change the order or the shape and nothing else, so the range before and after is one.
REARRANGERS = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
# Movers whose first input alone is data; the others have several data inputs or outputs and are not followed.
_MOVERS = frozenset({"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand", "Tile",
                     "Identity", "Dropout", "DepthToSpace", "Resize", "Pad"})
_CUTTERS = frozenset({"Slice", "Split", "Gather"})
# Ranges are unequal where the narrow one would lose three of its eight bits.
UNEQUAL = 8.0


@dataclass(frozen=True, eq=False)
class Site:
    """An operator that computes in integers.

    inputs: the indices of its activations. output: the tensor that its output grid lies on (after a Relu that vanishes), or
    None where the output stays in float.
    """

    node: ir.Node
    inputs: tuple[int, ...]
    output: ir.Value | None

    @property
    def tensors(self) -> tuple[ir.Value, ...]:
        """The activations it reads."""
        return tuple(self.node.inputs[index] for index in self.inputs)  # type: ignore[misc]


def sites(graph: ir.Graph, wanted: Iterable[str], target: Target) -> dict[str, Site]:
    """The sites among the nodes of the names ``wanted``, in the order of execution."""
    names = set(wanted)
    chosen = {node for node in graph if node.name in names and is_integer_op(node, target)}
    while loose := {node for node in chosen if node.op_type not in WEIGHTED and not _in_company(node, chosen, target)}:
        chosen -= loose
    return {node.name or "": Site(node, activation_inputs(node), _output(node, chosen, target)) for node in graph if node in chosen}


def torn(found: Mapping[str, Site], widths: Mapping[str, float], target: Target) -> tuple[str, ...]:
    """The Concats among the sites that had better stay in float: one grid would hold very unequal tensors, which are cut apart again.

    So a detector joins boxes in pixels with scores below 1, and its post-processing takes them apart. A Concat that is read as a whole
    has to have one grid in any case. widths: of the range of each tensor that a grid lies on, by name.
    """
    joined = {name: [widths[value.name or ""] for value in site.tensors] for name, site in found.items() if site.node.op_type == "Concat"}
    unequal = [name for name, each in joined.items() if max(each) > UNEQUAL * min(each)]
    return tuple(name for name in unequal if _cut_apart(found[name].node.outputs[0], target))


def is_integer_op(node: ir.Node, target: Target) -> bool:
    """Whether the target's runtime has an integer kernel for this very node."""
    if node.op_type not in target.fused_ops or node.op_type in target.moving_ops or node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type in ("Conv", "Gemm"):
        plain = node.op_type == "Conv" or (not int_attribute(node, "transA", 0) and float_attribute(node, "alpha", 1.0) == 1.0
                                           and float_attribute(node, "beta", 1.0) == 1.0)
        return bool(slots(node)) and plain and (len(node.inputs) < 3 or node.inputs[2] is None or is_row(constant(node, 2)))
    if node.op_type == "MatMul" and constant(node, 1) is not None:
        return len(array(node.inputs[1]).shape) == 2 and constant(node, 0) is None  # type: ignore[arg-type]
    return bool(activation_inputs(node)) and all(_float_or_unknown(value) for value in node.inputs if value is not None)


def is_mover(node: ir.Node, target: Target) -> bool:
    """Whether the node only moves data, so that it can run on codes. Pad does where it pads with 0."""
    if node.op_type == "Pad":
        return pads_with_zero(node)
    if node.op_type == "Resize":
        mode = node.attributes.get("mode")
        return "Resize" in target.moving_ops and (mode is None or mode.as_string() == "nearest")
    return node.op_type in _MOVERS and node.op_type in target.moving_ops and len(node.outputs) == 1 and constant(node, 0) is None


def activation_inputs(node: ir.Node) -> tuple[int, ...]:
    """The inputs that are not constants. Where, whose first input is a condition, counts from the second on."""
    first = 1 if node.op_type == "Where" else 0
    last = 1 if node.op_type in ("Conv", "Gemm") else len(node.inputs)
    return tuple(i for i in range(first, last) if node.inputs[i] is not None and constant(node, i) is None)


def readers(value: ir.Value, target: Target) -> list[ir.Node]:
    """The nodes that read the tensor, seen through movers."""
    found: list[ir.Node] = []
    for node, index in value.uses():
        found += readers(node.outputs[0], target) if index == 0 and is_mover(node, target) else [node]
    return found


def source(value: ir.Value | None, target: Target) -> ir.Node | None:
    """The node that made the tensor, seen through movers and the Relu that vanishes."""
    node = value.producer() if value is not None else None
    while node is not None and (is_mover(node, target) or vanishes(node)):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node


def vanishes(node: ir.Node) -> bool:
    """A Relu or Clip(0, x) right behind another operator, which a grid that starts at 0 makes redundant."""
    before = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    if before is None or only_reader(node.inputs[0]) is not node:  # type: ignore[arg-type]
        return False
    return node.op_type == "Relu" or (node.op_type == "Clip" and _clips_at_zero(node))


def _cut_apart(value: ir.Value, target: Target) -> bool:
    return any(node.op_type in _CUTTERS or (index == 0 and is_mover(node, target) and _cut_apart(node.outputs[0], target))
               for node, index in value.uses())


def _in_company(node: ir.Node, chosen: set[ir.Node], target: Target) -> bool:
    after = readers(_after(node), target)
    return (any(source(node.inputs[i], target) in chosen for i in activation_inputs(node))
            and any(reader in chosen for reader in after))


def _output(node: ir.Node, chosen: set[ir.Node], target: Target) -> ir.Value | None:
    out = _after(node)
    if node.op_type in PRODUCTS and not any(reader in chosen for reader in readers(out, target)):
        return None
    return out


def _after(node: ir.Node) -> ir.Value:
    """The output of the node, or of the Relu behind it that vanishes."""
    reader = only_reader(node.outputs[0])
    return reader.outputs[0] if reader is not None and vanishes(reader) else node.outputs[0]


def _clips_at_zero(node: ir.Node) -> bool:
    low = constant(node, 1)
    if low is None:  # before opset 11 the bounds were attributes
        return float_attribute(node, "min", -1.0) == 0.0
    return float(array(low)) == 0.0 and (len(node.inputs) < 3 or node.inputs[2] is None or constant(node, 2) is not None)


def pads_with_constant(node: ir.Node) -> bool:
    """Whether a Pad adds one number, and not what it finds at the edges."""
    mode = node.attributes.get("mode")
    return mode is None or mode.as_string() == "constant"


def pads_with_zero(node: ir.Node) -> bool:
    """Whether a Pad adds zeros."""
    value = constant(node, 2)
    given = len(node.inputs) > 2 and node.inputs[2] is not None
    return pads_with_constant(node) and (not given or (value is not None and not array(value).any()))


def _float_or_unknown(value: ir.Value) -> bool:
    known = value.const_value.dtype if value.const_value is not None else value.dtype
    return known in (None, ir.DataType.FLOAT, ir.DataType.BOOL)
