"""The graph body: an ONNX model in memory that lists its layers, gives out statistics, and takes changed layers back."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import onnx
import onnx_ir as ir

from whet.compress.codebook import Coded
from whet.compress.edit import Editor
from whet.compress.fold import fold
from whet.compress.grid import Array, Grid, Quantised, stored_bits
from whet.compress.put.dynamic import put_dynamic
from whet.compress.put.floats import put_bias, put_rounded, put_rows
from whet.compress.put.half import put_half
from whet.compress.put.integer import put_integer
from whet.compress.put.sites import Site, sites
from whet.compress.put.storage import put_float16, put_weight
from whet.compress.slim import drop_annotations, shorten_names
from whet.compress.source.naming import name_nodes, name_values
from whet.compress.source.operators import walk
from whet.compress.source.quiet import quiet
from whet.compress.statistics import Statistics
from whet.compress.technique import Change, LayerView
from whet.compress.views import Range
from whet.compress.weights import Slot, array, constant, first_slot, rows_first, slots
from whet.core.artifact import TensorSpec
from whet.core.document import FrozenMap
from whet.core.errors import Refused
from whet.core.inventory import Layer
from whet.core.target import Target

LARGE_BYTES = 1 << 30
# Per-channel DequantizeLinear came with opset 13, 4 bits and Q/DQ of 16 bits with 21, 2 bits with 25 (ONNX operator changelog).
_PER_CHANNEL_OPSET, _NARROW_OPSET, _NARROWEST_OPSET = 13, 21, 25


@dataclass(frozen=True)
class Node:
    """What a selector of a recipe matches: a node's name and operator."""

    name: str
    op: str


