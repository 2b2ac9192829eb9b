"""Products with a checkpoint's weights, and looking up in its tables: the nodes for every way in which a weight may be stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from whet.compress.checkpoint.checkpoint import Checkpoint
from whet.compress.checkpoint.onnx_export.drawing import MICROSOFT, Drawing, Place, dtype_of
from whet.compress.checkpoint.onnx_export.packing import Packed, is_slow, joined, packed
from whet.compress.codebook import Coded, RoundedScales
from whet.compress.grid import Quantised

_FLOAT = ir.DataType.FLOAT
_BOOKS = {"fp4": 0, "nf4": 1}  # MatMulBnb4's quant_type
_INT8_INPUTS = 4  # MatMulNBits' accuracy level that rounds what is read
Plain = Tensor  # [out, in], in the dtype in which it is stored


class Products:
    """Puts products and tables into a drawing. kernels: how many nodes of each operator. remarks: what is not as one may think."""

    def __init__(self, checkpoint: Checkpoint, drawing: Drawing, accuracy_level: int) -> None:
        self._checkpoint, self._drawing, self._level = checkpoint, drawing, accuracy_level
        self._shared: dict[str, tuple[Place, ...]] = {}  # a table's bytes, for the head that is the same table
        self.kernels: Counter[str] = Counter()
        self._told: dict[str, set[str]] = {}  # the layers by what is told of them

    @property
    def remarks(self) -> tuple[str, ...]:
        return tuple(f"{len(layers)} {'layer' if len(layers) == 1 else 'layers'}: {text}" for text, layers in self._told.items())

    def product(self, read: ir.Value, layers: Sequence[str]) -> list[ir.Value]:
        """What the layers make of ``read``: one value with all their rows where they can be one product, else one for each layer."""
        weights = [self._weight(layer) for layer in layers]
        biases = [self._bias(layer) for layer in layers]
        levels = [self._level_of(layer, weight) for layer, weight in zip(layers, weights, strict=True)]
        whole = _joined(weights) if len(set(levels)) == 1 else None
        if whole is None:
            each = zip(weights, biases, layers, levels, strict=True)
            made = [self._multiplied(read, weight, bias, layer, level) for weight, bias, layer, level in each]
        else:
            made = [self._multiplied(read, whole, _stacked(weights, biases), _together(layers), levels[0])]
        for layer in layers:
            self._checkpoint.forget(layer)
        return made

    def table(self, indices: ir.Value, layer: str, *, keep: bool = False) -> ir.Value:
        """[batch, tokens, width] float32: the rows of a table. keep: a head will multiply with the same table."""
        weight, name = self._table(layer), f"{layer}.rows"
        if isinstance(weight, Packed):
            return self._packed_rows(indices, weight, layer, keep)
        place = self._drawing.write(weight)
        if keep:
            self._shared[layer] = (place,)
        self.kernels["Gather"] += 1
        found = self._drawing.one("Gather", [self._drawing.placed(f"{layer}.weight", place, weight.shape, dtype_of(weight)), indices], name)
        return self._as_float(found, weight.dtype, f"{name}.float")

    def tied_head(self, read: ir.Value, layer: str) -> ir.Value:
        """The product with the table that ``table`` was asked to keep; its bytes are in the file once."""
        weight, places, name = self._table(layer), self._shared[layer], f"{layer}.head"
        if isinstance(weight, Packed):
            return self._packed_product(read, weight, places, None, name, self._level)
        stored = self._drawing.placed(f"{layer}.weight", places[0], weight.shape, dtype_of(weight))
        floats = self._as_float(stored, weight.dtype, f"{name}.float")
        self.kernels["MatMul"] += 1
        return self._drawing.one("FusedMatMul", [read, floats], name, domain=MICROSOFT, transB=1)

    def _weight(self, layer: str) -> Packed | Coded | Plain:
        rounded = self._checkpoint.rounded(layer)
        if rounded is None:
            stored = self._checkpoint.tensor(f"{layer}.weight")
            return stored.t() if self._checkpoint.is_transposed(layer) else stored
        return rounded if isinstance(rounded, Coded) else self._for_kernel(rounded, layer)

    def _level_of(self, layer: str, weight: Packed | Coded | Plain) -> int:
        """The accuracy level of a layer's product: one that reads its inputs in int8 does so here too, whatever level was asked for."""
        layout = self._checkpoint.layouts.get(layer)
        if layout is None or not layout.activations:
            return self._level
        if not isinstance(weight, Packed):
            self._tell(layer, "what it reads is not rounded to int8")
            return self._level
        self._tell(layer, f"what it reads is rounded to int8 with a scale for each block of {weight.block}, not for each token")
        return _INT8_INPUTS

    def _table(self, layer: str) -> Packed | Plain:
        weight = self._weight(layer)
        if not isinstance(weight, Coded):
            return weight
        self._tell(layer, f"a table of {weight.book} has no kernel: the numbers that the codes stand for are stored as floats")
        return torch.from_numpy(weight.values)

    def _for_kernel(self, rounded: Quantised, layer: str) -> Packed | Plain:
        found = packed(rounded)
        if found is None:
            self._tell(layer, f"groups of {rounded.grid.block} have no kernel: the numbers that the codes stand for are stored as floats")
            return torch.from_numpy(rounded.values)
        if found.bits != rounded.grid.bits:
            self._tell(layer, f"{rounded.grid.bits} bits have no kernel: the same codes are stored with {found.bits}")
        if is_slow(found):
            self._tell(layer, f"2 bits in groups of {found.block} have no integer kernel: they are computed in float32, slowly")
        return found

    def _tell(self, layer: str, text: str) -> None:
        self._told.setdefault(text, set()).add(layer)

    def _bias(self, layer: str) -> Tensor | None:
        name = f"{layer}.bias"
        return self._checkpoint.tensor(name).float() if name in self._checkpoint.entries else None

    def _multiplied(self, read: ir.Value, weight: Packed | Coded | Plain, bias: Tensor | None, name: str, level: int) -> ir.Value:
        added = None if bias is None else self._drawing.weight(f"{name}.bias", bias)
        if isinstance(weight, Packed):
            return self._packed_product(read, weight, self._written(weight), added, name, level)
        made = self._coded_product(read, weight, name) if isinstance(weight, Coded) else self._plain_product(read, weight, name)
        return made if added is None else self._drawing.one("Add", [made, added], f"{name}.biased")

    def _plain_product(self, read: ir.Value, weight: Plain, name: str) -> ir.Value:
        stored = self._drawing.weight(f"{name}.weight", weight.t())
        self.kernels["MatMul"] += 1
        return self._drawing.one("MatMul", [read, self._as_float(stored, weight.dtype, f"{name}.float")], name)

    def _coded_product(self, read: ir.Value, weight: Coded, name: str) -> ir.Value:
        """MatMulBnb4: two codes of the flattened weight in a byte, the first one in the high bits; scales of blocks in float32."""
        scales = weight.scales.values if isinstance(weight.scales, RoundedScales) else weight.scales
        flat = np.pad(weight.codes.reshape(-1), (0, weight.codes.size % 2))
        codes = self._drawing.weight(f"{name}.codes", flat[0::2] << np.uint8(4) | flat[1::2])
        self.kernels["MatMulBnb4"] += 1
        self._tell(name, f"{weight.book} is small and slow: onnxruntime turns it into floats each time")
        inputs = [read, codes, self._drawing.weight(f"{name}.scales", scales)]
        rows, columns = weight.codes.shape
        return self._drawing.one("MatMulBnb4", inputs, name, domain=MICROSOFT, K=columns, N=rows, block_size=weight.block,
                                 quant_type=_BOOKS[weight.book])  # fmt: skip

    def _packed_product(self, read: ir.Value, weight: Packed, places: Sequence[Place], bias: ir.Value | None, name: str,
                        level: int) -> ir.Value:
        shapes = [weight.codes.shape, weight.scales.shape, *([] if weight.zeros is None else [weight.zeros.shape])]
        inputs: list[ir.Value | None] = [read, *self._constants(name, shapes, places)]
        if bias is not None:
            inputs += [None] * (5 - len(inputs)) + [bias]
        self.kernels["MatMulNBits"] += 1
        return self._drawing.one("MatMulNBits", inputs, name, domain=MICROSOFT, K=weight.columns, N=weight.rows, bits=weight.bits,
                                 block_size=weight.block, accuracy_level=level)  # fmt: skip

    def _packed_rows(self, indices: ir.Value, weight: Packed, layer: str, keep: bool) -> ir.Value:
        """GatherBlockQuantized takes codes [rows, bytes] where MatMulNBits takes [rows, blocks, bytes]: the same bytes."""
        places, name = self._written(weight), f"{layer}.rows"
        if keep:
            self._shared[layer] = places
        shapes = [(weight.rows, weight.codes[0].size), weight.scales.shape, *([] if weight.zeros is None else [weight.zeros.shape])]
        codes, *others = self._constants(name, shapes, places)
        self.kernels["GatherBlockQuantized"] += 1
        found = self._drawing.one("GatherBlockQuantized", [codes, indices, *others], name, domain=MICROSOFT, bits=weight.bits,
                                  block_size=weight.block, gather_axis=0, quantize_axis=1)  # fmt: skip
        if weight.columns % weight.block == 0:
            return found
        bounds = [self._drawing.number([bound], np.int64) for bound in (0, weight.columns, -1)]
        return self._drawing.one("Slice", [found, *bounds], f"{name}.whole")

    def _written(self, weight: Packed) -> tuple[Place, ...]:
        parts = (weight.codes, weight.scales, *(() if weight.zeros is None else (weight.zeros,)))
        return tuple(self._drawing.write(part) for part in parts)

    def _constants(self, name: str, shapes: Sequence[Sequence[int]], places: Sequence[Place]) -> list[ir.Value]:
        kinds = (("codes", ir.DataType.UINT8), ("scales", _FLOAT), ("zeros", ir.DataType.UINT8))
        return [self._drawing.placed(f"{name}.{part}", place, shape, dtype)
                for (part, dtype), place, shape in zip(kinds, places, shapes, strict=False)]

    def _as_float(self, value: ir.Value, dtype: torch.dtype, name: str) -> ir.Value:
        """16-bit floats are small on disk; a weight's Cast is folded by the runtime at load."""
        return value if dtype == torch.float32 else self._drawing.one("Cast", [value], name, to=_FLOAT)


def _joined(weights: Sequence[Packed | Coded | Plain]) -> Packed | Coded | Plain | None:
    """One weight with the rows of all, None where they are stored in more than one way."""
    if len(weights) == 1:
        return weights[0]
    rounded = [weight for weight in weights if isinstance(weight, Packed)]
    plain = [weight for weight in weights if isinstance(weight, Tensor)]
    if len(rounded) == len(weights):
        return joined(rounded)
    return torch.cat(plain) if len(plain) == len(weights) and len({weight.dtype for weight in plain}) == 1 else None


def _stacked(weights: Sequence[Packed | Coded | Plain], biases: Sequence[Tensor | None]) -> Tensor | None:
    """The biases of layers that became one; those that have none add nothing."""
    if all(bias is None for bias in biases):
        return None
    rows = [weight.shape[0] if isinstance(weight, Tensor) else weight.codes.shape[0] for weight in weights]
    return torch.cat([torch.zeros(count) if bias is None else bias for count, bias in zip(rows, biases, strict=True)])


def _together(layers: Sequence[str]) -> str:
    """A name for layers of one module: "model.layers.0.self_attn.q_proj+k_proj+v_proj"."""
    return "+".join([layers[0], *(layer.rpartition(".")[2] for layer in layers[1:])])
