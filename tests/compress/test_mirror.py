"""The mirror of a graph: the same numbers, names and shapes; gradients to every weight; weights back bit by bit."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.compress.mirrored import agrees, answer, one_node, one_thread, parsed, ran, wrapped
from tests.compress.small_graphs import Sketch

from whet.compress.graph import GraphModel
from whet.compress.mirror import mirror
from whet.core.errors import Refused, Unsupported

pytestmark = pytest.mark.usefixtures(one_thread.__name__)
RANDOM = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def small_cnn() -> GraphModel:
    """Two convolutions with a batch norm and a residual, and a classifier."""
    g = Sketch()
    x = g.input("x", ["N", 3, 8, 8])
    y = g.node("Conv", x, g.weight(4, 3, 3, 3, name="first.weight"), g.constant(normal(4), name="first.bias"), pads=[1] * 4)
    norm = [g.constant(values, name=f"norm.{at}") for at, values in enumerate((normal(4), normal(4), normal(4), np.abs(normal(4)) + 1))]
    y = g.node("Relu", g.node("BatchNormalization", y, *norm))
    z = g.node("Conv", y, g.weight(4, 4, 3, 3, name="second.weight"), pads=[0, 1, 2, 1])
    pooled = g.node("Flatten", g.node("GlobalAveragePool", g.node("Add", y, z)))
    g.outputs.append(onnx.helper.make_tensor_value_info(g.node("Gemm", pooled, g.weight(5, 4, name="last"), transB=1), 1, ["N", 5]))
    return wrapped(g.proto())


# -- forward, steps, names


def test_it_computes_what_the_runtime_computes() -> None:
    model, x = small_cnn(), normal(2, 3, 8, 8)
    module = mirror(model)
    assert (module.inputs, module.outputs) == (("x",), tuple(spec.name for spec in model.outputs))
    np.testing.assert_allclose(ran(module, {"x": x})[0], answer(model, {"x": x})[0], rtol=1e-5, atol=1e-6)


def test_steps_can_be_run_one_by_one_with_other_weights() -> None:
    module, x = mirror(small_cnn()), torch.from_numpy(normal(2, 3, 8, 8))
    for name in ("first.weight", "last"):
        other = {name: torch.zeros_like(module.constants()[name])}
        values = {**module.constants(), "x": x, **other}
        held = 0
        for step in module.steps:
            values.update(zip(step.outputs, step.run(*[values[name] for name in step.inputs]), strict=True))
            for done in step.done:
                del values[done]
            held = max(held, len(values) - len(module.constants()))
        assert set(values) == {*module.constants(), *module.outputs}
        assert held == 2  # the residual and what is beside it; nothing else is kept
        expected = torch.func.functional_call(module, {name.replace(".", "/"): other[name]}, (x,))[0]
        assert torch.equal(values[module.outputs[0]], expected)


def test_constants_have_the_names_of_the_graph() -> None:
    module = mirror(small_cnn())
    assert list(module.constants()) == ["first.weight", "first.bias", *(f"norm.{at}" for at in range(4)), "second.weight", "last"]
    assert "first/weight" in module.state_dict()
    assert [name for name, value in module.constants().items() if not value.requires_grad] == ["norm.2", "norm.3"]


def test_names_that_torch_has_taken_are_still_found() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y)
        <float[2] forward = {1.0, 2.0}, float[2] a.b = {3.0, 4.0}, float[2] steps = {5.0, 6.0}>
        { p = Add(x, forward)  q = Add(p, a.b)  y = Add(q, steps) }"""
    model = parsed(text.replace("a.b", "ab"))
    for node in model.ir.graph:
        for value in node.inputs:
            if value.name == "ab":
                value.name = "a.b"
    model.ir.graph.initializers["forward"].name = "forward"
    module = mirror(model)
    assert sorted(module.constants()) == ["a.b", "forward", "steps"]
    assert module(torch.zeros(2))[0].tolist() == [9, 12]


def test_a_copy_is_a_mirror_of_its_own() -> None:
    module, x = mirror(small_cnn()), torch.from_numpy(normal(1, 3, 8, 8))
    twin = copy.deepcopy(module)
    before = module(x)[0]
    with torch.no_grad():
        twin.constants()["last"].zero_()
    assert torch.equal(module(x)[0], before)
    assert not twin(x)[0].any()


def test_the_number_of_inputs_is_checked() -> None:
    with pytest.raises(Refused, match="the graph has 1: x"):
        mirror(small_cnn())()


# -- what is refused


