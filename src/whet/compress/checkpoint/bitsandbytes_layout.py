"""Weights on a code book as bitsandbytes stores its Params4bit."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from whet.compress.checkpoint.tensor_writer import Shape
from whet.compress.codebook import Coded


def shapes(layer: str, size: tuple[int, int], *, kind: str, block: int, double: bool) -> list[Shape]:
    """The tensors that a weight of ``size`` [out, in] becomes, in the order in which they are stored."""
    raise NotImplementedError


def tensors(layer: str, weight: Coded) -> dict[str, Tensor]:
    """The same with the numbers in them."""
    raise NotImplementedError


def unpacked(layer: str, kind: str, read: Callable[[str], Tensor]) -> Coded:
    """The coded weight from the tensors that ``read`` gives by name."""
    raise NotImplementedError
