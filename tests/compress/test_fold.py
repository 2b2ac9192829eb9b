"""Folding leaves the function as it was and the graph with fewer operators; against loops in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from tests.compress.small_graphs import Sketch, noise_ratio, outputs, weights_of
from tests.slow_papers import layers

from whet.compress.graph import GraphModel

Array = np.ndarray[Any, Any]
EPSILON = float(np.float32(0.01))  # attributes are float32


def folded_like(model: GraphModel, feeds: dict[str, Array], tolerance: float = 1e-5) -> GraphModel:
    """The folded model, which must compute what the model does."""
    before, folded = outputs(model, feeds), model.folded()
    after = outputs(folded, feeds)
    assert before.keys() == after.keys()
    for name in before:
        assert after[name].dtype == before[name].dtype
        assert noise_ratio(after[name], before[name]) < tolerance, name
    return folded


def ops(model: GraphModel) -> list[str]:
    return [node.op for node in model.nodes]


def drawn(*shape: int) -> Array:
    return np.random.default_rng(11).standard_normal(shape).astype(np.float32)


def image(*shape: int) -> dict[str, Array]:
    return {"x": drawn(*shape)}


# -- batch norm ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_a_batch_norm_goes_into_the_convolution_as_in_float64(bias: bool) -> None:
    sketch = Sketch(seed=2)
    y = sketch.conv(sketch.input("x", ["N", 3, 5, 5]), (3, 4), name="c", bias=bias)
    sketch.output(sketch.batch_norm(y, 4, epsilon=EPSILON))
    gain, beta, mean, variance = (sketch.constants[f"constant_{at}"] for at in range(len(sketch.constants) - 4, len(sketch.constants)))
    assert np.any(gain < 0)  # a negative gain turns the sign of a channel's weights
    feeds = image(2, 3, 5, 5)
    folded = folded_like(sketch.model(), feeds)
    assert ops(folded) == ["Conv"]
    plain = layers.conv2d(
        feeds["x"].astype(np.float64),
        sketch.constants["c.W"].astype(np.float64),
        sketch.constants["c.B"].astype(np.float64) if bias else None,
        pad=1,
    )
    wanted = layers.batch_norm(plain, gain, beta, mean, variance, EPSILON)
    (found,) = outputs(folded, feeds).values()
    assert np.allclose(found, wanted, atol=2e-6 * np.abs(wanted).max())
    (weight,) = (array for array in weights_of(folded).values() if array.ndim == 4)
    factor = gain.astype(np.float64) / np.sqrt(variance.astype(np.float64) + EPSILON)
    assert np.array_equal(weight, (sketch.constants["c.W"] * factor[:, None, None, None]).astype(np.float32))


def test_a_batch_norm_of_almost_no_variance_keeps_its_precision() -> None:
    sketch = Sketch()
    y = sketch.conv(sketch.input("x", ["N", 3, 5, 5]), (3, 2), name="c")
    parts = [sketch.constant(values) for values in ([1.0, 0.0], [0.0, 1.0], [0.1, 1e4], [1e-12, 1e8])]
    sketch.output(sketch.node("BatchNormalization", y, *parts, epsilon=1e-5))
    assert ops(folded_like(sketch.model(), image(2, 3, 5, 5))) == ["Conv"]


def conv_transpose(sketch: Sketch, group: int) -> str:
    x = sketch.input("x", ["N", 4, 5, 5])
    y = sketch.node("ConvTranspose", x, sketch.weight(4, 6 // group, 3, 3), sketch.constant(np.arange(6)), strides=[2, 2], group=group)
    return str(sketch.batch_norm(y, 6))


@pytest.mark.parametrize(("group", "left"), [(1, ["ConvTranspose"]), (2, ["ConvTranspose", "BatchNormalization"])])
def test_batch_norms_behind_transposed_convolutions(group: int, left: list[str]) -> None:
    sketch = Sketch()
    sketch.output(conv_transpose(sketch, group))
    assert ops(folded_like(sketch.model(), image(2, 4, 5, 5))) == left


@pytest.mark.parametrize(
    ("shape", "folds"), [((), True), ((1,), True), ((6,), True), ((1, 6), True), ((8, 1), False), ((8, 6), False), ((6, 1), False)]
)
@pytest.mark.parametrize("trans_b", [0, 1])
def test_batch_norms_behind_products_with_biases_of_every_shape(shape: tuple[int, ...], folds: bool, trans_b: int) -> None:
    rows = 6 if shape == (6, 1) else 8  # a column as long as the rows are wide must not pass for a row
    sketch = Sketch()
    x = sketch.input("x", [rows, 5])
    bias = sketch.constant(drawn(*shape))
    y = sketch.node("Gemm", x, sketch.weight(*((6, 5) if trans_b else (5, 6))), bias, transB=trans_b)
    sketch.output(sketch.batch_norm(y, 6))
    assert ops(folded_like(sketch.model(), image(rows, 5))) == (["Gemm"] if folds else ["Gemm", "BatchNormalization"])


@pytest.mark.parametrize("spoiler", ["output", "second reader", "weights from outside", "bias from outside", "no product", "training"])
def test_what_cannot_be_folded_stays(spoiler: str) -> None:
    sketch = Sketch(opset=15)
    x = sketch.input("x", ["N", 3, 5, 5])
    feeds = image(2, 3, 5, 5)
    if spoiler == "weights from outside":
        weight = sketch.input("w", [4, 3, 3, 3])
        feeds["w"] = drawn(4, 3, 3, 3)
        y = sketch.node("Conv", x, weight, name="c")
    elif spoiler == "bias from outside":
        bias = sketch.input("b", [4])
        feeds["b"] = drawn(4)
        y = sketch.node("Conv", x, sketch.weight(4, 3, 3, 3), bias, name="c")
    elif spoiler == "no product":
        y = sketch.node("Tanh", sketch.conv(x, (3, 4)))
    else:
        y = sketch.conv(x, (3, 4), name="c")
    if spoiler == "output":
        sketch.output(y)
    if spoiler == "second reader":
        sketch.output(sketch.node("Tanh", y))
    sketch.output(sketch.batch_norm(y, 4, **({"training_mode": 1} if spoiler == "training" else {})))
    model = sketch.model() if spoiler != "training" else None
    if model is None:  # onnxruntime runs no training batch norm; only the graph is looked at
        assert "BatchNormalization" in ops(sketch.model(infer=False).folded())
    else:
        assert "BatchNormalization" in ops(folded_like(model, feeds))


def test_weights_that_two_convolutions_share_are_folded_for_one_only() -> None:
    sketch = Sketch()
    x = sketch.input("x", ["N", 4, 5, 5])
    y = sketch.conv(x, (4, 4), name="a")
    z = sketch.node("Conv", x, "a.W", "a.B", name="b", pads=[1] * 4)
    sketch.output(sketch.batch_norm(y, 4))
    sketch.output(z)
    folded = folded_like(sketch.model(), image(2, 4, 5, 5))
    assert ops(folded) == ["Conv", "Conv"]
    assert sum(np.array_equal(array, sketch.constants["a.W"]) for array in weights_of(folded).values()) == 1


# -- biases of products ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("infer", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_an_add_goes_into_a_product_of_matrices_even_where_the_file_says_no_shapes(infer: bool, first: bool) -> None:
    sketch = Sketch()
    h = sketch.node("Reshape", sketch.input("x", ["N", 2, 5]), sketch.constant([-1, 10], np.int64))
    y, bias = sketch.matmul(h, 10, 6, name="product"), sketch.constant(drawn(6))
    sketch.output(sketch.node("Add", *((y, bias) if first else (bias, y)), name="add"))
    folded = folded_like(sketch.model(infer=infer), image(3, 2, 5))
    assert [node.name for node in folded.nodes] == ["reshape_0", "product"]
    assert ops(folded) == ["Reshape", "Gemm"]


@pytest.mark.parametrize("kind", ["three dimensions", "no row", "two readers", "a product that is an output", "two products"])
def test_an_add_that_is_no_bias_stays(kind: str) -> None:
    sketch = Sketch()
    x = sketch.input("x", ["N", 4, 5] if kind == "three dimensions" else [3, 5])
    y = sketch.matmul(x, 5, 6)
    if kind == "two readers":
        sketch.output(sketch.node("Tanh", y))
    if kind == "a product that is an output":
        sketch.output(y)
    shape = (3, 1) if kind == "no row" else (6,)
    other = sketch.matmul(x, 5, 6) if kind == "two products" else sketch.constant(drawn(*shape))
    sketch.output(sketch.node("Add", y, other))
    folded = folded_like(sketch.model(), image(3, 4, 5) if kind == "three dimensions" else image(3, 5))
    assert "Add" in ops(folded)


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("factors", [{"alpha": 0.5}, {"beta": 3.0}, {"alpha": -2.0, "beta": 0.25}, {"alpha": 0.5, "transA": 1}])
@pytest.mark.parametrize("bias", ["constant", "activation", "none"])
def test_alpha_and_beta_are_gone(trans_b: int, factors: dict[str, Any], bias: str) -> None:
    sketch = Sketch()
    x = sketch.input("x", [5, 8] if factors.get("transA") else [8, 5])
    feeds = image(*([5, 8] if factors.get("transA") else [8, 5]))
    inputs = [x, sketch.weight(*((6, 5) if trans_b else (5, 6)))]
    if bias == "constant":
        inputs.append(sketch.constant(drawn(6)))
    elif bias == "activation":
        inputs.append(sketch.input("b", [8, 6]))
        feeds["b"] = drawn(8, 6)
    sketch.output(sketch.node("Gemm", *inputs, transB=trans_b, **factors))
    folded = folded_like(sketch.model(), feeds)
    (gemm,) = (node for node in folded.ir.graph if node.op_type == "Gemm")
    assert not {"alpha", "beta"} & set(gemm.attributes)


# -- pools -----------------------------------------------------------------------------------------------------------------------


def pooled(size: tuple[int | str, int | str], infer: bool = True, **attributes: Any) -> GraphModel:
    sketch = Sketch()
    y = sketch.conv(sketch.input("x", ["N", 3, *size]), (3, 4))
    sketch.output(sketch.node("AveragePool", y, **attributes))
    return sketch.model(infer=infer)


@pytest.mark.parametrize("infer", [True, False])
@pytest.mark.parametrize("more", [{}, {"strides": [6, 5]}, {"count_include_pad": 1}, {"pads": [0] * 4}, {"ceil_mode": 1}])
def test_a_pool_over_the_whole_map_becomes_a_global_one(infer: bool, more: dict[str, Any]) -> None:
    folded = folded_like(pooled((6, 5), infer, kernel_shape=[6, 5], **more), image(2, 3, 6, 5))
    assert ops(folded) == ["Conv", "GlobalAveragePool"]
    assert [node.name for node in folded.nodes] == ["conv_0", "averagepool_1"]


@pytest.mark.parametrize("infer", [True, False])
@pytest.mark.parametrize(
    ("size", "attributes"),
    [
        ((6, 5), {"kernel_shape": [5, 5]}),
        ((6, 5), {"kernel_shape": [6, 3]}),
        ((6, 5), {"kernel_shape": [6, 5], "pads": [0, 1, 0, 0]}),
        ((3, 3), {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"}),
        (("H", "W"), {"kernel_shape": [1, 1]}),
        (("H", 5), {"kernel_shape": [6, 5]}),
    ],
)
def test_every_other_pool_stays(infer: bool, size: Any, attributes: dict[str, Any]) -> None:
    sizes = [6 if each == "H" else 5 if each == "W" else each for each in size]
    folded = folded_like(pooled(size, infer, **attributes), image(2, 3, *sizes))
    assert ops(folded) == ["Conv", "AveragePool"]


# -- what stands beside ----------------------------------------------------------------------------------------------------------


def test_a_reader_inside_a_branch_does_not_count_as_one_that_can_be_folded() -> None:
    sketch = Sketch()
    x, c = sketch.input("x", [3, 5]), sketch.input("c", [], TensorProto.BOOL)
    y = sketch.matmul(x, 5, 6, name="product")
    bias = sketch.constant(drawn(6))
    then = sketch.subgraph([helper.make_node("Add", [y, bias], ["t"], name="add")], ["t"])
    other = sketch.subgraph([helper.make_node("MatMul", [x, sketch.weight(5, 6)], ["e"], name="m")], ["e"])
    sketch.output(sketch.node("If", c, then_branch=then, else_branch=other))
    for choice in (True, False):
        folded = folded_like(sketch.model(), {**image(3, 5), "c": np.array(choice)})
        assert "MatMul" in ops(folded)


def test_the_model_that_is_folded_stays_as_it_is() -> None:
    sketch = Sketch()
    sketch.output(sketch.batch_norm(sketch.conv(sketch.input("x", ["N", 3, 5, 5]), (3, 4)), 4))
    model = sketch.model()
    before = model.content
    model.folded()
    assert GraphModel(model.ir).content == before


def test_folding_twice_changes_nothing_more() -> None:
    sketch = Sketch()
    y = sketch.batch_norm(sketch.conv(sketch.input("x", ["N", 3, 5, 5]), (3, 4)), 4)
    sketch.output(sketch.gemm(sketch.node("Flatten", y), 100, 3, alpha=0.5))
    once = sketch.model().folded()
    assert ops(once.folded()) == ops(once)
    assert [array.tobytes() for array in weights_of(once.folded()).values()] == [array.tobytes() for array in weights_of(once).values()]
