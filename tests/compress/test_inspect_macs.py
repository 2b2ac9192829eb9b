"""MACs of each kind of operator against counts by hand, and the peak of activations against a slow, obvious simulation."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.compress.liveness import Step, peak
from whet.compress.macs import macs


def count(operator: str, inputs: list[tuple[int, ...] | None], output: tuple[int, ...], domain: str = "", **attributes: Any) -> int | None:
    made = ir.node(operator, [], attributes, domain=domain)
    return macs(made, inputs, [output])


@pytest.mark.parametrize(("operator", "inputs", "output", "attributes", "expected"), [
    ("Conv", [(1, 3, 8, 8), (4, 3, 3, 3)], (1, 4, 6, 6), {}, 4 * 36 * 3 * 9),
    ("Conv", [(1, 4, 8, 8), (4, 1, 3, 3)], (1, 4, 6, 6), {"group": 4}, 4 * 36 * 9),
    ("Conv", [(1, 2, 9), (4, 2, 3)], (1, 4, 7), {}, 4 * 7 * 2 * 3),
    ("Conv", [(1, 2, 4, 4, 4), (4, 2, 2, 2, 2)], (1, 4, 3, 3, 3), {}, 4 * 27 * 2 * 8),
    ("ConvTranspose", [(1, 3, 5, 5), (3, 4, 2, 2)], (1, 4, 10, 10), {"strides": [2, 2]}, 3 * 25 * 4 * 4),
    ("ConvInteger", [(1, 3, 8, 8), (4, 3, 3, 3)], (1, 4, 6, 6), {}, 4 * 36 * 27),
    ("QLinearConv", [(1, 3, 8, 8), (), (), (4, 3, 3, 3), (), (), (), ()], (1, 4, 6, 6), {}, 4 * 36 * 27),
    ("MatMul", [(2, 5, 7), (7, 3)], (2, 5, 3), {}, 2 * 5 * 7 * 3),
    ("MatMul", [(2, 8, 5, 7), (2, 8, 7, 5)], (2, 8, 5, 5), {}, 2 * 8 * 5 * 7 * 5),
    ("MatMul", [(7,), (7, 3)], (3,), {}, 21),
    ("MatMulInteger", [(5, 7), (7, 3)], (5, 3), {}, 105),
    ("QLinearMatMul", [(5, 7), (), (), (7, 3), (), (), (), ()], (5, 3), {}, 105),
    ("Gemm", [(5, 7), (7, 3)], (5, 3), {}, 105),
    ("Gemm", [(7, 5), (3, 7)], (5, 3), {"transA": 1, "transB": 1}, 105),
    ("LSTM", [(6, 2, 3), (1, 16, 3), (1, 16, 4)], (6, 1, 2, 4), {}, 6 * 2 * 4 * (4 * 3 + 4 * 4)),
    ("GRU", [(6, 2, 3), (2, 12, 3), (2, 12, 4)], (6, 2, 2, 4), {}, 2 * 6 * 2 * 3 * (4 * 3 + 4 * 4)),
    ("RNN", [(6, 2, 3), (1, 4, 3), (1, 4, 4)], (6, 1, 2, 4), {}, 6 * 2 * (4 * 3 + 4 * 4)),
    ("Einsum", [(2, 3, 4), (2, 4, 5)], (2, 3, 5), {"equation": "bij, bjk -> bik"}, 2 * 3 * 4 * 5),
    ("Einsum", [(3, 4)], (4, 3), {"equation": "ij->ji"}, 0),
    ("Attention", [(1, 8, 10, 16), (1, 8, 12, 16), (1, 8, 12, 20)], (1, 8, 10, 20), {}, 8 * 10 * 12 * (16 + 20)),
    ("Attention", [(1, 10, 128), (1, 12, 128), (1, 12, 160)], (1, 10, 160), {"q_num_heads": 8, "kv_num_heads": 8}, 8 * 10 * 12 * (16 + 20)),
    ("Gather", [(100, 8), (3,)], (3, 8), {}, 0),
    ("LayerNormalization", [(4, 8), (8,), (8,)], (4, 8), {}, 0),
    ("Relu", [(4, 8)], (4, 8), {}, 0),
])
def test_by_hand(operator: str, inputs: list[Any], output: tuple[int, ...], attributes: dict[str, Any], expected: int) -> None:
    assert count(operator, inputs, output, **attributes) == expected


@pytest.mark.parametrize(("operator", "inputs", "output", "attributes", "expected"), [
    ("MatMulNBits", [(2, 64), (16, 2, 16), (32,)], (2, 16), {"K": 64, "N": 16}, 2 * 64 * 16),
    ("DynamicQuantizeMatMul", [(2, 64), (64, 16), ()], (2, 16), {}, 2 * 64 * 16),
    ("FusedMatMul", [(64, 2), (64, 16)], (2, 16), {"transA": 1}, 2 * 64 * 16),
    ("FusedConv", [(1, 3, 8, 8), (4, 3, 3, 3)], (1, 4, 6, 6), {}, 4 * 36 * 27),
    ("Attention", [(1, 10, 32), (32, 96)], (1, 10, 32), {"num_heads": 4}, 10 * 32 * 96 + 10 * 10 * 2 * 32),
    ("MultiHeadAttention", [(1, 10, 32), (1, 12, 32), (1, 12, 32)], (1, 10, 32), {"num_heads": 4}, 10 * 12 * 64),
    ("GroupQueryAttention", [(1, 1, 32), (1, 1, 16), (1, 1, 16), (1, 2, 9, 8)], (1, 1, 32), {"num_heads": 4, "kv_num_heads": 2}, 640),
    ("GroupQueryAttention", [(1, 1, 64), None, None, (1, 2, 9, 8)], (1, 1, 32), {"num_heads": 4, "kv_num_heads": 2}, 10 * 2 * 32),
    ("NoSuchOperator", [(3,)], (3,), {}, 0),
])
def test_the_runtimes_own(operator: str, inputs: list[Any], output: tuple[int, ...], attributes: dict[str, Any], expected: int) -> None:
    assert count(operator, inputs, output, "com.microsoft", **attributes) == expected


def test_what_cannot_be_known_is_none_and_not_nought() -> None:
    assert count("MatMul", [None, (7, 3)], (5, 3)) is None
    assert macs(ir.node("Conv", []), [(1, 3, 8, 8), (4, 3, 3, 3)], [None]) is None
    assert count("Einsum", [(2, 3), (3, 4)], (2, 4), equation="...i,...i->...") is None


def test_a_residual_block_by_hand() -> None:
    """x (4) -> a (100) -> b (100) -> a + b: at b both maps are alive, at the sum three of them."""
    steps = [Step("conv1", ("x",), ("a",)), Step("conv2", ("a",), ("b",)), Step("add", ("a", "b"), ("y",)), Step("fc", ("y",), ("z",))]
    found = peak(steps, ["x"], ["z"], {"x": 4, "a": 100, "b": 100, "y": 100, "z": 4})
    assert found.size_bytes == 300
    assert found.layers == ("conv1", "conv2", "add")


def test_a_view_takes_no_memory_and_keeps_what_it_looks_at_alive() -> None:
    steps = [Step("conv", ("x",), ("a",)), Step("flatten", ("a",), ("f",), view=True), Step("relu", ("x",), ("r",)),
             Step("fc", ("f", "r"), ("y",))]
    sizes = {"x": 10, "a": 100, "f": 100, "r": 10, "y": 1}
    assert peak(steps, ["x"], ["y"], sizes).size_bytes == 10 + 100 + 10
    assert peak([*steps[:2], Step("end", ("x",), ("y",))], ["x"], ["f", "y"], sizes).size_bytes == 111


def test_an_input_counts_from_the_start_and_goes_after_its_last_reader() -> None:
    steps = [Step("a", ("x",), ("p",)), Step("b", ("p",), ("q",)), Step("c", ("q",), ("r",))]
    found = peak(steps, ["x", "late"], ["r"], {"x": 50, "late": 7, "p": 1, "q": 1, "r": 1})
    assert found.size_bytes == 58  # an input that nobody reads is the caller's, and stays
    assert found.layers == ("x", "late", "a")


def test_inner_bytes_come_on_top() -> None:
    steps = [Step("if", ("x",), ("y",), inner_bytes=1000), Step("wide", ("y",), ("z",))]
    assert peak(steps, ["x"], ["z"], {"x": 10, "y": 10, "z": 500}).size_bytes == 1020


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[Step], list[str], dict[str, int]]:
    sizes = {f"v{i}": draw(st.integers(0, 50)) for i in range(8)}
    steps = [Step(f"s{i}", tuple(draw(st.sets(st.sampled_from([f"v{j}" for j in range(i)]), min_size=1, max_size=3))), (f"v{i}",),
                  draw(st.booleans()) and draw(st.booleans())) for i in range(1, 8)]
    return steps, sorted(draw(st.sets(st.sampled_from(sorted(sizes)), min_size=1, max_size=3))), sizes


@given(graphs())
def test_the_peak_agrees_with_a_slow_simulation(graph: tuple[list[Step], list[str], dict[str, int]]) -> None:
    """At each step: every memory that exists by then and that this or a later step, or an output, still needs."""
    steps, outputs, sizes = graph
    memory = {"v0": "v0"}
    for step in steps:
        memory[step.writes[0]] = memory[step.reads[0]] if step.view else step.writes[0]
    made = {"v0": -1} | {step.writes[0]: index for index, step in enumerate(steps)}
    highest = sizes["v0"]
    for index, step in enumerate(steps):
        needed = {memory[name] for later in steps[index:] for name in later.reads}
        needed |= {memory[name] for name in (*outputs, step.writes[0])}
        if not any(memory[name] == "v0" for each in steps for name in each.reads):
            needed.add("v0")
        highest = max(highest, sum(sizes[name] for name in needed if made[name] <= index))
    assert peak(steps, ["v0"], outputs, sizes).size_bytes == highest
