"""The harm of every rounding from one backward pass: how much each would change the output, to first order.

    logits    KL(p || p') ~ 1/2 dz^T F dz,  F = diag(p) - p p^T = E[g g^T]  for  g = s * (v - s (s . v)),  s = sqrt(p)
    shares    KL(p || p') ~ 1/2 sum dp^2 / p = 1/2 E[(g . dp)^2]            for  g = v / s
    values    |dy|^2 = E[(g . dy)^2]                                        for  g = v                   (Hutchinson 1990)

with v of random signs. With J the Jacobian from a tensor x to the output, dz = J dx, and g^T J is what a backward pass from g leaves at
x. So the harm of changing x by dx is the mean over samples of (grad_x . dx)^2 / 2 (for values over the output's energy): the Fisher
information along dx itself and not on its diagonal, at the price of one backward pass for all tensors and one run of each layer for
each way of its weights. (Dong et al. 2020, "HAWQ-V2", take the trace; Li et al. 2021, "BRECQ", section 3.3, the diagonal.) Drawing g as
e_y - p with y ~ p is right too, but where the model is sure of its answers almost every draw is 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from whet.compress.data import Dataset
from whet.compress.evaluate.forms import Form, form_of, is_float
from whet.compress.fake import on_grid
from whet.compress.graph import GraphModel
from whet.compress.inspect import inspect
from whet.compress.mirror import Mirror, Step, mirror
from whet.compress.mixed.roundings import Harms, Roundings
from whet.compress.runtime import one_inference
from whet.compress.weights import as_stored
from whet.core.progress import task

DRAWS, SEED = 2, 0
LARGEST_BATCH, BATCH_BYTES = 32, 512 << 20  # of all activations of a batch
_LEAST_ROOT = 1e-3  # of a probability: an 8-bit softmax gives true zeros


def fisher(folded: GraphModel, found: Roundings, data: Dataset, *, draws: int = DRAWS) -> Harms:
    """The harm of each rounding alone, in an otherwise float model, on all samples of ``data``.

    draws: random directions for each sample. Memory: all activations of a batch, about twice. Raises Unsupported where the mirror knows an
    operator not.
    """
    reflected = mirror(folded).requires_grad_(False)
    totals: dict[tuple[str, ...], float] = dict.fromkeys([*found.weights, *((name,) for name in found.grids)], 0.0)
    random, count, norm = torch.Generator().manual_seed(SEED), 0, _Norm()
    layers = _weights_of(folded, found)
    with task("estimating what each rounding does", len(data)) as progress:
        for feeds in _batches(folded, data):
            seen = _Pass(reflected, feeds, {*found.grids}, {*layers})
            norm.add([seen.values[name] for name in reflected.outputs])
            changes = _changes(seen, found, layers)
            for _ in range(draws):
                directions = norm.directions([seen.values[name] for name in reflected.outputs], random)
                gradients = seen.gradients(directions)
                for key, (tensor, change) in changes.items():
                    totals[key] += _squared(gradients.get(tensor), change) / draws
            count += seen.samples
            progress.advance(seen.samples)
    scaled = {key: norm.scaled(total, count) for key, total in totals.items()}
    return Harms({key: scaled[key] for key in found.weights}, {name: scaled[name,] for name in found.grids})


class _Pass:
    """One forward pass, with the tensors that gradients are wanted of. samples: how many."""

    def __init__(self, reflected: Mirror, feeds: Mapping[str, Tensor], tensors: set[str], layers: set[str]) -> None:
        self.samples = len(next(iter(feeds.values())))
        self.inputs: dict[str, list[Tensor]] = {}
        self.steps: dict[str, Step] = {}
        self.constants = reflected.constants()
        self.kept: dict[str, Tensor] = {}
        self.values: dict[str, Tensor] = {**self.constants}
        for name, value in feeds.items():
            self._take(name, value.requires_grad_(value.is_floating_point()), tensors)
        for step in reflected.steps:
            given = [self.values[name] for name in step.inputs]
            if step.name in layers:
                self.inputs[step.name], self.steps[step.name] = [each.detach() for each in given], step
            for name, value in zip(step.outputs, step.run(*given), strict=True):
                self._take(name, value, {*tensors, step.outputs[0]} if step.name in layers else tensors)
            for name in step.done:
                self.values.pop(name, None)

    def _take(self, name: str, value: Tensor, wanted: set[str]) -> None:
        self.values[name] = value
        if name in wanted and value.is_floating_point() and value.requires_grad:
            self.kept[name] = value

    def gradients(self, directions: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Of the sum of all outputs times their directions, by tensor."""
        outputs, weights = [output for output, _ in directions], [weight for _, weight in directions]
        found = torch.autograd.grad(outputs, list(self.kept.values()), weights, retain_graph=True, allow_unused=True)
        return {name: gradient for name, gradient in zip(self.kept, found, strict=True) if gradient is not None}


