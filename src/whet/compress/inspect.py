"""What is inside a model: layers with their weights and work, totals, and the activation memory at its peak."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from whet.compress.bodies import checkpoint_in
from whet.compress.liveness import Peak, Step, peak
from whet.compress.macs import macs
from whet.compress.shapes import Typed, dtype_name, estimate_shapes, size_bytes
from whet.compress.source.operators import graphs_of, walk
from whet.compress.source.torch_module import NOTES
from whet.core.inventory import Inventory, Layer

# The operand that is *the* weight; elsewhere it is the largest constant operand.
_WEIGHT_INDEX = {
    "Conv": 1, "ConvTranspose": 1, "ConvInteger": 1, "DeformConv": 1, "FusedConv": 1, "QLinearConv": 3, "LSTM": 1, "GRU": 1, "RNN": 1,
    "DynamicQuantizeLSTM": 1, "MatMulNBits": 1, "MatMulBnb4": 1, "QLinearMatMul": 3, "QGemm": 3, "DynamicQuantizeMatMul": 1,
    "MatMulIntegerToFloat": 1, "MatMulInteger": 1, "BatchNormalization": 1, "LayerNormalization": 1, "InstanceNormalization": 1,
    "GroupNormalization": 1, "RMSNormalization": 1, "GatherBlockQuantized": 0,
}
# Scales and zero points: bytes of the layer, but no parameters.
_SCALES: dict[str, frozenset[int]] = {
    "QuantizeLinear": frozenset({1, 2}), "DequantizeLinear": frozenset({1, 2}), "QLinearConv": frozenset({1, 2, 4, 5, 6, 7}),
    "QLinearMatMul": frozenset({1, 2, 4, 5, 6, 7}), "QGemm": frozenset({1, 2, 4, 5, 7, 8}), "MatMulNBits": frozenset({2, 3, 4}),
    "ConvInteger": frozenset({2, 3}), "MatMulInteger": frozenset({2, 3}), "DynamicQuantizeMatMul": frozenset({2, 3}),
    "MatMulIntegerToFloat": frozenset({2, 3, 4, 5}), "MatMulBnb4": frozenset({2}), "GatherBlockQuantized": frozenset({2, 3}),
    "QLinearAdd": frozenset({1, 2, 4, 5, 6, 7}), "QLinearMul": frozenset({1, 2, 4, 5, 6, 7}),
    "QLinearGlobalAveragePool": frozenset({1, 2, 3, 4}), "QLinearAveragePool": frozenset({1, 2, 3, 4}),
    "QLinearSigmoid": frozenset({1, 2, 3, 4}), "QLinearLeakyRelu": frozenset({1, 2, 3, 4}), "QLinearSoftmax": frozenset({1, 2, 3, 4}),
}
# Through these a stored weight is still the weight of whoever reads the result.
_CARRIERS = frozenset({"DequantizeLinear", "QuantizeLinear", "Identity", "Cast", "Sub", "Mul", "Slice", "Transpose", "Reshape", "Flatten",
                       "Squeeze", "Unsqueeze"})
_VIEWS = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout"})
_NOT_PARAMETERS = frozenset({ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING, ir.DataType.UINT64})


def inspect(model: Any, *, example_inputs: Any = None, input_shapes: Mapping[str, Sequence[int]] | None = None) -> Inventory:
    """What is inside a model: ``inventory`` of whatever ``whet.load`` takes, or of a language model's folder, and its bytes on disk.

    example_inputs: for PyTorch, as in ``whet.load``. input_shapes: whole shapes by name of input, where the model leaves sizes open.
    """
    from whet.compress.artifacts import load, original_artifact, source_file

    language = checkpoint_in(model)
    if language is not None:
        from whet.compress.checkpoint.layers import inventory as inventory_of_checkpoint

        return inventory_of_checkpoint(language)
    graph = load(model, example_inputs=example_inputs)
    file_bytes = original_artifact(graph, source_file(model)).size_bytes
    return inventory(graph.ir, file_bytes=file_bytes, input_shapes=input_shapes)


def inventory(model: ir.Model, *, file_bytes: int | None = None, input_shapes: Mapping[str, Sequence[int]] | None = None) -> Inventory:
    """Every operator of a model, in order of execution, for one sample (batch 1).

    A weight that several layers read, or one layer twice, counts where it is read first. What lies behind a DequantizeLinear of
    constants belongs to the layer that reads the result. Operators inside If, Loop and Scan are listed as
    "If_0/then_branch/Conv_1", once, however often they run. Sizes that the model leaves open are taken from ``input_shapes`` (by
    name of input, whole shapes), else as 1, and ``notes`` says so. The model stays as it is; it must come from ``read_model``.
    """
    shapes = estimate_shapes(model, input_shapes=input_shapes)
    nodes = [(path, node) for path, node, _ in walk(model.graph) if node.op_type != "Constant"]
    books = _Books(node for _, node in nodes)
    layers = [_layer(path, node, books, shapes.known) for path, node in nodes]
    notes = [*model.meta.get(NOTES, ()), *shapes.notes, *_flow_notes(model)]
    unknown = [layer.name for layer in layers if layer.macs is None]
    if unknown:
        notes.append(f"MACs unknown, and left out of the total, for {', '.join(unknown[:4])}{' ...' if len(unknown) > 4 else ''}")
    try:
        highest = _peak(model.graph, "", shapes.known, books)
    except KeyError as error:
        notes.append(f"no peak memory: the shape of {error.args[0]!r} is unknown")
        return Inventory(tuple(layers), file_bytes=file_bytes, notes=tuple(notes))
    return Inventory(tuple(layers), file_bytes=file_bytes, peak_activation_bytes=highest.size_bytes, peak_layers=highest.layers,
                     notes=tuple(notes))


class _Books:
    """Who owns which constant. A shared one counts once, and one behind a carrier belongs to the reader of the carrier's result."""

    def __init__(self, nodes: Iterable[ir.Node]) -> None:
        self._carried: set[ir.Value] = set()
        self._counted: set[ir.Value] = set()
        for node in nodes:  # in order of execution, so that a carrier of a carrier is known as one
            if node.op_type in _CARRIERS and node.domain == "" and all(map(self._is_constant, node.inputs)):
                self._carried.update(node.outputs)

    def is_carrier(self, node: ir.Node) -> bool:
        """Whether the node only passes constants on (DequantizeLinear of a weight)."""
        return bool(node.outputs) and node.outputs[0] in self._carried

    def new_constants(self, node: ir.Node) -> Iterator[tuple[ir.Value, ir.TensorProtocol, bool]]:
        """(value, tensor, whether it is a scale or zero point) for every constant that this node is the first to read."""
        todo = [node]
        while todo:
            reader = todo.pop()
            for index, value in enumerate(reader.inputs):
                if value is None or value in self._counted:
                    continue
                tensor, maker = _constant(value), value.producer()
                if tensor is not None:
                    # codes - zero point, * scale: the arithmetic that gives back weights which are stored as integers
                    rescales = reader is not node and reader.op_type in ("Sub", "Mul") and index == 1
                    yield value, tensor, rescales or index in _SCALES.get(reader.op_type, ())
                elif value in self._carried and maker is not None:
                    todo.append(maker)
                else:
                    continue
                self._counted.add(value)

    def stored(self, value: ir.Value | None) -> ir.TensorProtocol | None:
        """The constant that a value is, or that it was made from."""
        while value is not None and value in self._carried:
            maker = value.producer()
            value = maker.inputs[0] if maker is not None else None
        return _constant(value)

    def _is_constant(self, value: ir.Value | None) -> bool:
        return value is None or value in self._carried or _constant(value) is not None


