"""LSTM, GRU and RNN. torch's own kernels where they compute the same, else a loop over time.

ONNX: X [time, batch, in], W [directions, gates * hidden, in], R [directions, gates * hidden, hidden], B [directions, 2 * gates *
hidden] (of W, then of R), states [directions, batch, hidden], Y [time, directions, batch, hidden]; ``layout`` 1 has the batch first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from whet.compress.mirror.node import Builder, Function, Node

_Activation = Callable[[Tensor], Tensor]
_ACTIVATIONS: dict[str, _Activation] = {
    "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Relu": torch.relu, "Softsign": functional.softsign,
    "HardSigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
}


@dataclass(frozen=True)
class _Kind:
    """An operator: its gates, where torch has each of ONNX's gates, its usual activations, and its number of states."""

    gates: int
    order: tuple[int, ...]
    usual: tuple[str, ...]
    states: int = 1


_KINDS = {
    "LSTM": _Kind(4, (0, 2, 3, 1), ("Sigmoid", "Tanh", "Tanh"), 2),  # ONNX: i o f c; torch: i f c o
    "GRU": _Kind(3, (1, 0, 2), ("Sigmoid", "Tanh")),  # ONNX: z r h; torch: r z h
    "RNN": _Kind(1, (0,), ("Tanh",)),
}


@dataclass(frozen=True)
class _Layer:
    """What a node says."""

    kind: _Kind
    op: str
    hidden: int
    directions: tuple[bool, ...]  # whether each runs backwards
    batch_first: bool
    activations: tuple[tuple[str, ...], ...]  # of each direction
    clip: float
    coupled: bool  # LSTM: the forget gate is 1 - input gate
    inner_reset: bool  # GRU: the reset gate is applied after the product


def _recurrent(node: Node) -> Function:
    layer = _read(node)
    fast = _fused(layer)
    slow = _looped(layer)
    peepholes = node.has(7)

    def run(x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
            *states: Tensor | None) -> tuple[Tensor, ...]:
        if layer.batch_first:
            x, states = x.transpose(0, 1), tuple(None if s is None else s.transpose(0, 1) for s in states[:2]) + states[2:]
        if lengths is not None and bool((lengths == x.shape[0]).all()):
            lengths = None
        empty = x.new_zeros((len(layer.directions), x.shape[1], layer.hidden))
        given = [s if s is not None else empty for s in (*states, None, None)[:layer.kind.states]]
        given = [s.to(x.device) for s in given]  # zeros made from a shape lie where shapes lie
        if fast is not None and lengths is None and not peepholes:
            y, *ends = fast(x, w, r, b, given)
        else:
            y, *ends = slow(x, w, r, b, lengths, given, states[2] if peepholes else None)
        if layer.batch_first:
            return (y.permute(2, 0, 1, 3), *[end.transpose(0, 1) for end in ends])
        return (y, *ends)

    return run


def _read(node: Node) -> _Layer:
    kind = _KINDS[node.op]
    direction = node.text("direction", "forward")
    directions = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
    names = node.texts("activations") or kind.usual * len(directions)
    unknown = [name for name in names if name not in _ACTIVATIONS]
    if unknown or len(names) != len(kind.usual) * len(directions):
        node.refuse(f"its activations are {', '.join(names)}")
    each = len(kind.usual)
    shape = node.ir.inputs[2].shape if node.ir.inputs[2] is not None else None
    hidden = node.integer("hidden_size") or (shape[-1] if shape is not None and isinstance(shape[-1], int) else 0)
    if not hidden:
        node.refuse("it does not say how many hidden units it has")
    node.ignore("output_sequence")  # opset 1's
    return _Layer(kind, node.op, hidden, directions, bool(node.integer("layout")),
                  tuple(tuple(names[at:at + each]) for at in range(0, len(names), each)), node.real("clip", 0.0),
                  bool(node.integer("input_forget")), bool(node.integer("linear_before_reset")))


def _fused(layer: _Layer) -> Function | None:
    """torch's kernel, or None where it computes something else."""
    usual = all(names == layer.kind.usual for names in layer.activations)
    relu = layer.op == "RNN" and all(names == ("Relu",) for names in layer.activations)
    if not (usual or relu) or layer.clip or layer.coupled or (layer.op == "GRU" and not layer.inner_reset):
        return None
    kernels: dict[str, Function] = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN": torch.rnn_relu if relu else torch.rnn_tanh}
    kernel = kernels[layer.op]
    both, backwards = len(layer.directions) == 2, layer.directions == (True,)

    def run(x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, states: list[Tensor]) -> tuple[Tensor, ...]:
        weights = _torch_weights(layer, w, r, b)
        start = tuple(states) if layer.kind.states == 2 else states[0]
        # A pass that is to have gradients is "training" for cuDNN; without dropout it computes the same.
        y, *ends = kernel(x.flip(0) if backwards else x, start, weights, b is not None, 1, 0.0, torch.is_grad_enabled(), both, False)
        y = y.reshape(*y.shape[:2], len(layer.directions), layer.hidden).transpose(1, 2)
        return (y.flip(0) if backwards else y, *ends)

    return run


