"""Ranges found inside the graph: the same as those of the tensors laid out, and only where nothing can hide in a maximum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tests.compress.operators_with_weights import CASES
from tests.compress.small_graphs import Sketch, samples
from tests.compress.test_calibrate import agree, inner, laid_out

from whet.compress import extremes
from whet.compress.calibrate import collect
from whet.compress.data import Dataset
from whet.compress.extremes import Pools, pooled
from whet.compress.graph import GraphModel
from whet.compress.shapes import estimate_shapes
from whet.compress.statistics import Statistics
from whet.core.errors import Refused

DATA = samples({"x": (3, 9, 9)}, 21)


@pytest.fixture(autouse=True)
def small_tensors_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extremes, "LEAST_NUMBERS", 1)


def pools_of(model: GraphModel, tensors: Sequence[str]) -> Pools:
    return pooled(model.copied().ir.graph, tensors, estimate_shapes(model.ir).known)


def ranges(model: GraphModel, data: Dataset = DATA, tensors: Sequence[str] | None = None) -> dict[str, Statistics]:
    return collect(model, tensors or inner(model), data, histogram=False)


def network() -> GraphModel:
    """Channels that are blocks of the runtime's (16) and that are not, both signs, one sign, and a tensor below 0."""
    g = Sketch()
    x = g.conv(g.input("x", ["N", 3, 9, 9]), (3, 16), name="blocks")
    y = g.node("Relu", x, name="cut")
    y = g.conv(y, (16, 5), name="no_blocks")
    cut = g.node("Clip", y, g.constant(0.0), g.constant(1.0), name="clip")
    w = g.node("Concat", cut, g.node("Sub", cut, g.constant(2.0), name="below"), axis=1, name="both")
    w = g.node("Concat", g.node("MaxPool", w, kernel_shape=[2, 2], name="pool"), g.node("MaxPool", x, kernel_shape=[2, 2]), axis=1)
    g.output(g.node("GlobalAveragePool", w))
    return g.model()


def test_ranges_are_those_of_the_tensors_laid_out() -> None:
    model = network()
    names = inner(model)
    assert set(pools_of(model, names).places) == set(names)
    found = ranges(model)
    expected = laid_out(model, names, DATA)
    agree(found, expected)
    for name in names:
        assert found[name].count == sum(array.size for array in expected[name])


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name]().op in ("Conv", "ConvTranspose")])
def test_every_kind_of_convolution(name: str) -> None:
    case = CASES[name]()
    model = case.model()
    large = {name for name, (dtype, shape) in estimate_shapes(model.ir).known.items() if dtype == "float32" and len(shape) > 2}
    assert set(pools_of(model, inner(model)).places) == large & set(inner(model))
    agree(ranges(model, case.data), laid_out(model, inner(model), case.data))


def test_moving_averages_are_those_of_the_tensors_given_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = network(), samples({"x": (3, 9, 9)}, 75)
    found = ranges(model, data)
    monkeypatch.setattr(extremes, "LEAST_NUMBERS", 1 << 30)
    for name, whole in ranges(model, data).items():
        for part in ("low", "high", "mean_low", "mean_high"):
            assert getattr(found[name], part) == pytest.approx(getattr(whole, part), rel=1e-5, abs=1e-6), (name, part)
        assert found[name].batches >= 3
        assert found[name].count == whole.count


def test_what_follows_a_relu_begins_at_0() -> None:
    g = Sketch()
    x = g.node("Relu", g.conv(g.input("x", ["N", 3, 9, 9]), (3, 4), name="c"))
    g.constants["c.W"][...], g.constants["c.B"][...] = 0, 9
    g.output(g.node("MaxPool", x, kernel_shape=[2, 2]))
    for statistics in list(ranges(g.model()).values())[1:]:
        assert statistics.low == 0.0


