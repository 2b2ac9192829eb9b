"""GPTQ: the solver against its paper, and on the way through a model each layer with what it really reads."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.compress.operators_with_weights import CASES, on_grid
from tests.compress.small_graphs import Sketch, feeds_of, noise_ratio, outputs, weights_of
from tests.slow_papers import affine
from tests.slow_papers import gptq as slow

from whet.compress.apply import apply_recipe
from whet.compress.column_rounding import moments_of, solve
from whet.compress.data import Dataset
from whet.compress.graph import GraphModel
from whet.compress.grid import Grid, Quantised, dequantise, quantise, weight_grid
from whet.compress.layer_products import product_of
from whet.compress.runtime import exposed, outputs_of
from whet.compress.technique import LayerView, technique
from whet.compress.techniques.gptq import foresee, gptq
from whet.compress.views import GramView
from whet.compress.walks import Work, grams
from whet.compress.weight_search import searched_grid
from whet.core.errors import Refused
from whet.core.inventory import Layer
from whet.core.recipe import Recipe, Step
from whet.device.targets import target

Array = np.ndarray[Any, Any]
VNNI = target("x86-vnni")


def correlated(rows: int, width: int, seed: int = 0) -> Array:
    """Inputs as layers read them: they go together, and some are larger than others."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((rows, width)) @ (0.15 * random.standard_normal((width, width)) + np.eye(width))
    return (mixed * random.uniform(0.1, 3.0, width)).astype(np.float32)


def spread(grid: Grid, part: Array, columns: int) -> Array:
    return np.repeat(part, grid.block, 1)[:, :columns] if grid.block else np.repeat(part[:, None], columns, 1)


def error(weight: Array, rounded: Array, inputs: Array) -> float:
    return float(np.square((weight - rounded) @ inputs.T).mean())


def applied(model: GraphModel, data: Dataset | None, *steps: tuple[str, dict[str, Any]]) -> GraphModel:
    return apply_recipe(model, Recipe(tuple(Step(name, options=options) for name, options in steps)), VNNI, calibration=data)


# -- the solver ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["activations", "none"])
@pytest.mark.parametrize(("block", "symmetric"), [(0, True), (0, False), (32, True), (128, False)])
def test_the_solver_agrees_with_the_paper_across_blocks_and_panels(block: int, symmetric: bool, order: str) -> None:
    inputs = correlated(400, 300)
    weight = np.random.default_rng(1).standard_normal((5, 300)).astype(np.float32)
    grid = weight_grid(weight, bits=4, symmetric=symmetric, axis=1 if block else 0, block=block)
    hessian = slow.hessian(inputs, 0.01)
    moments = np.diag(slow.hessian(inputs, 0.0))
    turns = sorted(range(300), key=lambda j: -moments[j]) if order == "activations" else list(range(300))
    scales, zeros = (spread(grid, part, 300) for part in (grid.scale, grid.zero_point))
    wanted = slow.gptq(weight, hessian, scales, zeros, grid.lowest, grid.highest, turns)
    found = solve(torch.tensor(weight), torch.tensor(inputs.T @ inputs), grid, order=order).numpy()
    # A number that lies between two codes in float64 may fall to the other in float32, and all after it with it.
    assert (found != wanted).mean() < 0.01
    plain = error(weight, quantise(weight, grid).values, inputs)
    ours, exact = (error(weight, dequantise(codes.astype(np.int8), grid), inputs) for codes in (found, wanted))
    assert ours == pytest.approx(exact, rel=0.01)
    assert ours < 0.7 * plain


