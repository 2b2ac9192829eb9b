"""Half precision."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from whet.compress.grid import Array
from whet.compress.technique import Change, Foresight, LayerView, Search
from whet.core.errors import Unsupported
from whet.core.inventory import Layer
from whet.core.target import Target

LARGEST = float(np.finfo(np.float16).max)


def float16(layer: LayerView, target: Target, *,
            compute: Annotated[str, Search("auto", "storage", help="auto: float16 arithmetic where the target has kernels "
                                           "that gain from it; storage: float16 on disk only")] = "auto") -> Change:
    """Store weights as IEEE half precision, and compute in it where the target gains time by that.

    Paper: IEEE 754-2008 binary16; Micikevicius et al. 2018, "Mixed Precision Training", section 3 (why 11 bits of significand do).
    Needs: nothing.
    Cost: one pass over the weights, [out, ...] each; memory of one layer.
    Limits: weights beyond 65504 do not fit, and such a layer is refused. On a target without native kernels (every CPU that
    onnxruntime 1.31 knows) the operators stay in float32: weights are cast back once at load, so the file is half as large
    and the speed that of float32.

    W' = float32(float16(W)), relative error at most 2**-11 for |w| >= 2**-14; smaller weights have absolute error 2**-25.
    """
    native = _native(layer.op, target, compute)
    for name, numbers in (("weights", layer.weight), ("biases", layer.bias if native else None)):
        if numbers is not None and not np.all(np.isfinite(_rounded(numbers))):
            raise Unsupported(f"store {layer.name} in float16", found=f"{name} beyond {LARGEST:.0f}", do="exclude the layer")
    return Change(weight=None if layer.weight is None else _rounded(layer.weight), compute="float16" if native else "float32")


def foresee(layer: Layer, target: Target, *, compute: str = "auto") -> Foresight:
    """float16 weights everywhere; float16 arithmetic only where the target's table has the operator."""
    native = _native(layer.op, target, compute)
    if layer.weight_dtype in ("float16", "bfloat16"):
        return Foresight(False, note=f"its weights are {layer.weight_dtype} already")
    if not native and not layer.weight_shape:
        return Foresight(False, note="no weights, and no float16 kernel that gains on this target")
    if native:
        return Foresight(True, "float16", "float16", 16, runs_as=f"float16 {layer.op}")
    return Foresight(True, "float16", "float32", 16, runs_as=f"float32 {layer.op}", note="float16 on disk; cast to float32 once, at load")


def _rounded(numbers: Array) -> Array:
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is looked for
        return numbers.astype(np.float16)


def _native(op: str, target: Target, compute: str) -> bool:
    return compute == "auto" and op in target.float16_ops
