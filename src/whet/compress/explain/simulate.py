"""One graph in which every rounding can be switched on and off, and set to other numbers: what a recipe does, part by part.

The float model gets an input for each constant that is to be exchanged, and between each tensor that is to lie on a grid and its readers

    If(on)  then  clip(round(x / scale), lowest - zero, highest - zero) * scale   else  x

whose numbers are inputs too. A session is opened once, and a variant costs one run over the samples. The rounding is grid.py's, half to
even in float32, so 2 to 16 bits are computed alike, whether a runtime has them or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnxruntime import InferenceSession

from whet.compress.data import Dataset
from whet.compress.edit import Editor
from whet.compress.evaluate import predict
from whet.compress.evaluate.output_error import relative_error, softmax_divergence
from whet.compress.explain.differences import Differences, Placed
from whet.compress.graph import GraphModel
from whet.compress.grid import Array, Grid
from whet.compress.runtime import LARGEST_BATCH, exposed, opened
from whet.compress.weights import array
from whet.core.errors import Refused, WhetError
from whet.device.session import run

_NUMBERS = ("scale", "lowest", "highest")


@dataclass(frozen=True, eq=False)
class Variant:
    """What is not as in the float model. constants: stored arrays by layer and index of the input; grids: by tensor."""

    constants: Mapping[str, Mapping[int, Array]] = field(default_factory=dict)
    grids: Mapping[str, Grid] = field(default_factory=dict)

    def __or__(self, other: Variant) -> Variant:
        """Both; where they speak of the same thing, the other one counts."""
        return Variant({**self.constants, **other.constants}, {**self.grids, **other.grids})

    def without(self, layers: Iterable[str], tensors: Iterable[str]) -> Variant:
        """But for those layers' constants and those tensors' grids."""
        left, free = set(layers), set(tensors)
        return Variant({name: each for name, each in self.constants.items() if name not in left},
                       {name: grid for name, grid in self.grids.items() if name not in free})


@dataclass(frozen=True)
class Damage:
    """error: relative error energy at the worst float output. kl: nats, mean over samples; None where there are no class scores."""

    error: float
    kl: float | None = None


class Simulation:
    """Variants of one float model on the same samples. Opened by ``simulation``.

    reference: its outputs in float, [n, ...] by name. shown: where to see what a tensor is once it lies on its grid, by tensor.
    """

    def __init__(self, model: GraphModel, session: InferenceSession, data: Dataset, switches: _Switches) -> None:
        self._session, self._data, self._switches = session, data, switches
        self._outputs = [spec.name for spec in model.outputs]
        self._fixed = model.fixed_batch
        self._size = model.fixed_batch or self._fitting(min(LARGEST_BATCH, len(data)))
        self.shown = switches.shown
        self.reference = self.outputs(Variant())

    def outputs(self, variant: Variant, also: Iterable[str] = ()) -> dict[str, Array]:
        """The outputs of the variant on all samples, [n, ...]; also: tensors that are shown too, by their names in the float model."""
        shown = {name: self.shown[name] for name in also}
        switched = self._switches.feeds(variant)
        wanted = [*self._outputs, *dict.fromkeys(shown.values())]
        found = predict(lambda feeds: run(self._session, {**feeds, **switched}, wanted), self._data, batch_size=self._size,
                        name="simulating", fixed=self._fixed is not None)
        return {**{name: found[name] for name in self._outputs}, **{name: found[place] for name, place in shown.items()}}

    def damage(self, variant: Variant) -> Damage:
        """What the variant does to the outputs of the float model."""
        return self.damage_of(self.outputs(variant))

    def damage_of(self, found: Mapping[str, Array]) -> Damage:
        """The damage in outputs that were computed before."""
        return Damage(relative_error(self.reference, found), softmax_divergence(self.reference, found))

    def batches(self, variant: Variant, names: Iterable[str]) -> Iterator[dict[str, Array]]:
        """Tensors of the variant batch by batch, so that all of them may be looked at without being held."""
        places = {name: self.shown[name] for name in names}
        switched = self._switches.feeds(variant)
        for feeds in self._data.batches(self._size):
            if self._fixed:
                feeds |= {name: np.resize(feeds[name], (self._size, *feeds[name].shape[1:])) for name in self._data.names}
            found = run(self._session, {**feeds, **switched}, list(dict.fromkeys(places.values())))
            yield {name: found[place] for name, place in places.items()}

    def _fitting(self, size: int) -> int:
        """``size`` where the model takes so many samples at once, else 1: some say to take any batch and do not."""
        first = next(self._data.batches(size))
        try:
            found = run(self._session, {**first, **self._switches.feeds(Variant())}, self._outputs)
        except WhetError:
            return 1
        return size if all(values.ndim and len(values) == size for values in found.values()) else 1


@contextmanager
def simulation(found: Differences, data: Dataset, *, show: Iterable[str] = (), threads: int | None = None) -> Iterator[Simulation]:
    """A simulation of everything that the differences speak of. show: further tensors of the float model that may be looked at.

    Raises Refused where the data is empty.
    """
    if len(data) == 0:
        raise Refused("simulate a recipe", found="an empty data set", do="give at least one sample")
    model, switches = _switchable(found, tuple(show))
    inner = [name for name in switches.shown.values() if name not in {spec.name for spec in found.reference.outputs}]
    with opened(exposed(model, inner), threads=threads) as session:
        yield Simulation(found.reference, session, data, switches)


@dataclass(frozen=True, eq=False)
class _Switches:
    """exact: the float arrays by (layer, index). constants: the graph's inputs for them; tensors: the prefix of the four of each tensor."""

    exact: Mapping[tuple[str, int], Array]
    constants: Mapping[tuple[str, int], str]
    tensors: Mapping[str, str]
    shown: Mapping[str, str]

    def feeds(self, variant: Variant) -> dict[str, Array]:
        """The inputs that make the variant. Raises Refused where it speaks of what cannot be switched."""
        unknown = [name for name in variant.grids if name not in self.tensors]
        unknown += [name for name, found in variant.constants.items() if any((name, index) not in self.exact for index in found)]
        if unknown:
            raise Refused(f"simulate {unknown[0]!r}", found="the recipe leaves it as it is", do="name what it changes")
        found = {place: variant.constants.get(layer, {}).get(index, self.exact[layer, index])
                 for (layer, index), place in self.constants.items()}
        for tensor, prefix in self.tensors.items():
            grid = variant.grids.get(tensor)
            found[f"{prefix}.on"] = np.asarray(grid is not None)
            numbers = (1.0, 0.0, 0.0) if grid is None else (grid.scale, grid.lowest - grid.zero_point, grid.highest - grid.zero_point)
            for name, number in zip(_NUMBERS, numbers, strict=True):
                found[f"{prefix}.{name}"] = np.asarray(number, np.float32).reshape(())
        return found


