"""Resize and Upsample: torch's kernels where they compute the same, else one matrix for each axis; and GridSample.

The matrix [out, in] holds the weights of ONNX's formulas (Resize, "coordinate_transformation_mode" and below), so every mode is covered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from whet.compress.grid import Array
from whet.compress.mirror.node import Builder, Function, Node, integers

_MODES = ("nearest", "linear", "cubic")
_COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize")
_KERNELS = {("nearest", 1): "nearest", ("nearest", 2): "nearest", ("nearest", 3): "nearest",
            ("linear", 1): "linear", ("linear", 2): "bilinear", ("linear", 3): "trilinear", ("cubic", 2): "bicubic"}


@dataclass(frozen=True)
class _Rule:
    """How to resize an axis: the attributes of the node."""

    mode: str
    coordinates: str
    rounding: str
    cubic: float
    exclude: bool
    antialias: bool
    outside: float


def _resize(node: Node) -> Function:
    rule = _rule(node)
    policy, axes = node.text("keep_aspect_ratio_policy", "stretch"), node.integers("axes")
    at_roi, at_scales, at_sizes = (1, 2, 3) if node.opset >= 11 else (9, 1, 9)
    roi = _floats(node.take(at_roi))
    scales = node.reals("scales") if node.op == "Upsample" and node.opset < 9 else _floats(node.take(at_scales))
    sizes = node.take_ints(at_sizes)

    def run(x: Tensor, *live: Tensor | None) -> Tensor:
        come = {at + 1: tensor for at, tensor in enumerate(live) if tensor is not None}
        places = tuple(axis % x.ndim for axis in axes) if axes else tuple(range(x.ndim))
        factors = _floats(come.get(at_scales)) or scales or ()
        wanted = integers(come[at_sizes]) if at_sizes in come else sizes
        have = [x.shape[axis] for axis in places]
        factors, wanted = _target(have, factors, wanted, policy)
        window = _floats(come.get(at_roi)) or roi
        kernel = _torch_kernel(rule, x, places, factors, wanted)
        if kernel is not None:
            return kernel
        for at, axis in enumerate(places):
            part = None if not window else (window[at], window[at + len(places)])
            if have[at] != wanted[at] or factors[at] != 1 or rule.coordinates == "tf_crop_and_resize":
                x = _along(x, axis, wanted[at], factors[at], rule, part)
        return x

    return run


def _rule(node: Node) -> _Rule:
    mode, modern = node.text("mode", "nearest"), node.opset >= 11 and node.op == "Resize"
    coordinates = node.text("coordinate_transformation_mode", "half_pixel") if modern else "asymmetric"
    rounding = node.text("nearest_mode", "round_prefer_floor") if modern else "floor"
    if mode not in _MODES or coordinates not in _COORDINATES:
        node.refuse(f"its mode is {mode!r} with coordinates {coordinates!r}")
    return _Rule(mode, coordinates, rounding, node.real("cubic_coeff_a", -0.75), bool(node.integer("exclude_outside")),
                 bool(node.integer("antialias")), node.real("extrapolation_value", 0.0))


def _floats(tensor: Tensor | None) -> tuple[float, ...]:
    return () if tensor is None else tuple(tensor.double().reshape(-1).tolist())


def _target(have: Sequence[int], factors: Sequence[float], sizes: tuple[int, ...] | None,
            policy: str) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Factors and sizes, of which the node gives one."""
    if not sizes:
        return tuple(factors), tuple(math.floor(size * factor) for size, factor in zip(have, factors, strict=True))
    if policy == "stretch":
        return tuple(new / old for new, old in zip(sizes, have, strict=True)), sizes
    ratios = [new / old for new, old in zip(sizes, have, strict=True)]
    one = min(ratios) if policy == "not_larger" else max(ratios)
    return (one,) * len(have), tuple(math.floor(one * size + 0.5) for size in have)  # halves up


def _torch_kernel(rule: _Rule, x: Tensor, axes: tuple[int, ...], factors: Sequence[float], sizes: Sequence[int]) -> Tensor | None:
    """The result by torch's own kernel, where it has the same formulas for this: the axes after batch and channels, exact factors."""
    space = [at for at, axis in enumerate(axes) if axis >= 2]
    others_still = all(factors[at] == 1 for at, axis in enumerate(axes) if axis < 2)
    exact = all(factors[at] * x.shape[axes[at]] == sizes[at] for at in space)
    name = _KERNELS.get((rule.mode, x.ndim - 2))
    if name is None or not others_still or not exact or len(space) != x.ndim - 2 or rule.exclude or rule.antialias:
        return None
    target = [sizes[axes.index(axis)] for axis in range(2, x.ndim)]
    if rule.mode == "nearest":
        whole = all(size % x.shape[axis] == 0 for axis, size in enumerate(target, 2))
        simple = rule.coordinates == "asymmetric" and rule.rounding == "floor" and whole
        return functional.interpolate(x, target, mode="nearest") if simple else None
    if rule.cubic != -0.75 or rule.coordinates not in ("half_pixel", "align_corners") or not x.is_floating_point():
        return None
    return functional.interpolate(x, target, mode=name, align_corners=rule.coordinates == "align_corners")


