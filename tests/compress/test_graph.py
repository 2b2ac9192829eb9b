"""The graph body: what it lists, what it gives out, what it writes; and the table of where weights lie."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.compress.operators_with_weights import CASES
from tests.compress.small_graphs import Sketch, feeds_of, outputs, samples, weights_of

from whet.compress.artifacts import load
from whet.compress.data import Dataset
from whet.compress.edit import Editor
from whet.compress.graph import GraphModel
from whet.compress.grid import Grid, quantise, weight_grid
from whet.compress.put.sites import is_mover, readers, sites, source
from whet.compress.runtime import exposed, feed_batches, opened, outputs_of
from whet.compress.technique import Change
from whet.compress.weights import Slot, array, as_stored, is_row, rows_first, slots
from whet.core.errors import Refused
from whet.device.targets import target

VNNI = target("x86-vnni")


def node_of(model: GraphModel, name: str) -> ir.Node:
    (found,) = (node for node in model.ir.graph if node.name == name)
    return found


# -- weights -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_every_weight_is_seen_with_its_output_channels_first_and_comes_back(name: str) -> None:
    case = CASES[name]()
    model = case.model()
    views = model.views(["layer"])["layer"]
    assert len(views) == len(case.weights)
    for (slot, view), (constant, axis) in zip(views.items(), case.weights.items(), strict=True):
        stored = case.sketch.constants[constant]
        assert view.weight is not None
        assert np.array_equal(view.weight, np.moveaxis(stored, axis, 0))
        assert np.array_equal(as_stored(view.weight, stored.shape, slot), stored)
        assert np.array_equal(as_stored(view.weight.reshape(len(view.weight), -1), stored.shape, slot), stored)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 5)])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_the_two_ways_across_the_table_are_inverse(shape: tuple[int, ...], axis: int) -> None:
    stored, slot = np.arange(np.prod(shape)).reshape(shape), Slot(1, axis)
    rows = rows_first(stored, slot)
    assert rows.shape[0] == shape[axis]
    assert np.array_equal(as_stored(rows, shape, slot), stored)


@pytest.mark.parametrize("kind", ["input", "vector", "int64", "empty", "other domain", "overridable"])
def test_what_is_no_weight_is_not_taken_for_one(kind: str) -> None:
    sketch = Sketch()
    x = sketch.input("x", [4, 5])
    if kind == "input":
        y = sketch.node("MatMul", x, sketch.input("w", [5, 6]), name="m")
    elif kind == "vector":
        y = sketch.node("MatMul", x, sketch.constant(np.ones(5)), name="m")
    elif kind == "int64":
        y = sketch.node("Gather", sketch.constant(np.ones((5, 5)), np.int64), sketch.constant([1], np.int64), name="m")
    elif kind == "empty":
        y = sketch.node("MatMul", x, sketch.constant(np.ones((5, 0))), name="m")
    elif kind == "other domain":
        y = sketch.node(
            "MatMulNBits",
            x,
            sketch.constant(np.ones((6, 1, 16)), np.uint8),
            sketch.constant(np.ones(6)),
            name="m",
            domain="com.microsoft",
            K=5,
            N=6,
            bits=8,
            block_size=16,
        )
    else:
        y = sketch.matmul(x, 5, 6, name="m")
    sketch.output(y, dtype=7 if kind == "int64" else 1)
    model = ir.from_proto(sketch.proto(infer=False))
    if kind == "overridable":
        model.graph.inputs.append(model.graph.initializers["m.W"])
    assert slots(next(node for node in model.graph if node.name == "m")) == ()


@pytest.mark.parametrize(
    ("shape", "row"), [((), True), ((1,), True), ((6,), True), ((1, 6), True), ((1, 1), True), ((6, 1), False), ((2, 6), False)]
)
def test_what_is_a_row(shape: tuple[int, ...], row: bool) -> None:
    value = ir.val("v", const_value=ir.tensor(np.ones(shape, np.float32), name="v"))
    assert is_row(value) is row
    assert not is_row(None)
    assert not is_row(ir.val("w"))


def test_half_precision_numbers_are_read_as_float32() -> None:
    value = ir.val("v", const_value=ir.tensor(np.ones((2, 2), np.float16), name="v"))
    assert array(value).dtype == np.float32


# -- the model -------------------------------------------------------------------------------------------------------------------------


def test_inputs_and_outputs_are_described_as_the_file_has_them() -> None:
    sketch = Sketch()
    x = sketch.input("serving_default_input_1:0", ["batch", 3, None, 8])
    sketch.input("flag", [], onnx.TensorProto.BOOL)
    sketch.output(sketch.node("Relu", x, name="StatefulPartitionedCall"))
    model = sketch.model()
    assert [(spec.name, spec.dtype, spec.shape) for spec in model.inputs] == [
        ("serving_default_input_1:0", "float32", ("batch", 3, "?", 8)),
        ("flag", "bool", ()),
    ]
    assert [spec.name for spec in model.outputs] == ["StatefulPartitionedCall:0"]
    assert model.fixed_batch is None


@pytest.mark.parametrize(("shapes", "batch"), [([[4, 3]], 4), ([["N", 3]], None), ([[], [2, 3]], 2), ([[]], None)])
def test_the_batch_that_a_graph_fixes(shapes: list[list[Any]], batch: int | None) -> None:
    sketch = Sketch()
    for at, shape in enumerate(shapes):
        sketch.output(sketch.node("Relu", sketch.input(f"x{at}", shape)))
    assert sketch.model().fixed_batch == batch


def test_content_is_the_same_every_time_and_a_valid_model() -> None:
    model = CASES["Conv 2-D"]().model()
    assert model.content == GraphModel(model.copied().ir).content
    onnx.checker.check_model(onnx.load_from_string(model.content), full_check=True)


def test_a_copy_is_a_graph_of_its_own() -> None:
    model = CASES["Conv 2-D"]().model()
    copied = model.copied()
    copied.ir.graph.remove(node_of(copied, "layer"), safe=False)
    assert node_of(model, "layer")


def test_names_inside_become_short_and_layers_keep_theirs() -> None:
    sketch = Sketch()
    y = sketch.conv(sketch.input("v0", ["N", 3, 8, 8]), (3, 4), name="a layer with quite a long name")
    sketch.output(sketch.node("Relu", y, name="w1"))
    model = sketch.model()
    folded = model.folded()
    assert [node.name for node in folded.nodes] == [node.name for node in model.nodes]
    assert [spec.name for spec in folded.inputs] == ["v0"]
    assert max(len(name) for name in weights_of(folded)) <= 3
    assert "v0" not in {value.name for node in folded.ir.graph for value in node.outputs}


def test_what_ships_says_nothing_that_a_runtime_does_not_need() -> None:
    sketch = Sketch()
    sketch.output(sketch.node("Relu", sketch.conv(sketch.input("x", ["N", 3, 8, 8]), (3, 4))))
    proto = sketch.proto()
    proto.doc_string = proto.graph.doc_string = proto.graph.node[0].doc_string = "long words " * 100
    slim = onnx.load_from_string(load(proto).slimmed().content)
    assert (slim.doc_string, slim.graph.doc_string, slim.graph.node[0].doc_string, list(slim.graph.value_info)) == ("", "", "", [])
    assert slim.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("opset", [11, 12])
def test_an_older_opset_is_raised_and_every_node_has_a_name_of_its_own(opset: int) -> None:
    sketch = Sketch(opset)
    y = sketch.node("Softmax", sketch.conv(sketch.input("x", ["N", 3, 8, 8]), (3, 4)), axis=1, name="keep me")
    sketch.output(sketch.node("Softmax", y, axis=2))
    folded = sketch.model().folded()
    names = [node.name for node in folded.nodes]
    assert len(set(names)) == len(names)
    assert all(names)
    feeds = feeds_of(samples({"x": (3, 8, 8)}, 2))
    (before,), (after,) = (outputs(each, feeds).values() for each in (sketch.model(), folded))
    assert np.allclose(before, after, atol=1e-6)


# -- editing -----------------------------------------------------------------------------------------------------------------------------


def empty_editor() -> Editor:
    return Editor(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="g"))


def test_equal_constants_are_stored_once_and_others_are_not_mixed_up() -> None:
    editor = empty_editor()
    one = editor.constant(np.zeros((2, 2), np.float32))
    assert editor.constant(np.zeros((2, 2), np.float32)) is one
    others = [
        np.zeros((4,), np.float32),
        np.zeros((2, 2), np.int32),
        np.zeros((1, 4), np.float32),
        np.zeros((), np.float32),
        np.ones((2, 2), np.float32),
    ]
    assert len({id(value) for value in (one, *map(editor.constant, others))}) == 6
    assert editor.constant(np.zeros(4, np.int8), "int4") is not editor.constant(np.zeros(4, np.int8))


def test_large_constants_that_begin_alike_and_numbers_that_only_compare_equal_are_not_mixed_up() -> None:
    editor = empty_editor()
    long = np.zeros((2, 500), np.float32)
    late = long.copy()
    late[1, 499] = 1
    assert editor.constant(long) is not editor.constant(late)
    assert editor.constant(late.copy()) is editor.constant(late)
    assert editor.constant(np.float32(-0.0)) is not editor.constant(np.float32(0.0))
    assert editor.constant(np.float32(np.nan)) is editor.constant(np.float32(np.nan))


@pytest.mark.parametrize(
    ("dtype", "numbers"),
    [
        ("int4", [-8, 7, 3]),
        ("uint4", [0, 15, 3]),
        ("int8", [-128, 127, 3]),
        ("uint8", [0, 255, 3]),
        ("int16", [-32768, 32767, 3]),
        ("int32", [-(2**31), 2**31 - 1, 3]),
    ],
)
def test_constants_of_every_width_keep_their_numbers(dtype: str, numbers: list[int]) -> None:
    value = empty_editor().constant(np.array(numbers), dtype)
    assert value.const_value is not None
    assert value.const_value.numpy().astype(np.int64).tolist() == numbers


def test_grids_of_every_form_are_written_as_the_operators_want_them() -> None:
    editor = empty_editor()
    codes = editor.constant(np.zeros((4, 6), np.int8))
    for axis, shape in ((None, ()), (0, (4,)), (1, (6,))):
        grid = Grid(8, True, np.ones(shape, np.float32), np.zeros(shape, np.int32), axis)
        made = editor.dequantise(codes, grid).producer()
        assert made is not None
        attributes = {name: attribute.as_int() for name, attribute in made.attributes.items()}
        assert attributes == ({} if axis is None else {"axis": axis})
        assert made.inputs[2] is not None
        assert made.inputs[2].dtype == ir.DataType.INT8


# -- sites --------------------------------------------------------------------------------------------------------------------------------


def test_operators_without_weights_follow_their_neighbours() -> None:
    sketch = Sketch()
    x = sketch.input("x", ["N", 4, 8, 8])
    a = sketch.conv(x, (4, 4), name="a")
    between = sketch.node("Add", a, x, name="between")
    b = sketch.conv(between, (4, 4), name="b")
    sketch.output(sketch.node("Add", b, x, name="at the end"))
    graph = sketch.model().ir.graph
    everything = [node.name or "" for node in graph]
    assert list(sites(graph, everything, VNNI)) == ["a", "between", "b"]
    assert list(sites(graph, ["between"], VNNI)) == []
    assert list(sites(graph, ["a", "between"], VNNI)) == ["a"]


def test_a_tensor_is_followed_through_moves_and_vanishing_relus() -> None:
    sketch = Sketch()
    y = sketch.conv(sketch.input("x", ["N", 4, 8, 8]), (4, 4), name="a")
    y = sketch.node("Relu", y, name="relu")
    y = sketch.node("MaxPool", y, name="pool", kernel_shape=[2, 2])
    sketch.output(sketch.conv(sketch.node("Transpose", y, name="turn", perm=[0, 1, 3, 2]), (4, 4), name="b"))
    model = sketch.model()
    last = node_of(model, "b")
    assert source(last.inputs[0], VNNI) is node_of(model, "a")
    assert readers(node_of(model, "relu").outputs[0], VNNI) == [last]
    (site,) = (site for name, site in sites(model.ir.graph, ["a", "b"], VNNI).items() if name == "a")
    assert site.output is node_of(model, "relu").outputs[0]


@pytest.mark.parametrize(
    ("op", "attributes", "moves"),
    [
        ("Pad", {}, True),
        ("Pad", {"mode": "reflect"}, False),
        ("Pad", {"value": 1.0}, False),
        ("Pad", {"value": 0.0}, True),
        ("Resize", {"mode": "nearest"}, True),
        ("Resize", {"mode": "linear"}, False),
        ("Transpose", {}, True),
        ("Tanh", {}, False),
    ],
)
def test_what_only_moves(op: str, attributes: dict[str, Any], moves: bool) -> None:
    sketch = Sketch()
    x, attributes = sketch.input("x", [1, 2, 4, 4]), dict(attributes)
    more = []
    if op == "Pad":
        more = [sketch.constant([0, 0, 1, 1, 0, 0, 1, 1], np.int64)]
        if "value" in attributes:
            more.append(sketch.constant(attributes.pop("value")))
    elif op == "Resize":
        more = ["", sketch.constant([1, 1, 2, 2])]
    sketch.output(sketch.node(op, x, *more, name="it", **attributes))
    assert is_mover(node_of(sketch.model(), "it"), VNNI) is moves


# -- running ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Conv grouped", "ConvTranspose grouped", "Gemm", "MatMul", "Gather along axis 1"])
def test_a_rounded_weight_is_held_as_codes(name: str) -> None:
    model = CASES[name]().model().folded()
    (layer, found), = model.views([node.name for node in model.nodes]).items()
    ((slot, view),) = found.items()
    assert view.weight is not None
    rounded = quantise(view.weight.reshape(len(view.weight), -1), weight_grid(view.weight.reshape(len(view.weight), -1), bits=4, axis=0))
    made = model.rounded({layer: {slot: Change(rounded)}})
    stored = next(node for node in made.ir.graph if node.name == layer).inputs[slot.index]
    assert stored is not None
    assert isinstance(stored.const_value, ir.LazyTensor)
    assert not np.shares_memory(stored.const_value.numpy(), stored.const_value.numpy())
    again = made.views([layer])[layer][slot]
    assert again.weight is not None
    assert np.array_equal(again.weight.reshape(rounded.codes.shape), rounded.values)


def test_a_tensor_that_is_not_there_is_refused() -> None:
    with pytest.raises(Refused, match="none of that name"):
        exposed(CASES["Conv 2-D"]().model(), ["nothing"])


@pytest.mark.parametrize(("fixed", "count", "sizes"), [(None, 70, [32, 32, 6]), (4, 10, [4, 4, 2]), (1, 3, [1, 1, 1]), (None, 2, [2])])
def test_batches_hold_every_sample_once(fixed: int | None, count: int, sizes: list[int]) -> None:
    sketch = Sketch()
    y = sketch.output(sketch.node("Relu", sketch.input("x", [fixed or "N", 3])))
    model = sketch.model()
    values = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    data = Dataset.of({"x": values})
    with opened(model, threads=1) as session:
        found = [(feeds["x"].copy(), size) for feeds, size in feed_batches(session, model, data, [y])]
    assert [size for _, size in found] == sizes
    assert all(len(feeds) == (fixed or size) for feeds, size in found)
    assert np.array_equal(np.concatenate([feeds[:size] for feeds, size in found]), values)
    assert np.array_equal(outputs_of(model, data, threads=1)[y], values)


def test_an_empty_data_set_is_refused() -> None:
    sketch = Sketch()
    sketch.output(sketch.node("Relu", sketch.input("x", ["N", 3])))
    with pytest.raises(Refused, match="empty"):
        outputs_of(sketch.model(), Dataset.of({"x": np.zeros((0, 3), np.float32)}))


def test_a_saved_model_is_the_model(tmp_path: Path) -> None:
    model = CASES["LSTM"]().model()
    model.save(tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == model.content
    assert onnx.load(io.BytesIO(model.content)).graph.node[0].op_type == "LSTM"
