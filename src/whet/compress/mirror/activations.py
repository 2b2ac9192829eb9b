"""Activation functions. Formulas are those of ONNX's operator pages."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from whet.compress.mirror.node import Builder, Function, Node


def _leaky(node: Node) -> Function:
    slope = node.real("alpha", 0.01)
    return lambda x: functional.leaky_relu(x, slope)


def _elu(node: Node) -> Function:
    alpha = node.real("alpha", 1.0)
    return lambda x: functional.elu(x, alpha)


def _celu(node: Node) -> Function:
    alpha = node.real("alpha", 1.0)
    return lambda x: functional.celu(x, alpha)


def _selu(node: Node) -> Function:
    alpha, gamma = node.real("alpha", 1.6732632), node.real("gamma", 1.0507009)
    return lambda x: gamma * functional.elu(x, alpha)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.clamp_min(x, 0) + slope * torch.clamp_max(x, 0)


def _thresholded(node: Node) -> Function:
    alpha = node.real("alpha", 1.0)
    return lambda x: torch.where(x > alpha, x, 0)


def _shrink(node: Node) -> Function:
    lambd, bias = node.real("lambd", 0.5), node.real("bias", 0.0)
    return lambda x: torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, 0)).to(x.dtype)


def _hard_sigmoid(node: Node) -> Function:
    alpha, beta = node.real("alpha", 0.2), node.real("beta", 0.5)
    return lambda x: torch.clamp(alpha * x + beta, 0, 1)


def _gelu(node: Node) -> Function:
    kind = node.text("approximate", "none")
    return lambda x: functional.gelu(x, approximate=kind)


def _swish(node: Node) -> Function:
    alpha = node.real("alpha", 1.0)
    return functional.silu if alpha == 1 else lambda x: x * torch.sigmoid(alpha * x)


def _softmax(function: Function) -> Builder:
    """Along one axis since opset 13; before, along all axes from that one on."""

    def build(node: Node) -> Function:
        axis = node.integer("axis", -1 if node.opset >= 13 else 1)
        if node.opset >= 13 or axis == -1:
            return lambda x: function(x, axis)

        def run(x: Tensor) -> Tensor:
            return function(x.flatten(axis), -1).reshape(x.shape)

        return run

    return build


def _hardmax(x: Tensor, axis: int) -> Tensor:
    return torch.zeros_like(x).scatter(axis, torch.argmax(x, axis, keepdim=True), 1.0)


TABLE: dict[str, Builder] = {
    "Relu": lambda node: torch.relu, "LeakyRelu": _leaky, "PRelu": lambda node: _prelu, "Elu": _elu, "Celu": _celu, "Selu": _selu,
    "Sigmoid": lambda node: torch.sigmoid, "Tanh": lambda node: torch.tanh, "Softplus": lambda node: functional.softplus,
    "Softsign": lambda node: functional.softsign, "HardSigmoid": _hard_sigmoid, "HardSwish": lambda node: functional.hardswish,
    "Mish": lambda node: functional.mish, "Gelu": _gelu, "Swish": _swish, "ThresholdedRelu": _thresholded, "Shrink": _shrink,
    "Softmax": _softmax(torch.softmax), "LogSoftmax": _softmax(torch.log_softmax), "Hardmax": _softmax(_hardmax),
}