def _along(x: Tensor, axis: int, size: int, factor: float, rule: _Rule, window: tuple[float, float] | None) -> Tensor:
    weights, outside = _matrix(x.shape[axis], size, factor, rule, window)
    if rule.mode == "nearest":
        found = x.index_select(axis, torch.from_numpy(weights.argmax(1)).to(x.device))
    else:
        matrix = torch.from_numpy(weights).to(x.device, x.dtype if x.is_floating_point() else torch.float32)
        found = (x.to(matrix.dtype).movedim(axis, -1) @ matrix.T).movedim(-1, axis).to(x.dtype)
    if not outside.any():
        return found
    shape = [1] * x.ndim
    shape[axis] = -1
    return found.masked_fill(torch.from_numpy(outside).to(x.device).reshape(shape), rule.outside)


@lru_cache(maxsize=64)
def _matrix(have: int, size: int, factor: float, rule: _Rule, window: tuple[float, float] | None) -> tuple[Array, Array]:
    """Weights [size, have], and which outputs lie outside of the window [size]."""
    centres = _centres(have, size, factor, rule, window)
    outside = (centres < 0) | (centres > have - 1) if rule.coordinates == "tf_crop_and_resize" else np.zeros(size, np.bool_)
    matrix = np.zeros((size, have))
    if rule.mode == "nearest":
        rounded = np.floor(centres) if rule.rounding == "floor" else np.ceil(centres)
        if rule.rounding.startswith("round"):  # halves down, or up
            rounded = np.ceil(centres - 0.5) if rule.rounding == "round_prefer_floor" else np.floor(centres + 0.5)
        matrix[np.arange(size), np.clip(rounded, 0, have - 1).astype(np.int64)] = 1
        return matrix, outside
    shrink = min(factor, 1.0) if rule.antialias else 1.0
    reach = math.ceil((1 if rule.mode == "linear" else 2) / shrink)
    places = np.floor(centres)[:, None] + np.arange(1 - reach, reach + 1)  # [size, taps]
    weights = _kernel((places - centres[:, None]) * shrink, rule)
    if rule.exclude:
        weights = np.where((places < 0) | (places > have - 1), 0, weights)
    weights /= weights.sum(1, keepdims=True)
    np.add.at(matrix, (np.arange(size)[:, None], np.clip(places, 0, have - 1).astype(np.int64)), weights)
    return matrix, outside


def _centres(have: int, size: int, factor: float, rule: _Rule, window: tuple[float, float] | None) -> Array:
    """Where each output lies on the input's axis."""
    at, length = np.arange(size, dtype=np.float64), factor * have
    if rule.coordinates == "align_corners":
        return np.zeros(size) if length == 1 else at * (have - 1) / (length - 1)
    if rule.coordinates == "asymmetric":
        return at / factor
    if rule.coordinates == "tf_crop_and_resize":
        begin, end = window or (0.0, 1.0)
        step = (end - begin) * (have - 1)
        return np.full(size, (begin + end) * (have - 1) / 2) if size == 1 else begin * (have - 1) + at * step / (length - 1)
    if rule.coordinates == "pytorch_half_pixel" and size == 1:
        return np.full(1, -0.5)
    centres = (at + 0.5) / factor - 0.5
    return centres + have / 2 * (1 - size / length) if rule.coordinates == "half_pixel_symmetric" else centres


def _kernel(t: Array, rule: _Rule) -> Array:
    """The triangle, or Keys' cubic with parameter ``cubic``."""
    t, a = np.abs(t), rule.cubic
    if rule.mode == "linear":
        return np.clip(1 - t, 0, None)
    near, far = ((a + 2) * t - (a + 3)) * t * t + 1, ((t - 5) * t + 8) * t * a - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


def _grid_sample(node: Node) -> Function:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(found := node.text("mode", "linear" if node.opset >= 20 else "bilinear"), found)
    padding, aligned = node.text("padding_mode", "zeros"), bool(node.integer("align_corners"))
    return lambda x, grid: functional.grid_sample(x, grid, mode, padding, aligned)


TABLE: dict[str, Builder] = {"Resize": _resize, "Upsample": _resize, "GridSample": _grid_sample}
