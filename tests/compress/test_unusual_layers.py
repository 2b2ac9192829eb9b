"""Recurrent layers, bodies of control flow, transposed and grouped convolutions, detectors: what other tools leave out or break."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.compress.operators_with_weights import CASES, on_grid
from tests.compress.small_graphs import Sketch, executed, feeds_of, noise_ratio, outputs, samples
from tests.compress.test_static import VNNI, static

from whet.compress.apply import apply, apply_recipe
from whet.compress.artifacts import load
from whet.compress.data import Dataset
from whet.compress.data.dataset import ArraySamples
from whet.compress.graph import GraphModel
from whet.compress.inspect import inspect
from whet.compress.plan import plan
from whet.core.errors import Unsupported
from whet.core.recipe import Recipe, Step

Array = np.ndarray[Any, Any]
Parts = Callable[[dict[str, Array]], tuple[Array, Array]]


# -- several outputs of different range -----------------------------------------------------------------------------------------------


def detector(end: str) -> tuple[Sketch, Parts]:
    """A stem with two heads: boxes of 0 to 300 and scores of 0 to 1, as two outputs, joined at the end, or joined and cut apart again.

    With it a function from the outputs to (boxes, scores).
    """
    g = Sketch(seed=3)
    y = g.node("Relu", g.conv(g.input("x", ["N", 3, 16, 16]), (3, 16), name="stem"))
    boxes = g.conv(y, (16, 4), (1, 1), name="boxes")
    g.constants["boxes.W"] *= np.float32(30)
    g.constants["boxes.B"][:] = 150
    scores = g.node("Sigmoid", g.conv(y, (16, 4), (1, 1), name="logits"), name="scores")
    if end == "outputs":
        names = g.output(boxes), g.output(scores)
        return g, lambda found: (found[names[0]], found[names[1]])
    joined = g.node("Concat", boxes, scores, axis=1, name="joined")
    if end == "concat":
        name = g.output(joined)
        return g, lambda found: (found[name][:, :4], found[name][:, 4:])
    cuts = [g.node("Slice", joined, *(g.constant([at], np.int64) for at in (begin, begin + 4, 1))) for begin in (0, 4)]
    names = tuple(g.output(g.conv(cut, (4, 4), (1, 1), name=f"after_{at}")) for at, cut in enumerate(cuts))  # type: ignore[assignment]
    g.constants["after_0.W"], g.constants["after_1.W"] = (np.eye(4, dtype=np.float32)[:, :, None, None] for _ in range(2))
    g.constants["after_0.B"], g.constants["after_1.B"] = (np.zeros(4, np.float32) for _ in range(2))
    return g, lambda found: (found[names[0]], found[names[1]])


@pytest.mark.parametrize("end", ["outputs", "concat", "cut apart"])
def test_boxes_and_scores_do_not_share_a_scale(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sketch, parts = detector(end)
    model, data = sketch.model(), samples({"x": (3, 16, 16)})
    wanted = parts(outputs(model, feeds_of(data)))
    ours = parts(outputs(static(model, data), feeds_of(data)))
    assert noise_ratio(ours[0], wanted[0]) < 0.01
    assert noise_ratio(ours[1], wanted[1]) < 0.02
    together = np.concatenate(wanted)
    step = (together.max() - min(together.min(), 0)) / 255
    assert noise_ratio(np.rint(wanted[1] / step) * step, wanted[1]) > 0.3  # what one grid for both would leave of the scores
    if end == "cut apart":  # and does, where the Concat computes in integers
        monkeypatch.setattr("whet.compress.walks.sites.torn", lambda *_: ())
        assert noise_ratio(parts(outputs(static(model, data), feeds_of(data)))[1], wanted[1]) > 0.3


def test_a_concat_of_equal_ranges_that_is_cut_apart_stays_in_integers() -> None:
    """The channel shuffle of ShuffleNet."""
    g = Sketch()
    x = g.input("x", ["N", 4, 8, 8])
    joined = g.node("Concat", g.conv(x, (4, 4)), g.conv(x, (4, 4)), axis=1)
    for begin in (0, 4):
        cut = g.node("Slice", joined, *(g.constant([at], np.int64) for at in (begin, begin + 4, 1)))
        g.output(g.conv(cut, (4, 4)))
    assert executed(static(g.model(), samples({"x": (4, 8, 8)})))["QLinearConcat"] == 1


@pytest.mark.parametrize(("op", "factor"), [("Add", 1.0), ("Add", 50.0), ("Concat", 1.0)])
def test_branches_of_unequal_range_are_added_and_joined(op: str, factor: float) -> None:
    """Each branch keeps the grid of its own range; what is joined has the one that its reader needs."""
    g = Sketch()
    x = g.input("x", ["N", 4, 8, 8])
    small, large = g.conv(x, (4, 4), name="small"), g.conv(x, (4, 4), name="large")
    g.constants["large.W"] *= np.float32(factor)
    g.constants["large.B"] *= np.float32(factor)
    y = g.node(op, small, large, **({"axis": 1} if op == "Concat" else {}))
    g.output(g.conv(y, (8 if op == "Concat" else 4, 4), name="last"))
    model, data = g.model(), samples({"x": (4, 8, 8)})
    made = static(model, data)
    assert executed(made)[f"QLinear{op}"] == 1
    (ours,), (wanted,) = outputs(made, feeds_of(data)).values(), outputs(model, feeds_of(data)).values()
    assert noise_ratio(ours, wanted) < 0.02


@pytest.mark.parametrize("factor", [1.0, 50.0, 0.01])
@pytest.mark.parametrize("kind", ["maps", "rows"])
def test_a_narrow_branch_keeps_its_bits_where_it_is_joined_with_a_wide_one(kind: str, factor: float) -> None:
    """The layer behind the Concat listens to both alike, so one grid over both ranges would lose the narrow one."""
    g, maps = Sketch(), kind == "maps"
    x = g.input("x", ["N", 4, 8, 8] if maps else ["N", 16])
    add = (
        (lambda y, channels, name: g.conv(y, channels, name=name)) if maps else (lambda y, channels, name: g.gemm(y, *channels, name=name))
    )
    one, other = ((4, 4), (4, 6)) if maps else ((16, 16), (16, 24))
    small, large = g.node("Relu", add(x, one, "small")), add(x, other, "large")
    g.constants["large.W"] *= np.float32(factor)
    g.constants["large.B"] *= np.float32(factor)
    y = g.node("Concat", small, large, axis=1)
    g.output(add(y, (10, 4) if maps else (40, 4), "last"))
    g.constants["last.W"][:, one[1] :] /= np.float32(factor)
    model, data = g.model(), samples({"x": (4, 8, 8) if maps else (16,)}, 32)
    made = static(model, data)
    (ours,), (wanted,) = outputs(made, feeds_of(data)).values(), outputs(model, feeds_of(data)).values()
    assert noise_ratio(ours, wanted) < 0.03
    assert executed(made)["QLinearConcat"] == 1
    assert not {"QLinearMul", "Mul"} & set(executed(made))


def test_biases_are_corrected_behind_divided_branches_too() -> None:
    g = Sketch()
    x = g.input("x", ["N", 4, 8, 8])
    small, large = g.conv(x, (4, 4), name="small"), g.conv(x, (4, 4), name="large")
    g.constants["large.W"] *= np.float32(50)
    g.output(g.conv(g.node("Concat", small, large, axis=1), (8, 4), name="last"))
    g.constants["last.W"][:, 4:] /= np.float32(50)
    model, data = g.model(), samples({"x": (4, 8, 8)})
    made = apply_recipe(model, Recipe((Step("static"), Step("bias_correct"))), VNNI, calibration=data)
    (ours,), (wanted,) = outputs(made, feeds_of(data)).values(), outputs(model, feeds_of(data)).values()
    assert noise_ratio(ours, wanted) < 0.03


# -- transposed and grouped convolutions, recurrent layers --------------------------------------------------------------------------------


def test_a_transposed_convolution_between_integer_layers_stays_in_float_with_its_own_weights() -> None:
    """onnxruntime has no integer kernel for it, and would round its weights to int8 with one scale all the same."""
    g = Sketch()
    y = g.node("Relu", g.conv(g.input("x", ["N", 4, 8, 8]), (4, 4)))
    weight = g.weight(4, 6, 3, 3, fan_in=36, name="up.W")
    g.constants["up.W"] *= np.linspace(0.001, 1, 6, dtype=np.float32)[None, :, None, None]
    y = g.node("ConvTranspose", y, weight, strides=[2, 2], name="up")
    g.output(g.conv(y, (6, 3), name="last"))
    model, data = g.model(), samples({"x": (4, 8, 8)})
    made = static(model, data)
    found = executed(made)
    assert (found["QLinearConv"], found["ConvTranspose"]) == (2, 1)
    assert found["DequantizeLinear"] == 2  # of activations
    smaller = apply_recipe(
        model, Recipe((Step("weight_only", ("op:ConvTranspose",)), Step("static", ("op:Conv",)))), VNNI, calibration=data
    )
    assert {layer.name: layer.weight_dtype for layer in inspect(smaller).layers if layer.weight_dtype} | {"up": "int8"} == {
        layer.name: layer.weight_dtype for layer in inspect(smaller).layers if layer.weight_dtype
    }
    (wanted,) = outputs(model, feeds_of(data)).values()
    assert all(noise_ratio(next(iter(outputs(each, feeds_of(data)).values())), wanted) < 0.02 for each in (made, smaller))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 16])
@pytest.mark.parametrize(
    "name", ["ConvTranspose grouped", "Conv grouped", "Conv depthwise", "LSTM bidirectional", "GRU", "MatMul of stacks"]
)
def test_weights_of_every_width_are_those_of_their_grid(name: str, bits: int) -> None:
    case = CASES[name]()
    made = apply(case.model(), "weight_only", target=VNNI, options={"bits": bits})
    wanted = outputs(case.with_weights(lambda _, weight, axis: on_grid(weight, axis, bits)), feeds_of(case.data))
    found = outputs(made, feeds_of(case.data))
    assert all(noise_ratio(found[output], value) < 1e-6 for output, value in wanted.items())
    assert not {"Cast", "Mul", "DequantizeLinear"} & set(executed(made))


@pytest.mark.parametrize(("op", "technique", "kernel"), [("LSTM", "dynamic", "DynamicQuantizeLSTM"), ("GRU", "weight_only", "GRU")])
def test_recurrent_layers_get_what_the_runtime_has(op: str, technique: str, kernel: str) -> None:
    case = CASES[op]()
    model = case.model()
    made = apply(model, technique, target=VNNI)
    assert executed(made) == {kernel: 1}
    assert len(made.content) < 0.6 * len(model.content)
    wanted = outputs(model, feeds_of(case.data))
    assert all(noise_ratio(found, wanted[name]) < 0.02 for name, found in outputs(made, feeds_of(case.data)).items())


# -- bodies of control flow ---------------------------------------------------------------------------------------------------------------


def branches(shared: bool) -> tuple[GraphModel, Dataset, Sketch]:
    """If c: a convolution and a product, else another product; the product's weight is the main graph's where it is ``shared``."""
    g = Sketch()
    x, c = g.input("x", ["N", 4, 8, 8]), g.input("c", [], TensorProto.BOOL)
    y = g.conv(x, (4, 4), name="outside")
    kernel = g.random.standard_normal((4, 4, 3, 3)).astype(np.float32) / 6
    table = g.random.standard_normal((256, 40)).astype(np.float32) / 16
    held = {} if shared else {"table": table}
    if shared:
        g.constant(table, name="table")
    shape = np.array([-1, 256], np.int64)
    then = g.subgraph(
        [
            helper.make_node("Conv", [y, "kernel"], ["t0"], name="conv", pads=[1] * 4),
            helper.make_node("Reshape", ["t0", "shape"], ["t1"], name="flat"),
            helper.make_node("MatMul", ["t1", "table"], ["t2"], name="product"),
        ],
        ["t2"],
        {"kernel": kernel, "shape": shape, **held},
    )
    other = g.subgraph(
        [
            helper.make_node("Reshape", [y, "shape2"], ["e1"], name="flat"),
            helper.make_node("MatMul", ["e1", "table2" if not shared else "table"], ["e2"], name="product"),
        ],
        ["e2"],
        {"shape2": shape, **({} if shared else {"table2": table})},
    )
    g.output(g.node("If", c, then_branch=then, else_branch=other, name="choice"))
    return g.model(infer=False), samples({"x": (4, 8, 8)}, 4), g


def chosen(data: Dataset, choice: bool) -> dict[str, Array]:
    return feeds_of(Dataset(ArraySamples(feeds_of(data)), constants={"c": np.array(choice)}))


@pytest.mark.parametrize("shared", [False, True], ids=["weights in the branches", "weights of the main graph"])
@pytest.mark.parametrize(
    ("technique", "options"), [("weight_only", {}), ("weight_only", {"bits": 4, "block": 32}), ("float16", {}), ("dynamic", {})]
)
def test_weights_inside_branches_become_small(technique: str, options: dict[str, Any], shared: bool) -> None:
    model, data, _ = branches(shared)
    made = apply(model, technique, target=VNNI, options=options)
    assert len(made.content) < (0.62 if technique == "float16" else 0.45) * len(model.content)
    assert "Cast" not in executed(made) or technique == "dynamic"  # folded at load, also in there
    for choice in (True, False):
        wanted = outputs(model, chosen(data, choice))
        assert all(
            noise_ratio(found, wanted[name]) < (0.25 if options else 0.02) for name, found in outputs(made, chosen(data, choice)).items()
        )


def test_a_layer_inside_a_branch_is_named_by_its_path() -> None:
    model, _, _ = branches(False)
    names = [layer.name for layer in inspect(model).layers]
    assert [node.name for node in model.nodes] == names
    path = "choice/then_branch/product"
    made = apply_recipe(model, Recipe((Step("weight_only", (path,)),)), VNNI)
    kinds = {layer.name: layer.weight_dtype for layer in inspect(made).layers if layer.weight_dtype in ("int8", "float32")}
    assert kinds == {"outside": "float32", "choice/then_branch/conv": "float32", path: "int8", "choice/else_branch/product": "float32"}


def test_static_stays_outside_and_says_why() -> None:
    model, data, _ = branches(False)
    everything = Dataset(ArraySamples(feeds_of(data)), constants={"c": np.array(True)})
    assert executed(static(model, everything))["QLinearConv"] == 1
    with pytest.raises(Unsupported, match="choice runs it inside a body of its own"):
        static(model, everything, only=("choice/*",))
    with pytest.raises(Unsupported, match=r"choice \(If\) is no layer; name those inside it"):
        apply_recipe(model, Recipe((Step("weight_only", ("choice",)),)), VNNI)
    notes = {layer.name: layer.note for layer in plan(model, "static", target=VNNI).layers}
    assert "inside a body" in notes["choice/then_branch/conv"]


def scanned(op: str) -> tuple[GraphModel, dict[str, Array], Array]:
    """A recurrence written out: h = tanh(x_t W + h R), in the body of a Scan or a Loop."""
    random = np.random.default_rng(0)
    weight, again = random.standard_normal((6, 20)).astype(np.float32) / 3, random.standard_normal((20, 20)).astype(np.float32) / 5
    constants = [numpy_helper.from_array(weight, "W"), numpy_helper.from_array(again, "R")]
    info = helper.make_tensor_value_info
    step = [
        helper.make_node("MatMul", ["x_t", "W"], ["a"], name="from_input"),
        helper.make_node("MatMul", ["h_in", "R"], ["b"], name="from_state"),
        helper.make_node("Add", ["a", "b"], ["sum"], name="sum"),
        helper.make_node("Tanh", ["sum"], ["h_out"], name="state"),
        helper.make_node("Identity", ["h_out"], ["y_t"], name="out"),
    ]
    float32, shape = TensorProto.FLOAT, [1, 20]
    if op == "Scan":
        body = helper.make_graph(
            step,
            "body",
            [info("h_in", float32, shape), info("x_t", float32, [1, 6])],
            [info("h_out", float32, shape), info("y_t", float32, shape)],
            constants,
        )
        node = helper.make_node("Scan", ["h0", "x"], ["h", "y"], name="steps", num_scan_inputs=1, body=body)
        extra = []
    else:
        pick = helper.make_node("Gather", ["x", "i"], ["x_t"], name="pick", axis=0)
        go_on = helper.make_node("Identity", ["go"], ["go_out"], name="go_on")
        body = helper.make_graph(
            [pick, *step, go_on],
            "body",
            [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("h_in", float32, shape)],
            [info("go_out", TensorProto.BOOL, []), info("h_out", float32, shape), info("y_t", float32, shape)],
            constants,
        )
        node = helper.make_node("Loop", ["count", "", "h0"], ["h", "y"], name="steps", body=body)
        extra = [numpy_helper.from_array(np.array(7, np.int64), "count")]
    graph = helper.make_graph(
        [node],
        "g",
        [info("x", float32, [7, 1, 6]), info("h0", float32, shape)],
        [info("h", float32, shape), info("y", float32, [7, 1, 20])],
        extra,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = {"x": random.standard_normal((7, 1, 6)).astype(np.float32), "h0": np.zeros((1, 20), np.float32)}
    h, states = feeds["h0"].astype(np.float64), []
    for x_t in feeds["x"]:
        h = np.tanh(x_t @ weight.astype(np.float64) + h @ again)
        states.append(h)
    return load(onnx.load_from_string(proto.SerializeToString())), feeds, np.stack(states)


@pytest.mark.parametrize("op", ["Scan", "Loop"])
@pytest.mark.parametrize(
    ("technique", "options", "kernels"),
    [
        ("weight_only", {}, {"MatMul": 2}),
        ("weight_only", {"bits": 4, "block": 16}, {}),
        ("float16", {}, {"MatMul": 2}),
        ("dynamic", {}, {"DynamicQuantizeMatMul": 2}),
    ],
)
def test_recurrences_written_out_in_a_body(op: str, technique: str, options: dict[str, Any], kernels: dict[str, int]) -> None:
    model, feeds, states = scanned(op)
    made = apply(model, technique, target=VNNI, options=options)
    found = executed(made)
    found["MatMul"] = found.get("MatMul", 0) + found.pop("FusedGemm", 0)  # into which the runtime makes one with its Add and Tanh
    assert {name: found.get(name, 0) for name in kernels} == kernels
    assert not {"Cast", "Mul"} & set(found)
    assert noise_ratio(outputs(made, feeds)["y"], states) < (0.15 if options else 0.02)
    layers = {layer.name: layer.weight_dtype for layer in inspect(made).layers}
    assert layers["steps/body/from_state"] in ("int8", "float16", "int4", "uint4")


@pytest.mark.slow
@pytest.mark.parametrize(("technique", "size"), [("weight_only", 0.3), ("float16", 0.53), ("dynamic", 0.7)])
def test_a_speech_detector_that_lies_wholly_in_branches(assets: Path, technique: str, size: float) -> None:
    model = load(assets / "silero_vad" / "model.onnx")
    made = apply(model, technique, target=VNNI)
    assert len(made.content) < size * len(model.content)
    assert set(executed(made)) <= set(executed(model)) | {"DynamicQuantizeLSTM"}  # all else is folded at load
    feeds = {
        "input": np.random.default_rng(0).standard_normal((1, 512)).astype(np.float32) * 0.3,
        "state": np.zeros((2, 1, 128), np.float32),
        "sr": np.array(16000, np.int64),
    }
    wanted = outputs(model, feeds)
    assert all(noise_ratio(found, wanted[name]) < 0.05 for name, found in outputs(made, feeds).items())
