from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from tests.device.tiny_models import branching, dense, graph_model, relu, value

from whet.core.artifact import TensorSpec
from whet.core.errors import Refused, Unsupported
from whet.device.machine import usable_cores
from whet.device.session import SPINNING_STOP, check_feeds, example_feeds, open_session, run, specs, spins_after_run


def test_bytes_text_and_path_open_alike(tmp_path: Path) -> None:
    path = tmp_path / "a model.onnx"
    path.write_bytes(relu())
    feeds = {"x": np.array([[-1, 0, 2]], np.float32)}
    for model in (relu(), str(path), path):
        np.testing.assert_array_equal(run(open_session(model), feeds)["y"], [[0, 0, 2]])


def test_threads_options_and_silence_are_set() -> None:
    settings = open_session(relu(), threads=3, options={"session.disable_quant_qdq": "1"}).get_session_options()
    assert (settings.intra_op_num_threads, settings.inter_op_num_threads) == (3, 1)
    assert settings.get_session_config_entry("session.disable_quant_qdq") == "1"
    assert settings.get_session_config_entry(SPINNING_STOP) == "1"
    assert settings.log_severity_level >= 3
    assert open_session(relu()).get_session_options().intra_op_num_threads == usable_cores()


@pytest.mark.parametrize(("threads", "options", "spins"), [
    (2, {}, False), (2, {SPINNING_STOP: "0"}, True), (1, {SPINNING_STOP: "0"}, False),
    (2, {SPINNING_STOP: "0", "session.intra_op.allow_spinning": "0"}, False),
])
def test_spinning_is_known(threads: int, options: dict[str, str], spins: bool) -> None:
    assert spins_after_run(open_session(relu(), threads=threads, options=options)) is spins


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"gone\.onnx.*no such file"):
        open_session(tmp_path / "gone.onnx")
    with pytest.raises(Refused, match="it is a folder"):
        open_session(tmp_path)


def test_bad_threads_providers_and_options_are_refused() -> None:
    with pytest.raises(Refused, match="0 threads"):
        open_session(relu(), threads=0)
    with pytest.raises(Refused, match=r"'NoSuchProvider'.*'CPUExecutionProvider'"):
        open_session(relu(), providers=("NoSuchProvider",))
    with pytest.raises(Refused, match="no provider"):
        open_session(relu(), providers=())
    with pytest.raises(Refused, match="session option"):
        open_session(relu(), options={"x" * 5000: "1"})


@pytest.mark.parametrize("cut", range(0, len(relu()), 3))
def test_a_file_cut_anywhere_is_unsupported_or_runs(cut: int) -> None:
    """Protobuf has no length of the whole: a cut between two fields may leave a model. It may never leave another error."""
    try:
        session = open_session(relu()[:cut])
    except Unsupported:
        return
    specs(session)


def test_load_failures_name_node_and_operator() -> None:
    x, y = value("x", [2]), value("y", None)
    unknown = graph_model([helper.make_node("Nonesuch", ["x"], ["y"], name="the node")], [x], [y])
    with pytest.raises(Unsupported, match="node 'the node' operator 'Nonesuch'"):
        open_session(unknown)
    custom = graph_model([helper.make_node("Own", ["x"], ["y"], name="n", domain="custom")], [x], [y])
    with pytest.raises(Unsupported, match=r"operator 'custom:Own'.*custom operator"):
        open_session(custom)
    mistyped = graph_model([helper.make_node("Sigmoid", ["x"], ["y"], name="my node")], [value("x", [2], TensorProto.INT8)], [y])
    with pytest.raises(Unsupported, match="node 'my node' operator 'Sigmoid'"):
        open_session(mistyped)
    future = graph_model([helper.make_node("Relu", ["x"], ["y"])], [x], [y], opset=999)
    with pytest.raises(Unsupported, match="export it again for an opset"):
        open_session(future)


def test_a_failure_inside_a_branch_names_the_innermost_node() -> None:
    nodes = [helper.make_node("Gather", ["x", "i"], ["t"], name="pick")]
    inner = helper.make_graph(nodes, "g", [], [value("t", None)])
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["o"])], "h", [], [value("o", None)])
    outer = [helper.make_node("If", ["c"], ["y"], name="choose", then_branch=inner, else_branch=other)]
    inputs = [value("c", [], TensorProto.BOOL), value("x", [2]), value("i", [1], TensorProto.INT64)]
    session = open_session(graph_model(outer, inputs, [value("y", None)]))
    feeds = {"c": np.array(True), "x": np.zeros(2, np.float32), "i": np.array([9])}
    with pytest.raises(Unsupported, match="node 'pick' operator 'Gather'"):
        run(session, feeds)


