"""Weights that stay in the file while its structure is parsed: the same model as a parser makes of it, in less time and memory."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from tests.checkpoint.test_killed_runs import PATH
from tests.compress.source_models import FLOAT, info, model, node, weight
from tests.compress.test_source_hostile import field

from whet.compress.source import payloads, read_onnx, read_onnx_bytes
from whet.compress.source.payloads import cut_out
from whet.core.errors import Refused, Unsupported

KINDS = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "int4", "uint2", "float8_e4m3fn")


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "WORTH_BYTES", 1)
    monkeypatch.setattr(payloads, "LARGE_BYTES", 64)


def many_kinds() -> onnx.ModelProto:
    """A weight of each type that ONNX stores as bytes, each read by a Cast; and small ones, which stay."""
    random_numbers = np.random.default_rng(0)
    weights, nodes, outputs = [], [], []
    for kind in KINDS:
        dtype = np.dtype(getattr(ml_dtypes, kind, None) or kind)
        values = random_numbers.integers(0, 2, (9, 31)).astype(dtype)
        weights.append(ir.to_proto(ir.Tensor(values, name=kind)))
        nodes.append(node("Cast", [kind], [f"{kind}_read"], to=FLOAT, name=kind))
        outputs.append(info(f"{kind}_read", FLOAT, [9, 31]))
    nodes.append(node("Mul", ["x", "small"], ["y"], name="small"))
    return model(nodes, [info("x", FLOAT, [2])], [info("y", FLOAT, [2]), *outputs], [*weights, weight("small", 2)], opset=25, ir_version=13)


def numbers(found: ir.Model) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in found.graph.initializers.items() if value.const_value is not None}


def test_every_type_comes_as_the_parser_reads_it(tmp_path: Path) -> None:
    proto = many_kinds()
    data = proto.SerializeToString()
    rest, cut = cut_out(memoryview(data))
    assert set(cut.places) == set(KINDS)
    assert len(rest) < len(data) - sum(cut.size(name) or 0 for name in KINDS) + 8
    (tmp_path / "model.onnx").write_bytes(data)
    expected = {tensor.name: ir.from_proto(tensor).numpy() for tensor in proto.graph.initializer}
    for found in (read_onnx_bytes(data), read_onnx(tmp_path / "model.onnx")):
        assert numbers(found).keys() == expected.keys()
        for name, values in numbers(found).items():
            assert values.dtype == expected[name].dtype
            assert values.shape == expected[name].shape
            assert values.tobytes() == expected[name].tobytes()
            assert values.flags.aligned


def test_all_else_stays_where_it_is() -> None:
    proto = many_kinds()
    proto.doc_string = "behind the graph"
    proto.graph.doc_string = "in the graph"
    rest, cut = cut_out(memoryview(proto.SerializeToString()))
    parsed = onnx.ModelProto.FromString(bytes(rest))
    for tensor in parsed.graph.initializer:
        if tensor.name in cut.places:
            assert not tensor.HasField("raw_data")
            tensor.raw_data = bytes(cut.data[slice(*cut.places[tensor.name])])
    assert parsed == proto


def test_the_file_may_go_once_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(many_kinds().SerializeToString())
    found = read_onnx(path)
    expected = {name: values.tobytes() for name, values in numbers(found).items()}
    path.write_bytes(bytes(path.stat().st_size))
    assert {name: values.tobytes() for name, values in numbers(found).items()} == expected


def test_a_graph_in_parts_is_put_together() -> None:
    """protobuf merges a field that comes twice."""
    proto = many_kinds()
    head, tail = onnx.ModelProto(), onnx.ModelProto()
    head.CopyFrom(proto)
    del head.graph.initializer[5:]
    tail.graph.initializer.extend(proto.graph.initializer[5:])
    found = read_onnx_bytes(head.SerializeToString() + tail.SerializeToString())
    assert set(numbers(found)) == {*KINDS, "small"}


def test_bytes_that_come_twice_count_once() -> None:
    """Of a field that is not repeated the last one holds. No library writes that, so the bytes are put together by hand."""
    proto = many_kinds()
    (tensor,) = [each for each in proto.graph.initializer if each.name == "float32"]
    twice = onnx.TensorProto(raw_data=bytes(len(tensor.raw_data))).SerializeToString() + tensor.SerializeToString()
    proto.graph.initializer.remove(tensor)
    graph = proto.graph.SerializeToString() + field(5, twice)
    proto.ClearField("graph")
    data = proto.SerializeToString() + field(7, graph)
    _, cut = cut_out(memoryview(data))
    assert "float32" not in cut.places
    assert "float64" in cut.places
    assert numbers(read_onnx_bytes(data))["float32"].any()


@pytest.mark.parametrize("change", [{"dims": [10, 31]}, {"dims": [2**40]}, {"data_type": 99}, {"data_type": onnx.TensorProto.DOUBLE},
                                    {"data_type": onnx.TensorProto.STRING}])
def test_weights_that_do_not_hold_what_they_declare(change: dict[str, object]) -> None:
    proto = many_kinds()
    tensor = proto.graph.initializer[0]
    for name in change:
        tensor.ClearField(name)
    tensor.MergeFrom(onnx.TensorProto(**change))
    with pytest.raises(Refused, match="'float32'"):
        read_onnx_bytes(proto.SerializeToString())


def test_two_weights_of_one_name_are_refused() -> None:
    proto = many_kinds()
    proto.graph.initializer.add().CopyFrom(proto.graph.initializer[0])
    with pytest.raises(Refused, match="'float32'"):
        read_onnx_bytes(proto.SerializeToString())


def test_an_old_model_is_converted_with_its_weights() -> None:
    proto = model([node("Mul", ["x", "w"], ["y"])], [info("x", FLOAT, [9, 31])], [info("y", FLOAT, [9, 31])], [weight("w", 9, 31)], opset=9,
                  ir_version=4)
    found = read_onnx_bytes(proto.SerializeToString())
    assert found.opset_imports[""] >= 11
    assert numbers(found)["w"].tobytes() == ir.from_proto(proto.graph.initializer[0]).numpy().tobytes()


def test_damaged_bytes_are_what_they_are_without_the_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome(data: bytes) -> object:
        try:
            return {name: (values.shape, values.tobytes()) for name, values in numbers(read_onnx_bytes(data)).items()}
        except (Refused, Unsupported) as error:
            return type(error)

    whole, rng = many_kinds().SerializeToString(), random.Random(3)
    damaged = [whole[:length] for length in rng.sample(range(len(whole)), 60)]
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        damaged.append(bytes(data))
    with_cut = [outcome(data) for data in damaged]
    monkeypatch.setattr(payloads, "WORTH_BYTES", 1 << 30)
    assert with_cut == [outcome(data) for data in damaged]
    assert sum(isinstance(each, dict) for each in with_cut) > 20


def test_a_tensor_in_another_file_is_left_there(tmp_path: Path) -> None:
    """Whatever bytes it holds besides."""
    (tmp_path / "w.bin").write_bytes(np.ones((9, 31), np.float32).tobytes())
    proto = model([node("Mul", ["x", "w"], ["y"])], [info("x", FLOAT, [9, 31])], [info("y", FLOAT, [9, 31])], [weight("w", 9, 31)])
    tensor = proto.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    assert numbers(read_onnx(tmp_path / "model.onnx"))["w"].min() == 1


READ = """
import json, sys
from whet.compress.source import read_onnx
from whet.device.memory import _reset_peak, _status_bytes
before = _status_bytes("VmRSS")
_reset_peak()
model = read_onnx(sys.argv[1])
print(json.dumps(_status_bytes("VmHWM") - before))
"""


def test_reading_takes_the_memory_of_the_numbers(tmp_path: Path) -> None:
    """A parser's copy and the file's own pages beside them made it three times that."""
    weights = [helper.make_tensor(f"w{at}", FLOAT, [5_000_000], bytes(20_000_000), raw=True) for at in range(4)]
    nodes = [node("Mul", ["x" if at == 0 else f"y{at - 1}", f"w{at}"], [f"y{at}"]) for at in range(4)]
    proto = model(nodes, [info("x", FLOAT, [5_000_000])], [info("y3", FLOAT, [5_000_000])], weights)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    done = subprocess.run([sys.executable, "-c", READ, tmp_path / "model.onnx"], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": PATH})
    assert json.loads(done.stdout) < 1.15 * 80e6
