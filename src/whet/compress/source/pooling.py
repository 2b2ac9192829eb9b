"""torch's exporter writes global average pooling as ReduceMean; runtimes fuse GlobalAveragePool in integers and ReduceMean not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def restore_pooling(model: ir.Model) -> int:
    """Put GlobalAveragePool back for every mean over all spatial axes of [N, C, H, W] or [N, C, D, H, W]; how many there were.

    Without keepdims a Squeeze follows. A mean over the last axis of three is left alone: there it is more often a normalisation
    than a pooling (torch exports AdaptiveAvgPool1d through four dimensions anyway).
    """
    found = [node for node in model.graph.all_nodes() if _is_pooling(node)]
    for node in found:
        _replace(node)
    return len(found)


def _is_pooling(node: ir.Node) -> bool:
    if node.op_type != "ReduceMean" or node.domain != "" or node.inputs[0] is None or node.inputs[0].shape is None:
        return False
    rank = len(node.inputs[0].shape)
    axes = _axes(node)
    return rank in (4, 5) and axes is not None and sorted(axis % rank for axis in axes) == list(range(2, rank))


def _axes(node: ir.Node) -> list[int] | None:
    """The axes of a ReduceMean: an attribute up to opset 17, an input from 18 on."""
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return None
    tensor = ir.convenience.get_const_tensor(node.inputs[1])
    return None if tensor is None else [int(axis) for axis in np.ravel(tensor.numpy())]


def _replace(node: ir.Node) -> None:
    graph, source, old = node.graph, node.inputs[0], node.outputs[0]
    assert graph is not None
    assert source is not None
    assert source.shape is not None
    rank, keeps = len(source.shape), node.attributes.get_int("keepdims", 1)
    pool = ir.Node("", "GlobalAveragePool", [source], name=node.name)
    pooled = pool.outputs[0]
    pooled.type, pooled.shape = old.type, ir.Shape([source.shape[0], source.shape[1], *[1] * (rank - 2)])
    nodes, result = [pool], pooled
    if not keeps:
        axes = ir.Value(name=f"{old.name}_axes", const_value=ir.Tensor(np.arange(2, rank, dtype=np.int64), name=f"{old.name}_axes"),
                        type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([rank - 2]))
        graph.register_initializer(axes)
        squeeze = ir.Node("", "Squeeze", [pooled, axes], name=f"{node.name}_squeeze")
        pooled.name = f"{old.name}_pooled"
        nodes, result = [pool, squeeze], squeeze.outputs[0]
        result.type, result.shape = old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [old], [result])
