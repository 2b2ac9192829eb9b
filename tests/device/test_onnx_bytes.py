from __future__ import annotations

from contextlib import suppress

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.device.tiny_models import branching, dense

from whet.core.errors import Unsupported
from whet.device.onnx_bytes import Operator, operators_in, product_model
from whet.device.session import open_session, run, specs


@given(rows=st.integers(1, 5), inner=st.integers(1, 300), columns=st.integers(1, 5), integers=st.booleans())
def test_the_model_is_valid_onnx_and_computes_the_product(rows: int, inner: int, columns: int, integers: bool) -> None:
    generator = np.random.default_rng(inner)
    if integers:
        op, dtype, weights = "MatMulInteger", "uint8", generator.integers(-128, 127, (inner, columns)).astype(np.int8)
        x = generator.integers(0, 255, (rows, inner)).astype(np.uint8)
        wanted = x.astype(np.int32) @ weights.astype(np.int32)
    else:
        op, dtype, weights = "MatMul", "float32", generator.standard_normal((inner, columns), dtype=np.float32)
        x = generator.standard_normal((rows, inner), dtype=np.float32)
        wanted = x @ weights
    model = product_model(op, rows, dtype, weights)
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    session = open_session(model, threads=1)
    assert specs(session)[0][0].shape == (rows, inner)
    np.testing.assert_allclose(run(session, {"x": x})["y"], wanted, rtol=1e-4, atol=1e-3)


def test_operators_agree_with_the_onnx_package() -> None:
    model = dense(layers=3)
    expected = [Operator(node.name, node.domain, node.op_type) for node in onnx.load_from_string(model).graph.node]
    assert list(operators_in(model)) == expected


def test_operators_in_branches_are_found() -> None:
    assert sorted(node.op for node in operators_in(branching())) == ["Abs", "If", "Neg", "Sigmoid"]
    assert {node.name for node in operators_in(branching())} == {"choose", "in yes", "in no", "last"}


@pytest.mark.parametrize("cut", range(1, len(branching()), 7))
def test_bytes_cut_anywhere_give_operators_or_unsupported(cut: int) -> None:
    whole = operators_in(branching())
    try:
        found = operators_in(branching()[:cut])
    except Unsupported:
        return
    assert len(found) < len(whole) or found == whole


@given(st.binary(max_size=200))
def test_any_bytes_give_operators_or_unsupported(data: bytes) -> None:
    with suppress(Unsupported):
        operators_in(data)
