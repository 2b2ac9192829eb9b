"""Doing recipes: steps in their order, questions before work, and whole results or none."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.compress.small_graphs import Sketch, executed, feeds_of, noise_ratio, outputs, samples, weights_of

from whet.compress.apply import apply, apply_recipe
from whet.compress.artifacts import load
from whet.compress.data import load_data
from whet.compress.graph import GraphModel
from whet.compress.recipes import as_recipe, as_target
from whet.core.errors import Refused, Unsupported
from whet.core.progress import reporting
from whet.core.recipe import Recipe, Step
from whet.device.targets import target

VNNI = target("x86-vnni")
DATA = samples({"x": (4, 8, 8)}, 12)
ASSETS = ("resnet20_cifar10", "resnet8_mlperf_tiny", "kws_mlperf_tiny", "sisfall_falls", "cwru_bearing", "fsdd_digits")


def network() -> Sketch:
    g = Sketch()
    y = g.node("Relu", g.conv(g.input("x", ["N", 4, 8, 8]), (4, 4), name="c1"))
    y = g.node("Relu", g.conv(y, (4, 4), name="c2"))
    y = g.node("Relu", g.gemm(g.node("Reshape", y, g.constant([-1, 256], np.int64)), 256, 64, name="g1"))
    g.output(g.gemm(y, 64, 10, name="g2"))
    return g


def error(made: GraphModel) -> float:
    wanted = outputs(network().model(), feeds_of(DATA))
    return max(noise_ratio(found, wanted[output]) for output, found in outputs(made, feeds_of(DATA)).items())


def steps(*chosen: tuple[str, str, dict[str, Any]]) -> Recipe:
    return Recipe(tuple(Step(name, (layers,), options=options) for name, layers, options in chosen))


# -- several steps ---------------------------------------------------------------------------------------------------------------------

CONVS: list[tuple[str, dict[str, Any], dict[str, int]]] = [
    ("static", {}, {"QLinearConv": 2}),
    ("weight_only", {"bits": 4}, {"Conv": 2}),
    ("float16", {}, {"Conv": 2}),
    ("dynamic", {"convolutions": True}, {"ConvInteger": 2}),
]
GEMMS: list[tuple[str, dict[str, Any], dict[str, int]]] = [
    ("static", {}, {"QGemm": 2}),
    ("weight_only", {}, {"FusedGemm": 1, "Gemm": 1}),
    ("weight_only", {"block": 32}, {"MatMulNBits": 2}),
    ("dynamic", {}, {"DynamicQuantizeMatMul": 2}),
    ("float16", {}, {"FusedGemm": 1, "Gemm": 1}),
]


@pytest.mark.parametrize("turned", [False, True], ids=["convolutions first", "products first"])
@pytest.mark.parametrize("gemms", GEMMS, ids=lambda case: f"{case[0]}{case[1] or ''}")
@pytest.mark.parametrize("convs", CONVS, ids=lambda case: case[0])
def test_two_techniques_on_different_layers_leave_each_other_alone(
    convs: tuple[str, dict[str, Any], dict[str, int]], gemms: tuple[str, dict[str, Any], dict[str, int]], turned: bool
) -> None:
    chosen = [(convs[0], "c*", convs[1]), (gemms[0], "g*", gemms[1])]
    made = apply_recipe(network().model(), steps(*(reversed(chosen) if turned else chosen)), VNNI, calibration=DATA)
    found = executed(made)
    assert {op: found.get(op, 0) for op in convs[2] | gemms[2]} == convs[2] | gemms[2]
    # No weight is taken off its grid at run time: what is dequantised then are activations, between one part and the other.
    assert found.get("DequantizeLinear", 0) <= 2
    assert 0 < error(made) < (0.1 if 4 in convs[1].values() else 0.03)


def test_the_order_of_two_steps_on_different_layers_changes_no_number() -> None:
    one, other = ("weight_only", "c*", {"bits": 4}), ("float16", "g*", {})
    first, second = (apply_recipe(network().model(), steps(*order), VNNI) for order in ((one, other), (other, one)))
    for output, found in outputs(first, feeds_of(DATA)).items():
        assert np.array_equal(found, outputs(second, feeds_of(DATA))[output])


def test_weights_that_are_codes_are_not_rounded_again() -> None:
    with pytest.raises(Unsupported):
        apply_recipe(network().model(), steps(("static", "*", {}), ("weight_only", "*", {"bits": 4})), VNNI, calibration=DATA)


def test_of_two_steps_of_one_technique_the_later_one_counts() -> None:
    twice = apply_recipe(network().model(), steps(("weight_only", "*", {"bits": 4}), ("weight_only", "g*", {})), VNNI)
    apart = apply_recipe(network().model(), steps(("weight_only", "c*", {"bits": 4}), ("weight_only", "g*", {})), VNNI)
    assert twice.content == apart.content


def test_weights_that_a_step_rounded_go_on_their_grid_into_the_next() -> None:
    made = apply_recipe(network().model(), steps(("weight_only", "*", {"bits": 4}), ("static", "*", {})), VNNI, calibration=DATA)
    assert 0.02 < error(made) < 0.2  # of 4 bits, not of 8
    assert "Conv" not in executed(made)  # and in integers


def test_an_empty_recipe_gives_the_model_back() -> None:
    model = network().model()
    assert apply_recipe(model, Recipe(), VNNI) is model


def test_all_questions_come_before_any_work() -> None:
    class Loud:
        def start(self, name: str, total: int | None) -> int:
            raise AssertionError(f"{name} began")

        def advance(self, task: int, amount: int, note: str) -> None: ...

        def stop(self, task: int) -> None: ...

    with reporting(Loud()):
        for recipe in (
            steps(("weight_only", "c*", {}), ("static", "nothing", {})),
            steps(("weight_only", "c*", {}), ("static", "g*", {"bits": 9})),
            steps(("weight_only", "c*", {}), ("no such technique", "*", {})),
        ):
            with pytest.raises(Refused):
                apply_recipe(network().model(), recipe, VNNI, calibration=DATA)
        with pytest.raises(Refused, match="without calibration data"):
            apply_recipe(network().model(), steps(("weight_only", "c*", {}), ("static", "g*", {})), VNNI)


def test_progress_is_told_of_calibration_and_of_layers() -> None:
    class Ear:
        def __init__(self) -> None:
            self.totals: dict[str, int | None] = {}
            self.done: dict[int, int] = {}
            self.names: list[str] = []

        def start(self, name: str, total: int | None) -> int:
            self.totals[name] = total
            self.names.append(name)
            return len(self.names) - 1

        def advance(self, task: int, amount: int, note: str) -> None:
            self.done[task] = self.done.get(task, 0) + amount

        def stop(self, task: int) -> None: ...

    ear = Ear()
    with reporting(ear):
        apply_recipe(network().model(), steps(("static", "*", {})), VNNI, calibration=DATA)
    assert ear.totals["calibrating"] == len(DATA)
    assert ear.done[ear.names.index("calibrating")] == len(DATA)
    assert "static" in ear.names


# -- the door ----------------------------------------------------------------------------------------------------------------------------


def test_a_technique_a_step_a_recipe_and_its_file_are_the_same(tmp_path: Path) -> None:
    place = tmp_path / "recipe.toml"
    place.write_text('[[step]]\napply = "weight_only"\nwith = {bits = 4}\n')
    step = Step("weight_only", options={"bits": 4})
    made = [apply(network().model(), each, target=VNNI).content for each in (step, Recipe((step,)), place, str(place))]
    made.append(apply(network().model(), "weight_only", target="x86-vnni", options={"bits": 4}).content)
    assert len(set(made)) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "without steps"),
        ("step = 1", "read"),
        ("[[step]]\n", "apply"),
        ('[[step]]\napply = "nope"\n', "none of that name"),
        ('[[step]]\napply = "static"\nwith = {bitz = 1}\n', "no such option"),
        ('[[step]]\napply = "static"\nexcpt = ["a"]\n', "excpt"),
        ("[[step", "not valid TOML"),
        ("\x00\x01", "not valid TOML"),
    ],
)
def test_recipes_that_are_none_are_refused(tmp_path: Path, text: str, words: str) -> None:
    place = tmp_path / "r.toml"
    place.write_text(text)
    with pytest.raises(Refused, match=words):
        as_recipe(place)


def test_what_is_neither_technique_nor_file_is_refused() -> None:
    with pytest.raises(Refused, match="no such file"):
        as_recipe("no/such.toml")
    with pytest.raises(Refused, match="options beside a recipe"):
        as_recipe(Recipe((Step("static"),)), {"bits": 4})
    with pytest.raises(Refused):
        as_target("no such target")
    place = target("pi5")
    assert as_target(place) is place


def test_a_recipe_that_is_no_text_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "r.toml"
    place.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(Refused, match="not text"):
        as_recipe(place)


def test_nothing_is_written_where_a_step_fails(tmp_path: Path) -> None:
    with pytest.raises(Unsupported):
        apply(network().model(), Recipe((Step("weight_only", ("c*",)), Step("dynamic", ("c*",)))), target=VNNI, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_original_file_is_not_touched(tmp_path: Path) -> None:
    place = tmp_path / "model.onnx"
    network().model().save(place)
    before = place.read_bytes()
    apply(place, "static", target=VNNI, calibration=feeds_of(DATA), out=tmp_path / "out")
    assert place.read_bytes() == before


# -- real models ---------------------------------------------------------------------------------------------------------------------------


def accuracy(model: GraphModel, folder: Path) -> float:
    from whet.compress.runtime import outputs_of

    data = load_data(folder / "eval.npz", model.inputs)
    assert data.labels is not None
    found = next(iter(outputs_of(model, data, threads=2).values()))
    return float(np.mean(found.reshape(len(data), -1).argmax(axis=1) == data.labels))


@pytest.mark.slow
@pytest.mark.parametrize("name", ASSETS)
def test_static_minmax_stays_within_half_a_point_of_float(assets: Path, name: str) -> None:
    folder = assets / name
    model = load(folder / "model.onnx")
    made = apply(model, "static", target=VNNI, calibration=folder / "calib.npz")
    assert accuracy(made, folder) > accuracy(model, folder) - 0.006
    found = executed(made)
    assert not {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul"} & set(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kws_mlperf_tiny", "sisfall_falls", "cwru_bearing", "fsdd_digits"])
@pytest.mark.parametrize("ranges", ["moving_average", "percentile", "entropy", "mse", "octav"])
def test_other_ways_of_finding_ranges_lose_little(assets: Path, name: str, ranges: str) -> None:
    folder = assets / name
    model = load(folder / "model.onnx")
    made = apply(model, "static", target=VNNI, calibration=folder / "calib.npz", options={"ranges": ranges})
    # Entropy cuts sharp distributions hard (fsdd_digits: 10 points; its activations keep a third of their range).
    assert accuracy(made, folder) > accuracy(model, folder) - (0.12 if ranges == "entropy" else 0.02)


def test_a_model_with_states_is_done_as_far_as_it_can_be(assets: Path) -> None:
    model = load(assets / "dtln" / "model_1.onnx")
    feeds = {
        spec.name: np.random.default_rng(0)
        .standard_normal([size if isinstance(size, int) else 1 for size in spec.shape])
        .astype(np.float32)
        * 0.1
        for spec in model.inputs
    }
    wanted = outputs(model, feeds)
    for technique in ("weight_only", "float16", "dynamic"):
        made = apply(model, technique, target=VNNI)
        found = outputs(made, feeds)
        assert len(made.content) < (0.6 if technique == "float16" else 0.45) * len(model.content)
        assert all(noise_ratio(found[output], value) < 0.05 for output, value in wanted.items())
        assert made.inputs == model.inputs


@pytest.mark.slow
@pytest.mark.parametrize("technique", ["weight_only", "float16", "dynamic"])
def test_control_flow_comes_out_with_what_can_be_done_or_a_reason(assets: Path, technique: str) -> None:
    model = load(assets / "silero_vad" / "model.onnx")
    feeds = {
        "input": np.random.default_rng(0).standard_normal((2, 512)).astype(np.float32),
        "state": np.zeros((2, 2, 128), np.float32),
        "sr": np.array(16000, np.int64),
    }
    try:
        made = apply(model, technique, target=VNNI)
    except Unsupported as refused:
        if "If" not in str(refused) and "no weights" not in str(refused):
            raise
        return
    wanted, found = outputs(model, feeds), outputs(made, feeds)
    # Noise is no speech: the probability is 0.001, of which 8-bit weights move as much again; half precision moves nothing.
    assert np.abs(found["output"] - wanted["output"]).max() < 0.005
    assert technique != "float16" or all(noise_ratio(found[output], wanted[output]) < 0.05 for output in wanted)
    assert len(made.content) < (1.0 if technique == "dynamic" else 0.6) * len(model.content)  # its convolutions stay in float


def test_weights_of_the_parts_that_were_not_named_stay() -> None:
    sketch = network()
    made = apply_recipe(sketch.model(), Recipe((Step("weight_only", ("*",), ("c*",)),)), VNNI)
    kept = {array.tobytes() for array in weights_of(made).values()}
    assert {sketch.constants[name].tobytes() in kept for name in ("c1.W", "c2.W", "c1.B", "c2.B")} == {True}
    assert {sketch.constants[name].tobytes() in kept for name in ("g1.W", "g2.W")} == {False}


def test_the_garbage_collector_is_left_as_it_was() -> None:
    gc.unfreeze()
    apply(network().model(), "weight_only")
    assert gc.get_freeze_count() == 0
    with pytest.raises(Refused):
        apply(network().model(), "weight_only", options={"nothing": 1})
    assert gc.get_freeze_count() == 0
    gc.freeze()  # as a server does before it forks
    try:
        frozen = gc.get_freeze_count()
        apply(network().model(), "weight_only")
        assert gc.get_freeze_count() == pytest.approx(frozen, rel=0.01)
    finally:
        gc.unfreeze()


def test_taking_annotations_away_leaves_the_model_that_was_given_alone() -> None:
    model = network().model()
    before = model.content
    apply(model, "weight_only")
    apply(model, "static", calibration=DATA)
    assert GraphModel(model.copied().ir).content == before
