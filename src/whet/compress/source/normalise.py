"""The same function with less to look at: constants computed once, identities and what nobody reads left out.

Exporters leave chains of shape arithmetic with constant results (ConstantOfShape, Concat, Cast before a Pad) which hide from a
technique that an operand is constant. onnxscript's folder computes them. It is kept on a short lead: it would also compute
``Expand`` of a scalar to gigabytes, or a float32 copy of float16 weights.
"""

from __future__ import annotations

import logging
import math

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript import optimizer

from whet.compress.source.naming import name_nodes, name_values

MAX_FOLDED_ELEMENTS = 16_384
MAX_GROWTH_BYTES = 2**16  # of the whole file
_MAX_OPERAND_ELEMENTS = 65_536
_MAX_GROWN_BYTES = 4096  # of one result
_LARGE_ELEMENTS = 2**26
# What exporters do to whole weights (the gates of an LSTM in another order). Worth computing where the original then goes.
_MOVES = frozenset({"Slice", "Concat", "Split", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose", "Gather", "Identity"})
_KEPT = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_logger = logging.getLogger(__name__)


def normalise(model: ir.Model) -> ir.Model:
    """Put a simpler graph that computes the same into ``model``, and return it.

    Constant nodes become initializers. Operators with constant operands are computed where the result is small (16,384 elements),
    and weights that are only cut up and put together again are stored in their last form, where that makes the file no larger.
    Identities, unread nodes and unread weights go. Inputs and outputs keep their names and order, layers that stay keep theirs.
    Where the folder fails nothing is folded, and the log says so.
    """
    model.graph = _simplest(model).graph
    return model


def _simplest(model: ir.Model) -> ir.Model:
    try:
        moved = _normalised(model, fold=_Foldable(model, large=True))
        if weight_bytes(moved) <= weight_bytes(model) + MAX_GROWTH_BYTES:
            return moved
        return _normalised(model, fold=_Foldable(model))
    except Exception as error:  # the folder runs onnx's reference operators; a gap in those must not cost the user the model
        _logger.warning("constants were not folded: %s", " ".join(str(error).split())[:300])
        return _normalised(model, fold=None)


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all constants, whether initializers or Constant nodes, of inner graphs too."""
    stored = [value.const_value for graph in (model.graph, *model.graph.subgraphs()) for value in graph.initializers.values()]
    inline = [attribute.as_tensor() for node in model.graph.all_nodes() for attribute in node.attributes.values()
              if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref()]
    return sum(tensor.nbytes for tensor in (*stored, *inline) if tensor is not None)


def _normalised(model: ir.Model, *, fold: _Foldable | None) -> ir.Model:
    new = model.clone()
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(new)
    if fold is not None:
        optimizer.fold_constants(new, input_size_limit=_LARGE_ELEMENTS, output_size_limit=_LARGE_ELEMENTS, should_fold=fold)
        if any(node.op_type == "If" for node in model.graph.all_nodes()):
            new = new.clone()  # the dead branch of one that was decided goes on counting as a reader of weights; a copy forgets it
    for graph in (new.graph, *new.graph.subgraphs()):
        _drop_identities(graph)
    passes.RemoveUnusedNodesPass()(new)
    for graph in new.graph.subgraphs():
        _drop_unread_weights(graph)
    for node in new.graph.all_nodes():
        node.metadata_props.pop(optimizer.FOLDED_FROM_KEY, None)
    name_nodes(new.graph)
    name_values(new)
    _check_interface(model, new)
    return new


class _Foldable:
    """Whether a node may be computed now: False forbids, True demands, as ``fold_constants`` understands them.

    large: weights of any size may be sliced and put together again; the caller looks afterwards whether the originals went.
    """

    def __init__(self, model: ir.Model, *, large: bool = False) -> None:
        self._versions = dict(model.opset_imports)
        self._large = large
        self._growth = MAX_GROWTH_BYTES

    def __call__(self, node: ir.Node) -> bool:
        if node.op_type in _KEPT:
            return False
        tensors = [None if value is None else value.const_value for value in node.inputs]
        held = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        if any(tensor is not None and tensor.size > _MAX_OPERAND_ELEMENTS for tensor in tensors):
            return self._large and node.op_type in _MOVES and all(map(_is_movable, tensors))
        elements = self._result_elements(node, tensors)
        if elements is None:
            return False
        if self._large and node.op_type in _MOVES:
            return True
        grown = max(8 * elements - held, 0)  # at most: no type that is folded has more than 8 bytes an element
        if elements > MAX_FOLDED_ELEMENTS or grown > max(_MAX_GROWN_BYTES, held) or grown > self._growth:
            return False
        self._growth -= grown
        return True

    def _result_elements(self, node: ir.Node, tensors: list[ir.TensorProtocol | None]) -> int | None:
        """How many elements the outputs have, by onnx's shape inference on the real operands; None where it cannot tell."""
        values = {value.name: tensor for value, tensor in zip(node.inputs, tensors, strict=True) if value is not None}
        if any(tensor is None for tensor in values.values()) or node.domain not in self._versions:
            return None
        protos = {str(name): ir.to_proto(tensor) for name, tensor in values.items() if tensor is not None}
        types = {name: onnx.helper.make_tensor_type_proto(proto.data_type, list(proto.dims)) for name, proto in protos.items()}
        try:
            schema = onnx.defs.get_schema(node.op_type, self._versions[node.domain], node.domain)
            inferred = onnx.shape_inference.infer_node_outputs(schema, ir.to_proto(node), types, protos)
        except Exception:  # an operator without inference, or operands that do not fit
            return None
        shapes = [inferred[value.name].tensor_type.shape.dim for value in node.outputs if value.name in inferred]
        if len(shapes) != len(node.outputs) or any(not size.HasField("dim_value") for shape in shapes for size in shape):
            return None
        return sum(math.prod(size.dim_value for size in shape) for shape in shapes)


def _is_movable(tensor: ir.TensorProtocol | None) -> bool:
    """Weights that stay on disk until they are used stay there."""
    return tensor is None or (tensor.size <= _LARGE_ELEMENTS and not isinstance(tensor, ir.ExternalTensor))


def _drop_identities(graph: ir.Graph) -> None:
    """Readers of an Identity read its input instead. One that makes an output of the graph stays: its name is the interface."""
    for node in list(graph):
        if node.op_type != "Identity" or node.domain != "" or node.inputs[0] is None or node.outputs[0].is_graph_output():
            continue
        ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
        graph.remove(node, safe=True)


def _drop_unread_weights(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and value not in graph.inputs:
            graph.initializers.pop(name)


def _check_interface(old: ir.Model, new: ir.Model) -> None:
    for before, after in ((old.graph.inputs, new.graph.inputs), (old.graph.outputs, new.graph.outputs)):
        if [value.name for value in before] != [value.name for value in after]:
            raise ValueError("folding renamed an input or output")
