"""Products whose activations are quantised as they come. The patterns are the ones that onnxruntime fuses."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from whet.compress.edit import Editor
from whet.compress.grid import Quantised
from whet.compress.put.storage import stored_codes
from whet.compress.weights import Slot, array, int_attribute
from whet.core.errors import Unsupported


def put_dynamic(node: ir.Node, weights: dict[Slot, Quantised], editor: Editor) -> None:
    """Replace the node; ``weights`` holds its quantised weights, [out, in] each."""
    if node.op_type == "LSTM":
        if len(weights) < 2:
            raise Unsupported(f"quantise {node.name} (LSTM) dynamically", found="one of its two weights is no constant", do="exclude it")
        _put_lstm(node, weights, editor)
    else:
        ((slot, weight),) = weights.items()
        _put_product(node, slot, weight, editor)


def _put_product(node: ir.Node, slot: Slot, weight: Quantised, editor: Editor) -> None:
    """x -> DynamicQuantizeLinear -> MatMulInteger | ConvInteger -> Cast -> * (s_x s_w) -> + bias."""
    x, stored = node.inputs[0], node.inputs[slot.index]
    assert x is not None
    assert stored is not None
    codes, grid = stored_codes(weight, tuple(array(stored).shape), slot)
    if node.op_type == "Gemm" and slot.axis == 0:  # MatMulInteger knows no transB
        codes = np.ascontiguousarray(codes.T)
    if int_attribute(node, "transA", 0):
        x = editor.node("Transpose", [x], dtype=ir.DataType.FLOAT)
    quantised, scale_x, zero_x = _quantise_dynamically(x, editor)
    store = editor.within(stored.graph)  # bodies of an If may share a weight of the graph around them
    convolution = node.op_type == "Conv"
    if convolution:  # onnxruntime's ConvInteger is fast with uint8 weights only: same grid, codes moved up by 128
        moved = (codes.astype(np.int16) + 128).astype(np.uint8)
        inputs = [quantised, store.constant(moved), zero_x, editor.constant(np.array(128, np.uint8))]
    else:
        inputs = [quantised, store.constant(codes), zero_x, editor.constant(np.zeros((), np.int8))]
    attributes = dict(node.attributes) if convolution else {}
    old, name = node.outputs[0], node.name or ""
    node.name = f"{name}_replaced"
    total = editor.node("ConvInteger" if convolution else "MatMulInteger", inputs, name=name, attributes=attributes,
                        like=old, dtype=ir.DataType.INT32)
    as_float = editor.node("Cast", [total], attributes={"to": ir.DataType.FLOAT.value}, like=old, dtype=ir.DataType.FLOAT)
    dims = len(array(stored).shape)
    scale_w = grid.scale.reshape(-1, *[1] * (dims - 2)) if convolution and grid.axis is not None else grid.scale
    factor = editor.node("Mul", [scale_x, editor.constant(scale_w)])
    out = editor.node("Mul", [as_float, factor], like=old, dtype=ir.DataType.FLOAT)
    bias = node.inputs[slot.bias] if slot.bias is not None and len(node.inputs) > slot.bias else None
    if bias is not None:
        if convolution:
            bias = _along_channels(bias, dims - 2, editor)
        out = editor.node("Add", [out, bias], like=old, dtype=ir.DataType.FLOAT)
    editor.take_output(old, out)
    editor.redirect(old, out)
    editor.remove(node)


def _along_channels(bias: ir.Value, kernel_dims: int, editor: Editor) -> ir.Value:
    """[out] -> [out, 1...], to be added to [n, out, ...]."""
    shape = [-1, *[1] * kernel_dims]
    if bias.const_value is not None and not bias.is_graph_input():
        return editor.constant(array(bias).reshape(shape))
    return editor.node("Reshape", [bias, editor.constant(np.array(shape, np.int64))], dtype=ir.DataType.FLOAT)


def _quantise_dynamically(x: ir.Value, editor: Editor) -> tuple[ir.Value, ir.Value, ir.Value]:
    """One DynamicQuantizeLinear a tensor, however many layers read it."""
    for user, index in x.uses():
        if user.op_type == "DynamicQuantizeLinear" and index == 0:
            return user.outputs[0], user.outputs[1], user.outputs[2]
    codes = editor.node("DynamicQuantizeLinear", [x])
    made = codes.producer()
    assert made is not None
    made.resize_outputs(3)
    for part, suffix in zip(made.outputs[1:], ("s", "z"), strict=True):
        part.name = f"{codes.name}{suffix}"
    return made.outputs[0], made.outputs[1], made.outputs[2]


def _put_lstm(node: ir.Node, weights: dict[Slot, Quantised], editor: Editor) -> None:
    """com.microsoft DynamicQuantizeLSTM: W and R as int8 [directions, in, 4 * hidden], scales [directions, 4 * hidden]."""
    inputs: list[ir.Value | None] = [*node.inputs, *[None] * (8 - len(node.inputs))]
    grids: list[ir.Value] = []
    for slot, weight in sorted(weights.items(), key=lambda item: item[0].index):
        directions, hidden4, width = array(inputs[slot.index]).shape  # type: ignore[arg-type]
        # [4h, directions * in] -> [directions, in, 4h]
        codes = weight.codes.reshape(hidden4, directions, width).transpose(1, 2, 0)
        inputs[slot.index] = editor.within(inputs[slot.index].graph).constant(np.ascontiguousarray(codes))  # type: ignore[union-attr]
        per_channel = weight.grid.axis is not None
        scale = np.repeat(weight.grid.scale[None], directions, 0) if per_channel else np.repeat(weight.grid.scale.reshape(1), directions)
        grids += [editor.constant(scale), editor.constant(np.zeros(scale.shape, np.int8))]
    name, node.name = node.name or "", f"{node.name}_replaced"
    made = ir.node("DynamicQuantizeLSTM", [*inputs, *grids], dict(node.attributes), domain="com.microsoft", name=name,
                   num_outputs=len(node.outputs))
    editor.graph.append(made)
    for old, new in zip(node.outputs, made.outputs, strict=True):
        new.name, new.shape, new.type = f"{old.name}_dynamic" if old.name else None, old.shape, old.type
        editor.take_output(old, new)
        editor.redirect(old, new)
    editor.remove(node)
    editor.imports("com.microsoft")