def test_specs_have_numpys_dtypes_and_named_or_unnamed_sizes() -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    names = {TensorProto.FLOAT: "float32", TensorProto.DOUBLE: "float64", TensorProto.INT64: "int64", TensorProto.BOOL: "bool"}
    for dtype, name in names.items():
        session = open_session(graph_model([node], [value("x", ["N", 3, None], dtype)], [value("y", ["N", 3, None], dtype)]))
        assert specs(session) == ((TensorSpec("x", name, ("N", 3, "?")),), (TensorSpec("y", name, ("N", 3, "?")),))


@pytest.mark.parametrize(("feeds", "message"), [
    ({}, r"no value for 'x'.*inputs are 'x'"),
    ({"x": np.zeros((1, 3), np.float32), "z": np.zeros(1)}, "a value for 'z'"),
    ({"x": np.zeros((1, 3))}, r"input 'x': dtype float64\. the model takes float32"),
    ({"x": np.zeros((1, 4), np.float32)}, r"input 'x': shape \[1, 4\]\. the model takes \[N, 3\]"),
    ({"x": np.zeros(3, np.float32)}, r"shape \[3\]"),
    ({"x": [[1, 2, 3]]}, "a list"),
])
def test_wrong_inputs_are_refused_with_their_name(feeds: dict[str, np.ndarray], message: str) -> None:
    session = open_session(relu())
    with pytest.raises(Refused, match=message):
        run(session, feeds)
    with pytest.raises(Refused, match=message):
        check_feeds(session, feeds)


def test_only_the_outputs_asked_for_come_back() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])]
    session = open_session(graph_model(nodes, [value("x", [1])], [value("y", [1]), value("z", [1])]))
    feeds = {"x": np.ones(1, np.float32)}
    assert list(run(session, feeds)) == ["y", "z"]
    assert {name: float(array[0]) for name, array in run(session, feeds, ["z"]).items()} == {"z": -1.0}
    with pytest.raises(Refused, match=r"output 'w'.*'y', 'z'"):
        run(session, feeds, ["w"])


def test_an_input_with_a_default_may_be_left_out_or_given() -> None:
    two = helper.make_tensor("b", TensorProto.FLOAT, [1], [2.0])
    add = helper.make_node("Add", ["x", "b"], ["y"])
    session = open_session(graph_model([add], [value("x", [1]), value("b", [1])], [value("y", [1])], [two]))
    one = np.ones(1, np.float32)
    assert run(session, {"x": one})["y"] == 3
    assert run(session, {"x": one, "b": one})["y"] == 2


def test_example_feeds_fit_and_repeat() -> None:
    inputs = (TensorSpec("x", "float32", ("N", 3, "?")), TensorSpec("h", "float16", (2, "?", 4)), TensorSpec("i", "int64", ("N",)),
              TensorSpec("b", "bool", ()))
    feeds = example_feeds(inputs, batch=5)
    assert {name: (array.shape, array.dtype.name) for name, array in feeds.items()} == {
        "x": ((5, 3, 1), "float32"), "h": ((2, 5, 4), "float16"), "i": ((5,), "int64"), "b": ((), "bool")}
    assert feeds["x"].std() > 0.3
    assert not feeds["i"].any()
    assert all((feeds[name] == again).all() for name, again in example_feeds(inputs, batch=5).items())
    assert (example_feeds(inputs, batch=5, seed=1)["x"] != feeds["x"]).any()
    with pytest.raises(Unsupported, match=r"'t'.*string"):
        example_feeds([TensorSpec("t", "string", ("N",))])


def test_example_feeds_run(tmp_path: Path) -> None:
    for model in (relu(), dense(), branching()):
        session = open_session(model)
        run(session, example_feeds(specs(session)[0]))


def test_the_optimised_graph_is_written(tmp_path: Path) -> None:
    open_session(dense(), optimized_to=tmp_path / "o.onnx")
    assert (tmp_path / "o.onnx").stat().st_size > 1000


def test_ugly_names_of_a_real_model(assets: Path) -> None:
    session = open_session(assets / "kws_mlperf_tiny" / "model.onnx")
    (spec,) = specs(session)[0]
    assert ":" in spec.name
    assert run(session, example_feeds([spec]))
    with pytest.raises(Refused, match="no value for 'serving_default_input_1:0'"):
        run(session, {"input": np.zeros(1, np.float32)})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(relu())
    path.chmod(0)
    with pytest.raises(Unsupported, match="ermission"):
        open_session(path)


def test_a_file_of_another_kind_is_explained() -> None:
    with pytest.raises(Unsupported, match=f"onnxruntime {onnxruntime.__version__}.*not an ONNX model"):
        open_session(b"PK\x03\x04 certainly no model")


def test_no_outputs_asked_for_are_none_and_not_all() -> None:
    session = open_session(relu(), threads=1)
    feeds = example_feeds(specs(session)[0])
    assert run(session, feeds, []) == {}
    assert run(session, feeds)
