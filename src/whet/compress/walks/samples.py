"""Layer after layer with samples of what it reads once the layers before it are rounded, and of what it gave in float."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import torch
from torch import Tensor

from whet.compress.fold import only_reader
from whet.compress.graph import GraphModel
from whet.compress.layer_products import Product, product_of, vectors_drawn
from whet.compress.mirror import Step
from whet.compress.technique import Change, LayerView
from whet.compress.views import SampleView
from whet.compress.walks import Work
from whet.compress.walks.rounding import rounded_in_turn, weight_of
from whet.compress.walks.stream import Stop
from whet.compress.weights import Slot, array, constant, float_attribute, is_row, stored_rows

# Of all positions of a convolution so many are drawn, with what they give, as memory allows: each output channel learns from them.
MOST_VECTORS, MOST_BYTES = 1 << 16, 256 << 20
# Element by element, so that they can be computed on some positions alone.
ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "Elu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Gelu", "Softplus"})
# What computes [n, ...] from [n, ...] with a weight that is not one matrix.
WHOLE = frozenset({"ConvTranspose", "MatMul"})

Function = Callable[[Tensor], Tensor]


def walk(model: GraphModel, work: Work) -> GraphModel:
    """Show the technique each weight with vectors that its layer reads, or whole samples where it reads no vectors; recurrent layers and
    tables with none.
    """
    def change(stop: Stop, node: ir.Node, slot: Slot, layer: LayerView) -> Change:
        made: Change = work.technique.apply(_view(stop, node, slot, layer, int(work.options["seed"])), work.target,
                                            **work.layers[layer.name])
        return made

    return rounded_in_turn(model, work, change, exact=True)


def _view(stop: Stop, node: ir.Node, slot: Slot, layer: LayerView, seed: int) -> SampleView:
    product = product_of(node)
    with torch.no_grad():
        if product is not None:
            return _of_vectors(stop, node, slot, layer, product, torch.Generator().manual_seed(seed))
        if node.op_type in WHOLE and not stop.found.is_constant(stop.step.inputs[0]):
            return _of_samples(stop, node, slot, layer)
    return SampleView(layer, torch.zeros(0), torch.zeros(0), lambda x, weight: x)


def _of_vectors(stop: Stop, node: ir.Node, slot: Slot, layer: LayerView, product: Product, generator: torch.Generator) -> SampleView:
    """inputs: [n, groups, in], targets: [n, out]."""
    now, before = _bias(node, slot), None if layer.bias is None else torch.tensor(layer.bias).float() * _beta(node)
    behind = _activation(node, stop) if slot.bias is None or slot.bias >= len(node.inputs) or now is not None else _as_it_is
    name, exact_name = stop.step.inputs[0], stop.exact.inputs[0]
    now_read, exactly_read = stop.found.read(name), stop.expected.read(exact_name)
    weight = torch.tensor(layer.weight, dtype=torch.float32)
    width = weight[0].numel()
    most = min(MOST_VECTORS, MOST_BYTES // (4 * max(width * product.groups + len(weight), 1)))
    drawn = list(vectors_drawn([product.count(x) for x in now_read], most, generator))
    # Filled, and not joined from parts, which would be there twice.
    inputs, targets = torch.empty(sum(map(len, drawn)), product.groups, width), torch.empty(sum(map(len, drawn)), len(weight))
    begin = 0
    for x, exact, index in zip(now_read, exactly_read, drawn, strict=True):
        some = slice(begin, begin := begin + len(index))
        inputs[some] = product.chosen(x.float(), index)
        targets[some] = behind(product.outputs(product.chosen(exact.float(), index), weight, before if now is not None else None))
    return SampleView(layer, inputs, targets, lambda x, rounded: behind(product.outputs(x, rounded, now)))


def _of_samples(stop: Stop, node: ir.Node, slot: Slot, layer: LayerView) -> SampleView:
    """inputs and targets: [n, ...] as the operator reads and gives them. Batches of another shape than the first are left out."""
    behind, name, weight = _activation(node, stop), stop.step.inputs[0], weight_of(node, slot)
    whole = list(stop.found.read(name))
    kept = [x.shape[1:] == whole[0].shape[1:] for x in whole]
    targets = [behind(y) for y, keep in zip(stop.expected.outputs(stop.exact), kept, strict=True) if keep]
    constants = {each: stop.found.constants[each] for each in stop.step.inputs if stop.found.is_constant(each)}
    stored = constants[weight]

    def product(x: Tensor, rounded: Tensor) -> Tensor:
        own = {name: x, weight: stored_rows(rounded, tuple(stored.shape), slot)}
        return behind(stop.step.run(*[own[each] if each in own else constants[each] for each in stop.step.inputs])[0])

    return SampleView(layer, torch.cat([x for x, keep in zip(whole, kept, strict=True) if keep]), torch.cat(targets), product)


def _bias(node: ir.Node, slot: Slot) -> Tensor | None:
    """[out] or [1] the bias, where it is a constant row."""
    value = constant(node, slot.bias)
    return torch.tensor(array(value)).float().ravel() * _beta(node) if value is not None and is_row(value) else None


def _beta(node: ir.Node) -> float:
    """What a Gemm multiplies its bias with; no other operator has such an attribute."""
    return float_attribute(node, "beta", 1.0) if node.op_type == "Gemm" else 1.0


def _activation(node: ir.Node, stop: Stop) -> Function:
    """What stands right behind the layer and nobody else reads, where it goes element by element."""
    reader = only_reader(node.outputs[0])
    if reader is None or reader.op_type not in ACTIVATIONS:
        return _as_it_is
    steps: list[Step] = [step for step in stop.found.steps if step.name == reader.name]
    if not steps or steps[0].inputs != (stop.step.outputs[0],):
        return _as_it_is
    run = steps[0].run
    return lambda y: run(y)[0]


def _as_it_is(y: Tensor) -> Tensor:
    return y
