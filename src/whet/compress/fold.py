"""Folding: the same function with fewer operators, as runtimes do at load. Layers keep their names.

Techniques start from the folded graph: a batch norm that stays would be quantised on its own, and a bias that is an Add of its
own would leave the product it belongs to without an integer kernel.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from whet.compress.edit import Editor
from whet.compress.grid import Array, Floats
from whet.compress.shapes import estimate_shapes
from whet.compress.weights import array, as_stored, constant, float_attribute, int_attribute, is_row, rows_first, slots


def fold(model: ir.Model) -> None:
    """Fold batch norms into the convolution or product before them, and biases into matrix products. Changes the model."""
    editor = Editor(model.graph)
    shapes = _shapes(model)
    for node in list(model.graph):
        if node.op_type == "MatMul" and len(shapes.get(node.inputs[0], ())) == 2:
            _fold_bias(node, editor)
        elif node.op_type == "AveragePool" and _covers(node, shapes.get(node.inputs[0], ())):
            # The same function, for which runtimes have a fast integer kernel, which they have not for windows that slide.
            node.op_type = "GlobalAveragePool"
            node.attributes.clear()
    for node in list(model.graph):
        if node.op_type == "BatchNormalization":
            _fold_batch_norm(node, editor)
    for node in list(model.graph):
        if node.op_type == "Gemm":
            _fold_gemm_factors(node, editor)
    editor.close()


def only_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads the value, where there is just one, in the same graph, and it is no output of the graph."""
    uses, made = list(value.uses()), value.producer()
    if len(uses) != 1 or value.is_graph_output():
        return None
    reader = uses[0][0]
    # The branches of an If read what the graph around them computes; nothing can be moved across that border.
    return reader if made is None or reader.graph is made.graph else None


def _shapes(model: ir.Model) -> dict[ir.Value | None, tuple[int | None, ...]]:
    """The shapes of what products and pools read; None for a size that is open. Many files do not say; then they are inferred."""
    read = [node.inputs[0] for node in model.graph if node.op_type in ("MatMul", "AveragePool") and node.inputs[0] is not None]
    shapes: dict[ir.Value | None, tuple[int | None, ...]] = {
        value: tuple(size if isinstance(size, int) else None for size in value.shape) for value in read if value.shape is not None}
    if len(shapes) == len(set(read)):
        return shapes
    # Inference takes an open size as 1, which is no size: with one beside the batch, only the number of dimensions is known.
    closed = all(value.shape is not None and all(isinstance(size, int) for size in list(value.shape)[1:]) for value in model.graph.inputs)
    open_ones = [value for value in read if value not in shapes]
    found = estimate_shapes(model, wanted={value.name or "" for value in open_ones}).known
    known = {name: shape if closed else (None,) * len(shape) for name, (_, shape) in found.items()}
    return shapes | {value: known[value.name] for value in open_ones if value.name in known}


def _covers(pool: ir.Node, shape: tuple[int | None, ...]) -> bool:
    """Whether the window of a pool is the whole map of its input."""
    kernel = tuple(pool.attributes.get_ints("kernel_shape", []))
    plain = not any(pool.attributes.get_ints("pads", [])) and set(pool.attributes.get_ints("dilations", [])) <= {1}
    return plain and pool.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID") and kernel == shape[2:] and len(kernel) > 0


