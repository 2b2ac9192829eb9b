"""Ranges chosen by the error at the layers that read the tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.compress.small_graphs import Sketch, feeds_of, noise_ratio, outputs, samples, weights_of
from tests.slow_papers import calibration as slow

from whet.compress.apply import apply_recipe
from whet.compress.data import Dataset
from whet.compress.graph import GraphModel
from whet.compress.grid import fake_quantise
from whet.compress.ranges import METHODS, find_range
from whet.compress.statistics import Statistics
from whet.compress.techniques.clip import PERCENTILES, _grid, clip
from whet.compress.views import TensorView
from whet.core.errors import Unsupported
from whet.core.recipe import Recipe, Step
from whet.device.targets import target

VNNI = target("x86-vnni")
RANDOM = np.random.default_rng(5)
Array = np.ndarray[Any, Any]


def statistics(values: Array) -> Statistics:
    found = Statistics("x", with_histogram=True)
    found.update(values)
    return found


def with_outliers(count: int = 20_000) -> Array:
    values = RANDOM.standard_normal(count).astype(np.float32)
    values[:10] *= 40
    return values


# -- the mathematics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("one_sided", [False, True])
def test_octav_has_nearly_the_least_squared_error_of_all_clipping_values(bits: int, one_sided: bool) -> None:
    values = RANDOM.laplace(size=3000).astype(np.float32)
    values = np.abs(values) if one_sided else np.concatenate([values, -values])
    low, high = find_range(statistics(values), "octav", codes=1 << bits, percentile=100.0)
    assert (low < 0.01) if one_sided else (low == -high)
    errors = {share: slow.squared_error(values, 0.0 if one_sided else -share * high, share * high, 1 << bits)
              for share in (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)}
    assert errors[1.0] < 1.05 * min(errors.values()), errors


def test_the_candidate_with_the_least_error_is_taken() -> None:
    values = with_outliers()
    weight = RANDOM.standard_normal((20, 8)).astype(np.float32)
    rows = values.reshape(-1, 20)

    def error(fake: Array) -> float:
        return float((((fake.reshape(-1, 20) - rows) @ weight) ** 2).mean())

    found = clip(TensorView(statistics(values), values, error), VNNI, bits=4)
    every = [find_range(statistics(values), method, codes=16, percentile=percentile) for method in METHODS for percentile in PERCENTILES]
    assert error(fake_quantise(values, _grid(found, 4, VNNI))) == min(error(fake_quantise(values, _grid(each, 4, VNNI))) for each in every)
    assert found[1] < values.max() / 2  # the outliers are cut off


def test_where_outliers_matter_they_are_kept() -> None:
    values = with_outliers()
    found = clip(TensorView(statistics(values), values, lambda fake: float(((fake - values)[:10] ** 2).sum())), VNNI, bits=8)
    assert found == pytest.approx((values.min(), values.max()))


def test_fewer_bits_get_narrower_ranges() -> None:
    values = RANDOM.laplace(size=20_000).astype(np.float32)
    view = TensorView(statistics(values), values, lambda fake: float(((fake - values) ** 2).mean()))
    narrow, wide = (clip(view, VNNI, bits=bits)[1] for bits in (4, 8))
    assert narrow < wide


# -- in a model ----------------------------------------------------------------------------------------------------------------


def network() -> GraphModel:
    g = Sketch()
    y = g.node("Relu", g.conv(g.input("x", ["N", 3, 8, 8]), (3, 8), name="first"))
    y = g.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    y = g.node("Relu", g.conv(y, (8, 8), name="second"))
    g.output(g.gemm(g.node("Flatten", g.node("GlobalAveragePool", y)), 8, 6, name="last"))
    return g.model()


def spiked(count: int = 40) -> Dataset:
    """Images of which a few numbers in all are 60 times too large."""
    data = samples({"x": (3, 8, 8)}, count)
    images = next(data.batches(count))["x"].copy()
    images.reshape(-1)[:6] *= 60
    return Dataset.of({"x": images})


def recipe(*names: str, bits: int = 8) -> Recipe:
    options = {"clip": {"bits": bits}, "static": {"activation_bits": bits}}
    return Recipe(tuple(Step(name, options=options[name]) for name in names))


def test_a_model_with_outliers_is_better_off_than_with_min_max() -> None:
    calibration, clean = spiked(), samples({"x": (3, 8, 8)}, 32, seed=9)
    exact = outputs(network(), feeds_of(clean))
    errors = {}
    for names in (("static",), ("clip", "static")):
        found = outputs(apply_recipe(network(), recipe(*names, bits=4), VNNI, calibration=calibration), feeds_of(clean))
        errors[names] = max(noise_ratio(found[name], wanted) for name, wanted in exact.items())
    assert errors["clip", "static"] < 0.5 * errors["static",]


def test_ranges_reach_the_integer_model_and_only_for_the_layers_named() -> None:
    plain, whole = (weights_of(apply_recipe(network(), recipe(*names), VNNI, calibration=spiked()))
                    for names in (("static",), ("clip", "static")))
    only = Recipe((Step("clip", ("last",), options={"bits": 4}), Step("static")))
    part = weights_of(apply_recipe(network(), only, VNNI, calibration=spiked()))

    def scales(found: dict[str, Array]) -> set[float]:
        return {float(value) for value in found.values() if value.dtype == np.float32 and value.ndim == 0}

    assert scales(plain) != scales(whole)
    assert scales(part) != scales(whole)
    assert len(scales(part) & scales(plain)) >= 2


def test_alone_it_is_refused_for_it_would_change_nothing() -> None:
    with pytest.raises(Unsupported, match="by themselves"):
        apply_recipe(network(), recipe("clip"), VNNI, calibration=spiked())


def test_the_original_is_left_as_it_is_and_nothing_is_left_over_afterwards() -> None:
    model = network()
    before = model.content
    made = apply_recipe(model, recipe("clip", "static"), VNNI, calibration=spiked())
    assert model.content == before
    assert not made.ranges
    assert not made.pending
    assert made.reference is None