def _layer(path: str, node: ir.Node, books: _Books, known: Mapping[str, Typed]) -> Layer:
    carried = books.is_carrier(node)
    weight = None if carried else _weight(node, books)
    parameters = weight_bytes = 0
    for value, tensor, is_scale in () if carried else books.new_constants(node):
        weight_bytes += tensor.nbytes
        parameters += 0 if is_scale else _elements(node, value, tensor)
    inputs = [_shape(value, known) for value in node.inputs]
    outputs = [_shape(value, known) for value in node.outputs]
    typed = [known.get(str(value.name)) for value in node.outputs if value.name]
    sizes = [size_bytes(entry) for entry in typed if entry is not None]
    return Layer(
        path, node.op_type,
        weight_shape=tuple(int(size) for size in weight.shape.numpy()) if weight is not None else (),
        weight_dtype=_stored_dtype(node, weight),
        parameters=parameters, weight_bytes=weight_bytes, macs=macs(node, inputs, outputs),
        output_shape=(outputs[0] or ()) if outputs else (),
        output_bytes=sum(sizes) if len(sizes) == len(typed) else None,
    )


def _shape(value: ir.Value | None, known: Mapping[str, Typed]) -> tuple[int, ...] | None:
    if value is None:
        return None
    if value.const_value is not None:
        return tuple(int(size) for size in value.const_value.shape.numpy())
    typed = known.get(str(value.name))
    return typed[1] if typed else None


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    return None if value is None or value.is_graph_input() else ir.convenience.get_const_tensor(value)


