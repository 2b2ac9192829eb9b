"""Tensors in memory of their own, so that the message that they were read from can be let go.

A tensor that looks into a message copies its bytes out of it each time that its numbers are asked for: all weights of a model once more for
every part of the program that holds on to them. Copied once, they are there for all, and the message is freed, which is as large.
"""

from __future__ import annotations

import onnx_ir as ir

from whet.compress.grid import Array
from whet.compress.source.payloads import Payloads


def own_tensors(model: ir.Model, payloads: Payloads) -> None:
    """Copy every constant of the graphs out of the message that it lies in, or out of ``payloads``. Text stays, and what lies elsewhere."""
    cut = [value for name, value in model.graph.initializers.items()
           if isinstance(value.const_value, ir.serde.TensorProtoTensor) and name in payloads.places]
    tensors = [value.const_value for value in cut if value.const_value is not None]
    for value, tensor, numbers in zip(cut, tensors, payloads.numbers(tensors), strict=True):
        value.const_value = _owned(tensor, numbers)
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.serde.TensorProtoTensor):
                value.const_value = _owned(value.const_value)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.serde.TensorProtoTensor):
                    node.attributes[name] = ir.AttrTensor(name, _owned(attribute.value), attribute.doc_string)


def _owned(tensor: ir.TensorProtocol, numbers: Array | None = None) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy() if numbers is None else numbers, dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string,
                     metadata_props=dict(tensor.metadata_props))
