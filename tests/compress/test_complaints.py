"""The ten complaints about quantisers that are heard most often, each as a test of what Whet does there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.compress import digits
from tests.compress.small_graphs import Sketch, executed, feeds_of, noise_ratio, outputs, samples, weights_of

import whet
from whet.compress.data import Dataset
from whet.compress.graph import GraphModel
from whet.core.gate import Gate, judge

VNNI = whet.target("x86-vnni")
ROOT = Path(__file__).resolve().parents[2]


def errors(made: GraphModel, model: GraphModel, data: Dataset) -> dict[str, float]:
    """How far the outputs of ``made`` are from those of the float model, relative to these, by output."""
    feeds = feeds_of(data)
    wanted, found = outputs(model, feeds), outputs(made, feeds)
    return {name: noise_ratio(found[name], wanted[name]) for name in wanted}


# 1 ----------------------------------------------------------------------------------------------------------------------------------


def test_my_quantised_model_is_slower_than_the_float_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan says so before any work, the measurement shows it, and the gate refuses it."""
    g = Sketch()
    y = g.conv(g.conv(g.input("x", ["N", 16, 32, 32]), (16, 32)), (32, 32))
    g.output(g.conv(y, (32, 16)))
    monkeypatch.setattr("whet.compress.compare.memory_use", lambda *_, **__: ())  # fresh processes: not what this is about
    model, options = g.model(), {"convolutions": True}
    assert "dynamic makes Conv slower" in " ".join(whet.plan(model, "dynamic", target=VNNI, options=options).warnings)
    side = whet.compare(model, whet.apply(model, "dynamic", target=VNNI, options=options), threads=1, seconds=0.3)
    verdict = judge([Gate("latency_ratio", 1.0, reason="not slower than the original")], side.candidate)
    assert not verdict.passed
    assert "not slower than the original" in " ".join(verdict.refusals)


# 2 ----------------------------------------------------------------------------------------------------------------------------------


def test_accuracy_collapses_and_nobody_tells_me_why(tmp_path: Path) -> None:
    """One channel of the digits' second convolution is 30000 times as large: the sentence names that layer or the one that reads it."""
    from whet.compress.optimize.blame import damage, sentences

    proto = onnx.load_from_string(digits.network())
    held = {tensor.name: tensor for tensor in proto.graph.initializer}
    change = {name: onnx.numpy_helper.to_array(held[name]).copy() for name in ("w2", "b2", "w3")}
    change["w2"][3] *= 30000
    change["b2"][3] *= 30000
    change["w3"].reshape(10, 32, 16)[:, 3] /= 30000
    for name, values in change.items():
        held[name].CopyFrom(onnx.numpy_helper.from_array(values, name))
    images, labels = digits.data()
    model, calibration = whet.load(proto), Dataset.of({"image": images[:60]})
    made = whet.apply(model, "static", target=VNNI, calibration={"image": images[:60]})
    right = [np.mean(outputs(each, {"image": images[500:800]})["scores"].argmax(axis=1) == labels[500:800]) for each in (model, made)]
    assert right[0] - right[1] > 0.1  # a collapse
    said = sentences(damage(model, whet.Step("static"), VNNI, calibration), {node.name: node.op for node in model.nodes})
    assert said[0].startswith(("second (Conv)", "last (Gemm)"))
    assert "dB" in said[0]


# 3 ----------------------------------------------------------------------------------------------------------------------------------

