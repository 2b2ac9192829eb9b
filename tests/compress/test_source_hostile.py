"""Damaged and hostile files end in Refused or Unsupported, soon and in little memory."""

from __future__ import annotations

import os
import random
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from tests.compress.source_models import BOOL, FLOAT, info, many_sided, model, node, relu, weight

from whet.compress.inspect import inventory
from whet.compress.source import from_proto, normalise, read_onnx, read_onnx_bytes
from whet.compress.source.wire import SMALL_BYTES
from whet.core.errors import Refused, Unsupported

WHOLE = many_sided().SerializeToString()


def load(data: bytes) -> bool:
    """Whether it loads; the whole way, so that what is let in really is a model."""
    try:
        inventory(normalise(read_onnx_bytes(data)))
    except (Refused, Unsupported):
        return False
    return True


def test_a_model_cut_off_at_every_byte() -> None:
    assert load(WHOLE)
    loading = [length for length in range(len(WHOLE)) if load(WHOLE[:length])]
    for length in loading:  # protobuf has no end mark: a prefix may be a model, and then it must be one that runs
        onnx.checker.check_model(onnx.ModelProto.FromString(WHOLE[:length]))


def test_a_function_that_was_cut_off_the_end_is_missed() -> None:
    proto = onnx.ModelProto.FromString(WHOLE)
    del proto.functions[:]
    with pytest.raises(Unsupported, match="Twice"):
        from_proto(proto)


def test_damaged_bytes_never_end_in_another_error() -> None:
    rng = random.Random(7)
    for _ in range(400):
        data = bytearray(WHOLE)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        load(bytes(data))


@given(st.binary(max_size=200))
def test_noise_never_ends_in_another_error(data: bytes) -> None:
    assert not load(data)


@pytest.mark.parametrize("data", [
    b"", b"hello, this is text\n" * 10, b"\x89PNG\r\n\x1a\n", b"PK\x03\x04" + bytes(100), bytes(1000), b"\xff" * 1000,
])
def test_what_is_no_model(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(Refused, match=r"m\.onnx"):
        read_onnx(tmp_path / "m.onnx")


def test_files_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    for name in (".", "missing.onnx", "pipe.onnx"):
        with pytest.raises(Refused):
            read_onnx(tmp_path / name)


def test_a_file_over_2_gb_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "big.onnx").open("wb") as file:
        file.truncate(3 * 2**30)
    with pytest.raises(Refused, match="external data"):
        read_onnx(tmp_path / "big.onnx")


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field in protobuf's wire format."""
    length, size = b"", len(payload)
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + payload


