"""Drawing an ONNX graph whose weights go to their file as they come, so that no more than one of them is in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from whet.compress.grid import Array

MICROSOFT = "com.microsoft"
OPSETS = {"": 21, MICROSOFT: 1}
IR_VERSION = 10  # that of opset 21
MODEL_NAME, DATA_NAME = "model.onnx", "model.onnx.data"
# onnxruntime maps the file of weights into memory; from a page's start it can take a large tensor as it lies.
_PAGE_BYTES, _SMALL_BYTES, _ALIGNED_BYTES = 4096, 1 << 20, 64
_TYPES = {torch.float32: ir.DataType.FLOAT, torch.float16: ir.DataType.FLOAT16, torch.bfloat16: ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class Place:
    """Where numbers lie in the file of weights, bytes."""

    begin: int
    size: int


class Drawing:
    """A graph that grows. ``add`` gives a node's outputs, ``weight`` and ``number`` give constants.

    Weights are written to ``folder``/model.onnx.data at once. Small constants (shapes, indices) stay in the graph.
    """

    def __init__(self, folder: Path, name: str = "decoder") -> None:
        self._folder, self._name = folder, name
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._constants: dict[str, ir.Value] = {}
        self._file = (folder / DATA_NAME).open("wb")

    def __enter__(self) -> Drawing:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        value = ir.val(name, dtype, list(shape))
        self._inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: ir.DataType, shape: Sequence[int | str], *, first: bool = False) -> None:
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        self._outputs.insert(0 if first else len(self._outputs), value)

    def add(self, op: str, inputs: Sequence[ir.Value | None], name: str, *, count: int = 1, domain: str = "",
            **attributes: Any) -> list[ir.Value]:  # fmt: skip
        """A node and its ``count`` outputs."""
        node = ir.node(op, inputs, attributes=attributes, domain=domain, num_outputs=count, name=name)
        for index, value in enumerate(node.outputs):
            value.name = f"{name}/{index}" if index else name
        self._nodes.append(node)
        return list(node.outputs)

    def one(self, op: str, inputs: Sequence[ir.Value | None], name: str, *, domain: str = "", **attributes: Any) -> ir.Value:
        """A node's only output."""
        return self.add(op, inputs, name, domain=domain, **attributes)[0]

    def unused(self, value: ir.Value) -> None:
        """An output that nobody reads, which the operator then need not compute."""
        value.name = ""

    def number(self, numbers: Any, dtype: type[np.generic]) -> ir.Value:
        """A small constant inside the graph."""
        array = np.asarray(numbers, dtype)
        name = f"{array.dtype.name}_{'_'.join(map(str, array.ravel()))}_{array.ndim}"
        if name not in self._constants:
            self._constants[name] = ir.val(name, const_value=ir.tensor(array, name=name))
        return self._constants[name]

    def known(self, name: str) -> ir.Value | None:
        """The constant of that name, where it was drawn already."""
        return self._constants.get(name)

    def weight(self, name: str, numbers: Array | Tensor) -> ir.Value:
        """A constant in the file of weights: uint8, float32, float16 or bfloat16."""
        return self.placed(name, self.write(numbers), numbers.shape, dtype_of(numbers))

    def write(self, numbers: Array | Tensor) -> Place:
        """Put numbers into the file of weights."""
        if isinstance(numbers, Tensor):
            numbers = numbers.detach().contiguous().view(torch.uint8).numpy()
        data = np.ascontiguousarray(numbers).reshape(-1).view(np.uint8).data
        step = _PAGE_BYTES if len(data) >= _SMALL_BYTES else _ALIGNED_BYTES
        begin = -(-self._file.tell() // step) * step
        self._file.seek(begin)
        self._file.write(data)
        return Place(begin, len(data))

    def placed(self, name: str, place: Place, shape: Sequence[int], dtype: ir.DataType) -> ir.Value:
        """A constant that is in the file already; two may be the same bytes in two shapes."""
        if name not in self._constants:
            tensor = ir.ExternalTensor(DATA_NAME, place.begin, place.size, dtype, shape=ir.Shape(shape), name=name, base_dir=self._folder)
            self._constants[name] = ir.val(name, dtype, list(shape), const_value=tensor)
        return self._constants[name]

    def save(self, about: Mapping[str, str]) -> None:
        """Write model.onnx; the file of weights is on the disk afterwards too."""
        self._file.flush()
        os.fsync(self._file.fileno())
        graph = ir.Graph(self._inputs, self._outputs, nodes=self._nodes, initializers=list(self._constants.values()), opset_imports=OPSETS,
                         name=self._name)  # fmt: skip
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="whet", metadata_props=dict(about))
        (self._folder / MODEL_NAME).write_bytes(ir.to_proto(model).SerializeToString())


def dtype_of(numbers: Array | Tensor) -> ir.DataType:
    return _TYPES[numbers.dtype] if isinstance(numbers, Tensor) else ir.DataType.from_numpy(numbers.dtype)