@dataclass(frozen=True, eq=False)
class GraphModel:
    """An ONNX model. Immutable by convention: whatever changes it gives a new one.

    ir: the graph; every node has a name of its own. session_options: what the runtime must be told to compute what was meant.
    origin: where it came from, for messages and reports. artifact_id: of the artifact that it was read from, "" where it was none.

    Between the steps of a recipe: pending holds, by layer and slot, the weights that are rounded but not yet stored as codes (in the
    graph they are float32 numbers on their grid, so that it runs as it is); ranges, by tensor, what a step found for the grids of
    activations; reference is the model before anything was rounded, with the same tensors under the same names.
    """

    ir: ir.Model
    session_options: Mapping[str, str] = field(default_factory=FrozenMap)
    origin: str = "model"
    artifact_id: str = ""
    pending: Mapping[tuple[str, Slot], Change] = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)
    reference: GraphModel | None = None

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All operators, in the order of execution. One inside an If, Loop or Scan has its path for a name ("If_0/then_branch/Conv_1")."""
        return tuple(Node(name, node.op_type) for name, node in _by_name(self.ir).items())

    @cached_property
    def inner_names(self) -> frozenset[str]:
        """The names of the operators that stand inside an If, Loop or Scan."""
        return frozenset(path for path, _, graph in walk(self.ir.graph) if graph is not self.ir.graph)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs that must be fed."""
        return tuple(_spec(value) for value in self.ir.graph.inputs if not value.is_initializer())

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(_spec(value) for value in self.ir.graph.outputs)

    @cached_property
    def is_large(self) -> bool:
        """Whether it is written as more than one file: protobuf ends at 2 GB, and half of that is already slow to copy."""
        return _weight_bytes(self.ir) > LARGE_BYTES

    @cached_property
    def content(self) -> bytes:
        """The model as one ONNX file. Raises Refused where it is too large for one (2 GB); such a model is saved, not passed on."""
        try:
            return _in_memory(self.ir).SerializeToString(deterministic=True)
        except Exception as error:  # protobuf raises EncodeError or ValueError, by implementation
            do = "save it to a folder; its weights then lie in a file beside it"
            raise Refused("write the model as one file", found=str(error), do=do) from error

    @property
    def fixed_batch(self) -> int | None:
        """The size of the first dimension of the first input with dimensions, where it is fixed."""
        for spec in self.inputs:
            if spec.shape:
                return spec.shape[0] if isinstance(spec.shape[0], int) else None
        return None

    def copied(self) -> GraphModel:
        """A copy whose graph may be edited; the tensors are shared."""
        return replace(self, ir=self.ir.clone())

    def folded(self) -> GraphModel:
        """The same function with batch norms and biases folded, at an opset that has the operators techniques need."""
        model = self.copied()
        _raise_opset(model.ir, _PER_CHANNEL_OPSET)
        fold(model.ir)
        shorten_names(model.ir)
        return model

    def integer_sites(self, names: Sequence[str], target: Target) -> dict[str, Site]:
        """The operators among ``names`` that will compute in integers together on ``target``."""
        return sites(self.ir.graph, names, target)

    def plain_layers(self) -> tuple[Layer, ...]:
        """Every operator as a technique's ``foresee`` wants it: name, operator and the shape of its weights; no activations."""
        return tuple(_plain_layer(name, node) for name, node in _by_name(self.ir).items())

    def bare_view(self, name: str) -> LayerView:
        """The view of an operator without weights."""
        return LayerView(name, _by_name(self.ir)[name].op_type)

    def views(self, names: Sequence[str]) -> dict[str, dict[Slot, LayerView]]:
        """For each layer of ``names`` that has weights: a view a weight, by its slot."""
        wanted = set(names)
        return {name: {slot: _view(name, node, slot, self.pending) for slot in slots(node)} for name, node in _by_name(self.ir).items()
                if name in wanted and slots(node)}

    def rounded(self, changes: Mapping[str, Mapping[Slot, Change]]) -> GraphModel:
        """The model with weights on their grids, as float32 numbers; ``settled`` stores them as codes."""
        model = self.copied()
        editor, nodes = Editor(model.ir.graph), _by_name(model.ir)
        for name, found in changes.items():
            within = editor.within(nodes[name].graph)
            for slot, change in found.items():
                assert isinstance(change.weight, Quantised)
                put_rounded(nodes[name], slot, change.weight, within)
                if change.bias is not None:
                    put_bias(nodes[name], slot, change.bias, within)
        editor.close()
        pending = {(name, slot): change for name, found in changes.items() for slot, change in found.items()}
        return replace(model, pending={**self.pending, **pending}, reference=self.reference or self)

    def settled(self, target: Target) -> GraphModel:
        """The model with all pending weights stored as codes, where nothing else took them."""
        changes: dict[str, dict[Slot, Change]] = {}
        for (name, slot), change in self.pending.items():
            changes.setdefault(name, {})[slot] = change
        model = self.with_weights(changes, target, {}) if changes else self
        return replace(model, pending={}, ranges={}, reference=None)

    def with_floats(self, weights: Mapping[str, Array], biases: Mapping[str, Array]) -> GraphModel:
        """The first weight ([out, ...]) and the bias ([out]) of some layers replaced; integer biases stay on their grid."""
        model = self.copied()
        editor, nodes = Editor(model.ir.graph), {node.name: node for node in model.ir.graph}
        for name, rows in weights.items():
            put_rows(nodes[name], slots(nodes[name])[0], rows, editor)
        for name, bias in biases.items():
            put_bias(nodes[name], first_slot(nodes[name]), bias, editor)
        editor.close()
        return model

    def with_weights(self, changes: Mapping[str, Mapping[Slot, Change]], target: Target,
                     computing: Mapping[str, Change]) -> GraphModel:
        """Changed weights put back, by layer and slot; ``computing``: changes of operators that have no weights."""
        model = self.copied()
        every = [change.weight for found in changes.values() for change in found.values()]
        _raise_opset(model.ir, _opset_of([weight.grid for weight in every if isinstance(weight, Quantised)]))
        editor, nodes = Editor(model.ir.graph), _by_name(model.ir)
        halves = [name for name, found in changes.items() if any(c.compute == "float16" for c in found.values())]
        halves += [name for name, change in computing.items() if change.compute == "float16"]
        _put_halves([nodes[name] for name in halves], editor)
        for name, found in changes.items():
            kinds = {change.compute for change in found.values()}
            if kinds == {"dynamic"}:
                weights = {slot: change.weight for slot, change in found.items()}
                put_dynamic(nodes[name], weights, editor.within(nodes[name].graph))  # type: ignore[arg-type]
            elif kinds == {"float32"}:
                _put_stored(nodes[name], found, target, editor)
        editor.close()
        return model

    def with_integers(self, found: Mapping[str, Site], changes: Mapping[str, Change], target: Target) -> GraphModel:
        """Sites computing in integers; ``found`` must come from ``integer_sites`` of this very model, which is used up.

        Their weights are no longer pending. The reference is left to the caller, who has a copy from before.
        """
        grids = [change.weight.grid for change in changes.values() if isinstance(change.weight, Quantised)]
        tensors = [grid for change in changes.values() for grid in (*change.inputs, change.output) if grid is not None and grid.bits > 8]
        if _raise_opset(self.ir, _opset_of([*grids, *tensors])):
            found = self.integer_sites(list(found), target)  # converting may put other nodes in the place of those
        editor = Editor(self.ir.graph)
        put_integer(found, changes, target, editor)
        editor.close()
        left = {key: change for key, change in self.pending.items() if key[0] not in found}
        return replace(self, pending=left)

    def site_view(self, site: Site, statistics: Mapping[str, Statistics]) -> LayerView:
        """The view of an operator that is to compute in integers."""
        node = site.node
        found = slots(node)
        weight, bias = (_weight_and_bias(node, found[0]) if found else (None, None))
        output = None if site.output is None else statistics[site.output.name or ""]
        inputs = tuple(statistics[value.name or ""] for value in site.tensors)
        return LayerView(node.name or "", node.op_type, weight, bias, inputs, output,
                         _grid(node.name or "", found[0], self.pending) if found else None)

    def slimmed(self) -> GraphModel:
        """The model as it ships: without documentation, exporter metadata and the shapes of inner tensors."""
        model = self.copied()
        drop_annotations(model.ir)
        return model

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as ``path``; weights go to ``path``.data where one file cannot hold them."""
        if self.is_large:
            ir.save(self.ir, path, external_data=os.path.basename(path) + ".data")
        else:
            with open(path, "wb") as file:
                file.write(self.content)


def _by_name(model: ir.Model) -> dict[str, ir.Node]:
    return {path: node for path, node, _ in walk(model.graph)}


def _put_halves(nodes: Sequence[ir.Node], editor: Editor) -> None:
    """Casts stand in the graph of the nodes: the main one, or the body of an If."""
    together: dict[ir.Graph | ir.Function | None, list[ir.Node]] = {}
    for node in nodes:
        together.setdefault(node.graph, []).append(node)
    for graph, members in together.items():
        put_half(members, editor.within(graph))


def _plain_layer(name: str, node: ir.Node) -> Layer:
    found = slots(node)
    if not found:
        return Layer(name, node.op_type)
    stored = node.inputs[found[0].index].const_value  # type: ignore[union-attr]
    assert stored is not None
    return Layer(name, node.op_type, weight_shape=tuple(map(int, stored.shape.numpy())), weight_dtype=stored.dtype.numpy().name)


def _put_stored(node: ir.Node, found: Mapping[Slot, Change], target: Target, editor: Editor) -> None:
    for slot, change in found.items():
        if isinstance(change.weight, Quantised):
            put_weight(node, slot, change, target, editor)
        elif change.weight is not None and not isinstance(change.weight, Coded):
            put_float16(node, slot, change.weight, editor)


def _view(name: str, node: ir.Node, slot: Slot, pending: Mapping[tuple[str, Slot], Change]) -> LayerView:
    weight, bias = _weight_and_bias(node, slot)
    return LayerView(name, node.op_type, weight, bias, grid=_grid(name, slot, pending))


def _grid(name: str, slot: Slot, pending: Mapping[tuple[str, Slot], Change]) -> Grid | None:
    """The grid that the weight lies on already."""
    change = pending.get((name, slot))
    return change.weight.grid if change is not None and isinstance(change.weight, Quantised) else None


def _weight_and_bias(node: ir.Node, slot: Slot) -> tuple[Array, Array | None]:
    index, bias = slot.index, constant(node, slot.bias)
    return rows_first(array(node.inputs[index]), slot), None if bias is None else array(bias).ravel()  # type: ignore[arg-type]


def _spec(value: ir.Value) -> TensorSpec:
    dims = () if value.shape is None else tuple(dim if isinstance(dim, int) else str(dim.value or "?") for dim in value.shape)
    return TensorSpec(value.name or "", value.dtype.numpy().name if value.dtype is not None else "?", dims)


def _in_memory(model: ir.Model) -> onnx.ModelProto:
    """The model as one message; tensors that lie in other files are read into it."""
    external = any(isinstance(value.const_value, ir.ExternalTensor) for value in model.graph.initializers.values())
    return ir.serde.serialize_model(ir.external_data.load_to_model(model.clone()) if external else model)


def _weight_bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def _opset_of(grids: Iterable[Grid]) -> int:
    """The opset whose types hold the codes of these grids."""
    widths = {stored_bits(grid.bits) for grid in grids}
    return _NARROWEST_OPSET if 2 in widths else _NARROW_OPSET if widths & {4, 16} else _PER_CHANNEL_OPSET


def _raise_opset(model: ir.Model, version: int) -> bool:
    """Convert to at least that opset; whether that was needed. Raises Refused where onnx's converters cannot."""
    current = model.opset_imports.get("", version)
    if current >= version:
        return False
    from onnxscript import version_converter

    try:
        with quiet():  # it warns that it leaves the work to onnx's own converter
            version_converter.convert_version(model, version, fallback=True)
        name_nodes(model.graph)  # an operator that changed its meaning (Softmax) becomes several, and the new ones have no name
        name_values(model)
        model.ir_version = max(model.ir_version, onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", version)]))
    except Exception as error:
        asked = f"convert the model from opset {current} to {version}"
        raise Refused(asked, found=str(error), do="export it again with a newer opset") from error
    return True
