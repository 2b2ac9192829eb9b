"""Who does the harm: the layer that does it is found, and the reader is told in words."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto
from tests.compress.small_graphs import Sketch, feeds_of, noise_ratio, outputs, samples

from whet.compress.data import Dataset
from whet.compress.evaluate.output_error import relative_error
from whet.compress.graph import GraphModel
from whet.compress.optimize.blame import damage, sentences, slower
from whet.core.outcome import LayerReport
from whet.core.recipe import Step
from whet.device.targets import target

VNNI = target("x86-vnni")
NAMES = ("one", "two", "three", "four", "last")
DATA = samples({"x": (3, 12, 12)}, 48)
STATIC = Step("static")


def network(scaled: str = "", factor: float = 100.0) -> GraphModel:
    """Four convolutions and a product. One channel of ``scaled`` is ``factor`` times as large and divided again by whoever reads it."""
    g = Sketch(seed=3)
    y = g.input("x", ["N", 3, 12, 12])
    for name, inside in zip(NAMES[:4], (3, 8, 8, 8), strict=True):
        y = g.node("Relu", g.conv(y, (inside, 8), name=name), name=f"relu_{name}")
    g.output(g.gemm(g.node("Flatten", y, name="flat"), 8 * 144, 10, name="last"))
    if scaled:
        g.constants[f"{scaled}.W"][5] *= factor
        g.constants[f"{scaled}.B"][5] *= factor
        g.constants[f"{NAMES[NAMES.index(scaled) + 1]}.W"][:, 5] /= factor
    return g.model()


@pytest.mark.parametrize("scaled", ["one", "two", "three"])
def test_the_layer_with_one_enormous_channel_is_found(scaled: str) -> None:
    model = network(scaled)
    exact = noise_ratio(next(iter(outputs(model, feeds_of(DATA)).values())), next(iter(outputs(network(), feeds_of(DATA)).values())))
    assert exact < 1e-4  # in float nothing has changed
    found, plain = damage(model, STATIC, VNNI, DATA), damage(network(), STATIC, VNNI, DATA)
    assert set(found) == set(plain) == set(NAMES)
    reader = NAMES[NAMES.index(scaled) + 1]
    worst = sorted(found, key=lambda name: -found[name])
    assert worst[0] in (scaled, reader)
    assert found[worst[0]] > 20 * max(plain.values())
    others = [name for name in NAMES if name not in (scaled, reader)]
    assert all(found[name] < 3 * plain[name] for name in others)


def test_only_the_layers_that_the_step_quantises_are_asked() -> None:
    found = damage(network(), Step("static", exclude=("two", "last")), VNNI, DATA)
    assert set(found) == {"one", "three", "four"}


def test_a_layers_damage_is_what_quantising_it_alone_does() -> None:
    from whet.compress.apply import apply_recipe
    from whet.core.recipe import Recipe

    model = network("two")
    alone = Step("static", ("three",))
    made = apply_recipe(model, Recipe((alone,)), VNNI, calibration=DATA)
    feeds = feeds_of(DATA)
    error = noise_ratio(*(next(iter(outputs(each, feeds).values())) for each in (made, model))) ** 2
    assert damage(model, alone, VNNI, DATA)["three"] == pytest.approx(error, rel=0.05)


def test_the_ranges_of_the_step_count() -> None:
    spiked = feeds_of(DATA)["x"].copy()
    spiked[0, 0, 0, 0] = 400.0  # one number that minmax must cover and percentile need not
    rest = Dataset.of({"x": spiked})
    options = ({}, {"ranges": "percentile", "percentile": 99.9})
    minmax, percentile = (damage(network(), Step("static", ("one",), options=each), VNNI, rest)["one"] for each in options)
    assert minmax != pytest.approx(percentile, rel=0.2)


def test_few_samples_are_enough_and_no_more_are_taken() -> None:
    first = damage(network(), STATIC, VNNI, DATA, samples=8)
    assert first == damage(network(), STATIC, VNNI, DATA.take(range(8)))
    assert first == damage(network(), STATIC, VNNI, DATA.take(range(20)), samples=8)


def test_a_model_of_one_layer_and_whole_number_outputs() -> None:
    g = Sketch()
    g.output(g.node("ArgMax", g.gemm(g.input("x", ["N", 16]), 16, 400, name="head"), name="arg", axis=1, keepdims=0), TensorProto.INT64)
    found = damage(g.model(), STATIC, VNNI, samples({"x": (16,)}, 64))
    assert 0 < found["head"] < 1  # the share of answers that changed: many classes lie close together


# -- the error ----------------------------------------------------------------------------------------------------------------------

FINITE = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=8).map(lambda values: np.array(values, np.float32))


@given(FINITE, st.floats(-4, 4))
def test_the_error_of_a_scaled_output_is_the_square_of_the_scaling(values: np.ndarray, amount: float) -> None:
    if not values.any() or (values.astype(np.float64) ** 2).sum() < 1e-20:
        return
    found = values.astype(np.float64) * (1 + amount)
    assert relative_error({"y": values}, {"y": found}) == pytest.approx(amount**2, rel=1e-3, abs=1e-9)


@given(FINITE)
def test_the_same_output_has_no_error(values: np.ndarray) -> None:
    assert relative_error({"y": values}, {"y": values.copy()}) == 0.0


@given(FINITE, FINITE)
def test_the_worst_output_counts(one: np.ndarray, other: np.ndarray) -> None:
    reference, found = {"a": one, "b": other}, {"a": one + 1, "b": other * 2}
    each = [relative_error({name: reference[name]}, {name: found[name]}) for name in reference]
    assert relative_error(reference, found) == max(each)


def test_an_output_of_zeros() -> None:
    zeros = np.zeros(4, np.float32)
    assert relative_error({"y": zeros}, {"y": zeros}) == 0.0
    assert relative_error({"y": zeros}, {"y": zeros + 1e-3}) == 1.0


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_broken_output_is_the_greatest_error_of_all(broken: float) -> None:
    values = np.ones(4, np.float32)
    assert relative_error({"y": values}, {"y": np.array([1, 1, broken, 1], np.float32)}) == math.inf
    assert relative_error({"z": values, "y": values}, {"z": values, "y": values * broken}) == math.inf


def test_whole_numbers_count_where_there_is_nothing_else() -> None:
    answers = np.array([1, 2, 3, 4])
    assert relative_error({"class": answers}, {"class": np.array([1, 2, 0, 4])}) == 0.25
    scores = np.ones(4, np.float32)
    assert relative_error({"class": answers, "y": scores}, {"class": answers + 1, "y": scores}) == 0.0


def test_float16_outputs_do_not_overflow_in_the_sum() -> None:
    values = np.full(4, 60000, np.float16)
    assert relative_error({"y": values}, {"y": values}) == 0.0
    assert relative_error({"y": values}, {"y": values * np.float16(0.5)}) == pytest.approx(0.25)


# -- in words -------------------------------------------------------------------------------------------------------------------------


def test_the_worst_come_first_with_operator_decibels_and_share() -> None:
    first, second = sentences({"a": 0.001, "b": 0.003}, {"a": "Conv", "b": "Gemm"})
    assert first.startswith("b (Gemm): quantised alone it changes the output by -25.2 dB relative to the output itself, 75% of the damage")
    assert second.startswith("a (Conv): quantised alone it changes the output by -30.0 dB")


def test_layers_that_do_no_harm_are_not_blamed() -> None:
    assert sentences({}, {}) == ()
    assert sentences({"a": 0.0, "b": 0.0}, {}) == ()
    assert len(sentences({"a": 0.0, "b": 1e-9}, {})) == 1


def test_no_more_than_asked() -> None:
    harm = {f"layer {at}": float(at) for at in range(1, 20)}
    assert [line.split(" (")[0] for line in sentences(harm, {}, most=2)] == ["layer 19", "layer 18"]
    assert len(sentences(harm, {})) == 5


def test_an_overflow_is_called_one_and_spoils_no_other_line() -> None:
    lines = sentences({"a": math.inf, "b": 0.01}, {"a": "Conv", "b": "Conv"})
    assert "overflow" in lines[0]
    assert "-20.0 dB" in lines[1]
    assert not any(word in line for line in lines for word in ("nan", "inf "))


def test_slower_layers_are_named_with_both_times() -> None:
    layers = [LayerReport("a", "Conv", 1, 1, time_before_us=10.0, time_after_us=5.0),
              LayerReport("b", "Conv", 1, 1, time_before_us=10.0, time_after_us=12.0),
              LayerReport("c", "Gemm", 1, 1, time_before_us=1.0, time_after_us=30.25),
              LayerReport("d", "Conv", 1, 1, time_before_us=None, time_after_us=99.0)]
    assert [line.split(" ")[0] for line in slower(layers)] == ["c", "b"]
    assert slower(layers)[0] == "c (Gemm): takes 30.2 us, and 1.0 us in the original"
    assert slower(layers, most=1) == slower(layers)[:1]
    assert slower(()) == ()