def test_inputs_that_are_never_there_are_rounded_to_the_nearest_and_change_nothing() -> None:
    inputs = correlated(200, 40)
    inputs[:, [3, 17, 39]] = 0
    weight = np.random.default_rng(1).standard_normal((6, 40)).astype(np.float32)
    grid = weight_grid(weight, bits=4, axis=0)
    for damping in (0.0, 0.01):
        found = solve(torch.tensor(weight), torch.tensor(inputs.T @ inputs), grid, damping=damping).numpy()
        assert np.array_equal(found[:, [3, 17, 39]], quantise(weight, grid).codes[:, [3, 17, 39]])
        alive = np.setdiff1d(np.arange(40), [3, 17, 39])
        part = inputs[:, alive]
        assert np.array_equal(found[:, alive], solve(torch.tensor(weight[:, alive]), torch.tensor(part.T @ part), grid, damping=damping))
    silent = solve(torch.tensor(weight), torch.zeros(40, 40), grid)
    assert np.array_equal(silent, quantise(weight, grid).codes)


def test_damping_rises_until_the_moments_have_a_factor(caplog: pytest.LogCaptureFixture) -> None:
    inputs = correlated(3, 64)  # three vectors: 61 directions that nothing is known of
    weight = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)
    grid = weight_grid(weight, bits=4, axis=0)
    gram = torch.tensor(inputs.T @ inputs) - 1e-2 * torch.eye(64)  # as rounding errors leave it: not even semidefinite
    with caplog.at_level(logging.WARNING):
        found = solve(torch.tensor(weight), gram, grid, damping=0.0, name="fc").numpy()
    assert "damping raised to" in caplog.text
    assert "fc" in caplog.text
    assert error(weight, dequantise(found.astype(np.int8), grid), inputs) < error(weight, quantise(weight, grid).values, inputs)
    with pytest.raises(Refused, match="fc"):
        solve(torch.tensor(weight), gram * float("nan"), grid, name="fc")


@pytest.mark.parametrize("width", [1, 7, 300])
def test_half_of_the_second_moments_is_enough(width: int) -> None:
    inputs = correlated(50, width)
    found = moments_of(torch.tensor(inputs)).numpy()
    np.testing.assert_allclose(found, inputs.T.astype(np.float64) @ inputs, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found, found.T, rtol=1e-5, atol=1e-5)


def test_what_it_is_given_stays_as_it_is() -> None:
    inputs, weight = correlated(400, 300), torch.randn(5, 300)
    gram = torch.tensor(inputs.T @ inputs)
    before = gram.clone(), weight.clone()
    solve(weight, gram, weight_grid(weight.numpy(), bits=4, axis=0))
    assert torch.equal(gram, before[0])
    assert torch.equal(weight, before[1])


def test_the_number_of_threads_stays() -> None:
    before = torch.get_num_threads()
    weight = torch.randn(4, 300)
    solve(weight, torch.eye(300), weight_grid(weight.numpy(), bits=4, axis=0))
    assert torch.get_num_threads() == before


# -- the technique -------------------------------------------------------------------------------------------------------------


def made_of(inputs: Array, weight: Array, **options: Any) -> Quantised:
    gram = (inputs.T @ inputs / len(inputs))[None]
    found = gptq(GramView(LayerView("fc", "Gemm", weight), gram, len(inputs)), VNNI, **options).weight
    assert isinstance(found, Quantised)
    return found


def test_the_error_falls_as_bits_rise_and_is_below_plain_rounding() -> None:
    inputs, weight = correlated(500, 96), np.random.default_rng(2).standard_normal((12, 96)).astype(np.float32)
    errors = []
    for bits in range(2, 9):
        found = made_of(inputs, weight, bits=bits)
        plain = quantise(weight, searched_grid(weight, bits=bits))
        assert found.grid.bits == bits
        errors.append(error(weight, found.values, inputs))
        assert errors[-1] < 0.6 * error(weight, plain.values, inputs)
    assert errors == sorted(errors, reverse=True)
    assert error(weight, made_of(inputs, weight, bits=4, block=16).values, inputs) < errors[2]


def test_what_saw_nothing_is_rounded_plainly_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    weight = np.random.default_rng(2).standard_normal((6, 20)).astype(np.float32)
    with caplog.at_level(logging.WARNING):
        found = gptq(GramView(LayerView("fc", "Gemm", weight), np.zeros((1, 20, 20), np.float32), 0), VNNI).weight
    assert isinstance(found, Quantised)
    assert np.array_equal(found.codes, quantise(weight, searched_grid(weight, bits=4)).codes)
    assert "fc saw no inputs" in caplog.text