def _fold_batch_norm(norm: ir.Node, editor: Editor) -> None:
    """W' = W * g / sqrt(v + eps) per output channel, b' = (b - mean) * g / sqrt(v + eps) + beta (Jacob et al. 2018, section 3.2)."""
    source = norm.inputs[0]
    before = source.producer() if source is not None else None
    parameters = [constant(norm, index) for index in (1, 2, 3, 4)]
    if before is None or only_reader(source) is not norm or before.op_type not in ("Conv", "ConvTranspose", "Gemm"):  # type: ignore[arg-type]
        return
    grouped_transpose = before.op_type == "ConvTranspose" and int_attribute(before, "group", 1) > 1
    if None in parameters or int_attribute(norm, "training_mode", 0) or not slots(before) or grouped_transpose or len(norm.outputs) > 1:
        return
    bias_value = before.inputs[2] if len(before.inputs) > 2 else None
    if (bias_value is not None and not is_row(constant(before, 2))) or not _plain_gemm(before):
        return
    gain, beta, mean, variance = (array(value).astype(np.float64) for value in parameters if value is not None)
    factor = gain / np.sqrt(variance + float_attribute(norm, "epsilon", 1e-5))
    slot = slots(before)[0]
    weight = array(before.inputs[slot.index])  # type: ignore[arg-type]
    rows = rows_first(weight, slot).astype(np.float64)
    rows *= factor.reshape(-1, *[1] * (rows.ndim - 1))
    old_bias = np.zeros_like(mean) if bias_value is None else array(bias_value).astype(np.float64).ravel()
    _set(before, slot.index, as_stored(rows.astype(np.float32), weight.shape, slot), editor)
    _set(before, 2, ((old_bias - mean) * factor + beta).astype(np.float32), editor)
    _bypass(norm, before, editor)


def _fold_bias(product: ir.Node, editor: Editor) -> None:
    """MatMul [n, in] x [in, out] + Add [out]  ->  Gemm, under the MatMul's name."""
    left, weight, out = product.inputs[0], constant(product, 1), product.outputs[0]
    add = only_reader(out)
    if add is None or add.op_type != "Add" or weight is None or left is None:
        return
    bias = constant(add, 1) if add.inputs[0] is out else constant(add, 0)
    if bias is None or array(weight).ndim != 2 or array(bias).size != array(weight).shape[1]:
        return
    fits = array(bias).shape in ((array(bias).size,), (1, array(bias).size))
    if not fits or array(bias).dtype != np.float32 or array(weight).dtype != np.float32:
        return
    merged = editor.node("Gemm", [left, weight, editor.constant(array(bias).ravel())], name=product.name or "", like=add.outputs[0],
                         dtype=add.outputs[0].dtype)
    editor.take_output(add.outputs[0], merged)
    editor.redirect(add.outputs[0], merged)
    editor.remove(add)
    editor.remove(product)


def _fold_gemm_factors(node: ir.Node, editor: Editor) -> None:
    """alpha into the weight and beta into the bias, since integer kernels know neither."""
    if _plain_gemm(node) or not slots(node):
        return
    alpha, beta = (np.float32(float_attribute(node, name, 1.0)) for name in ("alpha", "beta"))
    _set(node, 1, array(node.inputs[1]) * alpha, editor)  # type: ignore[arg-type]
    if len(node.inputs) > 2 and node.inputs[2] is not None and beta != 1:
        bias = constant(node, 2)
        if bias is not None:
            _set(node, 2, array(bias) * beta, editor)
        else:
            bias = node.inputs[2]
            node.replace_input_with(2, editor.node("Mul", [bias, editor.constant(beta)], like=bias, dtype=bias.dtype))
    for name in ("alpha", "beta"):
        node.attributes.pop(name, None)


def _plain_gemm(node: ir.Node) -> bool:
    return node.op_type != "Gemm" or (float_attribute(node, "alpha", 1.0), float_attribute(node, "beta", 1.0)) == (1.0, 1.0)


def _set(node: ir.Node, index: int, numbers: Array | Floats, editor: Editor) -> None:
    """Put a weight or bias into the node, in the type of the weight that it has (a model may compute in float16)."""
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    kind = node.inputs[1].const_value.dtype  # type: ignore[union-attr]
    node.replace_input_with(index, editor.constant(numbers.astype(kind.numpy()), kind.numpy().name))


def _bypass(node: ir.Node, before: ir.Node, editor: Editor) -> None:
    editor.take_output(node.outputs[0], before.outputs[0])
    editor.redirect(node.outputs[0], before.outputs[0])
    editor.remove(node)
