"""Whether a ModelProto is a model: names, order, functions and depth, before anything is built from it.

Everything here takes time linear in the size of the file and recurses at most MAX_DEPTH deep.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx

from whet.compress.source.payloads import Payloads
from whet.compress.source.quoting import quoted
from whet.compress.source.tensor_checks import check_tensor
from whet.core.errors import Refused, Unsupported

MAX_NODES = 1_000_000
MAX_DEPTH = 16
_A = onnx.AttributeProto


def check_proto(proto: onnx.ModelProto, folder: Path | None, asked: str, payloads: Payloads) -> None:
    """Raises Refused or Unsupported where the model cannot be a valid one. folder: where its external data may lie. payloads: what was cut
    out of its graph's initializers."""
    if not proto.HasField("graph"):
        raise Refused(asked, found="there is no ONNX graph in it", do="give an ONNX model; a file that was cut off must be copied again")
    if not proto.opset_import:
        raise Refused(asked, found="it does not say which operator set it uses",
                      do="the file was probably cut off: copy or export it again")
    if len({(opset.domain, opset.version) for opset in proto.opset_import}) != len({opset.domain for opset in proto.opset_import}):
        raise Refused(asked, found="it names one operator set in two versions", do="export it again")
    checker = _GraphCheck(folder, asked)
    checker.graph(proto.graph, (), payloads)
    for function in proto.functions:
        checker.body(function.node, function.input, function.output, ())
    _check_functions(proto, asked)
    if not proto.graph.node:
        raise Refused(asked, found="its graph is empty: there is no operator in it", do="export the model again")
    if not proto.graph.output:
        raise Refused(asked, found="its graph has no outputs", do="export the model again")
    for value in (*proto.graph.input, *proto.graph.output):
        _check_value(value, asked)


def label(node: onnx.NodeProto) -> str:
    """How a message names a node; one without a name is known by its first output."""
    name = node.name or (node.output[0] if node.output else "")
    return f"the node {quoted(name)} ({quoted(node.op_type)[1:-1]})"


class _GraphCheck:
    """One walk over a graph with everything inside it; counts nodes over all of them."""

    def __init__(self, folder: Path | None, asked: str) -> None:
        self.folder, self.asked, self.nodes = folder, asked, 0

    def graph(self, graph: onnx.GraphProto, outer: tuple[frozenset[str], ...], payloads: Payloads | None = None) -> None:
        """Check a graph; ``outer`` holds the names that the graphs around it define, the outermost first."""
        if graph.sparse_initializer:
            raise Unsupported(self.asked, found="it has sparse initializers", do="store the weights as dense tensors")
        for tensor in graph.initializer:
            check_tensor(tensor, self.folder, self.asked, None if payloads is None else payloads.size(tensor.name))
        weights = [tensor.name for tensor in graph.initializer]
        inputs = [value.name for value in graph.input]
        _refuse_twice(weights, "initializer", self.asked)
        given = [*inputs, *set(weights).difference(inputs)]
        self.body(graph.node, given, [value.name for value in graph.output], outer)

    def body(self, nodes: Sequence[onnx.NodeProto], given: Iterable[str], outputs: Iterable[str],
             outer: tuple[frozenset[str], ...]) -> None:
        """Check the nodes of a graph or function, of which the values ``given`` are known from the start."""
        if len(outer) >= MAX_DEPTH:
            raise Refused(self.asked, found=f"graphs nested more than {MAX_DEPTH} deep", do="no runtime would load it; export it again")
        self.nodes += len(nodes)
        if self.nodes > MAX_NODES:  # before anything walks over them
            raise Refused(self.asked, found=f"more than {MAX_NODES} nodes", do="no runtime would load it; export it again")
        nodes, given = list(nodes), list(given)
        made = [name for node in nodes for name in node.output if name]
        _refuse_twice([*given, *made], "value", self.asked)
        scopes = (*outer, frozenset(given).union(made))
        reads = [self._reads(node, scopes) for node in nodes]
        for node, names in zip(nodes, reads, strict=True):
            self._refuse_undefined(names, label(node), scopes)
        self._refuse_undefined(outputs, "the list of outputs", scopes)
        _refuse_cycle(nodes, reads, frozenset(given), scopes[-1], self.asked)

    def _refuse_undefined(self, names: Iterable[str], reader: str, scopes: tuple[frozenset[str], ...]) -> None:
        for name in names:
            if not any(name in scope for scope in scopes):
                raise Refused(self.asked, found=f"{reader} reads {quoted(name)}, which nothing defines",
                              do="the file is damaged: copy or export it again")

    def _reads(self, node: onnx.NodeProto, scopes: tuple[frozenset[str], ...]) -> set[str]:
        """What the node reads: its inputs, and what the graphs inside it take from outside."""
        if not node.op_type:
            raise Refused(self.asked, found=f"{label(node)} has no operator", do="export the model again")
        names = {name for name in node.input if name}
        for attribute in node.attribute:
            if attribute.type in (_A.SPARSE_TENSOR, _A.SPARSE_TENSORS) or attribute.HasField("sparse_tensor"):
                raise Unsupported(self.asked, found=f"{label(node)} holds a sparse tensor", do="store it as a dense one")
            for tensor in _tensors(attribute):
                check_tensor(tensor, self.folder, self.asked)
            for graph in _graphs(attribute):
                self.graph(graph, scopes)
                names.update(_captured(graph))
        return names


