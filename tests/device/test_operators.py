from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.device.tiny_models import branching, dense, graph_model, quantised, relu, value

from whet.core.errors import Refused, Unsupported
from whet.device import operators as rooms
from whet.device.operators import OperatorTime, executed_graph, operator_times
from whet.device.session import open_session, run

ROWS = {"x": np.ones((8, 256), np.float32)}


def test_every_node_once_longest_first_and_shares_add_up() -> None:
    found = operator_times(dense(256, 3), ROWS, threads=1, repeats=10)
    assert len(found) == 6
    assert [one.mean_us for one in found] == sorted((one.mean_us for one in found), reverse=True)
    assert sum(one.share for one in found) == pytest.approx(1)
    assert {one.op for one in found[:3]} == {"MatMul"}
    assert {one.provider for one in found} == {"CPUExecutionProvider"}
    assert {one.name for one in found} >= {"product0", "relu2"}
    assert OperatorTime.from_json(found[0].to_json()) == found[0]


def test_the_operator_is_the_one_that_runs_and_not_the_one_in_the_file() -> None:
    feeds = {"x": np.zeros((1, 32, 8, 8), np.float32)}
    ops = {one.op for one in operator_times(quantised(), feeds, threads=1, repeats=2)}
    assert "QLinearConv" in ops
    assert "Conv" not in ops
    kept = operator_times(quantised(), feeds, threads=1, repeats=2, options={"session.disable_quant_qdq": "1"})
    assert "QLinearConv" not in {one.op for one in kept}


def test_names_that_json_does_not_like() -> None:
    name = 'a "quoted" \\ name/ä\n:0'
    model = graph_model([helper.make_node("Sigmoid", ["x"], ["y"], name=name)], [value("x", [3])], [value("y", [3])])
    try:
        (found,) = operator_times(model, {"x": np.ones(3, np.float32)}, threads=1, repeats=1)
    except Unsupported as error:
        pytest.fail(str(error))
    assert found.op == "Sigmoid"


def test_nodes_without_names_are_told_apart() -> None:
    nodes = [helper.make_node("Sigmoid", ["x"], ["h"]), helper.make_node("Sigmoid", ["h"], ["y"])]
    found = operator_times(graph_model(nodes, [value("x", [3])], [value("y", [3])]), {"x": np.ones(3, np.float32)}, threads=1, repeats=2)
    assert len(found) == 2


def test_only_the_branch_that_is_taken_has_a_time() -> None:
    feeds = {"c": np.array(True), "x": np.ones(2, np.float32)}
    ops = {one.op for one in operator_times(branching(), feeds, threads=1, repeats=2)}
    assert "Abs" in ops
    assert "Neg" not in ops


def event(name: str, us: int, position: int) -> dict[str, object]:
    return {"cat": "Node", "name": name + "_kernel_time", "dur": us,
            "args": {"op_name": "Conv", "provider": "CPU", "node_index": str(position)}}


def test_warm_up_and_outliers_do_not_count() -> None:
    """Three warm-up inferences, then four, of which the middle half is averaged; a node called twice adds up."""
    times = [900, 900, 900, 10, 20, 30, 5000]
    events = [each for us in times for each in (event("a", us, 0), event("b", us // 10, 1), event("b", us // 10, 1))]
    first, second = rooms._summed(events, 4)
    assert (first.name, first.mean_us) == ("a", 25)
    assert (second.name, second.mean_us) == ("b", 5)
    assert first.share == pytest.approx(25 / 30)


def test_nodes_of_one_name_are_told_apart_by_their_place() -> None:
    found = rooms._summed([event("a", us, at) for _ in range(5) for at, us in enumerate((10, 30))], 2)
    assert [one.mean_us for one in found] == [30, 10]


def test_a_node_that_not_every_inference_calls_has_its_plain_mean() -> None:
    (found,) = rooms._summed([event("a", 12, 0)], 3)
    assert found.mean_us == 2  # 12 us in six inferences


def test_the_executed_graph_has_domains() -> None:
    assert executed_graph(quantised(), threads=1)["com.microsoft", "QLinearConv"] == 1  # channels last, which is onnxruntime's own
    assert executed_graph(relu()) == {("", "Relu"): 1}
    found = executed_graph(dense(64, 3))
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_the_executed_graph_has_both_branches() -> None:
    assert set(executed_graph(branching())) == {("", "If"), ("", "Abs"), ("", "Neg"), ("", "Sigmoid")}


def test_the_executed_graph_is_what_onnx_reads_in_it(assets: Path, tmp_path: Path) -> None:
    model = assets / "resnet20_cifar10" / "model.onnx"
    open_session(model, optimized_to=tmp_path / "o.onnx")
    expected: dict[tuple[str, str], int] = {}
    for node in onnx.load(tmp_path / "o.onnx").graph.node:
        expected[node.domain, node.op_type] = expected.get((node.domain, node.op_type), 0) + 1
    assert executed_graph(model) == expected
    feeds = {"input": np.zeros((1, 3, 32, 32), np.float32)}
    run(open_session(model), feeds)
    assert len(operator_times(model, feeds, repeats=1)) == sum(expected.values())


def test_no_files_stay_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(rooms.tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    operator_times(dense(256), ROWS, repeats=1)
    executed_graph(dense())
    with pytest.raises(Refused, match="shape"):
        operator_times(dense(64), ROWS)
    with pytest.raises(Unsupported):
        executed_graph(b"no model")
    assert list((tmp_path / "temporary").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="0 repeats"):
        operator_times(relu(), {}, repeats=0)
    (tmp_path / "p.json").write_text("[{]")
    with pytest.raises(Unsupported, match="profile"):
        rooms._events(tmp_path / "p.json")
    (tmp_path / "p.json").write_text(json.dumps([{"cat": "Session", "name": "x"}, event("n", 1, 0)]))
    assert len(rooms._events(tmp_path / "p.json")) == 1
