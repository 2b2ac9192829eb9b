"""AdaRound: near the best of all roundings where those can be tried, and each layer learning on what it really reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.compress.operators_with_weights import CASES, on_grid
from tests.compress.small_graphs import Sketch, feeds_of, noise_ratio, outputs
from tests.compress.test_gptq import applied, correlated, tensor, two_layers
from tests.slow_papers import adaround as slow

from whet.compress.adam import Adam
from whet.compress.data import Dataset
from whet.compress.graph import GraphModel
from whet.compress.grid import Quantised, quantise, weight_grid
from whet.compress.runtime import exposed, outputs_of
from whet.compress.soft_rounding import Schedule, SoftRounding
from whet.compress.technique import LayerView, technique
from whet.compress.techniques.adaround import adaround, foresee
from whet.compress.views import SampleView
from whet.compress.walks import Work
from whet.compress.walks import samples as samples_walk
from whet.compress.weight_search import searched_grid
from whet.core.inventory import Layer
from whet.device.targets import target

Array = np.ndarray[Any, Any]
VNNI = target("x86-vnni")


# -- the mathematics -----------------------------------------------------------------------------------------------------------


def test_soft_weights_and_regulariser_are_the_papers() -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((3, 4)).astype(np.float32)
    soft = SoftRounding(weight, weight_grid(weight * 0.8, bits=3, axis=0))  # some numbers lie beyond the grid's ends
    assert np.allclose(soft.weight().detach().clip(-9, 9), np.clip(weight, *_ends(soft)), atol=1e-3)  # it begins at the weight itself
    with torch.no_grad():
        soft.v.copy_(torch.tensor(random.normal(0, 3, (3, 4))))
    v, scales = soft.v.detach().double().numpy(), soft.grid.scale
    wanted = [[slow.soft_weight(float(weight[r, c]), float(v[r, c]), float(scales[r]), -4, 3) for c in range(4)] for r in range(3)]
    np.testing.assert_allclose(soft.weight().detach().numpy(), wanted, atol=1e-5)
    nothing = torch.zeros(3, 4)
    for beta in (2.0, 7.5, 20.0):  # its gradient is the difference that a small step of one variable makes
        found = soft.gradient(nothing, slice(0, 3), 1.0, beta).numpy()
        for at in np.ndindex(3, 4):
            step = np.zeros((3, 4))
            step[at] = 1e-4
            slope = (slow.regulariser(v + step, beta) - slow.regulariser(v - step, beta)) / 2e-4
            assert found[at] == pytest.approx(slope, rel=1e-2, abs=1e-3)


def _ends(soft: SoftRounding) -> tuple[Array, Array]:
    return -4 * soft.grid.scale[:, None], 3 * soft.grid.scale[:, None]


def test_the_regulariser_begins_after_the_warm_up_and_hardens() -> None:
    schedule = Schedule(100, 32, 0.01, 1e-2, warm_up=0.3)
    assert schedule.beta(29) is None
    assert schedule.beta(30) == pytest.approx(20.0)
    betas = [schedule.beta(i) or 0.0 for i in range(30, 100)]
    assert betas == sorted(betas, reverse=True)
    assert betas[-1] == pytest.approx(2.0, abs=0.05)


def test_adam_takes_the_papers_steps() -> None:
    start = torch.randn(5, generator=torch.Generator().manual_seed(0))
    ours, theirs = start.clone().requires_grad_(), start
    adam = Adam(ours, 0.05)
    mean, square = torch.zeros(5), torch.zeros(5)
    for step in range(1, 21):
        (ours**4).sum().backward()
        adam.step()
        gradient = 4 * theirs**3  # algorithm 1 of the paper, line by line
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        theirs = theirs - 0.05 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    torch.testing.assert_close(ours.detach(), theirs)


# -- the technique -------------------------------------------------------------------------------------------------------------


def view_of(weight: Array, inputs: Array, targets: Array) -> SampleView:
    return SampleView(LayerView("fc", "Gemm", weight), torch.tensor(inputs), torch.tensor(targets),
                      lambda x, rounded: torch.relu(x @ rounded.T))


def codes_of(view: SampleView, **options: Any) -> Quantised:
    found = adaround(view, VNNI, **options).weight
    assert isinstance(found, Quantised)
    return found


@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_it_comes_near_the_best_of_all_roundings_at_every_size_of_the_outputs(size: float) -> None:
    found_errors = best_errors = nearest_errors = 0.0
    for seed in (5, 6):
        weight = (size * np.random.default_rng(seed).standard_normal((3, 7))).astype(np.float32)
        inputs = correlated(40, 7, seed)
        targets = np.maximum(inputs @ weight.T, 0)
        found = codes_of(view_of(weight, inputs, targets), bits=3, iterations=300, batch=40, search=False)
        _, best = slow.best_rounding(weight, found.grid.scale, -4, 3, inputs, targets, lambda y: max(y, 0.0))
        ours, nearest = (slow.error(each.values, inputs, targets, lambda y: max(y, 0.0)) for each in (found, quantise(weight, found.grid)))
        assert best <= ours * (1 + 1e-5)
        found_errors, best_errors, nearest_errors = found_errors + ours, best_errors + best, nearest_errors + nearest
    assert found_errors < best_errors + 0.5 * (nearest_errors - best_errors)


def test_it_is_never_worse_than_the_nearest_on_what_it_learned_on() -> None:
    for seed in range(4):
        random = np.random.default_rng(seed)
        inputs, weight = correlated(50, 10, seed), random.standard_normal((4, 10)).astype(np.float32)
        view = view_of(weight, inputs, np.maximum(inputs @ weight.T, 0))
        # A regulariser without measure, and vectors one by one: what is learned is often worse.
        found = codes_of(view, bits=4, iterations=25, regulariser=100.0, batch=1, seed=seed)
        nearest = quantise(weight, searched_grid(weight, bits=4))
        ours, plain = (float((view.product(view.inputs, torch.tensor(each.values)) - view.targets).square().sum())
                       for each in (found, nearest))
        assert ours <= plain * (1 + 1e-6)


def test_the_seed_decides() -> None:
    inputs, weight = correlated(300, 24), np.random.default_rng(5).standard_normal((16, 24)).astype(np.float32)
    view = view_of(weight, inputs, np.maximum(inputs @ weight.T, 0))
    one, same, other = (codes_of(view, bits=3, iterations=100, batch=2, seed=seed).codes for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_are_neighbours_of_the_weight(symmetric: bool) -> None:
    inputs, weight = correlated(100, 24), np.random.default_rng(6).standard_normal((5, 24)).astype(np.float32)
    found = codes_of(view_of(weight, inputs, np.maximum(inputs @ weight.T, 0)), bits=3, iterations=100, symmetric=symmetric, search=False)
    assert np.all(np.abs(found.values - weight) <= found.grid.scale[:, None] * 1.0001 + (not symmetric) * found.grid.scale[:, None] / 2)
    assert (found.codes.min(), found.codes.max()) >= (found.grid.lowest, found.grid.lowest)
    assert found.codes.max() <= found.grid.highest


def test_what_is_rounded_plainly_says_so() -> None:
    assert "rounded plainly" in foresee(Layer("x", "LSTM", weight_shape=(1, 40, 12)), VNNI).note
    assert "rounded plainly" not in foresee(Layer("x", "ConvTranspose", weight_shape=(6, 8, 3, 3)), VNNI).note
    assert foresee(Layer("x", "Conv", weight_shape=(8, 6, 3, 3)), VNNI, bits=3, symmetric=False).weights == "uint4"
    assert not foresee(Layer("x", "Relu"), VNNI).applies


# -- through a model -----------------------------------------------------------------------------------------------------------


def walked(model: GraphModel, data: Dataset, **options: Any) -> tuple[GraphModel, dict[str, SampleView]]:
    """The model with all layers rounded, and what the technique was shown."""
    seen: dict[str, SampleView] = {}
    used = technique("adaround")

    def spy(view: SampleView, *arguments: Any, **options: Any) -> Any:
        seen[view.layer.name] = view
        return used.apply(view, *arguments, **options)

    folded, checked = model.folded(), used.checked({"iterations": 5, **options})
    layers = dict.fromkeys(folded.views([node.name for node in folded.nodes]), checked)
    return samples_walk.walk(folded, Work(replace(used, apply=spy), layers, VNNI, data, False)), seen


LEARNED = ["Conv 1-D", "Conv 2-D", "Conv 3-D", "Conv depthwise", "Conv grouped", "Conv strided and dilated", "Conv without bias",
           "ConvTranspose", "ConvTranspose grouped", "Gemm", "Gemm transB", "Gemm alpha beta", "MatMul", "MatMul of 3 dimensions",
           "MatMul of stacks"]


@pytest.mark.parametrize("most", [1 << 16, 3])
@pytest.mark.parametrize("name", LEARNED)
def test_the_product_of_every_operator_gives_its_targets(name: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layer reads the same in both streams, so that inputs and targets belong together whatever was drawn."""
    monkeypatch.setattr(samples_walk, "MOST_VECTORS", most)
    case = CASES[name]()
    _, seen = walked(case.model(), case.data, samples=6)
    view = seen["layer"]
    assert view.layer.weight is not None
    found = view.product(view.inputs, torch.tensor(view.layer.weight))
    torch.testing.assert_close(found, view.targets, rtol=1e-4, atol=1e-4)
    wanted = next(iter(outputs(case.model(), feeds_of(case.data)).values()))
    if most > 3:  # all positions, in order; channels last
        exact = wanted if name in ("ConvTranspose", "ConvTranspose grouped", "MatMul of stacks") else (
            np.moveaxis(wanted, 1, -1).reshape(-1, wanted.shape[1]) if name.startswith("Conv") else wanted.reshape(-1, wanted.shape[-1]))
        np.testing.assert_allclose(view.targets.numpy(), exact, rtol=1e-4, atol=1e-4)