def _weight(node: ir.Node, books: _Books) -> ir.TensorProtocol | None:
    """The stored tensor that is the layer's weight."""
    index = _WEIGHT_INDEX.get(node.op_type)
    if index is not None and index < len(node.inputs):
        return books.stored(node.inputs[index])
    candidates = [books.stored(value) for i, value in enumerate(node.inputs) if i not in _SCALES.get(node.op_type, ())]
    weights = [tensor for tensor in candidates if tensor is not None and _is_parameter(tensor) and len(tensor.shape) > 0]
    return max(weights, key=lambda tensor: tensor.size, default=None)


def _is_parameter(tensor: ir.TensorProtocol) -> bool:
    """Shapes, axes, indices and masks steer an operator; they are not learnt."""
    return tensor.dtype not in _NOT_PARAMETERS or len(tensor.shape) > 1


def _elements(node: ir.Node, value: ir.Value, tensor: ir.TensorProtocol) -> int:
    if node.op_type in ("MatMulNBits", "MatMulBnb4") and value is node.inputs[1]:  # packed: [N, blocks, bytes]
        return int(node.attributes.get_int("N", 0) * node.attributes.get_int("K", 0))
    return tensor.size if _is_parameter(tensor) else 0


def _stored_dtype(node: ir.Node, weight: ir.TensorProtocol | None) -> str:
    if weight is None:
        return ""
    if node.op_type in ("MatMulNBits", "GatherBlockQuantized") and weight.dtype == ir.DataType.UINT8:
        return f"uint{node.attributes.get_int('bits', 4)}"
    return "float4" if node.op_type == "MatMulBnb4" else dtype_name(weight.dtype)


def _peak(graph: ir.Graph, prefix: str, known: Mapping[str, Typed], books: _Books) -> Peak:
    """Peak of a graph; raises KeyError with the name of a value whose shape is unknown."""
    steps: list[Step] = []
    sizes: dict[str, int] = {}
    inputs = [str(value.name) for value in graph.inputs if _constant(value) is None]
    for name in inputs:
        sizes[name] = size_bytes(known[name])
    for node in graph:
        if node.op_type == "Constant" or books.is_carrier(node):
            continue
        path = f"{prefix}{node.name}"
        writes = tuple(str(value.name) for value in node.outputs if value.name)
        for name in writes:
            sizes[name] = size_bytes(known[name])
        inner = [_peak(body, f"{path}/{name}/", known, books).size_bytes for name, body in graphs_of(node)]
        reads = tuple(name for name in _reads(node) if name in sizes)
        steps.append(Step(path, reads, writes, node.op_type in _VIEWS and node.domain == "", max(inner, default=0)))
    outputs = [str(value.name) for value in graph.outputs if str(value.name) in sizes]
    return peak(steps, inputs, outputs, sizes)


def _reads(node: ir.Node) -> Iterator[str]:
    """The activations that a node reads, those taken in by the graphs inside it too."""
    yield from (str(value.name) for value in node.inputs if value is not None and value.name)
    for _, body in graphs_of(node):
        for inner in body:
            yield from _reads(inner)
        yield from (str(value.name) for value in body.outputs)


def _flow_notes(model: ir.Model) -> Iterator[str]:
    kinds = {node.op_type for node in model.graph.all_nodes() if graphs_of(node)}
    if "If" in kinds:
        yield "the totals count every branch of an If, of which one runs"
    if kinds - {"If"}:
        yield f"the totals count the body of a {' or '.join(sorted(kinds - {'If'}))} once, however often it runs"
