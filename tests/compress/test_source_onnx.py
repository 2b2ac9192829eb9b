"""Loading ONNX: what comes in, under which names, and what stays on disk."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from tests.compress.source_models import BOOL, FLOAT, constant, info, many_sided, model, node, relu, run, weight

from whet.compress.source import control_flow, from_proto, read_onnx, read_onnx_bytes
from whet.core.errors import Refused, Unsupported


def names(loaded: ir.Model) -> list[str | None]:
    return [each.name for each in loaded.graph]


def test_ugly_names_and_open_sizes_are_kept() -> None:
    proto = model([node("Relu", ["serving_default_input_1:0"], ["StatefulPartitionedCall:0"])],
                  [info("serving_default_input_1:0", FLOAT, ["unk__110", 49, 10, 1])], [info("StatefulPartitionedCall:0", FLOAT, None)])
    loaded = read_onnx_bytes(proto.SerializeToString())
    assert [value.name for value in loaded.graph.inputs] == ["serving_default_input_1:0"]
    assert [value.name for value in loaded.graph.outputs] == ["StatefulPartitionedCall:0"]
    assert str(loaded.graph.inputs[0].shape) == "[unk__110,49,10,1]"


def test_nodes_are_named_by_operator_and_count_and_given_names_stay() -> None:
    chain = ["Relu", "Neg", "Relu", "Relu", "Relu"]
    given = ["", "", "Relu_3", "", "Relu_3"]
    proto = model([node(op, [f"v{i}"], [f"v{i + 1}"], name=given[i]) for i, op in enumerate(chain)],
                  [info("v0", FLOAT, [1])], [info("v5", FLOAT, [1])])
    first, second = from_proto(proto), from_proto(proto)
    assert names(first) == ["Relu_0", "Neg_0", "Relu_3", "Relu_2", "Relu_3_1"]
    assert names(first) == names(second)


def test_thousands_of_nodes_of_one_name_get_names_in_linear_time() -> None:
    proto = model([node("Relu", [f"v{i}"], [f"v{i + 1}"], name="same") for i in range(8_000)],
                  [info("v0", FLOAT, [1])], [info("v8000", FLOAT, [1])])
    assert len(set(names(from_proto(proto)))) == 8_000


def test_values_of_two_branches_get_names_of_their_own_and_control_flow_is_told() -> None:
    loaded = from_proto(many_sided())
    made = [value.name for each in loaded.graph.all_nodes() for value in each.outputs]
    assert len(made) == len(set(made))
    assert control_flow(loaded) == ("If_0",)
    assert control_flow(from_proto(relu())) == ()


def test_functions_are_inlined() -> None:
    loaded = from_proto(many_sided())
    assert not loaded.functions
    assert [each.op_type for each in loaded.graph] == ["Conv", "Add", "ConstantOfShape", "If", "ReduceSum", "Add"]
    feeds = {"x": np.ones((1, 1, 4, 4), np.float32), "flag": np.array(False)}
    assert np.array_equal(run(many_sided(), feeds)[0], run(ir.to_proto(loaded), feeds)[0])


def test_the_proto_of_the_caller_is_left_alone() -> None:
    proto = many_sided()
    before = proto.SerializeToString(deterministic=True)
    from_proto(proto)
    assert proto.SerializeToString(deterministic=True) == before


def test_initializers_that_are_inputs_become_constants() -> None:
    proto = model([node("Add", ["x", "w"], ["y"])], [info("x", FLOAT, [2]), info("w", FLOAT, [2])], [info("y", FLOAT, [2])],
                  [weight("w", 2)], ir_version=3)
    loaded = from_proto(proto)
    assert [value.name for value in loaded.graph.inputs] == ["x"]
    x = np.ones(2, np.float32)
    assert np.array_equal(run(ir.to_proto(loaded), {"x": x})[0], run(proto, {"x": x})[0])


def test_nodes_out_of_order_are_sorted() -> None:
    proto = model([node("Relu", ["a"], ["y"]), node("Neg", ["x"], ["a"])], [info("x", FLOAT, [2])], [info("y", FLOAT, [2])])
    assert [each.op_type for each in from_proto(proto).graph] == ["Neg", "Relu"]


def test_a_negative_size_is_an_open_one() -> None:
    loaded = from_proto(model([node("Relu", ["x"], ["y"])], [info("x", FLOAT, [-1, 3])], [info("y", FLOAT, [-1, 3])]))
    assert not isinstance(loaded.graph.inputs[0].shape[0], int)
    assert loaded.graph.inputs[0].shape[1] == 3


def test_the_long_name_of_the_onnx_domain_is_understood() -> None:
    proto = relu()
    proto.opset_import[0].domain = proto.graph.node[0].domain = "ai.onnx"
    assert from_proto(proto).opset_imports == {"": 13}


def test_a_newer_label_without_newer_operators_still_runs() -> None:
    proto = model([node("Relu", ["x"], ["y"])], [info("x", FLOAT, [2])], [info("y", FLOAT, [2])],
                  opset=onnx.defs.onnx_opset_version(), ir_version=onnx.IR_VERSION)
    assert np.array_equal(run(ir.to_proto(from_proto(proto)), {"x": np.float32([-1, 2])})[0], [0, 2])


@pytest.mark.parametrize(("opset", "operator", "attributes"), [
    (9, "Slice", {"axes": [0], "starts": [0], "ends": [1]}), (10, "Clip", {"min": 0.0, "max": 1.0}), (7, "Relu", {}), (9, "Dropout", {}),
])
def test_opsets_before_11_are_converted(opset: int, operator: str, attributes: dict[str, object]) -> None:
    proto = model([node(operator, ["x"], ["y"], **attributes)], [info("x", FLOAT, [2])], [info("y", FLOAT, None)], opset=opset)
    loaded, x = from_proto(proto), np.float32([-1, 2])
    assert loaded.opset_imports[""] in (11, 13)
    assert np.array_equal(run(ir.to_proto(loaded), {"x": x})[0], run(proto, {"x": x})[0])


def test_an_old_opset_that_cannot_be_converted_is_unsupported() -> None:
    inputs = [info("x", FLOAT, [1, 1, 1]), info("w", FLOAT, [1, 3, 1]), info("r", FLOAT, [1, 3, 1])]
    proto = model([node("GRU", ["x", "w", "r"], ["y"], hidden_size=1, output_sequence=1)], inputs, [info("y", FLOAT, None)], opset=1)
    with pytest.raises(Unsupported, match="older than 11"):
        from_proto(proto)


@pytest.mark.parametrize(("operator", "domain"), [("Foo", ""), ("Foo", "acme"), ("Upsample", ""), ("Foo", "com.microsoft")])
def test_an_unknown_operator_is_named_with_its_node(operator: str, domain: str) -> None:
    proto = model([node(operator, ["x"], ["y"], name="odd_one", domain=domain)], [info("x", FLOAT, [2])], [info("y", FLOAT, [2])],
                  domains={domain: 1} if domain else {})
    with pytest.raises(Unsupported) as caught:
        from_proto(proto)
    assert "'odd_one'" in str(caught.value)
    assert operator in str(caught.value)


def test_the_runtimes_own_operators_are_known() -> None:
    proto = model([node("Gelu", ["x"], ["y"], domain="com.microsoft")], [info("x", FLOAT, [2])], [info("y", FLOAT, [2])],
                  domains={"com.microsoft": 1})
    assert names(from_proto(proto)) == ["Gelu_0"]


def test_an_unknown_operator_inside_a_branch_is_found() -> None:
    branch = helper.make_graph([node("Foo", ["x"], ["t"], name="deep")], "b", [], [info("t", FLOAT, None)])
    other = helper.make_graph([node("Relu", ["x"], ["e"])], "b", [], [info("e", FLOAT, None)])
    proto = model([node("If", ["c"], ["y"], then_branch=branch, else_branch=other)], [info("x", FLOAT, [2]), info("c", BOOL, [])],
                  [info("y", FLOAT, [2])])
    with pytest.raises(Unsupported, match="'deep'"):
        from_proto(proto)


def test_sequences_at_the_door_are_unsupported() -> None:
    sequence = helper.make_tensor_sequence_value_info("x", FLOAT, [2])
    proto = model([node("SequenceLength", ["x"], ["y"])], [sequence], [info("y", 7, [])])
    with pytest.raises(Unsupported, match="not a tensor"):
        from_proto(proto)


def external(folder: Path, size: int, *, location: str = "weights.bin", length: int | None = None, offset: int = 0) -> onnx.ModelProto:
    """y = x * w with w [size] in another file, which is sparse and so takes no disk."""
    proto = model([node("Mul", ["x", "w"], ["y"])], [info("x", FLOAT, [size])], [info("y", FLOAT, [size])])
    tensor = proto.graph.initializer.add(name="w", data_type=FLOAT, dims=[size], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", 4 * size if length is None else length)):
        tensor.external_data.add(key=key, value=str(value))
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    return proto


def test_external_data_of_3_gb_stays_on_disk(tmp_path: Path) -> None:
    import resource

    size = 3 * 2**30 // 4
    external(tmp_path, size)
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(4 * size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded = read_onnx(tmp_path / "model.onnx")
    tensor = loaded.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.nbytes == 3 * 2**30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
    assert float(tensor.numpy()[-1]) == 0.0  # and can be read


def test_external_data_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(1000, dtype=np.float32)
    external(tmp_path, 1000)
    (tmp_path / "weights.bin").write_bytes(values.tobytes())
    monkeypatch.chdir(tmp_path)
    loaded = read_onnx("model.onnx")
    monkeypatch.chdir("/")
    assert np.array_equal(loaded.graph.initializers["w"].const_value.numpy(), values)


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/passwd", "", "a/../../outside.bin", "link.bin", "folder", "hard.bin", "a\0b",
                                      "folder/../own.bin"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "outside.bin").write_bytes(bytes(8))
    inside = tmp_path / "inside"
    (inside / "folder").mkdir(parents=True)
    (inside / "link.bin").symlink_to(tmp_path / "outside.bin")
    (tmp_path / "another.bin").write_bytes(bytes(8))
    (inside / "own.bin").write_bytes(bytes(8))
    os.link(tmp_path / "another.bin", inside / "hard.bin")
    external(inside, 2, location=location)
    with pytest.raises(Refused, match="asks for the file"):
        read_onnx(inside / "model.onnx")


@pytest.mark.parametrize(("stored", "length", "offset", "says"), [
    (None, None, 0, "cannot be read"), (7, None, 0, "ends at byte 8"), (8, 4, 0, "needs 8 bytes and declares 4"),
    (8, None, 4, "ends at byte 12"), (8, None, -4, "offset '-4'"), (8, 10**30, 0, "length"),
])
def test_external_data_that_does_not_fit_is_refused(tmp_path: Path, stored: int | None, length: int | None, offset: int, says: str) -> None:
    external(tmp_path, 2, length=length, offset=offset)
    if stored is not None:
        (tmp_path / "weights.bin").write_bytes(bytes(stored))
    with pytest.raises(Refused, match=says):
        read_onnx(tmp_path / "model.onnx")


def test_bytes_with_external_data_ask_for_the_path(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="give the path"):
        read_onnx_bytes(external(tmp_path, 2).SerializeToString())


def test_packed_and_odd_types_are_read() -> None:
    kinds, make = onnx.TensorProto, helper.make_tensor
    tensors = [
        make("int4", kinds.INT4, [3], [1, -2, 3]), make("half", kinds.FLOAT16, [2], [1.0, 2.0]), make("text", kinds.STRING, [1], [b"a"]),
        make("bf", kinds.BFLOAT16, [2], [1.0, 2.0]), make("flag", kinds.BOOL, [2], [True, False]),
        constant("empty", np.zeros((0, 4)), np.float32),
    ]
    proto = model([node("Identity", [tensor.name], [f"out_{tensor.name}"]) for tensor in tensors], [],
                  [info(f"out_{tensor.name}", tensor.data_type, list(tensor.dims)) for tensor in tensors], tensors, opset=21, ir_version=10)
    loaded = read_onnx_bytes(proto.SerializeToString())
    assert loaded.graph.initializers["int4"].const_value.numpy().astype(int).tolist() == [1, -2, 3]
    assert loaded.graph.initializers["half"].const_value.numpy().tolist() == [1.0, 2.0]


def test_every_sample_model_loads(assets: Path) -> None:
    for path in sorted(assets.glob("*/*.onnx")):
        loaded = read_onnx(path)
        proto = onnx.load(path)
        assert [value.name for value in loaded.graph.outputs] == [value.name for value in proto.graph.output], path
        assert all(each.name for each in loaded.graph.all_nodes())
