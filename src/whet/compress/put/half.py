"""Operators that compute in float16, with casts where float32 begins and ends."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from whet.compress.edit import Editor
from whet.compress.weights import array

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def put_half(nodes: Iterable[ir.Node], editor: Editor) -> None:
    """Let the nodes compute in float16. Inputs and outputs of the graph keep their type; a tensor is cast once each way."""
    chosen = [node for node in nodes if all(output.dtype in (_FLOAT, None) for output in node.outputs if output.name)]
    halves: dict[ir.Value, ir.Value] = {}
    outputs = dict.fromkeys(output for node in chosen for output in node.outputs)  # in order: a set would name the casts by chance
    for node in chosen:
        for index, value in enumerate(node.inputs):
            if value is not None and value not in outputs and _is_float(value):
                node.replace_input_with(index, _as_half(value, halves, editor))
    members = set(chosen)
    for value in outputs:
        readers = [reader for reader, _ in value.uses() if reader not in members]
        if readers or value.is_graph_output():
            back = editor.node("Cast", [value], attributes={"to": _FLOAT.value}, like=value, dtype=_FLOAT)
            editor.take_output(value, back)
            editor.redirect(value, back, readers)
        value.type = ir.TensorType(_HALF)  # a type of its own: an output of the graph may share the old one


def _is_float(value: ir.Value) -> bool:
    known = value.const_value.dtype if value.const_value is not None else value.dtype
    return known in (_FLOAT, None)  # operators with a float16 kernel read nothing but floats


def _as_half(value: ir.Value, halves: dict[ir.Value, ir.Value], editor: Editor) -> ir.Value:
    if value not in halves:
        if value.const_value is not None and not value.is_graph_input():
            halves[value] = editor.constant(array(value).astype(np.float16))
        else:
            halves[value] = editor.node("Cast", [value], attributes={"to": _HALF.value}, like=value, dtype=_HALF)
    return halves[value]
