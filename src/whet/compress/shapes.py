"""Types and shapes of every value of a model for one batch size: what onnx infers, and where that ends, what onnxruntime computes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir

from whet.compress.source.operators import skeleton

Typed = tuple[str, tuple[int, ...]]
_RUN_WEIGHT_BYTES = 256 * 2**20
_RUN_SECONDS = 20.0
_RUN_ELEMENTS = 2**26


@dataclass
class Shapes:
    """known: (dtype, shape) by the name of the value. notes: what was assumed and what stays unknown."""

    known: dict[str, Typed] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def infer_shapes(model: ir.Model, *, batch: int = 1) -> Mapping[str, Typed]:
    """(dtype, shape) by name for every value whose shape is known once each input has the batch size ``batch``.

    dtype: numpy's name ("float32", "int64", "bool"; "string"). The first open dimension of an input is its batch; every other open
    one is taken as 1. The model must have a unique name for every value, as ``read_onnx`` gives it. The model stays as it is.
    """
    return estimate_shapes(model, batch=batch).known


def estimate_shapes(model: ir.Model, *, batch: int = 1, input_shapes: Mapping[str, Sequence[int]] | None = None,
                    wanted: Collection[str] | None = None) -> Shapes:
    """``infer_shapes`` with notes. input_shapes: whole shapes of inputs, where the caller knows them (from data). wanted: the values that
    the caller asks for, None for all; only where inference leaves one of these open does the model run, which takes ten times as long.
    """
    found = Shapes()
    proto = skeleton(model)
    sizes = _fix_inputs(model, proto, batch, input_shapes or {}, found)
    del proto.graph.value_info[:]
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception:  # a type error somewhere stops all of it; the run below may still tell
        inferred = proto
    _collect(inferred.graph, found.known)
    _take_declared(model, sizes, found.known)
    if any(name not in found.known and (wanted is None or name in wanted) for name in _activations(model.graph)):
        found.known.update(_run(model, found))
    unknown = sum(name not in found.known for graph in (model.graph, *model.graph.subgraphs()) for name in _activations(graph))
    if unknown:
        found.notes.append(f"the shapes of {unknown} values are not known without running the model on real inputs")
    return found


def dtype_name(dtype: ir.DataType) -> str:
    """numpy's name of an ONNX type ("float32", "bfloat16", "int4"); "string" for text."""
    return "string" if dtype == ir.DataType.STRING else str(dtype.numpy().name)


def size_bytes(typed: Typed) -> int:
    """Bytes of a value; types below 8 bits are packed. Text counts 16 bytes an element (a small string of C++ or a pointer and length)."""
    dtype, shape = typed
    bits = 128 if dtype == "string" else _BITS.get(dtype, 8 * np.dtype(dtype).itemsize if dtype in np.sctypeDict else 8)
    return (int(np.prod(shape, dtype=object)) * bits + 7) // 8


_BITS = {dtype_name(dtype): dtype.bitwidth for dtype in ir.DataType if dtype not in (ir.DataType.UNDEFINED, ir.DataType.STRING)}


def _fix_inputs(model: ir.Model, proto: onnx.ModelProto, batch: int, given: Mapping[str, Sequence[int]], found: Shapes) -> dict[str, int]:
    """Give every input of ``proto`` a whole shape; returns the size of each named dimension."""
    sizes: dict[str, int] = {}
    assumed: list[str] = []
    own = {value.name for value in model.graph.inputs}
    for value in proto.graph.input:
        if value.name not in own:
            continue  # a weight in disguise
        tensor = value.type.tensor_type
        if value.name in given:
            _set_shape(tensor, given[value.name], sizes)
        elif not tensor.HasField("shape"):
            found.notes.append(f"the input {value.name!r} has no shape at all")
        first = True
        for axis, size in enumerate(tensor.shape.dim):
            if size.HasField("dim_value"):
                continue
            name = size.dim_param
            if name not in sizes and not first:
                assumed.append(f"{value.name}[{name or axis}]")
            fixed = sizes.get(name, batch if first else 1) if name else (batch if first else 1)
            if name:
                sizes[name] = fixed
            size.dim_value = fixed
            first = False
    if assumed:
        found.notes.append(f"sizes that are not fixed were taken as 1: {', '.join(assumed[:6])}")
    return sizes


def _set_shape(tensor: onnx.TypeProto.Tensor, shape: Sequence[int], sizes: dict[str, int]) -> None:
    for size, value in zip(tensor.shape.dim, shape, strict=False):
        if size.dim_param:
            sizes[size.dim_param] = int(value)
    tensor.shape.CopyFrom(onnx.TensorShapeProto())
    for value in shape:
        tensor.shape.dim.add().dim_value = int(value)