def _captured(graph: onnx.GraphProto) -> set[str]:
    """The names that a nested graph reads from around it; its own nested graphs are looked into, to the same depth."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    own.update(name for node in graph.node for name in node.output)
    read = {value.name for value in graph.output}
    for node in graph.node:
        read.update(name for name in node.input if name)
        for attribute in node.attribute:
            for inner in _graphs(attribute):
                read.update(_captured(inner))
    return read - own


def _tensors(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    if attribute.type == _A.TENSOR or attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors


def _graphs(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    if attribute.type == _A.GRAPH or attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _refuse_twice(names: Iterable[str], kind: str, asked: str) -> None:
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise Refused(asked, found=f"the {kind} {quoted(twice)} is defined twice",
                      do="every value of a model has one definition; export it again")


def _refuse_cycle(nodes: list[onnx.NodeProto], reads: list[set[str]], given: frozenset[str], here: frozenset[str], asked: str) -> None:
    """Kahn's algorithm; the usual case, where the nodes are in order already, costs one pass."""
    known = set(given)
    for node, names in zip(nodes, reads, strict=True):
        if any(name in here and name not in known for name in names):
            break
        known.update(node.output)
    else:
        return
    waiting = [sum(name in here and name not in given for name in names) for names in reads]
    readers: dict[str, list[int]] = {}
    for index, names in enumerate(reads):
        for name in names:
            readers.setdefault(name, []).append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    for index in ready:  # grows while it is walked
        for name in {name for name in nodes[index].output if name}:
            for reader in readers.get(name, ()):
                waiting[reader] -= 1
                if waiting[reader] == 0:
                    ready.append(reader)
    if len(ready) < len(nodes):
        stuck = next(node for node, count in zip(nodes, waiting, strict=True) if count)
        raise Refused(asked, found=f"{label(stuck)} waits for its own result: the graph has a cycle", do="export the model again")


def _check_functions(proto: onnx.ModelProto, asked: str) -> None:
    """Functions call each other without end, or double each other up to more nodes than memory: both are refused before inlining."""
    bodies = {(f.domain, f.name, getattr(f, "overload", "")): f for f in proto.functions}
    if len(bodies) != len(proto.functions):
        raise Refused(asked, found="one function is defined twice", do="export the model again")
    sizes: dict[tuple[str, str, str], int] = {}

    def size(nodes: Iterable[onnx.NodeProto], above: tuple[tuple[str, str, str], ...]) -> int:
        total = 0
        for node in nodes:
            name = (node.domain, node.op_type, getattr(node, "overload", ""))
            total += function_size(name, above) if name in bodies else 1
            total += sum(size(graph.node, above) for attribute in node.attribute for graph in _graphs(attribute))
        return total

    def function_size(name: tuple[str, str, str], above: tuple[tuple[str, str, str], ...]) -> int:
        if name in above or len(above) > 4 * MAX_DEPTH:
            raise Refused(asked, found=f"the function {quoted(name[1])} calls itself, or calls nest too deep", do="export the model again")
        if name not in sizes:
            sizes[name] = size(bodies[name].node, (*above, name))
        return sizes[name]

    if bodies and size(proto.graph.node, ()) > MAX_NODES:
        raise Refused(asked, found=f"its functions unfold to more than {MAX_NODES} nodes", do="export the model without functions")


def _check_value(value: onnx.ValueInfoProto, asked: str) -> None:
    kind = value.type.WhichOneof("value")
    if kind not in (None, "tensor_type"):
        raise Unsupported(asked, found=f"{quoted(value.name)} is not a tensor ({kind.removesuffix('_type')})",
                          do="cut the model to the part between tensors, for example with onnx.utils.extract_model")