@pytest.mark.parametrize(("body", "found"), [
    ("y = Det(x)", "no Det"),
    ("y = com.microsoft.Gelu(x)", "operator of 'com.microsoft'"),
    ("y = Relu <surprise = 1> (x)", "attribute 'surprise'"),
    ("y = Dropout(x, r, yes)", "training mode"),
    ("y = LSTM <hidden_size = 2, activations = [\"Affine\", \"Tanh\", \"Tanh\"]> (x, x, x)", "activations are Affine"),
    ("y = Cast <to = 17> (x)", "FLOAT8E4M3FN"),
])
def test_what_is_not_covered_is_refused_by_name(body: str, found: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> g (float[2,2] x) => (y)
        <float r = {{0.5}}, bool yes = {{1}}> {{ [here] {body} }}"""
    with pytest.raises(Unsupported, match=found) as refusal:
        mirror(parsed(text))
    assert "'here'" in str(refusal.value)


def test_old_opsets_are_refused() -> None:
    with pytest.raises(Unsupported, match="opset 6"):
        mirror(parsed('<ir_version: 3, opset_import: ["": 6]> g (float[2] x) => (float[2] y) { y = Relu(x) }'))


# -- weights back


def test_weights_go_back_bit_by_bit() -> None:
    model = small_cnn()
    module = mirror(model)
    assert module.written_back(model).content == model.content
    with torch.no_grad():
        module.constants()["second.weight"].mul_(-1)
    changed = module.written_back(model)
    before, after = _stored(model), _stored(changed)
    assert [name for name in before if before[name].tobytes() != after[name].tobytes()] == ["second.weight"]
    np.testing.assert_array_equal(after["second.weight"], -before["second.weight"])
    x = normal(1, 3, 8, 8)
    np.testing.assert_allclose(answer(changed, {"x": x})[0], ran(module, {"x": x})[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE, ir.DataType.FLOAT])
def test_every_float_type_goes_there_and_back(kind: ir.DataType) -> None:
    """With infinities, minus zero and every payload of a NaN."""
    bits = RANDOM.integers(0, 2**16, 64).astype(np.uint16) if kind.itemsize == 2 else RANDOM.integers(0, 2**32, 64).astype(np.uint32)
    bits = bits.astype(np.uint64) << 32 if kind.itemsize == 8 else bits
    text = f'<ir_version: 8, opset_import: ["": 17]> g ({kind.name.lower()}[64] x) => (y) {{ y = Add(x, w) }}'
    model = parsed(text)
    value = ir.Value(name="w", const_value=ir.tensor(bits.view(kind.numpy()), dtype=kind, name="w"))
    node = model.ir.graph[0]
    model.ir.graph.initializers["w"] = value
    node.replace_input_with(1, value)
    module = mirror(model)
    assert module.written_back(model).content == model.content
    with torch.no_grad():
        module.constants()["w"].fill_(0.5)
    assert _stored(module.written_back(model))["w"].astype(np.float64).tolist() == [0.5] * 64


def test_constants_of_nodes_and_branches_are_written_back_too() -> None:
    model = parsed(BRANCHES)
    module = mirror(model)
    assert sorted(module.constants()) == ["inner", "outer", "w"]
    assert module.written_back(model).content == model.content
    with torch.no_grad():
        for value in module.constants().values():
            value.add_(1)
    again = mirror(module.written_back(model))
    feeds = {"x": normal(2), "c": np.array(False)}
    np.testing.assert_array_equal(ran(again, feeds)[0], ran(module, feeds)[0])
    np.testing.assert_array_equal(ran(again, feeds)[0], answer(module.written_back(model), feeds)[0])


def test_another_model_does_not_get_the_weights() -> None:
    with pytest.raises(Refused, match="write the weight"):
        mirror(small_cnn()).written_back(parsed(BRANCHES))


def _stored(model: GraphModel) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in model.ir.graph.initializers.items() if value.const_value is not None}


# -- gradients


def test_gradients_reach_every_weight_of_a_cnn() -> None:
    module = mirror(small_cnn())
    module(torch.from_numpy(normal(4, 3, 8, 8)))[0].square().sum().backward()
    for name, value in module.constants().items():
        assert not value.requires_grad or (value.grad is not None and value.grad.abs().sum() > 0), name


@pytest.mark.parametrize(("op", "gates", "attributes"), [
    ("LSTM", 4, {}), ("LSTM", 4, {"clip": 0.5}), ("GRU", 3, {}), ("GRU", 3, {"linear_before_reset": 1}), ("RNN", 1, {}),
])
def test_gradients_reach_every_weight_of_a_recurrent_layer(op: str, gates: int, attributes: dict[str, Any]) -> None:
    inputs = [normal(4, 2, 3), normal(2, gates * 5, 3), normal(2, gates * 5, 5), normal(2, 2 * gates * 5)]
    proto = one_node(op, inputs, constant=(1, 2, 3), hidden_size=5, direction="bidirectional", **attributes)
    module = mirror(wrapped(proto)).double()
    x = torch.from_numpy(inputs[0]).double().requires_grad_()
    weights = tuple(module.constants().values())
    assert len(weights) == 3
    step = module.steps[0]
    assert torch.autograd.gradcheck(lambda *tensors: step.run(*tensors)[0].sum((1, 2)), (x, *weights), fast_mode=True)


GRADIENTS: list[tuple[str, list[np.ndarray | None], dict[str, Any]]] = [
    ("Conv", [normal(1, 2, 5, 5), normal(2, 1, 3, 2), normal(2)], {"group": 2, "pads": [0, 1, 2, 1], "strides": [2, 1]}),
    ("Conv", [normal(1, 2, 6), normal(3, 2, 2)], {"auto_pad": "SAME_LOWER", "strides": [2]}),
    ("ConvTranspose", [normal(1, 2, 3, 3), normal(2, 1, 3, 3), normal(1)], {"pads": [1, 0, 0, 1], "strides": [2, 2]}),
    ("Gemm", [normal(2, 3), normal(3, 4), normal(2, 1)], {"alpha": 0.5, "beta": 2.0}),
    ("AveragePool", [normal(1, 1, 5, 5)], {"kernel_shape": [2, 2], "pads": [1, 0, 0, 1], "ceil_mode": 1, "strides": [2, 2]}),
    ("LayerNormalization", [normal(2, 3, 4), normal(3, 4), normal(3, 4)], {"axis": 1}),
    ("LRN", [normal(1, 4, 2, 2)], {"size": 3}),
    ("Softmax", [normal(2, 3)], {}), ("Pow", [np.abs(normal(3)) + 1, np.float32(1.7)], {}), ("Erf", [normal(3)], {}),
    ("ReduceMean", [normal(2, 3, 2)], {"axes": [0, 2]}), ("ReduceL2", [normal(2, 3)], {"axes": [1]}),
    ("ScatterND", [normal(4, 2), np.array([[1], [3]]), normal(2, 2)], {}),
    ("Pad", [normal(3, 3), np.array([1, 0, 2, 1])], {"mode": "reflect"}),
    ("Resize", [normal(1, 1, 3, 3), None, np.array([1, 1, 2, 1.5], np.float32)], {"mode": "cubic"}),
]


@pytest.mark.parametrize("case", GRADIENTS, ids=lambda case: case[0])
def test_gradients_are_those_of_finite_differences(case: tuple[str, list[np.ndarray | None], dict[str, Any]]) -> None:
    op, inputs, attributes = case
    fixed = () if op not in ("Pow", "Resize") else range(1, len(inputs))
    live = [at for at, values in enumerate(inputs) if values is not None and values.dtype == np.float32 and at not in fixed]
    constant = [at for at in range(len(inputs)) if at not in live and inputs[at] is not None]
    step = mirror(wrapped(one_node(op, inputs, constant=constant, **attributes))).steps[0]
    tensors = [torch.from_numpy(inputs[at]).double().requires_grad_() for at in live]
    assert torch.autograd.gradcheck(lambda *values: step.run(*values), tensors, fast_mode=True)


# -- control flow


BRANCHES = """<ir_version: 8, opset_import: ["": 17]> g (float[2] x, bool c) => (float[2] y)
    <float[2] w = {1.0, 2.0}>
    {
        h = Mul(x, w)
        outer = Constant <value = float[2] {3.0, -1.0}> ()
        y = If (c) <
            then_branch = t () => (float[2] a) { a = Add(h, outer) },
            else_branch = e () => (float[2] b) { inner = Constant <value = float[2] {0.5, 0.25}> ()  b = Mul(h, inner) }>
    }"""


@pytest.mark.parametrize("condition", [True, False])
def test_a_branch_is_chosen_when_it_runs(condition: bool) -> None:
    model, feeds = parsed(BRANCHES), {"x": normal(2), "c": np.array(condition)}
    module = mirror(model)
    assert [step.op for step in module.steps] == ["Mul", "If"]
    assert set(module.steps[1].inputs) == {"c", "h", "outer", "inner"}
    np.testing.assert_allclose(ran(module, feeds)[0], answer(model, feeds)[0], rtol=1e-6)
    module(torch.from_numpy(feeds["x"]), torch.tensor(condition))[0].sum().backward()
    assert (module.constants()["inner"].grad is None) == condition
    assert module.constants()["w"].grad is not None


def test_a_branch_that_is_decided_takes_the_place_of_the_if() -> None:
    text = BRANCHES.replace(", bool c)", ")").replace("<float[2] w", "<bool c = {0}, float[2] w")
    model, feeds = parsed(text), {"x": normal(2)}
    module = mirror(model)
    assert [step.op for step in module.steps] == ["Mul", "Mul", "Identity"]
    assert sorted(module.constants()) == ["inner", "w"]
    np.testing.assert_allclose(ran(module, feeds)[0], answer(model, feeds)[0], rtol=1e-6)


SCAN = """<ir_version: 8, opset_import: ["": 17]> g (float[3] h0, float[4,3] x) => (float[3] h, float[4,3] ys)
    <float[3] w = {0.5, -1.0, 2.0}>
    { h, ys = Scan <num_scan_inputs = 1, scan_input_directions = [1], scan_output_directions = [1], body =
        b (float[3] s, float[3] one) => (float[3] next, float[3] out)
        { p = Mul(s, w)  q = Add(p, one)  next = Tanh(q)  out = Identity(next) }>
      (h0, x) }"""
LOOP = """<ir_version: 8, opset_import: ["": 17]> g (int64 n, float[2] x) => (float[2] last, float[k,2] rows)
    <float[2] w = {0.5, -2.0}>
    { last, rows = Loop (n, , x) <body = b (int64 i, bool go, float[2] s) => (bool on, float[2] t, float[2] row)
        { t = Mul(s, w)  f = CastLike(i, t)  row = Add(t, f)  m = ReduceMax <keepdims = 0> (t)
          k = Constant <value = float {100.0}> ()  on = Less(m, k) }> }"""


def test_a_scan_carries_its_state_and_its_weights() -> None:
    model = parsed(SCAN)
    feeds = {"h0": normal(3), "x": normal(4, 3)}
    module = mirror(model)
    for found, wanted in zip(ran(module, feeds), answer(model, feeds), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert "w" in module.steps[0].inputs
    sum(y.sum() for y in module(*map(torch.from_numpy, feeds.values()))).backward()
    assert module.constants()["w"].grad.abs().min() > 0


@pytest.mark.parametrize("passes", [0, 1, 5, 50])
def test_a_loop_ends_by_its_count_or_its_condition(passes: int) -> None:
    model = parsed(LOOP)
    feeds = {"n": np.array(passes), "x": np.array([1.0, 3.0], np.float32)}
    for found, wanted in zip(ran(mirror(model), feeds), answer(model, feeds), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


# -- quantisers


CODES = """<ir_version: 10, opset_import: ["": 17]> g (float[1,2,4,4] x) => (float[1,2,3,3] y{more})
    <float s = {{0.05}}, uint8 z = {{100}}, float[2] r = {{0.1, 0.2}}, int8[2] o = {{3, -4}}>
    {{ q = QuantizeLinear(x, s, z)  m = MaxPool <kernel_shape = [2, 2]> (q)  d = DequantizeLinear(m, s, z)
       e = QuantizeLinear <axis = 1> (d, r, o)  y = DequantizeLinear <axis = 1> (e, r, o) }}"""


def test_gradients_go_straight_through_quantisers() -> None:
    """Inside the range the gradient is that of the pool; codes that only dequantisers read stay floats."""
    model = parsed(CODES.format(more=""))
    x = np.linspace(-4.9, 7.7, 32, dtype=np.float32).reshape(1, 2, 4, 4)
    module = mirror(model)
    np.testing.assert_array_equal(ran(module, {"x": x})[0], answer(model, {"x": x})[0])
    live = torch.from_numpy(x).requires_grad_()
    module(live)[0].sum().backward()
    chosen = np.zeros((1, 2, 4, 4), np.float32)
    chosen[:, :, 1:, 1:] = 1  # the greatest of each window of rising numbers
    assert live.grad is not None
    np.testing.assert_allclose(live.grad.numpy(), chosen, rtol=1e-5)


def test_no_gradient_beyond_the_ends_of_a_grid() -> None:
    step = mirror(parsed(CODES.format(more=""))).steps
    x = torch.tensor([-6.0, -4.0, 7.0, 8.0]).reshape(1, 1, 2, 2).requires_grad_()  # the grid is -5 .. 7.75
    scale = torch.tensor(0.05, requires_grad=True)
    y = step[2].run(step[0].run(x, scale)[0], scale)[0]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.reshape(-1).tolist() == [0, 1, 1, 0]
    ratio = torch.tensor([-4.0, 7.0]) / 0.05
    assert scale.grad is not None  # LSQ: round(x / s) - x / s inside, the end of the grid outside
    assert float(scale.grad) == pytest.approx(float((ratio.round() - ratio).sum()) - 100 + 155, abs=1e-3)


def test_codes_that_leave_the_graph_are_integers() -> None:
    model = parsed(CODES.format(more=", uint8[1,2,4,4] q"))
    found = ran(mirror(model), {"x": normal(1, 2, 4, 4)})
    assert found[1].dtype == np.uint8


# -- against the runtime, where onnx's own cases are few


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("op", "gates", "extra"), [
    ("LSTM", 4, {}), ("LSTM", 4, {"peepholes": True}), ("LSTM", 4, {"clip": 0.3, "input_forget": 1}),
    ("GRU", 3, {"clip": 0.3}), ("GRU", 3, {"linear_before_reset": 1}),
    ("RNN", 1, {}), ("RNN", 1, {"activations": ["Relu"]}),
])
@pytest.mark.parametrize("lengths", [None, np.array([5, 2, 3], np.int32), np.array([5, 5, 5], np.int32)], ids=["whole", "ragged", "full"])
def test_recurrent_layers(direction: str, op: str, gates: int, extra: dict[str, Any], lengths: np.ndarray | None) -> None:
    ways = 2 if direction == "bidirectional" else 1
    peepholes = [normal(ways, 3 * 6)] if "peepholes" in extra else []  # with which a loop takes the place of torch's kernel
    extra = {name: value for name, value in extra.items() if name != "peepholes"}
    extra = {**extra, **({"activations": extra["activations"] * ways} if "activations" in extra else {})}
    weights = [normal(ways, gates * 6, 4), normal(ways, gates * 6, 6), normal(ways, 2 * gates * 6)]
    inputs = [normal(5, 3, 4), *weights, lengths, normal(ways, 3, 6)]
    if op == "LSTM":
        inputs += [normal(ways, 3, 6), *peepholes]
    agrees(op, inputs, 3 if op == "LSTM" else 2, constant=(1, 2), direction=direction, hidden_size=6, **extra)


SAME = ("SAME_UPPER", "SAME_LOWER")
windows = st.fixed_dictionaries({
    "kernel": st.tuples(st.integers(1, 4), st.integers(1, 3)), "strides": st.tuples(st.integers(1, 3), st.integers(1, 3)),
    "dilations": st.tuples(st.integers(1, 2), st.integers(1, 2)),
    "pads": st.sampled_from([*SAME, "VALID"]) | st.tuples(*[st.integers(0, 1)] * 4),
})


def padding(pads: str | tuple[int, ...]) -> dict[str, Any]:
    return {"auto_pad": pads} if isinstance(pads, str) else {"pads": pads}


@settings(max_examples=25)
@given(windows, st.sampled_from([1, 2, 4]), st.booleans())
def test_convolutions_of_every_kind(window: dict[str, Any], groups: int, bias: bool) -> None:
    inputs = [normal(2, 4, 9, 8), normal(8, 4 // groups, *window["kernel"]), normal(8) if bias else None]
    dilations = window["dilations"] if window["pads"] not in SAME else (1, 1)  # onnxruntime does not have both
    agrees("Conv", inputs[:3 if bias else 2], constant=(1,), group=groups, strides=window["strides"], dilations=dilations,
           **padding(window["pads"]))


@settings(max_examples=25)
@given(windows, st.sampled_from([1, 2, 4]), st.booleans(), st.booleans())
def test_transposed_convolutions_of_every_kind(window: dict[str, Any], groups: int, bias: bool, more: bool) -> None:
    inputs = [normal(2, 4, 5, 4), normal(4, 8 // groups, *window["kernel"]), normal(8)]
    extra = {"output_padding": [by - 1 for by in window["strides"]]} if more and not isinstance(window["pads"], str) else {}
    dilations = window["dilations"] if window["pads"] not in SAME else (1, 1)
    agrees("ConvTranspose", inputs[:3 if bias else 2], constant=(1,), group=groups, strides=window["strides"],
           dilations=dilations, **padding(window["pads"]), **extra)


@settings(max_examples=40)
@given(windows, st.sampled_from(["MaxPool", "AveragePool", "AveragePool with pads"]), st.booleans())
def test_pools_of_every_kind(window: dict[str, Any], kind: str, ceil: bool) -> None:
    op, pads, strides = kind.split()[0], window["pads"], window["strides"]
    if pads in SAME:  # where a stride is longer than the kernel, onnxruntime begins one place further on
        strides = tuple(map(min, strides, window["kernel"]))
    elif not isinstance(pads, str):
        pads = tuple(min(pad, window["kernel"][at % 2] - 1) for at, pad in enumerate(pads))
    attributes = {"count_include_pad": 1} if kind.endswith("pads") else {}
    if op == "MaxPool" and pads not in SAME:
        attributes["dilations"] = window["dilations"]
    agrees(op, [normal(2, 3, 9, 8)], strides=strides, kernel_shape=window["kernel"], ceil_mode=int(ceil), opset=19,
           **padding(pads), **attributes)


@pytest.mark.parametrize("power", [1, 2, 3])
def test_global_lp_pool(power: int) -> None:
    agrees("GlobalLpPool", [normal(2, 3, 4, 5)], p=power)


# -- many small things


def test_what_is_known_is_computed_once() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N,4] x) => (float[2,2,M] y)
        <int64[1] a = {2}, int64[1] b = {-1}, float[4] w = {1.0, 2.0, 3.0, 4.0}>
        { c = Concat <axis = 0> (a, a, b)  z = ConstantOfShape(a)  s = Shape(z)  m = Mul(x, w)
          d = Sub(c, s)  e = Add(d, s)  y = Reshape(m, e) }"""
    module = mirror(parsed(text))
    assert [step.op for step in module.steps] == ["Mul", "Reshape"]
    assert module.steps[1].inputs == ("m",)
    assert module(torch.ones(3, 4))[0].shape == (2, 2, 3)


def test_numbers_of_a_step_are_no_weights() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[4] x) => (float[4] y)
        <float low = {-1.0}, float high = {1.0}, float two = {2.0}, float half = {0.5}>
        { p = Clip(x, low, high)  q = Pow(p, two)  y = Mul(q, half) }"""
    module = mirror(parsed(text))
    assert list(module.constants()) == ["half"]
    assert not module.constants()["half"].requires_grad
    x = torch.tensor([-3.0, -0.5, 0.5, 2.0], requires_grad=True)
    module(x)[0].sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, -0.5, 0.5, 0]


def test_an_output_may_be_an_input_or_a_constant() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] x, float[2] w, int64[2] k, float[2] y)
        <float[2] w = {1.0, 2.0}, int64[2] k = {3, 4}> { y = Add(x, w) }"""
    found = mirror(parsed(text))(torch.zeros(2))
    assert [tensor.tolist() for tensor in found] == [[0, 0], [1, 2], [3, 4], [1, 2]]