def test_what_saw_too_little_is_rounded_plainly_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    inputs, weight = correlated(40, 40), np.random.default_rng(2).standard_normal((6, 40)).astype(np.float32)
    plain = quantise(weight, searched_grid(weight, bits=4)).codes
    assert not np.array_equal(made_of(inputs, weight).codes, plain)  # as many vectors as inputs are enough
    assert not caplog.records
    assert np.array_equal(made_of(inputs[:39], weight).codes, plain)
    assert "fc saw only 39 input vectors for 40 inputs" in caplog.text
    assert not np.array_equal(made_of(inputs[:5], weight, enough=0.125).codes, plain)
    assert np.array_equal(made_of(inputs[:4], weight, enough=0.125).codes, plain)


def test_scales_are_those_that_will_be_stored() -> None:
    inputs, weight = correlated(80, 40), np.random.default_rng(2).standard_normal((6, 40)).astype(np.float32)
    view = GramView(LayerView("fc", "MatMul", weight, scales="float16"), (inputs.T @ inputs / 80)[None], 80)
    for options in ({"search": True}, {"search": False}, {"symmetric": False}):
        found = gptq(view, VNNI, block=16, **options).weight  # type: ignore[arg-type]
        assert isinstance(found, Quantised)
        assert np.array_equal(found.grid.scale, found.grid.scale.astype(np.float16))
        exact = made_of(inputs, weight, block=16, **options)
        assert 0 < np.abs(found.grid.scale / exact.grid.scale - 1).max() < 2e-2


def test_weights_that_are_mapped_from_a_file_are_not_written_to() -> None:
    inputs, weight = correlated(80, 40), np.random.default_rng(2).standard_normal((6, 40)).astype(np.float32)
    before, wanted = weight.copy(), made_of(inputs, weight).codes
    assert np.array_equal(weight, before)
    weight.flags.writeable = False
    assert np.array_equal(made_of(inputs, weight).codes, wanted)


def test_what_has_no_columns_says_so() -> None:
    for op, shape in (("ConvTranspose", (6, 8, 3, 3)), ("LSTM", (1, 40, 12)), ("MatMul", (3, 70, 24)), ("Gather", (20, 8))):
        assert "rounded plainly" in foresee(Layer("x", op, weight_shape=shape), VNNI).note
    assert "rounded plainly" not in foresee(Layer("x", "Conv", weight_shape=(8, 6, 3, 3)), VNNI).note
    assert foresee(Layer("x", "Conv", weight_shape=(8, 6, 3, 3)), VNNI, bits=3).weights == "int4"
    assert "MatMulNBits" in foresee(Layer("x", "MatMul", weight_shape=(70, 24)), VNNI, block=32).runs_as
    assert not foresee(Layer("x", "Relu"), VNNI).applies


# -- through a model -----------------------------------------------------------------------------------------------------------

LINED_UP = {"Conv 1-D": {}, "Conv 2-D": {}, "Conv 3-D": {}, "Conv depthwise": {"group": 6}, "Conv grouped": {"group": 2},
            "Conv strided and dilated": {"strides": [2, 2], "dilations": [2, 2]}}


