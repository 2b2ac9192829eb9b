"""Static quantisation in the graph: what is exported is what was simulated, and what is executed is what was meant."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from tests.compress.small_graphs import Sketch, executed, feeds_of, noise_ratio, outputs, samples, weights_of
from tests.compress.structures import INPUT, STRUCTURES
from tests.slow_papers import affine, layers

from whet.compress.apply import apply_recipe
from whet.compress.data import Dataset
from whet.compress.data.dataset import ArraySamples
from whet.compress.graph import GraphModel
from whet.core.errors import Refused, Unsupported
from whet.core.recipe import Recipe, Step
from whet.core.target import Target
from whet.device.targets import target

Array = np.ndarray[Any, Any]
VNNI = target("x86-vnni")
IMAGES = samples({"x": INPUT[1:]})
# What costs or changes nothing beside the integer kernels: conversions at the border, and moves.
BORDER = {
    "QuantizeLinear",
    "DequantizeLinear",
    "Transpose",
    "Reshape",
    "Flatten",
    "Shape",
    "Gather",
    "Unsqueeze",
    "Concat",
    "Slice",
    "ReorderInput",
    "ReorderOutput",
}


def static(
    model: GraphModel, data: Dataset, where: Target = VNNI, *, only: tuple[str, ...] = ("*",), without: tuple[str, ...] = (), **options: Any
) -> GraphModel:
    return apply_recipe(model, Recipe((Step("static", only, without, options),)), where, calibration=data)


def as_written(model: GraphModel, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """What the graph says, node by node: onnxruntime without any optimisation."""
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.content, settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def sketched(name: str, *, opset: int = 17, infer: bool = True) -> GraphModel:
    sketch = Sketch(opset)
    STRUCTURES[name].build(sketch, sketch.input("x", INPUT))
    return sketch.model(infer=infer)


# -- structures ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("infer", [True, False], ids=["with shapes", "without shapes"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_each_structure_runs_on_the_kernels_that_were_meant(name: str, infer: bool) -> None:
    structure, model = STRUCTURES[name], sketched(name, infer=infer)
    made = static(model, IMAGES)
    found = executed(made)
    assert {op: found.get(op, 0) for op in structure.runs} == dict(structure.runs)
    assert set(found) - set(structure.runs) - structure.floats <= BORDER
    float_ones, feeds = outputs(model, feeds_of(IMAGES)), feeds_of(IMAGES)
    ours, written = outputs(made, feeds), as_written(made, feeds)
    for output, wanted in float_ones.items():
        assert noise_ratio(ours[output], wanted) < 0.04
        # A kernel may round a tie otherwise than the graph as it is written; never more than that.
        assert noise_ratio(ours[output], written[output]) < 0.01


@pytest.mark.parametrize("opset", [11, 12, 13, 15, 21, 22, 23])
def test_every_opset_is_quantised_alike(opset: int) -> None:
    sketch = Sketch(opset)
    y = sketch.node("MaxPool", sketch.node("Relu", sketch.conv(sketch.input("x", INPUT), (4, 4))), kernel_shape=[2, 2], strides=[2, 2])
    y = sketch.node("Clip", sketch.conv(y, (4, 4)), sketch.constant(0.0), sketch.constant(6.0))
    y = sketch.gemm(sketch.node("Flatten", y), 64, 10)
    sketch.output(sketch.node("Softmax", y, axis=1))
    sketch.output(y)
    model = sketch.model()
    made = static(model, IMAGES)
    found = executed(made)
    assert (found["QLinearConv"], found["QGemm"]) == (2, 1)
    names = [node.name for node in made.nodes]
    assert len(set(names)) == len(names)
    assert all(names)
    wanted = outputs(model, feeds_of(IMAGES))
    assert all(noise_ratio(ours, wanted[name]) < 0.02 for name, ours in outputs(made, feeds_of(IMAGES)).items())


# -- simulated by hand -------------------------------------------------------------------------------------------------------------


def two_layers(seed: int) -> Sketch:
    sketch = Sketch(seed=seed)
    y = sketch.node("Relu", sketch.conv(sketch.input("x", ["N", 3, 7, 7]), (3, 5), name="one"), name="relu")
    sketch.output(sketch.conv(y, (5, 4), name="two"))
    return sketch


def grid(numbers: Array) -> tuple[np.float32, int]:
    """Scale and zero point of min-max, 8 bits, unsigned (Jacob et al. 2018, section 2.1)."""
    low, high = min(0.0, float(numbers.min())), max(0.0, float(numbers.max()))
    scale = (high - low) / 255
    return np.float32(scale), min(max(round(-low / float(np.float32(scale))), 0), 255)


def integer_layer(codes: Array, weight: Array, bias: Array, before: tuple[np.float32, int], after: tuple[np.float32, int]) -> Array:
    scales, _ = affine.weight_grid(weight, 8, True, 0, 0)
    per_channel = np.array([scales[(c,)] for c in range(len(weight))], np.float32)
    quantised = affine.quantize_linear(weight, per_channel, np.zeros(len(weight), np.int32), -127, 127, axis=0)
    offsets = np.array(affine.bias(bias, before[0], per_channel), np.int64)
    total = layers.conv2d(codes - before[1], quantised, offsets, pad=1)
    factors = (before[0] * per_channel / after[0]).astype(np.float32)
    return layers.requantise(total, factors, after[1], 0, 255)


@pytest.mark.parametrize("seed", [0, 1])
def test_two_layers_computed_by_hand_give_onnxruntimes_codes(seed: int) -> None:
    sketch, data = two_layers(seed), samples({"x": (3, 7, 7)}, 4, seed=seed + 10)
    x = feeds_of(data)["x"]
    (made,) = outputs(static(sketch.model(), data), {"x": x}).values()
    c = sketch.constants
    middle = np.maximum(layers.conv2d(x.astype(np.float64), c["one.W"].astype(np.float64), c["one.B"], pad=1), 0).astype(np.float32)
    last = layers.conv2d(middle.astype(np.float64), c["two.W"].astype(np.float64), c["two.B"], pad=1).astype(np.float32)
    grids = [grid(tensor) for tensor in (x, middle, last)]
    codes = affine.quantize_linear(x, *(np.array(part) for part in grids[0]), 0, 255)
    codes = integer_layer(codes, c["one.W"], c["one.B"], grids[0], grids[1])
    codes = integer_layer(codes, c["two.W"], c["two.B"], grids[1], grids[2])
    theirs = np.rint(made / grids[2][0]).astype(int) + grids[2][1]
    differing = np.abs(codes - theirs)
    assert differing.max() <= 1  # a tie, or a scale that differs in its last bit
    assert np.count_nonzero(differing) <= 0.005 * differing.size


def test_the_error_of_a_layer_stays_within_its_analytical_bound() -> None:
    sketch, data = Sketch(), samples({"x": (3, 6, 6)}, 6)
    y = sketch.output(sketch.conv(sketch.input("x", ["N", 3, 6, 6]), (3, 4), name="c"))
    x, weight, bias = feeds_of(data)["x"].astype(np.float64), sketch.constants["c.W"].astype(np.float64), sketch.constants["c.B"]
    made = outputs(static(sketch.model(), data), feeds_of(data))[y]
    exact = layers.conv2d(x, weight, bias, pad=1)
    step_x, step_y = (float(x.max() - x.min())) / 255, float(max(exact.max(), 0) - min(exact.min(), 0)) / 255
    step_w = np.abs(weight).max(axis=(1, 2, 3)) / 127
    # |x'w' - xw| <= |dx| |w'| + |x| |dw|, with a whole step for x and y (the zero point is rounded, so an end may be cut off by half)
    wide = np.abs(weight) + step_w[:, None, None, None] / 2
    bound = step_x * layers.conv2d(np.ones_like(x), wide, None, pad=1)
    bound += (
        layers.conv2d(np.abs(x), np.ones_like(weight), None, pad=1) * step_w[None, :, None, None] / 2
        + step_y
        + step_x * step_w[None, :, None, None]
    )
    assert np.all(np.abs(made - exact) <= bound)
    assert np.abs(made - exact).max() > 0


# -- options ------------------------------------------------------------------------------------------------------------------------


def quantising_grids(model: GraphModel) -> dict[str, tuple[float, int]]:
    """(scale, zero point) by the name of the tensor that a QuantizeLinear of the graph reads."""
    found = {}
    for node in model.ir.graph:
        if node.op_type == "QuantizeLinear":
            scale, zero = (node.inputs[at].const_value.numpy() for at in (1, 2))  # type: ignore[union-attr]
            found[str(node.inputs[0].name)] = float(scale), int(zero)  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize("ranges", ["minmax", "moving_average", "percentile", "entropy", "mse"])
def test_every_way_of_finding_ranges_works_in_the_graph(ranges: str) -> None:
    made = static(sketched("residual_add_relu"), IMAGES, ranges=ranges, percentile=99.9)
    assert executed(made)["QLinearConv"] == 3
    wanted = outputs(sketched("residual_add_relu"), feeds_of(IMAGES))
    assert all(noise_ratio(ours, wanted[name]) < 0.15 for name, ours in outputs(made, feeds_of(IMAGES)).items())


def test_the_percentile_narrows_the_grids() -> None:
    wide, narrow = (
        quantising_grids(static(sketched("conv_relu"), IMAGES, ranges="percentile", percentile=share))["x"] for share in (100.0, 90.0)
    )
    assert narrow[0] < 0.7 * wide[0]


def test_one_scale_a_layer_where_that_is_asked() -> None:
    def shapes(per_channel: bool) -> set[tuple[int, ...]]:
        made = static(sketched("conv_relu"), IMAGES, per_channel=per_channel)
        scales = [node.inputs[1] for node in made.ir.graph if node.op_type == "DequantizeLinear"]
        return {tuple(scale.const_value.shape) for scale in scales}  # type: ignore[union-attr]

    assert shapes(False) == {()}
    assert shapes(True) == {(), (4,), (3,)}
    assert executed(static(sketched("conv_relu"), IMAGES, per_channel=False))["QLinearConv"] == 2


def test_a_target_without_vnni_gets_seven_bits() -> None:
    def largest(name: str) -> int:
        return max(
            int(np.abs(codes).max())
            for codes in weights_of(static(sketched("conv_relu"), IMAGES, target(name))).values()
            if codes.dtype == np.int8
        )

    assert (largest("x86-vnni"), largest("x86")) == (127, 63)


def test_a_symmetric_target_gets_symmetric_activations() -> None:
    made = static(sketched("conv_relu"), IMAGES, target("jetson"))
    assert {zero for _, zero in quantising_grids(made).values()} == {0}
    wanted = outputs(sketched("conv_relu"), feeds_of(IMAGES))
    assert all(noise_ratio(ours, wanted[name]) < 0.04 for name, ours in outputs(made, feeds_of(IMAGES)).items())


# -- hard numbers --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1000.0])
def test_dead_channels_keep_their_biases_however_coarse_the_input_is(scale: float) -> None:
    sketch = Sketch()
    y = sketch.conv(sketch.input("x", ["N", 3, 6, 6]), (3, 4), name="c")
    sketch.constants["c.W"][:] = 0
    sketch.constants["c.B"][:] = [0.3, -0.2, 0.0, 0.25]
    sketch.output(y)
    data = samples({"x": (3, 6, 6)}, scale=scale)
    (made,) = outputs(static(sketch.model(), data), feeds_of(data)).values()
    assert np.allclose(made[0, :, 0, 0], [0.3, -0.2, 0.0, 0.25], atol=0.5 / 255)


def test_a_dead_channel_between_live_ones() -> None:
    sketch = Sketch()
    y = sketch.conv(sketch.input("x", ["N", 3, 6, 6]), (3, 4), name="c")
    sketch.constants["c.W"][1] = 0
    sketch.constants["c.B"][1] = 100.0
    sketch.output(y)
    data = samples({"x": (3, 6, 6)}, scale=100)
    model = sketch.model()
    (made,), (wanted,) = (outputs(each, feeds_of(data)).values() for each in (static(model, data), model))
    step = (wanted.max() - wanted.min()) / 255
    assert np.allclose(made[:, 1], 100.0, atol=step)
    assert noise_ratio(made, wanted) < 0.02


@pytest.mark.parametrize("weights", [1e-30, 1e-10, 1e10])
def test_weights_far_from_one(weights: float) -> None:
    sketch = Sketch()
    y = sketch.conv(sketch.input("x", ["N", 3, 6, 6]), (3, 4), name="c")
    sketch.constants["c.W"] *= np.float32(weights)
    sketch.constants["c.B"] *= np.float32(weights)
    sketch.output(y)
    data, model = samples({"x": (3, 6, 6)}), sketch.model()
    (made,), (wanted,) = (outputs(each, feeds_of(data)).values() for each in (static(model, data), model))
    assert noise_ratio(made.astype(np.float64) / weights, wanted.astype(np.float64) / weights) < 0.02


@pytest.mark.parametrize("value", [0.0, 5.0, -5.0])
def test_an_input_that_never_changes(value: float) -> None:
    sketch = Sketch()
    sketch.output(sketch.conv(sketch.input("x", ["N", 3, 6, 6]), (3, 4)))
    data, model = Dataset.of({"x": np.full((4, 3, 6, 6), value, np.float32)}), sketch.model()
    (made,), (wanted,) = (outputs(each, feeds_of(data)).values() for each in (static(model, data), model))
    assert np.allclose(made, wanted, atol=0.02 * max(np.abs(wanted).max(), 1))


@pytest.mark.parametrize("top", [0.1, 0.7, 1.0, 2.2999, 3.3, 6.0])
def test_a_clip_vanishes_whatever_its_upper_end_rounds_to(top: float) -> None:
    sketch = Sketch()
    y = sketch.node("Clip", sketch.conv(sketch.input("x", INPUT), (4, 4)), sketch.constant(0.0), sketch.constant(top))
    sketch.output(sketch.conv(y, (4, 3)))
    found = executed(static(sketch.model(), samples({"x": INPUT[1:]}, scale=20)))
    assert (found["QLinearConv"], found.get("Clip", 0)) == (2, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_activations_that_are_no_numbers_are_refused_with_their_tensor(bad: float) -> None:
    values = feeds_of(IMAGES)["x"].copy()
    values[3, 1, 2, 2] = bad
    with pytest.raises(Refused, match="'x'"):
        static(sketched("conv_relu"), Dataset.of({"x": values}))


def test_an_overflow_inside_the_model_is_refused_with_the_layer_that_made_it() -> None:
    sketch = Sketch()
    y = sketch.conv(sketch.input("x", INPUT), (4, 4), name="the first layer")
    sketch.output(sketch.conv(sketch.node("Exp", sketch.node("Mul", y, sketch.constant(1e3)), name="too much"), (4, 4)))
    with pytest.raises(Refused, match="of too much"), np.errstate(over="ignore"):
        static(sketch.model(), IMAGES)


def test_weights_that_are_no_numbers_are_refused() -> None:
    sketch = Sketch()
    sketch.output(sketch.conv(sketch.input("x", INPUT), (4, 4), name="c"))
    sketch.constants["c.W"][0, 0, 0, 0] = np.nan
    with pytest.raises(Refused, match="NaN"):
        static(sketch.model(), IMAGES)


# -- which layers ---------------------------------------------------------------------------------------------------------------------


def test_an_operator_that_is_excluded_stays_float_between_integer_ones() -> None:
    model = sketched("residual_add_relu")
    found = executed(static(model, IMAGES, without=("op:Add",)))
    assert (found["Add"], found.get("QLinearAdd", 0), found["QLinearConv"]) == (1, 0, 3)


def test_layers_that_are_not_named_keep_their_weights() -> None:
    sketch = Sketch()
    y = sketch.node("Relu", sketch.conv(sketch.input("x", INPUT), (4, 4), name="one"))
    sketch.output(sketch.conv(y, (4, 3), name="two"))
    made = static(sketch.model(), IMAGES, only=("two",))
    kept = {array.tobytes() for array in weights_of(made).values()}
    assert {sketch.constants[name].tobytes() in kept for name in ("one.W", "one.B")} == {True}
    assert {sketch.constants[name].tobytes() in kept for name in ("two.W", "two.B")} == {False}
    assert executed(made)["QLinearConv"] == 1


@pytest.mark.parametrize("op", ["Relu", "Add", "MaxPool"])
def test_naming_only_operators_without_weights_is_unsupported(op: str) -> None:
    sketch = Sketch()
    y = sketch.node("Add", sketch.conv(sketch.input("x", INPUT), (4, 4)), sketch.constant(1.0))
    sketch.output(sketch.node("MaxPool", sketch.node("Relu", y), kernel_shape=[2, 2]))
    with pytest.raises(Unsupported):
        static(sketch.model(), IMAGES, only=(f"op:{op}",))


def test_a_model_without_anything_to_quantise_is_unsupported() -> None:
    sketch = Sketch()
    sketch.output(sketch.node("Tanh", sketch.input("x", INPUT)))
    with pytest.raises(Unsupported, match="integer kernel"):
        static(sketch.model(), IMAGES)


def test_a_column_of_biases_is_no_row_of_them() -> None:
    sketch = Sketch()
    x = sketch.input("x", [6, 5])
    sketch.output(sketch.node("Gemm", x, sketch.weight(5, 6), sketch.weight(6, 1), name="column"))
    sketch.output(sketch.gemm(x, 5, 6, name="row"))
    model, data = sketch.model(), samples({"x": (5,)}, 6)
    wanted, made = outputs(model, feeds_of(data)), static(model, data)
    assert executed(made)["QGemm"] == 1
    assert all(noise_ratio(ours, wanted[name]) < 0.02 for name, ours in outputs(made, feeds_of(data)).items())


# -- control flow and fixed shapes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["Relu", "Reshape"])
def test_branches_that_read_what_is_quantised_outside(inner: str) -> None:
    sketch = Sketch()
    x, c = sketch.input("x", INPUT), sketch.input("c", [], TensorProto.BOOL)
    y, z = sketch.conv(x, (4, 4), name="one"), sketch.conv(x, (4, 4), name="two")
    more = [sketch.constant([-1, 4, 8, 8], np.int64)] if inner == "Reshape" else []
    then = sketch.subgraph([helper.make_node(inner, [y, *more], ["then"], name="inner")], ["then"])
    other = sketch.subgraph([helper.make_node("Neg", [z], ["else"], name="neg")], ["else"])
    sketch.output(sketch.conv(sketch.node("If", c, then_branch=then, else_branch=other), (4, 3), name="three"))
    model = sketch.model(infer=False)
    for choice in (True, False):
        data = Dataset(ArraySamples(feeds_of(IMAGES)), constants={"c": np.array(choice)})
        made = static(model, data)
        assert executed(made)["QLinearConv"] == 3
        feeds = feeds_of(data)
        wanted = outputs(model, feeds)
        assert all(noise_ratio(ours, wanted[name]) < 0.03 for name, ours in outputs(made, feeds).items())


@pytest.mark.parametrize(("batch", "count"), [(1, 5), (4, 10), (3, 2)])
def test_a_graph_of_fixed_batch_is_calibrated_on_every_sample(batch: int, count: int) -> None:
    sketch = Sketch()
    sketch.output(sketch.conv(sketch.input("x", [batch, 3, 6, 6]), (3, 4), name="c"))
    values = np.random.default_rng(0).standard_normal((count, 3, 6, 6)).astype(np.float32)
    values[-1] *= 3  # the widest range is in the last sample, which may be in a batch that is not full
    made = static(sketch.model(), Dataset.of({"x": values}))
    scale, _ = quantising_grids(made)["x"]
    assert math.isclose(scale, (values.max() - values.min()) / 255, rel_tol=1e-6)


def test_a_product_whose_only_quantised_tensor_is_the_input() -> None:
    sketch = Sketch()
    y = sketch.output(sketch.matmul(sketch.input("x", ["N", 7, 40]), 40, 24))
    data, model = samples({"x": (7, 40)}), sketch.model()
    made = static(model, data)
    assert executed(made)["MatMulIntegerToFloat"] == 1
    assert noise_ratio(outputs(made, feeds_of(data))[y], outputs(model, feeds_of(data))[y]) < 0.02