def _collect(graph: onnx.GraphProto, known: dict[str, Typed]) -> None:
    for value in (*graph.input, *graph.value_info, *graph.output):
        typed = _typed(value.type)
        if typed is not None:
            known[value.name] = typed
    for tensor in graph.initializer:
        known[tensor.name] = (dtype_name(ir.DataType(tensor.data_type)), tuple(tensor.dims))
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *((attribute.g,) if attribute.HasField("g") else ())):
                _collect(inner, known)


def _typed(kind: onnx.TypeProto) -> Typed | None:
    tensor = kind.tensor_type
    if kind.WhichOneof("value") != "tensor_type" or not tensor.elem_type or not tensor.HasField("shape"):
        return None
    if any(not size.HasField("dim_value") or size.dim_value < 0 for size in tensor.shape.dim):
        return None
    return dtype_name(ir.DataType(tensor.elem_type)), tuple(size.dim_value for size in tensor.shape.dim)


def _take_declared(model: ir.Model, sizes: Mapping[str, int], known: dict[str, Typed]) -> None:
    """Shapes that the file itself states, where inference found none and the names of dimensions are those of the inputs."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in graph:
            for value in node.outputs:
                if value.name in known or value.shape is None or value.dtype is None or not value.name:
                    continue
                shape = [size if isinstance(size, int) else sizes.get(size.value or "") for size in value.shape]
                if all(size is not None for size in shape):
                    known[value.name] = (dtype_name(value.dtype), tuple(int(size) for size in shape if size is not None))


def _activations(graph: ir.Graph) -> Iterator[str]:
    """What nodes compute from activations; optional outputs that are left out have no name."""
    for node in graph:
        if node.op_type != "Constant":
            yield from (value.name for value in node.outputs if value.name)


def _run(model: ir.Model, found: Shapes) -> dict[str, Typed]:
    """Run once on zeros with a Shape operator behind every value that is unknown; {} where that is not possible."""
    inputs = [found.known.get(str(value.name)) for value in model.graph.inputs]
    elements = sum(int(np.prod(typed[1], dtype=object)) for typed in inputs if typed)
    weights = sum(v.const_value.nbytes for graph in (model.graph, *model.graph.subgraphs()) for v in graph.initializers.values()
                  if v.const_value is not None)
    repeats = any(node.op_type in ("Loop", "Scan") for node in model.graph.all_nodes())  # a Loop on zeros may never end
    if None in inputs or elements > _RUN_ELEMENTS or weights > _RUN_WEIGHT_BYTES or repeats:
        return {}
    unknown = [name for name in _activations(model.graph) if name not in found.known]
    try:
        return _run_shapes(model, unknown, found.known)
    except Exception as error:  # zeros are no input that a model must accept
        found.notes.append(f"the model does not run on zeros ({' '.join(str(error).split())[:120]})")
        return {}


def _run_shapes(model: ir.Model, unknown: list[str], known: Mapping[str, Typed]) -> dict[str, Typed]:
    import threading

    import onnxruntime as ort

    proto = ir.to_proto(_with_weights_inside(model))
    proto.graph.ClearField("output")
    for index, name in enumerate(unknown):
        proto.graph.node.append(onnx.helper.make_node("Shape", [name], [f"whet_shape_{index}"]))
        proto.graph.output.append(onnx.helper.make_tensor_value_info(f"whet_shape_{index}", onnx.TensorProto.INT64, None))
        proto.graph.output.append(onnx.ValueInfoProto(name=name))  # its type is onnxruntime's to tell
    options, run_options = ort.SessionOptions(), ort.RunOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = {str(value.name): known[str(value.name)] for value in model.graph.inputs}
    feeds = {name: np.zeros(shape, dtype=np.dtype(dtype)) for name, (dtype, shape) in inputs.items()}
    timer = threading.Timer(_RUN_SECONDS, lambda: setattr(run_options, "terminate", True))
    timer.start()
    try:
        shapes = session.run([f"whet_shape_{index}" for index in range(len(unknown))], feeds, run_options)
    finally:
        timer.cancel()
    types = {value.name: value.type for value in session.get_outputs()}
    return {name: (_runtime_dtype(types[name]), tuple(int(size) for size in np.asarray(shape)))
            for name, shape in zip(unknown, shapes, strict=True)}


def _with_weights_inside(model: ir.Model) -> ir.Model:
    copy = model.clone()
    for graph in (copy.graph, *copy.graph.subgraphs()):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.Tensor(value.const_value.numpy().copy(), dtype=value.const_value.dtype, name=value.name)
    return copy


def _runtime_dtype(text: str) -> str:
    """"tensor(float)" to "float32"."""
    name = text.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64", "float16": "float16"}.get(name, name)


