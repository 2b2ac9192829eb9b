"""From a graph in memory to its outputs on data, whatever its size and whatever its batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from tests.compress.small_graphs import Sketch, samples

from whet.compress import runtime
from whet.compress.calibrate import collect
from whet.compress.data import Dataset, load_data
from whet.compress.graph import GraphModel
from whet.compress.runtime import _stated_bytes, exposed, feed_batches, inference_bytes, one_inference, opened, outputs_of, stored
from whet.core.errors import Refused, Unsupported
from whet.device.session import run

DATA = samples({"x": (6,)}, 10)


def network(batch: int | str = "N", *, infer: bool = True, scalar: bool = False) -> GraphModel:
    g = Sketch()
    x = g.input("x", [batch, 6])
    if scalar:
        x = g.node("Mul", x, g.input("gain", []), name="gained")
    y = g.node("Relu", g.gemm(x, 6, 4, name="one"), name="relu")
    g.output(g.gemm(y, 4, 3, name="two"))
    return g.model(infer=infer)


def direct(model: GraphModel, x: np.ndarray) -> np.ndarray:
    """Sample by sample."""
    with opened(model, threads=1) as session:
        return np.concatenate([next(iter(run(session, {"x": row[None]}).values())) for row in x])


def test_outputs_of_every_sample_in_order() -> None:
    (found,) = outputs_of(network(), DATA).values()
    assert np.allclose(found, direct(network(), next(DATA.batches(10))["x"]), atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3, 10, 16])
def test_a_fixed_batch_gives_the_same_however_the_data_divides(batch: int) -> None:
    (found,) = outputs_of(network(batch), DATA).values()
    (free,) = outputs_of(network(), DATA).values()
    assert found.shape == (10, 3)
    assert np.allclose(found, free, atol=1e-6)


@pytest.mark.parametrize("batch", ["N", 3])
def test_bytes_that_the_session_states_are_those_that_a_run_makes(batch: int | str) -> None:
    model = network(batch)
    names = [value.name or "" for node in model.ir.graph for value in node.outputs]
    feeds = one_inference(model, DATA)
    shown = exposed(model, names)
    with opened(shown) as session:
        made = sum(values.nbytes for values in run(session, feeds).values())
        assert _stated_bytes(session, feeds, names) == made
        assert inference_bytes(session, shown, DATA, names) == made + sum(values.nbytes for values in feeds.values())


def test_where_a_shape_is_not_stated_one_inference_tells_the_bytes() -> None:
    g = Sketch()
    g.output(g.node("NonZero", g.input("x", ["N", 6]), name="found"), TensorProto.INT64)  # [2, how many numbers are not 0]
    model = g.model(infer=False)
    names = [model.outputs[0].name]
    feeds = one_inference(model, DATA)
    with opened(model) as session:
        assert _stated_bytes(session, feeds, names) is None
        assert inference_bytes(session, model, DATA, names) == 2 * 6 * 8 + 6 * 4


def test_batches_stay_within_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "BATCH_BYTES", 100)  # one sample: 24 bytes in, 12 out
    sizes = []
    with opened(network()) as session:
        for feeds, size in feed_batches(session, network(), DATA, [network().outputs[0].name]):
            sizes.append(size)
            assert len(feeds["x"]) == size
    assert sizes == [2, 2, 2, 2, 2]


def test_batches_of_a_fixed_size_are_filled_up_and_say_how_many_are_real() -> None:
    with opened(network(4)) as session:
        found = [(feeds["x"].shape, size) for feeds, size in feed_batches(session, network(4), DATA, [])]
    assert found == [((4, 6), 4), ((4, 6), 4), ((4, 6), 2)]


@pytest.mark.parametrize(("batch", "rows"), [("N", 1), (1, 1), (4, 4), (16, 16)])
def test_one_inference_is_what_the_model_takes_at_once(batch: int | str, rows: int) -> None:
    feeds = one_inference(network(batch), DATA)
    assert feeds["x"].shape == (rows, 6)
    assert np.array_equal(feeds["x"][0], next(DATA.batches(1))["x"][0])
    with opened(network(batch)) as session:
        assert run(session, feeds)


def test_an_input_that_is_the_same_for_all_samples_goes_with_every_batch() -> None:
    model = network(4, scalar=True)
    data = load_data({"x": next(DATA.batches(10))["x"], "gain": np.float32(2)}, model.inputs)
    (found,) = outputs_of(model, data).values()
    (plain,) = outputs_of(network(), samples({"x": (6,)}, 10, scale=2.0)).values()
    assert np.allclose(found, plain, atol=1e-5)
    assert one_inference(model, data)["gain"].shape == ()
    statistics = collect(model, ["x", shown(model)[0]], data, histogram=False)
    assert statistics[shown(model)[0]].high == pytest.approx(2 * statistics["x"].high)


def shown(model: GraphModel) -> list[str]:
    return [value.name or "" for node in model.ir.graph for value in node.outputs]


def test_inner_tensors_can_be_looked_at_and_the_model_stays_as_it_was() -> None:
    model = network()
    before, names = model.content, shown(model)
    with opened(exposed(model, names)) as session:
        found = run(session, next(DATA.batches(2)), names)
    assert {name: values.shape for name, values in found.items()} == dict(zip(names, [(2, 4), (2, 4), (2, 3)], strict=True))
    assert network().content == before
    assert len(model.outputs) == 1


def test_inner_tensors_of_any_type_even_where_the_file_does_not_tell() -> None:
    g = Sketch()
    x = g.input("x", ["N", 6])
    shape = g.node("Shape", x, name="shape")
    positive = g.node("Greater", x, g.constant(0.0), name="positive")
    g.output(g.node("Reshape", g.node("Where", positive, x, g.constant(0.0), name="kept"), shape, name="again"))
    model = g.model(infer=False)
    with opened(exposed(model, shown(model))) as session:
        found = run(session, next(DATA.batches(2)), shown(model))
    assert [values.dtype.name for values in found.values()] == ["int64", "bool", "float32", "float32"]


def test_a_tensor_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(Refused, match="'beauty'"):
        exposed(network(), ["beauty"])


def test_an_output_is_not_shown_twice() -> None:
    model = network()
    assert len(exposed(model, [model.outputs[0].name]).outputs) == 1


def test_a_large_model_goes_through_a_file_that_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = outputs_of(network(), DATA)
    monkeypatch.setattr(runtime, "FILE_BYTES", 10)
    model = network()
    with stored(model) as source:
        assert isinstance(source, Path)
        assert source.with_name("model.onnx.data").is_file()
    assert not source.parent.exists()
    for name, found in outputs_of(model, DATA).items():
        assert np.array_equal(found, expected[name])


def test_no_samples_are_refused() -> None:
    for work in (lambda: outputs_of(network(), DATA.take([])), lambda: collect(network(), ["x"], DATA.take([]), histogram=False)):
        with pytest.raises(Refused, match="empty"):
            work()


def test_calibration_sees_every_sample_and_remembers_little() -> None:
    many = samples({"x": (6,)}, 500)
    rows = next(many.batches(500))["x"]
    found = collect(network(), ["x", shown(network())[1]], many, histogram=True)
    assert (found["x"].low, found["x"].high) == (rows.min(), rows.max())
    assert found[shown(network())[1]].low == 0.0


def test_calibration_with_nothing_to_look_at_inside() -> None:
    assert collect(network(), [], DATA, histogram=False) == {}
    assert set(collect(network(), ["x"], DATA, histogram=False)) == {"x"}


def test_nan_is_refused_wherever_it_appears() -> None:
    g = Sketch()
    g.output(g.gemm(g.node("Sqrt", g.input("x", ["N", 6]), name="root"), 6, 3, name="head"))
    with pytest.raises(Refused, match="NaN"):
        collect(g.model(), [shown(g.model())[0]], DATA, histogram=False)
    with pytest.raises(Refused, match="NaN"):
        outputs_of(g.model(), DATA)


def test_a_batch_that_only_the_file_calls_free() -> None:
    g = Sketch()
    x = g.node("Reshape", g.input("x", ["N", 6]), g.constant([1, 6], np.int64), name="baked")
    g.output(g.gemm(x, 6, 3, name="head"), shape=["N", 3])
    model = g.model(infer=False)
    (found,) = outputs_of(model, DATA).values()
    assert np.allclose(found, direct(model, next(DATA.batches(10))["x"]), atol=1e-6)
    rows = next(DATA.batches(10))["x"]
    statistics = collect(model, shown(model)[:1], DATA, histogram=False)
    assert (statistics[shown(model)[0]].low, statistics[shown(model)[0]].high) == (rows.min(), rows.max())


def test_a_state_that_has_its_batch_elsewhere() -> None:
    g = Sketch()
    x, state = g.input("x", ["N", 6]), g.input("state", [2, "N", 6])
    g.output(g.node("Add", x, g.node("Squeeze", g.node("Slice", state, *(g.constant([v], np.int64) for v in (0, 1, 0))),
                                     g.constant([0], np.int64)), name="sum"))
    model = g.model()
    data = load_data({"x": next(DATA.batches(10))["x"]}, model.inputs, constants={"state": np.ones((2, 1, 6), np.float32)})
    (found,) = outputs_of(model, data).values()
    assert np.allclose(found, next(DATA.batches(10))["x"] + 1)


def test_a_model_that_breaks_on_some_sample_says_why() -> None:
    g = Sketch()
    y = g.node("Gather", g.constant(np.arange(5)), g.node("Cast", g.input("x", ["N", 6]), to=TensorProto.INT64), name="look")
    g.output(y)
    data = Dataset.of({"x": np.full((8, 6), 7, np.float32)})
    with pytest.raises(Unsupported, match="look"):
        outputs_of(g.model(), data)


def test_states_travel_with_their_samples() -> None:
    g = Sketch()
    x, state = g.input("x", [1, 6]), g.input("state", [1, 2, 6])
    both = g.node("Concat", g.node("Unsqueeze", x, g.constant([1], np.int64)), state, axis=1)
    g.output(g.node("ReduceSum", both, g.constant([1], np.int64), keepdims=0))
    g.output(g.node("Shape", both), TensorProto.INT64)
    data = Dataset.of({"x": np.arange(18, dtype=np.float32).reshape(3, 6), "state": np.ones((3, 2, 6), np.float32)})
    total, sizes = outputs_of(g.model(), data).values()
    assert np.array_equal(total, np.arange(18).reshape(3, 6) + 2)
    assert sizes.tolist() == [[1, 3, 6]] * 3