def _torch_weights(layer: _Layer, w: Tensor, r: Tensor, b: Tensor | None) -> list[Tensor]:
    """[W, R, bias of W, bias of R] for each direction, the gates in torch's order."""
    parts = [w, r] if b is None else [w, r, *b.chunk(2, 1)]
    moved = [_ordered(part, layer.kind) for part in parts]
    return [part[at] for at in range(len(layer.directions)) for part in moved]


def _ordered(part: Tensor, kind: _Kind) -> Tensor:
    if kind.gates == 1:
        return part
    gates = part.chunk(kind.gates, 1)
    return torch.cat([gates[at] for at in kind.order], 1)


def _looped(layer: _Layer) -> Function:
    """One step after the other: for sequences of different length, peepholes, clipping, and a GRU's outer reset gate."""
    cell = {"LSTM": _lstm_cell, "GRU": _gru_cell, "RNN": _rnn_cell}[layer.op]

    def run(x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, lengths: Tensor | None, states: list[Tensor],
            peepholes: Tensor | None) -> tuple[Tensor, ...]:
        each, final = [], []
        for at, backwards in enumerate(layer.directions):
            bias_w, bias_r = (0.0, None) if b is None else b[at].chunk(2)
            projected = x @ w[at].T + bias_w  # [time, batch, gates * hidden]
            start = tuple(state[at] for state in states)
            step = cell(layer, layer.activations[at], r[at], bias_r, None if peepholes is None else peepholes[at])
            y, end = _over_time(step, projected, start, lengths, backwards)
            each.append(y)
            final.append(end)
        return (torch.stack(each, 1), *[torch.stack(parts) for parts in zip(*final, strict=True)])

    return run


_State = tuple[Tensor, ...]


def _over_time(step: Callable[[Tensor, _State], _State], projected: Tensor, state: _State, lengths: Tensor | None,
               backwards: bool) -> tuple[Tensor, _State]:
    """States stand still outside a sequence, and the output there is zero."""
    found = []
    for time in reversed(range(len(projected))) if backwards else range(len(projected)):
        new = step(projected[time], state)
        if lengths is None:
            state = new
            found.append(new[0])
        else:
            inside = (time < lengths.to(projected.device)).unsqueeze(1)
            state = tuple(torch.where(inside, after, before) for after, before in zip(new, state, strict=True))
            found.append(torch.where(inside, new[0], 0.0))
    return torch.stack(found[::-1] if backwards else found), state


def _limited(layer: _Layer, x: Tensor) -> Tensor:
    return x.clamp(-layer.clip, layer.clip) if layer.clip else x


def _lstm_cell(layer: _Layer, names: tuple[str, ...], r: Tensor, bias: Tensor | None,
               peepholes: Tensor | None) -> Callable[[Tensor, _State], _State]:
    f, g, h = (_ACTIVATIONS[name] for name in names)
    pi, po, pf = (0.0, 0.0, 0.0) if peepholes is None else peepholes.chunk(3)

    def step(x: Tensor, state: _State) -> _State:
        hidden, cell = state
        i, o, forget, c = functional.linear(hidden, r, bias).add(x).chunk(4, -1)
        i = f(_limited(layer, i + pi * cell))
        forget = 1 - i if layer.coupled else f(_limited(layer, forget + pf * cell))
        cell = forget * cell + i * g(_limited(layer, c))
        return f(_limited(layer, o + po * cell)) * h(cell), cell

    return step


def _gru_cell(layer: _Layer, names: tuple[str, ...], r: Tensor, bias: Tensor | None,
              peepholes: Tensor | None) -> Callable[[Tensor, _State], _State]:
    f, g = (_ACTIVATIONS[name] for name in names)
    size = 2 * layer.hidden
    r_zr, r_h, (b_zr, b_h) = r[:size], r[size:], (None, None) if bias is None else (bias[:size], bias[size:])

    def step(x: Tensor, state: _State) -> _State:
        (hidden,) = state
        z, reset = f(_limited(layer, functional.linear(hidden, r_zr, b_zr) + x[:, :size])).chunk(2, -1)
        inner = reset * functional.linear(hidden, r_h, b_h) if layer.inner_reset else functional.linear(reset * hidden, r_h, b_h)
        return ((1 - z) * g(_limited(layer, inner + x[:, size:])) + z * hidden,)

    return step


def _rnn_cell(layer: _Layer, names: tuple[str, ...], r: Tensor, bias: Tensor | None,
              peepholes: Tensor | None) -> Callable[[Tensor, _State], _State]:
    f = _ACTIVATIONS[names[0]]
    return lambda x, state: (f(_limited(layer, functional.linear(state[0], r, bias) + x)),)


TABLE: dict[str, Builder] = dict.fromkeys(_KINDS, _recurrent)