@pytest.mark.parametrize("name", [*LINED_UP, "Gemm", "Gemm transB", "Gemm alpha beta", "MatMul", "MatMul of 3 dimensions"])
def test_every_operator_is_rounded_as_the_paper_says(name: str) -> None:
    case = CASES[name]()
    x = case.data.take(range(6)).batches(6)
    inputs = next(iter(x))["x"].astype(np.float64)

    def rounded(_: str, weight: Array, axis: int) -> Array:
        rows = np.moveaxis(weight, axis, 0)
        group, rank = int(LINED_UP.get(name, {}).get("group", 1)), rows.ndim - 2  # type: ignore[call-overload]
        ones, kernel = [1] * rank, rows.shape[2:]
        if name in LINED_UP:
            vectors = slow.patches(inputs, kernel, group, np.array([size // 2 for size in kernel] * 2),
                                   np.array(LINED_UP[name].get("strides", ones)), np.array(LINED_UP[name].get("dilations", ones)))
        else:
            vectors = inputs.reshape(-1, 1, inputs.shape[-1])
        flat, codes = rows.reshape(len(rows), -1), []
        scales = np.array(list(affine.weight_grid(flat, 4, True, 0, 0)[0].values()), np.float32)
        for g, part in enumerate(np.split(flat, group)):
            own = np.repeat(np.split(scales, group)[g][:, None], flat.shape[1], 1)
            turns = range(flat.shape[1])
            codes.append(slow.gptq(part, slow.hessian(vectors[:, g], 0.01), own, np.zeros(own.shape, int), -8, 7, list(turns)) * own)
        return np.moveaxis(np.concatenate(codes).reshape(rows.shape), 0, axis)

    made = applied(case.model(), case.data, ("gptq", {"search": False, "order": "none", "enough": 0.0}))
    feeds = feeds_of(case.data)
    wanted, plain = case.with_weights(rounded), case.with_weights(lambda _, weight, axis: on_grid(weight, axis, 4))
    for output, found in outputs(made, feeds).items():
        assert noise_ratio(found, outputs(wanted, feeds)[output]) < 2e-3  # at most a number or two at a tie
        assert noise_ratio(found, outputs(plain, feeds)[output]) > 2e-3


@pytest.mark.parametrize("name", ["ConvTranspose", "MatMul of stacks", "Gather", "LSTM", "GRU bidirectional"])
def test_what_has_no_columns_is_rounded_plainly(name: str) -> None:
    case = CASES[name]()
    made, feeds = applied(case.model(), case.data, ("gptq", {"search": False, "block": 16})), feeds_of(case.data)
    wanted = outputs(case.with_weights(lambda _, weight, axis: on_grid(weight, axis, 4)), feeds)
    assert all(noise_ratio(found, wanted[output]) < 2e-6 for output, found in outputs(made, feeds).items())


def two_layers(shared: bool = False) -> tuple[GraphModel, Dataset]:
    g = Sketch()
    x = g.input("x", ["N", 12])
    y = g.node("Relu", g.gemm(x, 12, 12, name="first"))
    second = g.node("Gemm", y, "first.W", name="second", transB=1) if shared else g.gemm(y, 12, 7, name="second")
    g.output(g.node("Relu", second))
    return g.model(), Dataset.of({"x": correlated(40, 12, seed=3)})


def walked(model: GraphModel, data: Dataset, layers: tuple[str, ...]) -> tuple[GraphModel, dict[str, GramView]]:
    seen: dict[str, GramView] = {}
    used = technique("gptq")

    def spy(view: GramView, *arguments: Any, **options: Any) -> Any:
        seen[view.layer.name] = view
        return used.apply(view, *arguments, **options)

    options = used.checked({"bits": 2})
    return grams.walk(model.folded(), Work(replace(used, apply=spy), dict.fromkeys(layers, options), VNNI, data, False)), seen


def tensor(model: GraphModel, reader: str, data: Dataset) -> Array:
    """What a layer reads, as onnxruntime computes it."""
    name = next(node.inputs[0].name for node in model.ir.graph if node.name == reader)
    return outputs_of(exposed(model, [name]), data)[name] if name != "x" else next(data.batches(len(data)))["x"]


def test_later_layers_see_what_the_rounded_ones_before_them_give() -> None:
    model, data = two_layers()
    made, seen = walked(model, data, ("first", "second"))
    for layer in ("first", "second"):
        x = tensor(made, layer, data).astype(np.float64)
        assert seen[layer].rows == 40
        np.testing.assert_allclose(seen[layer].gram[0], x.T @ x / 40, rtol=1e-4, atol=1e-5)
    before = tensor(model.folded(), "second", data)
    assert noise_ratio(tensor(made, "second", data), before) > 0.01
    alone, seen = walked(model, data, ("second",))
    np.testing.assert_allclose(seen["second"].gram[0], before.T @ before / 40, rtol=1e-4, atol=1e-5)
    assert set(alone.pending) == {key for key in made.pending if key[0] == "second"}


def test_a_shared_weight_is_rounded_once_and_stays_shared() -> None:
    model, data = two_layers(shared=True)
    made, seen = walked(model, data, ("first", "second"))
    assert set(seen) == {"first"}
    assert len({node.inputs[1].name for node in made.ir.graph if node.op_type == "Gemm"}) == 1
    assert len([each for each in weights_of(made.settled(VNNI)).values() if each.shape == (12, 12)]) == 1
    # A layer that is not named keeps the float weight, also on the way to the layers behind it.
    one, _ = walked(model, data, ("first",))
    weights = {node.name: node.inputs[1].const_value.numpy() for node in one.ir.graph if node.op_type == "Gemm"}  # type: ignore[union-attr]
    assert not np.array_equal(weights["first"], weights["second"])


def test_who_did_not_ask_reads_the_float_weight_that_it_shares() -> None:
    g = Sketch()
    y = g.node("Relu", g.gemm(g.input("x", ["N", 12]), 12, 12, name="first"))
    y = g.node("Gemm", y, "first.W", name="second", transB=1)
    g.output(g.gemm(y, 12, 7, name="third"))
    data = Dataset.of({"x": correlated(40, 12, seed=3)})
    made, seen = walked(g.model(), data, ("first", "third"))
    x = tensor(made, "third", data).astype(np.float64)
    np.testing.assert_allclose(seen["third"].gram[0], x.T @ x / 40, rtol=1e-4, atol=1e-5)


def test_a_weight_that_was_rounded_before_is_rounded_afresh_from_float() -> None:
    model, data = two_layers()
    feeds = feeds_of(data)
    direct = outputs(applied(model, data, ("gptq", {"bits": 8})), feeds)
    again = outputs(applied(model, data, ("gptq", {"bits": 2}), ("gptq", {"bits": 8})), feeds)
    wanted = outputs(model, feeds)
    for output in wanted:
        assert noise_ratio(again[output], wanted[output]) == pytest.approx(noise_ratio(direct[output], wanted[output]), rel=0.5)


def test_static_keeps_the_rounding() -> None:
    model, data = two_layers()
    feeds = feeds_of(data)
    wanted = outputs(model, feeds)
    rounded, both, plain = (outputs(applied(model, data, *steps), feeds) for steps in (
        [("gptq", {"bits": 4})], [("gptq", {"bits": 4}), ("static", {})], [("static", {"bits": 4})]))
    for output in wanted:
        assert noise_ratio(both[output], rounded[output]) < 0.03
        assert noise_ratio(both[output], wanted[output]) < 0.8 * noise_ratio(plain[output], wanted[output])


def test_no_more_samples_than_asked_for() -> None:
    model, data = two_layers()
    for few in (8, 20):
        made = applied(model, data, ("gptq", {"samples": few}))
        assert made.content == applied(model, data.take(range(few)), ("gptq", {})).content


def test_of_many_positions_some_are_drawn_from_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["Conv 2-D"]()
    node = next(node for node in case.model().folded().ir.graph if node.op_type == "Conv")
    product = product_of(node)
    assert product is not None
    batches = [torch.randn(4, 4, 9, 9, generator=torch.Generator().manual_seed(seed)) * (seed + 1) for seed in range(3)]
    every, count = grams.gram_of(product, batches)
    monkeypatch.setattr(grams, "MOST_VECTORS", 400)
    monkeypatch.setattr(grams, "VECTORS_AN_INPUT", 0)
    some, rows = grams.gram_of(product, batches)
    assert (count, rows) == (3 * 4 * 81, 399)
    assert noise_ratio(some, every) < 0.3
    assert np.array_equal(some, grams.gram_of(product, batches)[0])