def test_later_layers_learn_on_what_the_rounded_ones_give_and_what_was_there_in_float() -> None:
    model, data = two_layers()
    made, seen = walked(model, data, bits=2)
    for layer in ("first", "second"):
        np.testing.assert_allclose(seen[layer].inputs[:, 0], tensor(made, layer, data), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(seen["first"].targets, tensor(model.folded(), "second", data), rtol=1e-4, atol=1e-4)  # behind its Relu
    np.testing.assert_allclose(seen["second"].targets, next(iter(outputs(model, feeds_of(data)).values())), rtol=1e-4, atol=1e-4)
    assert noise_ratio(seen["second"].inputs[:, 0].numpy(), tensor(model.folded(), "second", data)) > 0.01


@pytest.mark.parametrize(("alone", "behind"), [(True, "relu"), (False, "sum")])
def test_an_activation_that_the_layer_shares_with_others_does_not_count(alone: bool, behind: str) -> None:
    g = Sketch()
    y = g.conv(g.input("x", ["N", 3, 6, 6]), (3, 4), name="layer")
    z = g.node("Clip", y, g.constant(0.0), g.constant(0.5))
    g.output(z)
    if not alone:
        g.output(g.node("Neg", y))
    data = Dataset.of({"x": np.random.default_rng(0).standard_normal((4, 3, 6, 6)).astype(np.float32)})
    model = g.model()
    _, seen = walked(model, data)
    name = next(node.outputs[0].name for node in model.folded().ir.graph if node.op_type == ("Clip" if alone else "Conv"))
    wanted = outputs_of(exposed(model.folded(), [name]), data)[name]
    np.testing.assert_allclose(seen["layer"].targets, np.moveaxis(wanted, 1, -1).reshape(-1, 4), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["Gather", "LSTM", "GRU bidirectional"])
def test_recurrent_layers_and_tables_are_rounded_plainly(name: str) -> None:
    case = CASES[name]()
    made, feeds = applied(case.model(), case.data, ("adaround", {"search": False})), feeds_of(case.data)
    wanted = outputs(case.with_weights(lambda _, weight, axis: on_grid(weight, axis, 4)), feeds)
    assert all(noise_ratio(found, wanted[output]) < 2e-6 for output, found in outputs(made, feeds).items())


def test_a_network_loses_less_than_with_plain_rounding_also_when_static_follows() -> None:
    model, data = two_layers()
    feeds = feeds_of(data)
    wanted = outputs(model, feeds)
    learned, both, plain = (outputs(applied(model, data, *steps), feeds) for steps in (
        [("adaround", {"iterations": 150})], [("adaround", {"iterations": 150}), ("static", {})], [("static", {"bits": 4})]))
    for output in wanted:
        assert noise_ratio(both[output], learned[output]) < 0.03
        assert noise_ratio(both[output], wanted[output]) < 0.8 * noise_ratio(plain[output], wanted[output])
