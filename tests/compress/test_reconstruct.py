"""Learned rounding: against every possible rounding of a small layer, and on a small trained network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.compress import digits
from tests.compress.small_graphs import Sketch, feeds_of, noise_ratio, outputs, samples, weights_of
from tests.slow_papers import soft_rounding as slow

from whet.compress import adam, soft_rounding
from whet.compress.adam import adam_step_
from whet.compress.apply import apply_recipe
from whet.compress.artifacts import load
from whet.compress.data import Dataset
from whet.compress.fake import on_grid, on_learned_grid
from whet.compress.graph import GraphModel
from whet.compress.grid import Grid, fake_quantise, quantise, weight_grid
from whet.compress.mirror import mirror
from whet.compress.soft_rounding import Schedule, SoftRounding, learn
from whet.compress.technique import LayerView
from whet.compress.views import Block
from whet.compress.walks.blocks import parts_of
from whet.core.errors import Unsupported
from whet.core.recipe import Recipe, Step
from whet.device.targets import target

VNNI = target("x86-vnni")
RANDOM = np.random.default_rng(3)
Array = np.ndarray[Any, Any]


def layer_block(weight: Array, inputs: Array) -> Block:
    """A product as a block: y = x W^T."""
    x = torch.tensor(inputs)
    wanted = x @ torch.tensor(weight).T
    return Block("product", {"product": LayerView("product", "Gemm", weight)}, {}, (x,), (x,), wanted,
                 lambda given, weights, place: place("x", given[0]) @ weights["product"].T)


def correlated(count: int, size: int) -> Array:
    """Inputs whose numbers hang together, so that errors of roundings add up or cancel."""
    mixing = RANDOM.standard_normal((3, size)) + 0.3
    return (RANDOM.standard_normal((count, 3)) @ mixing + 0.1 * RANDOM.standard_normal((count, size))).astype(np.float32)


# -- the mathematics -----------------------------------------------------------------------------------------------------------


def test_it_finds_a_rounding_nearly_as_good_as_the_best_of_all() -> None:
    weight, inputs = RANDOM.standard_normal((2, 8)).astype(np.float32), correlated(256, 8)
    grid = weight_grid(weight, bits=3, axis=0)
    codes, _ = learn(layer_block(weight, inputs), {"product": grid}, {}, Schedule(600, 64, 0.01, 2e-2))
    found, nearest = (slow.output_error(weight, values, inputs) for values in (codes["product"].values, quantise(weight, grid).values))
    best = slow.best_error(weight, grid, inputs)
    assert best <= found <= nearest
    assert found < best + 0.3 * (nearest - best), (best, found, nearest)


@pytest.mark.parametrize("most", [1, 200, 1000])
def test_gradients_summed_over_parts_of_a_step_are_those_of_the_whole(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inputs = RANDOM.standard_normal((6, 8)).astype(np.float32), correlated(64, 8)
    sizes: list[int] = []
    gradients: list[torch.Tensor] = []

    def recorded(parameter: torch.Tensor, gradient: torch.Tensor, *more: Any) -> None:
        gradients.append(gradient.clone())
        adam_step_(parameter, gradient, *more)

    def learned() -> list[torch.Tensor]:
        sizes.clear()
        gradients.clear()
        grids = {"x": Grid(8, True, np.float32(0.05), np.int32(0))}
        learn(watched, {"product": weight_grid(weight, bits=3, axis=0)}, grids, Schedule(4, 21, 0.01, 1e-2, 1e-3))
        return list(gradients)

    def run(given: Sequence[torch.Tensor], *more: Any) -> torch.Tensor:
        sizes.append(len(given[0]))
        return block.run(given, *more)

    block = layer_block(weight, inputs)
    watched = replace(block, run=run)

    for module in (adam, soft_rounding):  # of activations, and of weights
        monkeypatch.setattr(module, "adam_step_", recorded)
    whole = learned()
    assert sizes == [1, *[21] * 4]  # the first one is measured
    monkeypatch.setattr(soft_rounding, "STEP_BYTES", most)
    parts = learned()
    assert max(sizes) < 21
    assert (max(sizes) > 1) == (most > 1)
    for found, wanted in zip(parts, whole, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_soft_rounding_begins_at_the_weight_itself_and_ends_at_neighbouring_codes() -> None:
    weight = RANDOM.standard_normal((4, 40)).astype(np.float32)
    grid = weight_grid(weight, bits=4, axis=1, block=16)
    soft = SoftRounding(weight, grid)
    np.testing.assert_allclose(soft.weight().detach().numpy(), weight, atol=2e-4)
    soft.v += torch.tensor(RANDOM.standard_normal(weight.shape) * 3, dtype=torch.float32)
    codes = soft.codes()
    assert np.abs(codes.values - weight).max() <= grid.scale.max() * 1.001
    assert np.array_equal(codes.codes, slow.hard_codes(weight, grid, soft.v.detach().numpy()))


@pytest.mark.parametrize(("bits", "block", "symmetric", "together"), [(3, 0, True, 1 << 17), (3, 0, True, 50), (4, 16, True, 50),
                                                                      (2, 0, False, 50), (4, 16, False, 1 << 17)])
@pytest.mark.parametrize("beta", [None, 7.0, 2.0])
def test_its_gradient_is_the_slope_of_the_papers_objective(bits: int, block: int, symmetric: bool, together: int, beta: float | None,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_rounding, "TOGETHER", together)
    weight = RANDOM.standard_normal((5, 40)).astype(np.float32)
    grid = weight_grid(weight * 0.7, bits=bits, axis=1 if block else 0, block=block, symmetric=symmetric)  # some lie outside
    soft, of_weight = SoftRounding(weight, grid), RANDOM.standard_normal(weight.shape)
    soft.v += torch.tensor(RANDOM.standard_normal(weight.shape), dtype=torch.float32)
    scale, zero = ((np.repeat(part, block, 1)[:, :40] if block else np.repeat(part[:, None], 40, 1))
                   for part in (grid.scale, grid.zero_point))
    strength = 0.3 if beta is not None else 0.0
    wanted = [[slow.slope(float(soft.v[at]), float(weight[at]), float(scale[at]), int(zero[at]), (grid.lowest, grid.highest),
                          of_weight[at], beta or 1.0, strength) for at in ((row, column) for column in range(40))] for row in range(5)]
    rows = slice(1, 4)
    found = soft.gradient(torch.tensor(of_weight[rows], dtype=torch.float32), rows, strength, beta)
    np.testing.assert_allclose(found.numpy(), np.asarray(wanted)[rows], rtol=2e-3, atol=2e-3)


def test_a_single_row_in_blocks_with_zero_points_is_learned_too() -> None:
    weight, inputs = RANDOM.standard_normal((1, 32)).astype(np.float32) + 0.5, correlated(64, 32)
    grid = weight_grid(weight, bits=4, axis=1, block=8, symmetric=False)
    codes, _ = learn(layer_block(weight, inputs), {"product": grid}, {}, Schedule(50, 16, 0.01, 2e-2))
    assert np.abs(codes["product"].values - weight).max() <= grid.scale.max() * 1.001


def test_steps_done_row_by_row_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, gradients = RANDOM.standard_normal((5, 40)).astype(np.float32), torch.tensor(RANDOM.standard_normal((6, 5, 40))).float()
    grid = weight_grid(weight, bits=3, axis=0)
    whole, parts = SoftRounding(weight, grid), SoftRounding(weight, grid)
    for number, gradient in enumerate(gradients):
        whole.step(gradient, 1e-2, 0.01, 20.0 - number)
        with monkeypatch.context() as small:
            small.setattr(soft_rounding, "TOGETHER", 40)
            parts.step(gradient, 1e-2, 0.01, 20.0 - number)
            torch.testing.assert_close(parts.weight(), whole.weight())
    torch.testing.assert_close(parts.v, whole.v)


def test_the_rectified_sigmoid_and_the_exponent_are_those_of_the_paper() -> None:
    soft = SoftRounding(RANDOM.standard_normal((3, 5)).astype(np.float32), Grid(4, True, np.float32(0.3), np.int32(0)))
    soft.v *= 2.5
    v = soft.v.numpy()
    np.testing.assert_allclose(soft.share.detach().numpy(), [[slow.rectified_sigmoid(float(x)) for x in row] for row in v], atol=1e-5)
    schedule = Schedule(1000, 1, 0.01, 1e-3)
    assert [schedule.beta(step) for step in (0, 199)] == [None, None]
    assert schedule.beta(200) == pytest.approx(20.0)
    assert schedule.beta(600) == pytest.approx(11.0)
    assert schedule.beta(1000) == pytest.approx(2.0)


@pytest.mark.parametrize(("bits", "signed", "zero"), [(4, False, 3), (8, False, 0), (6, True, 0)])
def test_torch_rounds_as_numpy_does(bits: int, signed: bool, zero: int) -> None:
    grid = Grid(bits, signed, np.float32(0.17), np.int32(zero))
    values = torch.tensor(RANDOM.standard_normal(4000).astype(np.float32) * 4)
    assert np.array_equal(on_grid(values, grid).numpy(), fake_quantise(values.numpy(), grid))
    learned = on_learned_grid(values, torch.tensor(0.17), grid).numpy()
    assert np.mean(learned == fake_quantise(values.numpy(), grid)) > 0.99


def test_gradients_of_a_learned_step_are_those_of_the_paper() -> None:
    grid = Grid(3, False, np.float32(0.5), np.int32(2))
    values = torch.tensor([-9.0, -0.6, 0.1, 0.9, 9.0], requires_grad=True)
    step = torch.tensor(0.5, requires_grad=True)
    on_learned_grid(values, step, grid).sum().backward()
    assert values.grad is not None
    assert step.grad is not None
    assert values.grad.tolist() == [0, 1, 1, 1, 0]
    assert float(step.grad) == pytest.approx(slow.step_gradient(values.tolist(), 0.5, 2, 0, 7), rel=1e-5)


# -- blocks --------------------------------------------------------------------------------------------------------------------


def residual() -> GraphModel:
    g = Sketch()
    x = g.node("Relu", g.conv(g.input("x", ["N", 3, 8, 8]), (3, 8), name="stem"))
    y = g.node("Relu", g.conv(x, (8, 8), name="left"))
    x = g.node("Relu", g.node("Add", g.conv(y, (8, 8), name="right"), x, name="sum"), name="joined")
    g.output(g.gemm(g.node("Flatten", g.node("GlobalAveragePool", x)), 8, 5, name="head"))
    return g.model()


def test_blocks_end_where_one_tensor_is_alive() -> None:
    reflected = mirror(residual().folded())
    parts = list(parts_of(reflected.steps, reflected.inputs, reflected.outputs, {"stem", "left", "right", "head"}))
    layers = [[step.name for step in part.steps if step.op in ("Conv", "Gemm")] for part in parts]
    assert layers == [["stem"], ["left", "right"], ["head"]]
    assert all(len(part.inputs) == len(part.outputs) == 1 for part in parts)
    assert [step for part in parts for step in part.steps] == list(reflected.steps)


FAST = {"iterations": 10, "samples": 64, "bits": 3}
IMAGES = samples({"x": (3, 8, 8)}, 64)


def reconstructed(model: GraphModel, data: Dataset = IMAGES, static: dict[str, Any] | None = None, **options: Any) -> GraphModel:
    steps = (Step("reconstruct", options={**FAST, **options}), *(() if static is None else (Step("static", options=static),)))
    return apply_recipe(model, Recipe(steps), VNNI, calibration=data)


@pytest.mark.slow
def test_three_bits_lose_less_than_rounded_ones() -> None:
    exact = outputs(residual(), feeds_of(IMAGES))
    learned = outputs(reconstructed(residual(), iterations=300), feeds_of(IMAGES))
    plain = outputs(apply_recipe(residual(), Recipe((Step("reconstruct", options={**FAST, "iterations": 1}),)), VNNI, calibration=IMAGES),
                    feeds_of(IMAGES))
    for name, wanted in exact.items():
        assert noise_ratio(learned[name], wanted) < 0.8 * noise_ratio(plain[name], wanted)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    one, two, three = (reconstructed(residual(), seed=seed, static={}).content for seed in (0, 0, 1))
    assert one == two
    assert one != three


def test_static_takes_weights_and_ranges_over() -> None:
    small = reconstructed(residual(), static={})
    codes = [values for values in weights_of(small).values() if str(values.dtype) in ("int4", "int8") and values.ndim > 1]
    assert len(codes) == 4
    assert all(np.abs(each.astype(np.int32)).max() <= 4 for each in codes)
    exact, found = outputs(residual(), feeds_of(IMAGES)), outputs(small, feeds_of(IMAGES))
    for name, wanted in exact.items():
        assert noise_ratio(found[name], wanted) < 0.5


@pytest.mark.parametrize(("stated", "taken"), [("N", 1), (1, 1), (4, 4)])
def test_a_graph_that_takes_one_size_of_batch_is_learned_in_it(stated: int | str, taken: int) -> None:
    g = Sketch()
    x = g.node("Relu", g.conv(g.input("x", [stated, 3, 8, 8]), (3, 8), name="stem"))
    g.output(g.gemm(g.node("Reshape", g.node("GlobalAveragePool", x), g.constant([taken, 8], np.int64)), 8, 5, name="head"))
    made = reconstructed(g.model(), batch=6, static={})
    feeds = {"x": feeds_of(IMAGES)["x"][:taken]}
    for name, wanted in outputs(g.model(), feeds).items():
        assert noise_ratio(outputs(made, feeds)[name], wanted) < 0.5


def test_a_model_of_which_nothing_computes_in_integers_is_refused() -> None:
    g = Sketch()
    g.output(g.node("Sin", g.input("x", ["N", 4])))
    with pytest.raises(Unsupported):
        reconstructed(g.model(), samples({"x": (4,)}, 8))


@pytest.mark.slow
def test_four_bits_everywhere_keep_what_a_trained_network_knows() -> None:
    images, labels = digits.data()
    model = load(digits.network())
    data = Dataset.of({"image": images[:256]})
    evaluated = {"image": images[500:1500]}

    def accuracy(made: GraphModel) -> float:
        return float((outputs(made, evaluated)["scores"].argmax(1) == labels[500:1500]).mean())

    step = Step("reconstruct", options={"bits": 3, "iterations": 800, "samples": 256})
    learned = apply_recipe(model, Recipe((step, Step("static"))), VNNI, calibration=data)
    rounded = apply_recipe(model, Recipe((Step("reconstruct", options={"bits": 3, "iterations": 1, "samples": 256}), Step("static"))),
                           VNNI, calibration=data)
    assert accuracy(learned) > accuracy(model) - 0.01
    assert accuracy(learned) >= accuracy(rounded)
