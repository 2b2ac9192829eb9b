"""float16: stored in half the bytes; computed in float32 where the target gains nothing by float16, else in float16."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from tests.compress.operators_with_weights import CASES
from tests.compress.small_graphs import Sketch, executed, feeds_of, noise_ratio, outputs, samples, weights_of
from tests.compress.structures import INPUT, STRUCTURES

from whet.compress.apply import apply_recipe
from whet.compress.graph import GraphModel
from whet.core.errors import Unsupported
from whet.core.recipe import Recipe, Step
from whet.device.targets import target

Array = np.ndarray[Any, Any]
CPU, GPU = target("x86-vnni"), target("jetson")


def float16(model: GraphModel, where: Any = CPU, only: tuple[str, ...] = ("*",), **options: Any) -> GraphModel:
    return apply_recipe(model, Recipe((Step("float16", only, options=options),)), where)


@pytest.mark.parametrize("name", CASES)
def test_on_a_cpu_it_is_float_with_rounded_weights_and_no_cast_is_left_at_run_time(name: str) -> None:
    case = CASES[name]()
    made = float16(case.model())
    factor = np.float32(0.5 if "alpha" in name else 1.0)
    wanted = case.with_weights(lambda _, weight, __: (weight * factor).astype(np.float16).astype(np.float32) / factor)
    feeds = feeds_of(case.data)
    exact = outputs(wanted, feeds)
    assert all(noise_ratio(ours, exact[output]) < 2e-6 for output, ours in outputs(made, feeds).items())
    assert executed(made) == executed(case.model().folded())
    assert "Cast" not in executed(made)
    assert {array.dtype for array in weights_of(made).values() if array.size >= 200} <= {np.dtype(np.float16), np.dtype(np.int64)}


def test_the_file_is_half_as_large() -> None:
    sketch = Sketch()
    sketch.output(sketch.gemm(sketch.input("x", ["N", 256]), 256, 256))
    assert 1.95 < len(sketch.model().content) / len(float16(sketch.model()).content) < 2.05


@pytest.mark.parametrize("infer", [True, False])
@pytest.mark.parametrize("name", STRUCTURES)
def test_on_a_target_with_kernels_it_computes_in_float16_between_casts(name: str, infer: bool) -> None:
    sketch = Sketch()
    STRUCTURES[name].build(sketch, sketch.input("x", INPUT))
    model = sketch.model(infer=infer)
    made = float16(model, GPU)
    feeds = feeds_of(samples({"x": INPUT[1:]}))
    wanted = outputs(model, feeds)
    for output, ours in outputs(made, feeds).items():
        assert ours.dtype == wanted[output].dtype
        assert noise_ratio(ours, wanted[output]) < 0.005
    typed = onnx.shape_inference.infer_shapes(onnx.load_from_string(made.content), strict_mode=True)
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*typed.graph.value_info, *typed.graph.output)}
    computing = [node for node in typed.graph.node if node.op_type in ("Conv", "Gemm")]
    made_by = {output: node.op_type for node in typed.graph.node for output in node.output}
    for node in computing:
        assert kinds[node.output[0]] == onnx.TensorProto.FLOAT16
        assert made_by.get(node.input[0]) in {"Cast", "Conv", "Gemm", "MatMul"}  # straight from another float16 operator, or cast


def test_a_tensor_is_cast_once_however_many_layers_read_it() -> None:
    sketch = Sketch()
    x = sketch.input("x", INPUT)
    for _ in range(3):
        sketch.output(sketch.node("Relu", sketch.conv(x, (4, 4))))
    made = float16(sketch.model(), GPU)
    assert sum(node.op == "Cast" for node in made.nodes) == 4  # one in, one out for each


@pytest.mark.parametrize("compute", ["auto", "storage"])
def test_storage_only_keeps_float32_arithmetic(compute: str) -> None:
    sketch = Sketch()
    sketch.output(sketch.conv(sketch.input("x", INPUT), (4, 4), name="c"))
    made = onnx.load_from_string(float16(sketch.model(), GPU, compute=compute).content)
    (conv,) = (node for node in made.graph.node if node.op_type == "Conv")
    (cast,) = (node for node in made.graph.node if node.output[0] == conv.input[1]) if compute == "storage" else (None,)
    assert (cast is not None) is (compute == "storage")


def test_layers_that_are_not_named_stay_in_float32() -> None:
    sketch = Sketch()
    y = sketch.conv(sketch.input("x", INPUT), (4, 4), name="one")
    sketch.output(sketch.conv(y, (4, 4), name="two"))
    for where in (CPU, GPU):
        kept = {array.tobytes() for array in weights_of(float16(sketch.model(), where, ("two",))).values()}
        assert sketch.constants["one.W"].tobytes() in kept
        assert sketch.constants["two.W"].tobytes() not in kept


@pytest.mark.parametrize(("value", "fits"), [(65504.0, True), (65520.0, False), (1e6, False), (-1e6, False)])
@pytest.mark.parametrize("where", [CPU, GPU])
def test_weights_that_do_not_fit_are_unsupported(where: Any, value: float, fits: bool) -> None:
    sketch = Sketch()
    sketch.output(sketch.conv(sketch.input("x", INPUT), (4, 4), name="the layer"))
    sketch.constants["the layer.W"][0, 0, 0, 0] = value
    if fits:
        assert all(np.isfinite(array).all() for array in weights_of(float16(sketch.model(), where)).values())
    else:
        with pytest.raises(Unsupported, match="the layer"):
            float16(sketch.model(), where)


def test_a_bias_that_does_not_fit_is_unsupported_only_where_it_is_computed_with() -> None:
    sketch = Sketch()
    sketch.output(sketch.conv(sketch.input("x", INPUT), (4, 4), name="the layer"))
    sketch.constants["the layer.B"][0] = 1e6
    with pytest.raises(Unsupported, match="the layer"):
        float16(sketch.model(), GPU)
    assert float16(sketch.model(), CPU).content


@pytest.mark.parametrize("value", [6.1e-5, 6e-8, 2e-8, 1e-30])
def test_subnormal_weights_have_the_absolute_error_that_the_page_states(value: float) -> None:
    sketch = Sketch()
    sketch.output(sketch.conv(sketch.input("x", INPUT), (4, 4), name="c"))
    sketch.constants["c.W"][:] = np.float32(value)
    (stored,) = (array for array in weights_of(float16(sketch.model())).values() if array.dtype == np.float16)
    assert abs(float(stored.ravel()[0]) - value) <= 2.0**-25


def test_float16_models_have_nothing_left_to_do() -> None:
    sketch = Sketch()
    half = sketch.node("Cast", sketch.input("x", ["N", 40]), to=10)
    y = sketch.node("MatMul", half, sketch.constant(np.ones((40, 24)), np.float16))
    sketch.output(sketch.node("Cast", y, to=1))
    with pytest.raises(Unsupported, match="float16 already"):
        float16(sketch.model())
