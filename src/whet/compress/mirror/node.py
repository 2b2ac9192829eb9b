"""A node as the builders of the table see it: attributes, constants, and the way to refuse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import onnx_ir as ir
import torch
from torch import Tensor

from whet.compress.mirror.tensors import Baked, to_torch, torch_type
from whet.core.errors import Unsupported

# What a builder gives: a function of the node's inputs by position (None for absent and for taken ones).
Function = Callable[..., Any]
Builder = Callable[["Node"], Function]


class Node:
    """One node while its function is built.

    Every attribute must be asked for: one that nobody asked for may change the meaning, and is refused.
    ``constants``: by position, what is known now.
    """

    def __init__(self, node: ir.Node, opset: int, constants: Mapping[int, Baked | ir.TensorProtocol]) -> None:
        self.ir, self.opset = node, opset
        self.name, self.op = node.name or "", node.op_type
        self.floating_codes = False  # whether its first output are codes that stay floating point numbers
        self.taken: set[int] = set()
        self.frozen: set[int] = set()
        self._constants = constants
        self._unread = dict(node.attributes)

    @property
    def asked(self) -> str:
        return f"mirror the node {self.name!r} ({self.op})"

    def refuse(self, found: str) -> NoReturn:
        raise Unsupported(self.asked, found=found, do="leave this model to techniques that need no gradients")

    def has(self, index: int) -> bool:
        """Whether the optional input is there."""
        return index < len(self.ir.inputs) and self.ir.inputs[index] is not None

    def wants(self, index: int) -> bool:
        """Whether the optional output is there."""
        return index < len(self.ir.outputs) and bool(self.ir.outputs[index].name)

    def take(self, index: int) -> Tensor | None:
        """The constant at that input, which becomes part of the function; None where it is absent or comes at run time."""
        if not self.has(index) or index not in self._constants:
            return None
        self.taken.add(index)
        known = self._constants[index]
        return known.value if isinstance(known, Baked) else to_torch(known, self.asked)

    def take_ints(self, index: int, attribute: str | None = None) -> tuple[int, ...] | None:
        """Integers that old opsets have as an attribute and new ones as an input; None where absent or only known at run time."""
        if attribute is not None and attribute in self.ir.attributes:
            return self.integers(attribute)
        found = self.take(index)
        return None if found is None else integers(found)

    def take_number(self, index: int, attribute: str | None = None) -> float | int | None:
        """One number that is an attribute in old opsets and an input in new ones; None as in ``take_ints``."""
        if attribute is not None and attribute in self.ir.attributes:
            return self.real(attribute, 0.0)
        found = self.take(index)
        if found is not None and found.numel() == 1:
            return found.item()
        self.taken.discard(index)
        return None

    def freeze(self, *indices: int) -> None:
        """These inputs, where they are constants, are no weights: not trained unless someone asks."""
        self.frozen.update(indices)

    def kind(self, index: int) -> ir.DataType | None:
        """The element type of an input, where it is known."""
        value = self.ir.inputs[index] if self.has(index) else None
        known = self._constants.get(index)
        if known is not None:
            return known.kind if isinstance(known, Baked) else known.dtype
        return None if value is None else value.dtype

    def rank(self, index: int) -> int | None:
        """How many dimensions an input has, where it is known."""
        known = self._constants.get(index)
        if known is not None:
            return known.value.ndim if isinstance(known, Baked) else len(known.shape)
        value = self.ir.inputs[index] if self.has(index) else None
        return None if value is None or value.shape is None else len(value.shape)

    def integer(self, name: str, default: int = 0) -> int:
        found = self._attribute(name)
        return default if found is None else found.as_int()

    def real(self, name: str, default: float) -> float:
        found = self._attribute(name)
        return default if found is None else found.as_float()

    def text(self, name: str, default: str) -> str:
        found = self._attribute(name)
        return default if found is None else found.as_string()

    def integers(self, name: str) -> tuple[int, ...] | None:
        found = self._attribute(name)
        return None if found is None else tuple(found.as_ints())

    def texts(self, name: str) -> tuple[str, ...] | None:
        found = self._attribute(name)
        return None if found is None else tuple(found.as_strings())

    def reals(self, name: str) -> tuple[float, ...] | None:
        found = self._attribute(name)
        return None if found is None else tuple(found.as_floats())

    def tensor(self, name: str) -> ir.TensorProtocol | None:
        found = self._attribute(name)
        return None if found is None else found.as_tensor()

    def graph(self, name: str) -> ir.Graph:
        found = self._attribute(name)
        assert found is not None
        return found.as_graph()

    def element_type(self, name: str, default: ir.DataType) -> torch.dtype:
        """An attribute that names an element type."""
        return torch_type(ir.DataType(self.integer(name, default.value)), self.asked)

    def ignore(self, *names: str) -> None:
        """Attributes that do not change the result."""
        for name in names:
            self._unread.pop(name, None)

    def check_attributes(self) -> None:
        """Raises Unsupported where an attribute was not asked for."""
        if self._unread:
            self.refuse(f"its attribute {next(iter(self._unread))!r} is not covered at opset {self.opset}")

    def _attribute(self, name: str) -> ir.Attr | None:
        found = self.ir.attributes.get(name)
        self._unread.pop(name, None)
        if found is not None and found.is_ref():
            self.refuse(f"its attribute {name!r} refers to a function's")
        return found


def integers(tensor: Tensor) -> tuple[int, ...]:
    """A tensor of integers, of whatever shape, as a tuple."""
    return tuple(tensor.reshape(-1).tolist())