def test_a_large_file_of_nothing_but_structure_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty nodes are two bytes on disk and some hundred in memory."""
    monkeypatch.setattr(onnx.ModelProto, "ParseFromString", None, raising=False)
    with pytest.raises(Refused, match="entries"):
        read_onnx_bytes(field(7, b"\x0a\x00" * SMALL_BYTES))


def test_more_nodes_than_any_runtime_loads_are_refused() -> None:
    with pytest.raises(Refused, match="nodes"):
        from_proto(onnx.ModelProto.FromString(field(7, b"\x0a\x00" * 1_000_001) + field(8, b"\x10\x0d")))


def test_a_large_file_with_much_in_few_nodes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whet.compress.source.wire.STRUCTURE_BYTES", SMALL_BYTES)
    with pytest.raises(Refused, match="besides the weights"):
        read_onnx_bytes(field(7, field(1, bytes(0) + field(6, bytes(SMALL_BYTES)))))


def test_a_large_file_of_weights_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whet.compress.source.wire.STRUCTURE_BYTES", 1000)
    proto = model([node("Mul", ["x", "w"], ["y"])], [info("x", FLOAT, [1])], [info("y", FLOAT, None)])
    proto.graph.initializer.add(name="w", data_type=FLOAT, dims=[SMALL_BYTES // 4 + 1], raw_data=bytes(SMALL_BYTES + 4))
    assert len(read_onnx_bytes(proto.SerializeToString()).graph) == 1


def one_tensor(**fields: object) -> onnx.ModelProto:
    proto = model([node("Mul", ["x", "w"], ["y"])], [info("x", FLOAT, [1])], [info("y", FLOAT, None)])
    proto.graph.initializer.add(**{"name": "w", "data_type": FLOAT, "dims": [2], **fields})
    return proto


@pytest.mark.parametrize("fields", [
    {"raw_data": bytes(4)}, {"raw_data": bytes(12)}, {}, {"float_data": [1.0]}, {"float_data": [1.0, 2.0, 3.0]}, {"int64_data": [1, 2]},
    {"dims": [-2], "raw_data": bytes(8)}, {"dims": [2**62, 2**62], "raw_data": bytes(8)}, {"dims": [2**40], "raw_data": bytes(8)},
    {"dims": [1] * 1000, "raw_data": bytes(4)}, {"data_type": 0, "raw_data": bytes(8)}, {"data_type": 99, "raw_data": bytes(8)},
    {"data_type": onnx.TensorProto.INT4, "dims": [3], "raw_data": bytes(3)}, {"data_type": onnx.TensorProto.STRING, "raw_data": bytes(8)},
    {"float_data": [1.0], "int32_data": [1]},
])
def test_a_tensor_that_does_not_hold_what_it_declares(fields: dict[str, object]) -> None:
    with pytest.raises(Refused, match="'w'"):
        from_proto(one_tensor(**fields))


def test_the_tensor_that_fits_is_read() -> None:
    from_proto(one_tensor(raw_data=bytes(8)))
    from_proto(one_tensor(float_data=[1.0, 2.0]))


def reading(name: str) -> onnx.GraphProto:
    """A branch that reads a value from around it."""
    return helper.make_graph([node("Neg", [name], [f"neg_{name}"])], "g", [], [info(f"neg_{name}", FLOAT, [2])])


def broken(name: str) -> onnx.ModelProto:
    """A model with one rule broken."""
    x, y = info("x", FLOAT, [2]), info("y", FLOAT, [2])
    made = {
        "undefined input": lambda: model([node("Relu", ["nobody"], ["y"])], [x], [y]),
        "undefined output": lambda: model([node("Relu", ["x"], ["z"])], [x], [y]),
        "defined twice": lambda: model([node("Relu", ["x"], ["y"]), node("Neg", ["x"], ["y"])], [x], [y]),
        "input twice": lambda: model([node("Relu", ["x"], ["y"])], [x, x], [y]),
        "node makes input": lambda: model([node("Relu", ["x"], ["x"])], [x], [x]),
        "weight twice": lambda: model([node("Add", ["x", "w"], ["y"])], [x], [y], [weight("w", 2), weight("w", 2)]),
        "cycle": lambda: model([node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"])], [x], [y]),
        "through a branch": lambda: model(
            [node("Add", ["x", "o"], ["a"]), node("If", ["c"], ["o"], then_branch=reading("a"), else_branch=reading("x")),
             node("Relu", ["a"], ["y"])], [x, info("c", BOOL, [])], [y]),
        "self": lambda: model([node("Add", ["x", "y"], ["y"])], [x], [y]),
        "empty": lambda: model([], [x], [y], [weight("y", 2)]),
        "no outputs": lambda: model([node("Relu", ["x"], ["y"])], [x], []),
        "wrong attribute": lambda: model([node("Relu", ["x"], ["y"], slope=1)], [x], [y]),
        "wrong inputs": lambda: model([node("Conv", ["x"], ["y"])], [x], [y]),
        "no operator": lambda: model([node("", ["x"], ["y"])], [x], [y]),
        "ghost opset": lambda: model([node("Relu", ["x"], ["y"])], [x], [y], opset=10_000),
    }
    return made[name]()


@pytest.mark.parametrize(("name", "says"), [
    ("undefined input", "reads 'nobody'"), ("undefined output", "list of outputs"), ("defined twice", "'y' is defined twice"),
    ("input twice", "defined twice"), ("node makes input", "defined twice"), ("weight twice", "'w' is defined twice"),
    ("cycle", "waits for its own"), ("self", "waits for its own"), ("through a branch", "waits for its own"), ("empty", "empty"),
    ("no outputs", "no outputs"), ("wrong attribute", "checker"), ("wrong inputs", "checker"), ("no operator", "no operator"),
    ("ghost opset", "10000"),
])
def test_broken_graphs(name: str, says: str) -> None:
    with pytest.raises((Refused, Unsupported), match=says):
        from_proto(broken(name))


def nested(depth: int) -> onnx.ModelProto:
    inner = helper.make_graph([node("Relu", ["x"], [f"v{depth}"])], "g", [], [info(f"v{depth}", FLOAT, [2])])
    for level in range(depth - 1, -1, -1):
        other = helper.make_graph([node("Neg", ["x"], [f"e{level}"])], "g", [], [info(f"e{level}", FLOAT, [2])])
        choice = node("If", ["c"], [f"v{level}"], then_branch=inner, else_branch=other)
        inner = helper.make_graph([choice], "g", [], [info(f"v{level}", FLOAT, [2])])
    return model(inner.node, [info("x", FLOAT, [2]), info("c", BOOL, [])], [info("v0", FLOAT, [2])])


def test_nesting_is_bounded() -> None:
    assert len(from_proto(nested(8)).graph) == 1
    with pytest.raises(Refused, match="nested"):
        from_proto(nested(25))
    deep = b""
    for _ in range(200):
        deep = field(1, field(5, field(6, deep)))  # a graph in an attribute of a node
    with pytest.raises(Refused, match="protobuf cannot read it"):
        read_onnx_bytes(field(7, deep))


def test_a_value_of_an_inner_graph_is_not_seen_outside() -> None:
    proto = nested(1)
    proto.graph.node.append(node("Relu", ["v1"], ["late"]))
    with pytest.raises(Refused, match="reads 'v1'"):
        from_proto(proto)


def test_functions_that_double_each_other_up_are_refused() -> None:
    opset = [helper.make_opsetid("", 13), helper.make_opsetid("f", 1)]
    functions = [helper.make_function("f", "F0", ["a"], ["b"], [node("Relu", ["a"], ["b"])], opset)]
    functions += [helper.make_function("f", f"F{i}", ["a"], ["c"],
                                       [node(f"F{i - 1}", ["a"], ["b"], domain="f"), node(f"F{i - 1}", ["b"], ["c"], domain="f")], opset)
                  for i in range(1, 40)]
    proto = model([node("F39", ["x"], ["y"], domain="f")], [info("x", FLOAT, [2])], [info("y", FLOAT, [2])], domains={"f": 1},
                  functions=functions)
    with pytest.raises(Refused, match="unfold"):
        from_proto(proto)


def test_a_function_that_calls_itself_is_refused() -> None:
    opset = [helper.make_opsetid("", 13), helper.make_opsetid("f", 1)]
    functions = [helper.make_function("f", "F", ["a"], ["b"], [node("F", ["a"], ["b"], domain="f")], opset)]
    proto = model([node("F", ["x"], ["y"], domain="f")], [info("x", FLOAT, [2])], [info("y", FLOAT, [2])], domains={"f": 1},
                  functions=functions)
    with pytest.raises(Refused, match="calls itself"):
        from_proto(proto)


def test_sparse_weights_are_unsupported_and_not_lost() -> None:
    proto = relu()
    proto.graph.sparse_initializer.add()
    with pytest.raises(Unsupported, match="sparse"):
        from_proto(proto)


def test_a_hostile_name_does_not_flood_the_message() -> None:
    proto = relu()
    proto.graph.node[0].input[0] = "\x1b[2J" + "a" * 1_000_000
    with pytest.raises(Refused) as caught:
        from_proto(proto)
    assert len(str(caught.value)) < 600
    assert "\x1b" not in str(caught.value)
