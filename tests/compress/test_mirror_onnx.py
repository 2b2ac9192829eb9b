"""The mirror's table against onnx's own backend node tests: each passes within onnx's tolerance or is refused for a reason listed here.

Every case runs twice: with its inputs fed, and with all but the first as constants, which the mirror bakes into its steps.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from tests.compress.mirrored import one_thread, wrapped

from whet.compress.mirror import mirror, table
from whet.compress.mirror.control import CONTROL
from whet.compress.mirror.tensors import to_torch
from whet.core.errors import Unsupported

pytestmark = pytest.mark.usefixtures(one_thread.__name__)
FAMILIES = {family.__name__.rpartition(".")[2]: frozenset(family.TABLE) for family in table.FAMILIES} | {"control": frozenset(CONTROL)}
POOLS = ("averagepool", "lppool", "maxpool")
# Operators without a case of their own.
WITHOUT_A_CASE = {"GlobalLpPool"}
# Half floats are rounded after other sums than numpy's, and onnx's 1e-3 is about one of their units, or less: two are allowed.
TWO_UNITS = {"float16": 2**-9, "bfloat16": 2**-6}
# Why cases are refused, and how many of each operator: 195 of the 1,219 of onnx 1.23.
UNSIGNED = ("Add", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Sub")
REFUSED = {
    "unsigned integers of more than 8 bits": dict.fromkeys(UNSIGNED, 3)
    | {"BitShift": 6, "BitwiseAnd": 1, "BitwiseNot": 1, "BitwiseOr": 1, "BitwiseXor": 1},
    "the element type": {"Cast": 60, "CastLike": 28, "DequantizeLinear": 5, "Equal": 2, "QuantizeLinear": 3},  # eight-bit floats, text
    "it makes numbers of the type": {"Cast": 16, "CastLike": 8},  # of two and four bits
    "it is no tensor": {"Identity": 2, "Loop": 2},
    "the mirror's table has no SequenceConstruct": {"If": 2},
    "it is in training mode": {"BatchNormalization": 2, "Dropout": 6},
    "opset 1; the table begins at 7": {"Not": 3},
    "Scan of opset 8 has a batch dimension of its own": {"Scan": 1},
    "its attribute 'mode' is not covered at opset 28": {"SpaceToDepth": 2},
    "only its sorted values are covered, not where they lie": {"Unique": 7},
}


def _cases(modules: Iterable[str]) -> list[Any]:
    """The cases of these modules of onnx.backend.test.case.node, which are made when a module is imported."""
    from onnx.backend.test.case import node

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in modules:
            importlib.import_module(f"{node.__name__}.{module}")
    return list(node._NodeTestCases)


@pytest.fixture(scope="module")
def cases() -> list[Any]:
    """All cases but those of pools, which take onnx 2.6 s to make; the others take 1 s together."""
    from onnx.backend.test.case import node

    return _cases(module.name for module in pkgutil.iter_modules(node.__path__) if module.name not in POOLS)


def _of(cases: Iterable[Any], ops: frozenset[str]) -> list[Any]:
    """Those that are one node of these operators."""
    return [case for case in cases if len(case.model.graph.node) == 1 and case.model.graph.node[0].op_type in ops]


def _checked(case: Any, *, baked: bool) -> str:
    """"" where the case passes, else why it is refused; any other end fails the test."""
    (given, wanted), = case.data_sets
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    feeds = dict(zip([value.name for value in model.graph.input], given, strict=True))
    if baked:
        for value in list(model.graph.input)[1:]:
            if isinstance(feeds[value.name], np.ndarray | onnx.TensorProto):
                model.graph.initializer.append(_as_proto(feeds[value.name], value))
                model.graph.input.remove(value)
    try:
        module = mirror(wrapped(model))
    except Unsupported as refusal:
        return refusal.found
    with torch.no_grad():
        found = module(*[to_torch(ir.from_proto(_as_proto(feeds[value.name], value)), "feed") for value in model.graph.input])
    for expected, tensor in zip(wanted, found, strict=True):
        _compare(expected, tensor, case)
    return ""


def _as_proto(values: Any, value: onnx.ValueInfoProto) -> onnx.TensorProto:
    if isinstance(values, onnx.TensorProto):
        named = onnx.TensorProto()
        named.CopyFrom(values)
        named.name = value.name
        return named
    return numpy_helper.from_array(np.asarray(values), value.name)


def _compare(expected: Any, tensor: torch.Tensor, case: Any) -> None:
    numbers = numpy_helper.to_array(expected) if isinstance(expected, onnx.TensorProto) else expected
    kind = numbers.dtype.name
    assert tuple(tensor.shape) == numbers.shape, case.name
    assert kind in ("int4", "uint4", "int2", "uint2") or str(tensor.dtype) == f"torch.{kind}", case.name
    if tensor.is_floating_point():
        tolerance = max(case.rtol, TWO_UNITS.get(kind, 0))
        found = tensor.double().numpy()
        np.testing.assert_allclose(found, numbers.astype(np.float64), rtol=tolerance, atol=case.atol, err_msg=case.name)
    else:
        np.testing.assert_array_equal(tensor.numpy(), numbers.astype(tensor.numpy().dtype), err_msg=case.name)


def _refusals(cases: list[Any]) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for case in cases:
        fed = _checked(case, baked=False)
        baked = _checked(case, baked=True)
        assert not (baked and not fed), f"{case.name} is refused only with constants: {baked}"
        if fed:
            found[(case.model.graph.node[0].op_type, next((part for part in REFUSED if part in fed), fed))] += 1
    return found


def _listed(ops: frozenset[str]) -> dict[tuple[str, str], int]:
    return {(op, reason): count for reason, counts in REFUSED.items() for op, count in counts.items() if op in ops}


@pytest.mark.parametrize("family", sorted({*FAMILIES} - {"pooling"}))
def test_every_operator_passes_or_refuses_onnx_own_cases(family: str, cases: list[Any]) -> None:
    _check_family(FAMILIES[family], cases)


@pytest.mark.slow
def test_every_pool_passes_or_refuses_onnx_own_cases(cases: list[Any]) -> None:
    _check_family(FAMILIES["pooling"], _cases(POOLS))


def _check_family(ops: frozenset[str], cases: list[Any]) -> None:
    found = _of(cases, ops)
    assert ops - {case.model.graph.node[0].op_type for case in found} <= WITHOUT_A_CASE
    assert _refusals(found) == _listed(ops)


def test_the_table_has_the_operators_that_it_promises() -> None:
    assert sum(map(len, FAMILIES.values())) == len(frozenset().union(*FAMILIES.values())) >= 150


def test_the_page_names_every_operator(root: Path) -> None:
    named = set(re.findall(r"[A-Z]\w+", (root / "docs/mirror.md").read_text(encoding="utf-8")))
    assert frozenset().union(*FAMILIES.values()) <= named