class _Norm:
    """What a change of the outputs counts: KL divergence of class scores, else relative energy of each output."""

    def __init__(self) -> None:
        self.form: Form | None = None
        self.energies: list[float] = []

    def add(self, outputs: list[Tensor]) -> None:
        floats = [values for values in outputs if values.is_floating_point()]
        if not self.energies:
            self.energies = [0.0] * len(outputs)
            forms = [form_of(values.detach().numpy()) for values in floats if is_float(values.detach().numpy())]
            self.form = forms[0] if len(forms) == 1 and forms[0].kind == "scores" else None
        for at, values in enumerate(outputs):
            self.energies[at] += float(values.detach().double().square().sum()) if values.is_floating_point() else 0.0

    def directions(self, outputs: list[Tensor], random: torch.Generator) -> list[tuple[Tensor, Tensor]]:
        """(output, direction) of each float output that hangs on something."""
        found = []
        for at, values in enumerate(outputs):
            if values.is_floating_point() and values.requires_grad:
                energy = self.energies[at] / max(len(values), 1)
                found.append((values, _towards_classes(values.detach(), self.form, random) if self.form else
                              _signs(values, random) / max(energy, 1e-30) ** 0.5))
        return found

    def scaled(self, total: float, count: int) -> float:
        """The mean over samples; half of it where it is a KL divergence."""
        return total / max(count, 1) * (0.5 if self.form else 1.0)


def _towards_classes(values: Tensor, form: Form, random: torch.Generator) -> Tensor:
    """Directions whose covariance is the Fisher information of the class scores [n, C]."""
    flat = values.reshape(len(values), -1)
    p = flat.clamp_min(0) if form.probabilities else torch.softmax(flat, 1)
    root, signs = (p / p.sum(1, keepdim=True).clamp_min(1e-30)).sqrt(), _signs(flat, random)
    found = signs / root.clamp_min(_LEAST_ROOT) if form.probabilities else root * (signs - root * (root * signs).sum(1, keepdim=True))
    return found.reshape(values.shape)


def _signs(like: Tensor, random: torch.Generator) -> Tensor:
    return torch.randint(0, 2, like.shape, generator=random).to(like.dtype) * 2 - 1


def _changes(seen: _Pass, found: Roundings, layers: Mapping[str, Mapping[int, str]]) -> dict[tuple[str, ...], tuple[str, Tensor]]:
    """For each rounding: the tensor that it changes, and by how much."""
    changes: dict[tuple[str, ...], tuple[str, Tensor]] = {}
    with torch.no_grad():
        for name, grid in found.grids.items():
            if name in seen.kept:
                value = seen.kept[name].detach()
                changes[name,] = name, on_grid(value, grid) - value
        for (layer, way), weights in found.weights.items():
            step = seen.steps.get(layer)
            if step is not None and step.outputs[0] in seen.kept:
                given = list(seen.inputs[layer])
                for slot, rows in weights.items():
                    at = step.inputs.index(layers[layer][slot.index])
                    given[at] = torch.as_tensor(as_stored(rows, tuple(given[at].shape), slot))
                exact = step.run(*seen.inputs[layer])[0]
                changes[layer, way] = step.outputs[0], step.run(*given)[0] - exact
    return changes


def _squared(gradient: Tensor | None, change: Tensor) -> float:
    """sum_n (g_n . d_n)^2 over samples n along the first axis. Directions of different samples are independent, so where the first axis
    is none of samples the square of the sum has the same mean."""
    if gradient is None:
        return 0.0
    if not gradient.ndim:
        return float((gradient * change) ** 2)
    return float((gradient.double() * change.double()).reshape(len(gradient), -1).sum(1).square().sum())


def _weights_of(folded: GraphModel, found: Roundings) -> dict[str, dict[int, str]]:
    """The names of the constants that hold the weights, by layer and index of the input."""
    nodes = {node.name: node for node in folded.ir.graph}
    return {layer: {slot.index: nodes[layer].inputs[slot.index].name or "" for slot in slots}  # type: ignore[union-attr]
            for (layer, _), slots in found.weights.items()}


def _batches(folded: GraphModel, data: Dataset) -> Iterable[dict[str, Tensor]]:
    size = folded.fixed_batch or _fitting(folded)
    if folded.fixed_batch and len(data) < size:
        feeds = [one_inference(folded, data)]
    else:
        kept = data.take(range(len(data) // size * size)) if folded.fixed_batch else data
        feeds = list(kept.batches(size))
    for each in feeds:
        yield {name: torch.as_tensor(np.array(values)) for name, values in each.items()}


def _fitting(folded: GraphModel) -> int:
    """Samples whose activations fit into the bytes of a batch, as far as their sizes are known."""
    one = sum(layer.output_bytes or 0 for layer in inspect(folded).layers)
    return max(1, min(LARGEST_BATCH, BATCH_BYTES // max(one, 1)))