def _switchable(found: Differences, show: tuple[str, ...]) -> tuple[GraphModel, _Switches]:
    model = found.reference.copied()
    graph = model.ir.graph
    editor, nodes = Editor(graph), {node.name: node for node in graph}
    values = {value.name: value for value in (*graph.inputs, *(value for node in graph for value in node.outputs))}
    exact, constants, tensors, shown = {}, {}, {}, {name: name for name in show}
    for number, (layer, index) in enumerate((layer, index) for layer, arrays in found.constants.items() for index in arrays):
        old = nodes[layer].inputs[index]
        assert old is not None
        exact[layer, index] = np.ascontiguousarray(array(old), np.float32)
        fed = _input(graph, f"whet.constant{number}", ir.DataType.FLOAT, exact[layer, index].shape)
        nodes[layer].replace_input_with(index, fed)
        constants[layer, index] = fed.name or ""
    for number, (tensor, placed) in enumerate(found.placed.items()):
        tensors[tensor] = f"whet.tensor{number}"
        shown[tensor] = _switch(values[tensor], placed, tensors[tensor], editor)
    editor.close()
    return model, _Switches(exact, constants, tensors, shown)


def _switch(value: ir.Value, placed: Placed, prefix: str, editor: Editor) -> str:
    """The switch behind a tensor; the name of what comes out of it."""
    readers = [node for node in value.consumers() if not placed.readers or node.name in placed.readers]
    switched = editor.node("If", [_input(editor.graph, f"{prefix}.on", ir.DataType.BOOL, ())], like=value, dtype=ir.DataType.FLOAT)
    node = switched.producer()
    assert node is not None
    numbers = [_input(editor.graph, f"{prefix}.{name}", ir.DataType.FLOAT, ()) for name in _NUMBERS]
    node.attributes["then_branch"] = ir.AttrGraph("then_branch", _rounding(value, numbers, prefix))
    node.attributes["else_branch"] = ir.AttrGraph("else_branch", _branch([ir.node("Identity", [value], name=f"{prefix}.as_is")], prefix))
    if placed.is_output:
        editor.take_output(value, switched)
    editor.redirect(value, switched, readers)
    return switched.name or ""


def _rounding(value: ir.Value, numbers: list[ir.Value], prefix: str) -> ir.Graph:
    scale, lowest, highest = numbers
    made: list[ir.Node] = []
    for op, others in (("Div", [scale]), ("Round", []), ("Clip", [lowest, highest]), ("Mul", [scale])):
        made.append(ir.node(op, [made[-1].outputs[0] if made else value, *others], name=f"{prefix}.{op.lower()}"))
    return _branch(made, prefix)


def _branch(nodes: list[ir.Node], prefix: str) -> ir.Graph:
    for node in nodes:
        node.outputs[0].name = f"{node.name}.out"
        node.outputs[0].dtype = ir.DataType.FLOAT
    return ir.Graph([], [nodes[-1].outputs[0]], nodes=nodes, name=f"{prefix}.branch")


def _input(graph: ir.Graph, name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
    graph.inputs.append(value)
    return value
