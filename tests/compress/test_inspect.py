"""The inventory: layers, who owns which weight, work, and what is said of what is unknown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from tests.compress.source_models import BOOL, FLOAT, INT64, constant, info, many_sided, model, node, relu, weight

import whet
from whet.compress.inspect import inventory
from whet.compress.shapes import estimate_shapes, infer_shapes, size_bytes
from whet.compress.source import from_proto, normalise, read_onnx
from whet.core.inventory import Inventory, Layer


def inspected(proto: onnx.ModelProto) -> dict[str, Layer]:
    return {layer.name: layer for layer in inventory(from_proto(proto)).layers}


def test_resnet20_counts_as_derived_by_hand(assets: Path) -> None:
    """He et al. 2016, section 4.2, with shortcuts that only pad (option A): a first convolution, three stages of six, a classifier.

    A 3x3 convolution from a to b channels on n x n positions is 9 * a * b * n * n MACs.
    """
    first = 9 * 3 * 16 * 32 * 32
    stage1 = 6 * (9 * 16 * 16 * 32 * 32)
    stage2 = 9 * 16 * 32 * 16 * 16 + 5 * (9 * 32 * 32 * 16 * 16)
    stage3 = 9 * 32 * 64 * 8 * 8 + 5 * (9 * 64 * 64 * 8 * 8)
    found = inventory(normalise(read_onnx(assets / "resnet20_cifar10" / "model.onnx")))
    assert found.macs == first + stage1 + stage2 + stage3 + 64 * 10 == 40_551_040
    convolutions = 9 * (3 * 16 + 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64)
    biases = 7 * 16 + 6 * 32 + 6 * 64  # the batch norms, folded
    assert found.parameters == convolutions + biases + 64 * 10 + 10 + 2  # and the value of each of the two paddings
    # The widest moment is inside the first stage: the block's input, which the shortcut still needs, and two maps of 16 x 32 x 32.
    assert found.peak_activation_bytes == 3 * 16 * 32 * 32 * 4
    assert found.notes == ()


def test_the_keyword_spotter_counts_as_derived_by_hand(assets: Path) -> None:
    """DS-CNN of MLPerf Tiny on 49 x 10: a 10 x 4 convolution to 25 x 5 x 64, four depthwise-separable blocks, a classifier of 12."""
    positions = 25 * 5
    block = positions * 64 * 9 + positions * 64 * 64
    found = inventory(read_onnx(assets / "kws_mlperf_tiny" / "model.onnx"), file_bytes=5)
    assert found.macs == positions * 64 * 10 * 4 + 4 * block + 64 * 12 == 2_656_768
    assert found.parameters == 64 * 40 + 64 + 4 * (64 * 9 + 64 + 64 * 64 + 64) + 64 * 12 + 12
    assert found.peak_activation_bytes == 2 * positions * 64 * 4
    assert found.file_bytes == 5


def test_the_bytes_of_all_weights_are_there(assets: Path) -> None:
    for path in sorted(assets.glob("*/*.onnx")):
        loaded = normalise(read_onnx(path))
        graphs = (loaded.graph, *loaded.graph.subgraphs())
        stored = sum(value.const_value.nbytes for graph in graphs for value in graph.initializers.values())
        assert inventory(loaded).weight_bytes == stored, path


@pytest.mark.slow
def test_work_agrees_with_torchs_flop_counter() -> None:
    import torch
    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

    from whet.compress.source import from_torch

    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4, padding=2), nn.ConvTranspose2d(8, 4, 3, stride=2),
              nn.Conv2d(4, 4, 3, dilation=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7)]
    module = nn.Sequential(*layers).eval()
    example = torch.randn(1, 3, 20, 20)
    with FlopCounterMode(display=False) as counter:
        module(example)
    assert 2 * inventory(from_torch(module, example)).macs == counter.get_total_flops()


def quantised(kind: int, bits: int) -> onnx.ModelProto:
    """x -> Q -> DQ -> Conv, with a weight [8, 4, 3, 3] of ``bits`` bits and an int32 bias, both behind a DequantizeLinear."""
    scales = constant("ws", np.ones(8), np.float32)
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("DequantizeLinear", ["w", "ws"], ["wd"], axis=0, name="weight_of_conv"), node("DequantizeLinear", ["b", "ws"], ["bd"], axis=0),
        node("Conv", ["d", "wd", "bd"], ["y"], name="conv"),
    ]
    packed = helper.make_tensor("w", kind, [8, 4, 3, 3], bytes(8 * 4 * 9 * bits // 8), raw=True)
    return model(nodes, [info("x", FLOAT, ["N", 4, 5, 5])], [info("y", FLOAT, None)],
                 [packed, scales, constant("s", 0.1, np.float32), constant("z", 128, np.uint8), constant("b", np.zeros(8), np.int32)],
                 opset=21, ir_version=10)


@pytest.mark.parametrize(("kind", "bits", "name"), [(onnx.TensorProto.INT8, 8, "int8"), (onnx.TensorProto.INT4, 4, "int4")])
def test_a_quantised_weight_belongs_to_its_layer(kind: int, bits: int, name: str) -> None:
    layers = inspected(quantised(kind, bits))
    conv = layers["conv"]
    assert (conv.weight_dtype, conv.weight_shape) == (name, (8, 4, 3, 3))
    assert conv.parameters == 8 * 4 * 9 + 8
    assert conv.weight_bytes == 8 * 4 * 9 * bits // 8 + 8 * 4 + 8 * 4  # the weight, the bias, and the scales, which both share
    assert conv.macs == 8 * 3 * 3 * 4 * 9
    assert (layers["weight_of_conv"].parameters, layers["weight_of_conv"].weight_bytes) == (0, 0)
    assert (layers["QuantizeLinear_0"].parameters, layers["QuantizeLinear_0"].weight_bytes) == (0, 5)


def test_the_weight_behind_a_dequantizelinear_takes_no_activation_memory() -> None:
    found = inventory(from_proto(quantised(onnx.TensorProto.INT8, 8)))
    image, result = 4 * 5 * 5, 8 * 3 * 3
    assert found.peak_activation_bytes == 4 * image + 4 * result
    assert found.peak_layers == ("DequantizeLinear_0", "conv")


def test_a_shared_weight_counts_where_it_is_read_first() -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["a", "w"], ["y"])]
    layers = inspected(model(nodes, [info("x", FLOAT, [1, 4])], [info("y", FLOAT, [1, 4])], [weight("w", 4, 4)]))
    assert [layers[name].parameters for name in ("MatMul_0", "MatMul_1")] == [16, 0]
    assert [layers[name].weight_shape for name in ("MatMul_0", "MatMul_1")] == [(4, 4), (4, 4)]


def test_shapes_and_axes_are_bytes_but_no_parameters() -> None:
    nodes = [node("Reshape", ["x", "s"], ["r"]), node("Gather", ["table", "i"], ["g"]), node("Add", ["r", "g"], ["y"])]
    layers = inspected(model(nodes, [info("x", FLOAT, [4])], [info("y", FLOAT, None)],
                             [constant("s", [2, 2]), weight("table", 10, 2), constant("i", [1, 3])]))
    assert (layers["Reshape_0"].parameters, layers["Reshape_0"].weight_bytes, layers["Reshape_0"].weight_shape) == (0, 16, ())
    assert (layers["Gather_0"].parameters, layers["Gather_0"].weight_bytes, layers["Gather_0"].weight_shape) == (20, 96, (10, 2))


def test_packed_weights_count_their_values() -> None:
    packed = node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=64, N=16, bits=4, block_size=32)
    layers = inspected(model([packed], [info("x", FLOAT, [1, 64])], [info("y", FLOAT, [1, 16])],
                             [constant("w", np.zeros((16, 2, 16)), np.uint8), weight("s", 32)], domains={"com.microsoft": 1}))
    layer = layers["MatMulNBits_0"]
    assert (layer.weight_dtype, layer.parameters, layer.weight_bytes, layer.macs) == ("uint4", 1024, 512 + 128, 1024)


def test_nodes_inside_branches_are_listed_by_path() -> None:
    found = inventory(from_proto(many_sided()))
    names = [layer.name for layer in found.layers]
    assert names == ["Conv_0", "Add_0", "ConstantOfShape_0", "If_0", "If_0/else_branch/Add_0", "If_0/then_branch/r", "ReduceSum_0", "Add_1"]
    assert any("every branch" in note for note in found.notes)
    assert found.peak_activation_bytes is not None


def test_a_branch_adds_its_own_peak() -> None:
    """Inside the branch three maps of 1000 floats are alive at once, beside the condition and the input, which it still reads."""
    branch = [node("Relu", ["x"], ["a"]), node("Neg", ["x"], ["b"]), node("Add", ["a", "b"], ["t"])]
    then = helper.make_graph(branch, "t", [], [info("t", FLOAT, [1000])])
    other = helper.make_graph([node("Neg", ["x"], ["e"])], "e", [], [info("e", FLOAT, [1000])])
    proto = model([node("If", ["c"], ["y"], then_branch=then, else_branch=other)], [info("x", FLOAT, [1000]), info("c", BOOL, [])],
                  [info("y", FLOAT, [1000])])
    assert inventory(from_proto(proto)).peak_activation_bytes == 4000 + 1 + 4000 + 3 * 4000


def test_open_sizes_are_taken_from_the_caller_or_as_one() -> None:
    proto = model([node("MatMul", ["x", "w"], ["y"])], [info("x", FLOAT, ["N", "time", 4])], [info("y", FLOAT, ["N", "time", 2])],
                  [weight("w", 4, 2)])
    assumed, given = inventory(from_proto(proto)), inventory(from_proto(proto), input_shapes={"x": (1, 10, 4)})
    assert (assumed.macs, given.macs) == (8, 80)
    assert "x[time]" in " ".join(assumed.notes)
    assert given.notes == ()


def test_the_batch_runs_through_all_shapes() -> None:
    proto = model([node("Conv", ["x", "w"], ["c"]), node("Flatten", ["c"], ["y"])], [info("x", FLOAT, ["N", 3, 4, 4])],
                  [info("y", FLOAT, None)], [weight("w", 2, 3, 3, 3)])
    loaded = from_proto(proto)
    assert infer_shapes(loaded, batch=5)["c"] == ("float32", (5, 2, 2, 2))
    assert infer_shapes(loaded)["y"] == ("float32", (1, 8))
    assert str(loaded.graph.inputs[0].shape) == "[N,3,4,4]"


def test_shapes_of_the_runtimes_own_operators_come_from_a_run() -> None:
    nodes = [node("FusedMatMul", ["x", "w"], ["a"], domain="com.microsoft", transB=1), node("Relu", ["a"], ["r"]),
             node("QuickGelu", ["r"], ["y"], domain="com.microsoft")]
    proto = model(nodes, [info("x", FLOAT, ["N", 4])], [info("y", FLOAT, None)], [weight("w", 6, 4)], domains={"com.microsoft": 1})
    found = inventory(from_proto(proto))
    assert [layer.output_shape for layer in found.layers] == [(1, 6)] * 3
    assert found.macs == 24
    assert found.peak_activation_bytes == 2 * 24


def test_what_stays_unknown_is_said() -> None:
    proto = model([node("NonZero", ["x"], ["n"]), node("Cast", ["n"], ["f"], to=FLOAT), node("MatMul", ["w", "f"], ["y"])],
                  [info("x", FLOAT, None)], [info("y", FLOAT, None)], [weight("w", 3, 2)])
    found = inventory(from_proto(proto))
    assert found.layers[2].macs is None
    assert found.peak_activation_bytes is None
    assert any("MatMul_0" in note for note in found.notes)
    assert any("no shape at all" in note for note in found.notes)


def test_a_loop_is_never_run_to_learn_shapes() -> None:
    nodes = [node("Identity", ["go"], ["on"]), node("FusedMatMul", ["v", "v"], ["u"], domain="com.microsoft")]
    body = helper.make_graph(nodes, "b", [info("i", INT64, []), info("go", BOOL, []), info("v", FLOAT, [1, 1])],
                             [info("on", BOOL, []), info("u", FLOAT, None)])
    proto = model([node("Loop", ["", "c", "x"], ["y"], body=body)], [info("x", FLOAT, [1, 1])], [info("y", FLOAT, None)],
                  [constant("c", True, bool)], domains={"com.microsoft": 1})
    found = estimate_shapes(from_proto(proto))
    assert any("not known" in note for note in found.notes)
    assert not any("run on zeros" in note for note in found.notes)


def test_the_public_door_takes_what_load_takes(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(relu().SerializeToString())
    found = whet.inspect(tmp_path / "m.onnx")
    assert [layer.name for layer in found.layers] == ["act"]
    assert found.file_bytes
    assert Inventory.from_json(found.to_json()) == found


def test_the_model_is_left_as_it_was(assets: Path) -> None:
    loaded = normalise(read_onnx(assets / "silero_vad" / "model.onnx"))
    before = ir.to_proto(loaded).SerializeToString(deterministic=True)
    inventory(loaded)
    assert ir.to_proto(loaded).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(("dtype", "shape", "size"), [
    ("float32", (2, 3), 24), ("float16", (3,), 6), ("int4", (3,), 2), ("bool", (), 1), ("bfloat16", (2,), 4), ("string", (2,), 32),
    ("int64", (0, 4), 0),
])
def test_bytes_of_a_value(dtype: str, shape: tuple[int, ...], size: int) -> None:
    assert size_bytes((dtype, shape)) == size
