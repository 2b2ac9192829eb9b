"""Which quantised tensors may stay floating point numbers: those that only ever meet a DequantizeLinear."""

from __future__ import annotations

import onnx_ir as ir

_MAKERS = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})
_MOVERS = frozenset({"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Pad", "Split", "Identity", "MaxPool", "Expand",
                     "Tile", "DepthToSpace", "SpaceToDepth"})
_LOOKERS = frozenset({"Shape", "Size"})  # they see no values


def floating_codes(graph: ir.Graph) -> frozenset[str]:
    """Names of the codes of ``graph`` that go, as they are or moved about, to dequantisers only.

    Begins with all that may and takes away what is read otherwise, and what is made from such, until nothing changes.
    """
    found: dict[str, ir.Value] = {}
    for node in graph:
        if node.op_type in _MAKERS:
            found[node.outputs[0].name or ""] = node.outputs[0]
        elif any(value.name in found for value in _moved(node)):
            found.update({value.name or "": value for value in node.outputs})
    while True:
        left = {name: value for name, value in found.items() if _is_free(value, found)}
        if len(left) == len(found):
            return frozenset(left)
        found = left


def _moved(node: ir.Node) -> list[ir.Value]:
    """The inputs whose values the node passes on unchanged."""
    if node.op_type == "Concat":
        return [value for value in node.inputs if value is not None]
    return [node.inputs[0]] if node.op_type in _MOVERS and node.inputs[0] is not None else []


def _is_free(value: ir.Value, found: dict[str, ir.Value]) -> bool:
    maker = value.producer()
    if value.is_graph_output() or maker is None:
        return False
    if maker.op_type not in _MAKERS and any(source.name not in found for source in _moved(maker)):
        return False
    return all(_passes(node, index, found) for node, index in value.uses() if node is not None)


def _passes(node: ir.Node, index: int, found: dict[str, ir.Value]) -> bool:
    if node.op_type in _LOOKERS or (node.op_type == "DequantizeLinear" and index == 0):
        return True
    return node.inputs[index] in _moved(node) and all(output.name in found for output in node.outputs)
