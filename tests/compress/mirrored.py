"""One-node models for the mirror's tests, and onnxruntime's answer to compare with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from whet.compress.graph import GraphModel
from whet.compress.mirror import Mirror, mirror
from whet.compress.source.naming import name_nodes


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors are slower on two threads, much slower where others use the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


Arrays = Sequence[np.ndarray | None]


def parsed(text: str) -> GraphModel:
    """A model from onnx's text format, as it is: nothing folded."""
    return wrapped(onnx.parser.parse_model(text))


def wrapped(proto: onnx.ModelProto) -> GraphModel:
    model = ir.from_proto(proto)
    name_nodes(model.graph)
    return GraphModel(model)


def one_node(
    op: str, inputs: Arrays, outputs: int = 1, opset: int = 17, constant: Sequence[int] = (), **attributes: Any
) -> onnx.ModelProto:
    """A model of one node. None leaves an input out; ``constant``: the inputs that are initializers."""
    names = ["" if values is None else f"i{at}" for at, values in enumerate(inputs)]
    node = helper.make_node(op, names, [f"o{at}" for at in range(outputs)], name="node", **attributes)
    live = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values.dtype), values.shape)
            for at, (name, values) in enumerate(zip(names, inputs, strict=True)) if values is not None and at not in constant]
    stored = [numpy_helper.from_array(inputs[at], names[at]) for at in constant]
    ends = [helper.make_empty_tensor_value_info(f"o{at}") for at in range(outputs)]
    graph = helper.make_graph([node], "one", live, ends, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def feeds_of(inputs: Arrays, model: GraphModel) -> dict[str, np.ndarray]:
    return {spec.name: inputs[int(spec.name[1:])] for spec in model.inputs}


def runtime(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """onnxruntime's answer."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, dict(feeds))


def answer(model: GraphModel, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return runtime(onnx.load_from_string(model.content), feeds)


def ran(module: Mirror, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The mirror's answer."""
    with torch.no_grad():
        return [tensor.numpy() for tensor in module(*[torch.from_numpy(feeds[name]) for name in module.inputs])]


def agrees(op: str, inputs: Arrays, outputs: int = 1, opset: int = 17, constant: Sequence[int] = (), **attributes: Any) -> None:
    """Asserts that mirror and onnxruntime give the same; an input that the runtime refuses is none of our business."""
    proto = one_node(op, inputs, outputs, opset, constant, **attributes)
    model = wrapped(proto)
    feeds = feeds_of(inputs, model)
    for wanted, found in zip(runtime(proto, feeds), ran(mirror(model), feeds), strict=True):
        assert found.shape == wanted.shape
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