def test_a_weight_that_two_layers_share_is_one_parameter() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[2,2] x) => (float[2,2] y)
        <float[2,2] w = {1.0, 2.0, 3.0, 4.0}> { h = MatMul(x, w)  y = MatMul(h, w) }"""
    module = mirror(parsed(text))
    assert len(list(module.parameters())) == 1
    assert all("w" in step.inputs for step in module.steps)


def test_batch_norm_gives_gradients_to_its_statistics_where_asked() -> None:
    inputs = [normal(2, 3, 4), normal(3), normal(3), normal(3), np.abs(normal(3)) + 1]
    module = mirror(wrapped(one_node("BatchNormalization", inputs, constant=(1, 2, 3, 4)))).double()
    x = torch.from_numpy(inputs[0]).double()
    plain = module(x)[0]
    module.requires_grad_(True)
    torch.testing.assert_close(module(x)[0], plain)
    assert torch.autograd.gradcheck(lambda *values: module.steps[0].run(x, *values), tuple(module.parameters()), fast_mode=True)


def test_a_graph_that_was_quantised_runs_exactly() -> None:
    from tests.compress.small_graphs import samples

    from whet.compress.apply import apply

    model = apply(small_cnn(), "static", calibration=samples({"x": (3, 8, 8)}), target="pi5")
    x = normal(4, 3, 8, 8)
    found, wanted = ran(mirror(model), {"x": x})[0], answer(model, {"x": x})[0]
    assert any(node.op_type == "QuantizeLinear" for node in model.ir.graph)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=0.02)
