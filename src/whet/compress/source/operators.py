"""Which operators a model may hold: those of ONNX's own schemas, and those of the runtime's (``com.microsoft``)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import onnx
import onnx_ir as ir

from whet.compress.source.quoting import quoted
from whet.core.errors import Refused, Unsupported

_SMALL_BYTES = 1024
_ONNX_DOMAINS = frozenset({"", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training"})
_FLOAT, _SCALAR = onnx.TensorProto.FLOAT, onnx.TensorShapeProto()


def check_operators(model: ir.Model, asked: str) -> None:
    """Raises Unsupported, naming node and operator, where there is an operator that the runtime does not have."""
    for node in model.graph.all_nodes():
        if node.domain not in model.opset_imports and node.domain in _ONNX_DOMAINS:
            raise Refused(asked, found=f"the node {quoted(node.name)} uses operators of {quoted(node.domain or 'ai.onnx')}, of which "
                          "the model does not name the version", do="export the model again")
        if not _is_known(node, model.opset_imports.get(node.domain, 1)):
            version = f" version {model.opset_imports.get(node.domain)}" if node.domain in model.opset_imports else ""
            raise Unsupported(asked, found=f"the node {quoted(node.name)} is a {quoted(node.op_type)}, which is no operator of "
                              f"{quoted(node.domain or 'ai.onnx')}{version}",
                              do="replace the operator in the model, or cut the model before it (onnx.utils.extract_model)")


def control_flow(model: ir.Model) -> tuple[str, ...]:
    """The nodes that hold graphs of their own (If, Loop, Scan), by name; one inside another as "Loop_0/body/If_0"."""
    return tuple(path for path, node, _ in walk(model.graph) if any(graphs_of(node)))


def walk(graph: ir.Graph, prefix: str = "") -> list[tuple[str, ir.Node, ir.Graph]]:
    """Every node in order of execution with its path ("Conv_0", "If_0/then_branch/Conv_1") and the graph that it stands in.

    The nodes inside an If, Loop or Scan come right after it.
    """
    found: list[tuple[str, ir.Node, ir.Graph]] = []
    for node in graph:
        path = f"{prefix}{node.name}"
        found.append((path, node, graph))
        for name, inner in graphs_of(node):
            found.extend(walk(inner, f"{path}/{name}/"))
    return found


def graphs_of(node: ir.Node) -> list[tuple[str, ir.Graph]]:
    """The graphs inside a node with the names of their attributes ("then_branch"; "branches[0]" where there are several)."""
    found: list[tuple[str, ir.Graph]] = []
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append((name, attribute.as_graph()))
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend((f"{name}[{index}]", graph) for index, graph in enumerate(attribute.as_graphs()))
    return found


def skeleton(model: ir.Model) -> onnx.ModelProto:
    """The model without its weights (those over 1 kB become inputs), for onnx's C++ functions, which take at most 2 GB."""
    stored = model.graph.initializers
    heavy = {name: value for name, value in stored.items() if _is_heavy(value.const_value)}
    light = [value for name, value in stored.items() if name not in heavy]
    bare = ir.GraphView([*model.graph.inputs, *heavy.values()], model.graph.outputs, nodes=tuple(model.graph), name=model.graph.name)
    proto = onnx.ModelProto(ir_version=model.ir_version)
    for domain, version in model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    ir.serde.serialize_graph_into(proto.graph, bare)  # type: ignore[arg-type]  # its own view does not fit its own protocol
    for value in light:  # read, for a weight in another file would be named by its place there
        tensor = ir.Tensor(value.const_value.numpy(), name=value.name, dtype=value.const_value.dtype)  # type: ignore[union-attr]
        ir.serde.serialize_tensor_into(proto.graph.initializer.add(), tensor)
    return proto


def _is_heavy(tensor: ir.TensorProtocol | None) -> bool:
    return tensor is None or tensor.nbytes > _SMALL_BYTES or tensor.dtype == ir.DataType.STRING


def check_schemas(model: ir.Model, asked: str) -> None:
    """Raises Refused where onnx's checker finds a node with wrong inputs, outputs or attributes."""
    proto = skeleton(model)
    # The checker wants shapes that runtimes do without: where one is missing, any will do, as it looks only whether it is there.
    for value in (*proto.graph.input, *proto.graph.output):
        tensor = value.type.tensor_type
        tensor.elem_type = tensor.elem_type or _FLOAT
        if not tensor.HasField("shape"):
            tensor.shape.CopyFrom(_SCALAR)
    del proto.graph.value_info[:]
    try:
        onnx.checker.check_model(proto)
    except Exception as error:  # whatever the C++ checker raises on a damaged file
        raise Refused(asked, found=f"onnx's checker says: {_first_line(error)}",
                      do="correct the export; a runtime would refuse it too") from error


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split("\n\n")[0].split())[:400]


def _is_known(node: ir.Node, version: int) -> bool:
    if node.domain in _ONNX_DOMAINS:
        try:
            return not onnx.defs.get_schema(node.op_type, version, node.domain).deprecated
        except onnx.defs.SchemaError:
            return False
    known = _runtime_operators()
    return not known or (node.domain, node.op_type) in known


@cache
def _runtime_operators() -> frozenset[tuple[str, str]]:
    """(domain, operator) of everything onnxruntime has; empty where this build does not tell."""
    from onnxruntime.capi import onnxruntime_pybind11_state as runtime

    schemas: Iterable[Any] = getattr(runtime, "get_all_operator_schema", list)()
    return frozenset((schema.domain, schema.name) for schema in schemas)
