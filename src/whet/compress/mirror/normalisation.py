"""Normalisations, as they compute in inference."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

from whet.compress.mirror.node import Builder, Function, Node


def _batch_norm(node: Node) -> Function:
    epsilon = node.real("epsilon", 1e-5)
    node.ignore("momentum", "spatial")
    if node.integer("training_mode") or node.wants(1):
        node.refuse("it is in training mode")
    node.freeze(3, 4)

    def run(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        if mean.requires_grad or variance.requires_grad:  # torch's own has no gradients for these
            shape = (-1, *[1] * (x.ndim - 2))
            factor = scale / (variance + epsilon).sqrt()
            return x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)
        return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)

    return run


def _instance_norm(node: Node) -> Function:
    epsilon = node.real("epsilon", 1e-5)
    return lambda x, scale, bias: functional.instance_norm(x, None, None, scale, bias, True, 0.0, epsilon)


def _group_norm(node: Node) -> Function:
    epsilon, groups = node.real("epsilon", 1e-5), node.integer("num_groups", 1)
    node.ignore("stash_type")
    if node.opset < 21:  # a scale for each group, not for each channel
        return lambda x, scale, bias: functional.group_norm(
            x, groups, scale.repeat_interleave(x.shape[1] // groups), bias.repeat_interleave(x.shape[1] // groups), epsilon)
    return lambda x, scale, bias: functional.group_norm(x, groups, scale, bias, epsilon)


def _layer_norm(node: Node) -> Function:
    axis, epsilon = node.integer("axis", -1), node.real("epsilon", 1e-5)
    node.ignore("stash_type")
    if node.wants(1) or node.wants(2):
        return _layer_norm_with_statistics(axis, epsilon)
    if axis == -1:
        return lambda x, scale, bias=None: functional.layer_norm(x, scale.shape, scale, bias, epsilon) if scale.ndim == 1 else _loose(
            x, scale, bias, x.shape[-1:], epsilon)

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        return _loose(x, scale, bias, x.shape[axis % x.ndim:], epsilon)

    return run


def _loose(x: Tensor, scale: Tensor, bias: Tensor | None, shape: tuple[int, ...], epsilon: float) -> Tensor:
    """Scale and bias may be broadcast, which torch's own does not do."""
    if scale.shape == shape and (bias is None or bias.shape == shape):
        return functional.layer_norm(x, shape, scale, bias, epsilon)
    found = functional.layer_norm(x, shape, None, None, epsilon) * scale
    return found if bias is None else found + bias


def _layer_norm_with_statistics(axis: int, epsilon: float) -> Function:
    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        axes = tuple(range(axis % x.ndim, x.ndim))
        mean = x.mean(axes, keepdim=True)
        inverse = ((x - mean).square().mean(axes, keepdim=True) + epsilon).rsqrt()
        found = (x - mean) * inverse * scale
        return found if bias is None else found + bias, mean, inverse

    return run


def _rms_norm(node: Node) -> Function:
    axis, epsilon = node.integer("axis", -1), node.real("epsilon", 1e-5)
    node.ignore("stash_type")

    def run(x: Tensor, scale: Tensor) -> Tensor:
        axes = tuple(range(axis % x.ndim, x.ndim))
        return x * (x.square().mean(axes, keepdim=True) + epsilon).rsqrt() * scale

    return run


def _local_response(node: Node) -> Function:
    """x / (bias + alpha / size * sum of squares of the channels around) ^ beta."""
    size, alpha, beta, bias = node.integer("size"), node.real("alpha", 1e-4), node.real("beta", 0.75), node.real("bias", 1.0)

    def run(x: Tensor) -> Tensor:
        squares = x.square().reshape(x.shape[0], 1, x.shape[1], math.prod(x.shape[2:]))
        around = functional.pad(squares, (0, 0, (size - 1) // 2, size - 1 - (size - 1) // 2))
        return x / (bias + alpha * functional.avg_pool2d(around, (size, 1), 1).reshape(x.shape)).pow(beta)

    return run


def _lp_norm(node: Node) -> Function:
    axis, order = node.integer("axis", -1), node.integer("p", 2)

    def run(x: Tensor) -> Tensor:
        size = x.norm(order, axis, keepdim=True)
        return x / size.masked_fill(size == 0, 1)

    return run


def _mean_variance(node: Node) -> Function:
    axes = node.integers("axes") or (0, 2, 3)

    def run(x: Tensor) -> Tensor:
        centred = x - x.mean(axes, keepdim=True)
        return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)

    return run


def _dropout(node: Node) -> Function:
    """Does nothing in inference. Raises Unsupported where training_mode is not known to be off."""
    node.ignore("ratio", "seed")
    mode = node.take(2)
    node.take(1)
    if node.has(2) and (mode is None or bool(mode)):
        node.refuse("it is in training mode")
    return lambda x, *_: (x, x.new_ones(x.shape, dtype=bool)) if node.wants(1) else x


TABLE: dict[str, Builder] = {
    "BatchNormalization": _batch_norm, "InstanceNormalization": _instance_norm, "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm, "RMSNormalization": _rms_norm, "LRN": _local_response, "LpNormalization": _lp_norm,
    "MeanVarianceNormalization": _mean_variance, "Dropout": _dropout,
}