_CALIBRATE = """
import resource, sys
import numpy as np
import whet
from tests.compress.small_graphs import Sketch, samples
g = Sketch()
y = g.conv(g.input("x", ["N", 4, 16, 16]), (4, 64))
y = g.node("Relu", y)
for _ in range(3):
    y = g.node("Relu", g.conv(y, (64, 64), (1, 1)))
g.output(y)
whet.apply(g.model(), "static", target="x86-vnni", calibration=samples({"x": (4, 16, 16)}, int(sys.argv[1])))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_calibration_needs_more_memory_the_more_samples_there_are() -> None:
    """64 kB a tensor and sample: 1000 samples of 8 tensors would be half a GB if they were kept."""

    def peak_bytes(count: int) -> int:
        ended = subprocess.run(
            [sys.executable, "-c", _CALIBRATE, str(count)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PATH": ""},
        )
        return int(ended.stdout) * 1024

    assert peak_bytes(1064) - peak_bytes(64) < 32 << 20


# 4 ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("technique", ["static", "weight_only"])
def test_my_weights_lie_in_a_file_beside_the_model(technique: str, tmp_path: Path) -> None:
    place = tmp_path / "in" / "model.onnx"
    place.parent.mkdir()
    onnx.save_model(onnx.load_from_string(digits.network()), place, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert place.stat().st_size < 2000
    images, _ = digits.data()
    made, whole = (whet.apply(model, technique, target=VNNI, calibration={"image": images[:40]}) for model in (place, digits.network()))
    assert made.content == whole.content
    whet.apply(place, technique, target=VNNI, calibration={"image": images[:40]}, out=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.onnx", "whet.json"]


# 5 ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("technique", ["static", "weight_only", "dynamic", "float16"])
def test_only_the_shape_that_it_was_calibrated_with_works_afterwards(technique: str) -> None:
    g = Sketch()
    y = g.node("Relu", g.conv(g.input("x", ["batch", 3, "height", "width"]), (3, 8)))
    y = g.node("Flatten", g.node("GlobalAveragePool", g.node("Relu", g.conv(y, (8, 8), strides=[2, 2]))))
    g.output(g.gemm(y, 8, 5))
    model = g.model()
    made = whet.apply(model, technique, target=VNNI, calibration=samples({"x": (3, 24, 20)}))
    assert [spec.shape for spec in made.inputs] == [("batch", 3, "height", "width")]
    for batch, height, width in ((1, 24, 20), (5, 16, 31), (2, 40, 8)):
        assert max(errors(made, model, samples({"x": (3, height, width)}, batch)).values()) < 0.08


# 6 ----------------------------------------------------------------------------------------------------------------------------------


def test_the_boxes_survive_and_the_scores_do_not() -> None:
    """Boxes up to 300 pixels and scores up to 1: a grid for both has steps of 1.2, which is no score at all."""
    from tests.compress.test_unusual_layers import detector

    for end in ("outputs", "concat", "cut apart"):
        sketch, parts = detector(end)
        data = samples({"x": (3, 16, 16)})
        model = sketch.model()
        made = whet.apply(model, "static", target=VNNI, calibration=data)
        wanted, found = (parts(outputs(each, feeds_of(data))) for each in (model, made))
        assert wanted[0].max() > 100 > 1 > wanted[1].max()
        assert noise_ratio(found[0], wanted[0]) < 0.01
        assert noise_ratio(found[1], wanted[1]) < 0.02
        assert executed(made)["QLinearConv"] >= 3


# 7 ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("technique", ["static", "weight_only", "dynamic", "float16"])
@pytest.mark.filterwarnings("error")
def test_a_channel_that_never_varies_gives_nan_or_infinity(technique: str) -> None:
    """A channel without weights, one that its Relu always stops, and a norm that never saw its channel vary."""
    g = Sketch()
    y = g.conv(g.input("x", ["N", 3, 8, 8]), (3, 6), name="c")
    g.constants["c.W"][1], g.constants["c.B"][1] = 0, 0.7
    g.constants["c.W"][2], g.constants["c.B"][2] = 0, -5.0
    y = g.batch_norm(y, 6)
    variance = next(name for name, values in reversed(g.constants.items()) if values.shape == (6,))
    g.constants[variance][1] = 0
    y = g.conv(g.node("Relu", y), (6, 4), name="d")
    g.output(g.gemm(g.node("Flatten", y), 256, 5, name="e"))
    g.constants["d.W"][:, 1] *= np.float32(0.01)  # what comes out of the norm there is 300 times as large as the rest
    model, data = g.model(), samples({"x": (3, 8, 8)})
    made = whet.apply(model, technique, target=VNNI, calibration=data)
    (error,) = errors(made, model, data).values()
    assert 0 < error < 0.08


# 8 ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e-9])
def test_an_input_that_is_the_same_in_every_sample_breaks_calibration(value: float) -> None:
    g = Sketch()
    y = g.conv(g.input("x", ["N", 3, 8, 8]), (3, 4))
    z = g.conv(g.input("always", ["N", 1, 8, 8]), (1, 4))
    g.output(g.conv(g.node("Add", y, z), (4, 4)))
    model = g.model()
    data = Dataset.of({**feeds_of(samples({"x": (3, 8, 8)})), "always": np.full((16, 1, 8, 8), value, np.float32)})
    made = whet.apply(model, "static", target=VNNI, calibration=data)
    assert executed(made)["QLinearConv"] == 3
    assert max(errors(made, model, data).values()) < 0.02


# 9 ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [1, "batch"])
def test_my_graph_runs_one_sample_at_a_time_and_the_tool_wants_batches(said: Any) -> None:
    """The batch is fixed at 1, or the file promises any batch and has a Reshape to [1, 144] inside."""
    g = Sketch()
    y = g.node("Relu", g.conv(g.input("x", [said, 3, 6, 6]), (3, 4)))
    g.output(g.gemm(g.node("Reshape", y, g.constant([1, 144], np.int64)), 144, 5))
    model = g.model()
    values = np.random.default_rng(0).standard_normal((9, 3, 6, 6)).astype(np.float32)
    values[-1] *= 5  # the widest range is in the last sample
    made = whet.apply(model, "static", target=VNNI, calibration={"x": values})
    for sample in values:
        feeds = {"x": sample[None]}
        (wanted,), (found,) = outputs(model, feeds).values(), outputs(made, feeds).values()
        assert np.abs(found - wanted).max() < 0.02 * np.abs(outputs(model, {"x": values[-1:]})[model.outputs[0].name]).max()
    assert executed(made)["QLinearConv"] == 1


# 10 ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("technique", "options"),
    [
        ("static", {}),
        ("static", {"bits": 4}),
        ("static", {"bits": 16}),
        ("weight_only", {}),
        ("weight_only", {"bits": 4}),
        ("float16", {}),
        ("dynamic", {"convolutions": True}),
    ],
)
def test_weights_that_layers_share_are_stored_twice_or_wrong(technique: str, options: dict[str, Any]) -> None:
    g = Sketch()
    x = g.input("x", ["N", 8, 8, 8])
    shared = g.weight(8, 8, 3, 3, name="shared")
    y = g.node("Relu", g.node("Conv", x, shared, pads=[1] * 4, name="one"))
    g.output(g.node("Conv", y, shared, g.constant(np.linspace(-1, 1, 8)), pads=[1] * 4, name="two"))
    model, data = g.model(), samples({"x": (8, 8, 8)})
    made = whet.apply(model, technique, target=VNNI, calibration=data, options=options)
    kernels = [array for array in weights_of(made).values() if array.size == 8 * 8 * 9]
    assert len(kernels) == 1
    assert str(kernels[0].dtype) != "float32"
    (error,) = errors(made, model, data).values()
    assert 0 < error < (0.3 if options.get("bits") == 4 else 0.02)