def test_values_that_a_maximum_could_hide_are_given_out() -> None:
    """A Div, Log or Sqrt may make a NaN; no maximum is trusted behind one."""
    g = Sketch()
    x = g.input("x", ["N", 3, 9, 9])
    y = g.node("Relu", g.conv(x, (3, 4), name="before"))
    z = g.conv(g.node("Sqrt", x, name="root"), (3, 4), name="after")
    g.output(g.node("Add", y, z, name="sum"))
    model = g.model()
    names = dict(zip(("before", "relu", "root", "after", "sum"), inner(model), strict=True))
    assert set(pools_of(model, inner(model)).places) == {names["before"], names["relu"]}
    with pytest.raises(Refused, match=r"NaN"):
        ranges(model, tensors=[names["after"]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 40])
def test_a_bad_number_of_the_data_is_refused_by_the_name_of_its_input(bad: float, where: int) -> None:
    numbers = next(DATA.batches(len(DATA)))["x"].copy()
    numbers[13].flat[where] = bad
    with pytest.raises(Refused, match=r"'x'.*NaN or infinity"):
        ranges(network(), Dataset.of({"x": numbers}))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("relu", [False, True])
def test_a_bad_weight_is_refused_with_its_layer(bad: float, relu: bool) -> None:
    """Its whole channel is NaN or infinite, whatever the maximum makes of that."""
    g = Sketch()
    y = g.conv(g.input("x", ["N", 3, 9, 9]), (3, 16), name="first")
    g.constants["first.W"][5, 1, 1, 1] = bad
    g.output(g.node("Relu", y) if relu else y)
    model = g.model()
    with pytest.raises(Refused, match=r"of first.*NaN or infinity"):
        ranges(model, tensors=inner(model)[:1])


def test_a_channel_that_pooling_left_as_it_began_is_no_number() -> None:
    """What a kernel gives that keeps the other operand of a NaN; this machine's may give the NaN itself."""
    pools = pools_of(network(), inner(network())[:2])
    ((output, starts),) = pools.starts.items()
    values = np.zeros((2, starts[-1] + 16, 1, 1), np.float32)
    values[:, starts[-1] + 3] = np.finfo(np.float32).min
    first, second = pools.seen({output: values}).values()
    assert first.high == 0.0
    assert np.isnan(second.high)


def test_an_overflow_is_refused() -> None:
    g = Sketch()
    g.output(g.conv(g.input("x", ["N", 3, 9, 9]), (3, 16), name="first"))
    g.constants["first.W"][...] = 3e38
    with pytest.raises(Refused, match=r"of first.*NaN or infinity"):
        ranges(g.model())


def test_a_tensor_of_the_same_size_for_any_batch_costs_batches_and_nothing_else() -> None:
    """The maxima of one sample do not stand beside those of 8."""
    g = Sketch()
    x = g.input("x", ["N", 3, 9, 9])
    first = g.node("Slice", x, *(g.constant([at], np.int64) for at in (0, 1, 0)), name="first")
    g.output(g.conv(x, (3, 4), name="all"))
    g.output(g.conv(first, (3, 4), name="one"))
    model = g.model()
    assert len(pools_of(model, inner(model)).places) == 3
    agree(ranges(model), laid_out(model, inner(model), DATA))


def test_a_fixed_batch_and_sizes_that_only_the_data_tell() -> None:
    for shape in ([4, 3, 9, 9], ["N", 3, "height", "width"]):
        g = Sketch()
        g.output(g.node("Relu", g.conv(g.input("x", shape), (3, 16), name="first")))
        model = g.model()
        expected = laid_out(model, inner(model), DATA)
        found = ranges(model)
        agree(found, expected)
        assert all(each.count >= len(DATA) * 16 * 81 for each in found.values())


def test_the_tensors_are_not_given_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from whet.compress import calibrate

    given: list[int] = []

    def watched(session: Any, feeds: Any, names: Any) -> Any:
        found = run(session, feeds, names)
        given.append(sum(values.nbytes for values in found.values()))
        return found

    run = calibrate.run
    monkeypatch.setattr(calibrate, "run", watched)
    model = network()
    ranges(model)
    channels = 16 * 2 + 16 + 5 * 2 + 5 + 5 * 2 + 10 * 2 + 10 * 2 + 16 * 2 + 26 * 2 + 26 * 2
    assert sum(given) == 4 * channels * len(DATA)
