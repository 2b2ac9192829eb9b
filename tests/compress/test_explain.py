"""Who does the damage, why, and what mends it: layers that were sabotaged on purpose are found, and numbers are those of what ships."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper
from tests.compress import digits
from tests.compress.small_graphs import Sketch, samples

import whet
from whet.compress.apply import apply_recipe, worked
from whet.compress.artifacts import load
from whet.compress.data import Dataset, load_data
from whet.compress.evaluate.output_error import relative_error
from whet.compress.explain import explain
from whet.compress.explain.differences import differences
from whet.compress.explain.remedies import proposals
from whet.compress.explain.sensitivity import everything, sensitivity
from whet.compress.explain.simulate import Variant, simulation
from whet.compress.graph import GraphModel
from whet.compress.report import render_explanation
from whet.compress.runtime import outputs_of
from whet.core.document import FrozenMap
from whet.core.errors import Refused
from whet.core.explanation import Cause, Explanation, LayerBlame
from whet.core.recipe import Recipe, Step
from whet.device.targets import target

VNNI = target("x86-vnni")
LAYERS = {"w1": "first", "w2": "second", "w3": "last"}


def scaled(proto: bytes, **factors: tuple[int, float]) -> bytes:
    """The model with one channel of each weight or bias named times a factor; "w2_in" is an input channel of w2."""
    model = onnx.load_from_string(proto)
    for stored in model.graph.initializer:
        values = numpy_helper.to_array(stored).copy()
        for name, (channel, factor) in factors.items():
            if name.removesuffix("_in") == stored.name:
                place = (slice(None), channel) if name.endswith("_in") else channel
                values[place] *= factor
        stored.CopyFrom(numpy_helper.from_array(values, stored.name))
    return bytes(model.SerializeToString())


def explained(model: object, recipe: Recipe | Step | str = "int8", *, labels: bool = False, **options: object) -> Explanation:
    images, known = digits.data()
    data = Dataset.of({"image": images[500:600]}, known[500:600] if labels else None)
    given = {"calibration": Dataset.of({"image": images[:60]}), "remedies": False, "target": VNNI, "seconds": 0.0}
    return explain(model, recipe, data=data, **{**given, **options})  # type: ignore[arg-type]


def static(**options: object) -> Step:
    return Step("static", options=FrozenMap(options))


# -- the layer that was sabotaged ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weight", "channel"), [("w1", 5), ("w2", 7)])
def test_a_channel_times_100_is_found_and_blamed_on_the_range_of_what_it_gives(weight: str, channel: int) -> None:
    worst = explained(scaled(digits.network(), **{weight: (channel, 100.0)})).layers[0]
    assert worst.name == LAYERS[weight]
    assert worst.causes[0].kind == "activation_channel"
    assert worst.causes[0].numbers["channel"] == channel
    assert worst.causes[0].numbers["codes"] <= 4
    assert "weight_channel" not in [cause.kind for cause in worst.causes]  # each channel's weights have their own scale


@pytest.mark.parametrize(("weight", "channel"), [("w1", 5), ("w2", 7)])
def test_with_one_scale_a_layer_the_weights_are_to_blame_too(weight: str, channel: int) -> None:
    worst = explained(scaled(digits.network(), **{weight: (channel, 100.0)}), static(per_channel=False)).layers[0]
    assert worst.name == LAYERS[weight]
    causes = {cause.kind: cause for cause in worst.causes}
    assert causes["weight_channel"].numbers["channel"] == channel
    assert causes["weight_channel"].numbers["codes"] <= 4
    assert f"channel {channel}'s weights reach" in causes["weight_channel"].text
    assert worst.weights_damage is not None
    assert worst.weights_damage > 1e-5


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_bias_that_asks_for_coarse_weights_is_found_and_has_a_priced_remedy(per_channel: bool) -> None:
    model = onnx.load_from_string(digits.network())
    (stored,) = (each for each in model.graph.initializer if each.name == "b2")
    values = numpy_helper.to_array(stored).copy()
    values[7] = -3e6  # behind the Relu this channel is 0 whatever it reads, in float and in integers
    stored.CopyFrom(numpy_helper.from_array(values, stored.name))
    found = explained(model.SerializeToString(), static(per_channel=per_channel), remedies=not per_channel)
    if per_channel:  # then it costs only the channel that gives nothing anyway
        assert found.layers[0].causes[0].kind != "bias_overflow"
        return
    worst = found.layers[0]
    assert (worst.name, worst.causes[0].kind) == ("second", "bias_overflow")
    assert worst.causes[0].numbers["channel"] == 7
    assert worst.causes[0].numbers["codes"] <= 8
    assert "does not fit the int32 sums" in worst.causes[0].text
    assert "all channels" in worst.causes[0].text
    best = found.useful[0]
    assert best.name in ("second with one scale a channel", "second in float")
    assert (best.damage or 1.0) < 0.1 * found.damage
    assert best.size_bytes is not None


def test_long_names_are_short_in_sentences_and_whole_in_recipes() -> None:
    name = "model/" + ";".join(f"batch_normalization_{at}/FusedBatchNormV3" for at in range(8))
    worst = LayerBlame(name, "Conv", 0.1, 0.5, causes=(Cause("rounding", "weights", "nothing unusual"),))
    found = proposals(Recipe((static(),)), [worst], {name: "Conv"}, {}, others=3)
    assert found[0].name.endswith(" in float")
    assert all(len(each.name) < 100 for each in found)
    assert found[0].recipe.steps[0].exclude == (name,)
    assert found[0].layer == name


def test_weights_alone_are_blamed_where_activations_stay_in_float() -> None:
    step = Step("weight_only", options=FrozenMap({"per_channel": False})) if _has_option("weight_only", "per_channel") else None
    if step is None:
        step = Step("weight_only", options=FrozenMap({"bits": 4}))
    worst = explained(digits.network(), step).layers[0]
    assert worst.activations_damage is None
    assert worst.weights_damage == worst.damage


def _has_option(technique: str, name: str) -> bool:
    return name in [option.name for option in whet.technique(technique).options]


def test_a_scale_that_the_next_layer_takes_back_is_found_where_it_hurts() -> None:
    model = scaled(digits.network(), w1=(5, 100.0), b1=(5, 100.0), w2_in=(5, 0.01))
    found = explained(model)
    assert (found.layers[0].name, found.layers[0].causes[0].kind) == ("first", "activation_channel")
    assert (found.layers[0].share or 0) > 0.7
    assert found.damage > 20 * explained(digits.network()).damage
    shared = {layer.name: layer for layer in explained(model, static(per_channel=False)).layers}
    assert "weight_channel" in [cause.kind for cause in shared["first"].causes]


def test_input_channels_of_unequal_range_are_blamed_on_the_input() -> None:
    g = Sketch(seed=2)
    y = g.node("Relu", g.conv(g.input("x", ["N", 4, 8, 8]), (4, 8), name="conv"), name="relu")
    g.output(g.gemm(g.node("Flatten", y, name="flat"), 8 * 64, 10, name="head"))
    g.constants["conv.W"][:, 1] /= 60
    values = next(samples({"x": (4, 8, 8)}, 80).batches(80))["x"]
    values[:, 1] *= 60
    step = static()
    found = explain(g.model(), step, data=Dataset.of({"x": values[:50]}), calibration=Dataset.of({"x": values[50:]}), target=VNNI,
                    remedies=False)
    layers = {layer.name: layer for layer in found.layers}
    if "x" in layers:  # static may have evened the channels out itself
        assert layers["x"].op == "input"
        assert layers["x"].causes[0].kind == "input_channels"
        assert layers["x"].causes[0].numbers["channel"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_channel_times_100_is_found_in_resnet20(assets: Path, per_channel: bool) -> None:
    folder = assets / "resnet20_cifar10"
    model = onnx.load(folder / "model.onnx")
    node = next(node for node in model.graph.node if node.name == "/layer2/layer2.1/conv1/Conv")
    found = explain(scaled(model.SerializeToString(), **{node.input[1]: (9, 100.0)}), static(per_channel=per_channel),
                    data=load_data(folder / "eval.npz", load(folder / "model.onnx").inputs).take(range(200)),
                    calibration=folder / "calib.npz", target=VNNI, remedies=False)
    worst = found.layers[0]
    assert worst.name == node.name
    kinds = {cause.kind: cause.numbers.get("channel") for cause in worst.causes}
    assert kinds["activation_channel"] == 9
    assert kinds.get("weight_channel") == (None if per_channel else 9)


# -- the numbers are those of what ships ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [static(), static(per_channel=False), static(ranges="percentile", percentile=99.0), Step("weight_only"),
                                  Step("weight_only", options=FrozenMap({"bits": 4})), Step("float16")])
def test_the_simulation_does_what_ships(step: Step) -> None:
    found = explained(digits.network(), step)
    assert found.how == "simulated"
    assert found.agreement == pytest.approx(1.0, abs=2e-3)


def test_few_bits_of_activations_are_simulated_too() -> None:
    if _has_option("static", "activation_bits"):
        found = explained(digits.network(), static(activation_bits=4, bits=4))
        assert (found.how, found.agreement) == ("simulated", pytest.approx(1.0, abs=0.02))


def network() -> GraphModel:
    """Two branches that are added and joined, and two outputs."""
    g = Sketch(seed=5)
    x = g.input("x", ["N", 3, 8, 8])
    one = g.node("Relu", g.conv(x, (3, 8), name="one"), name="relu_one")
    two = g.node("Relu", g.conv(one, (8, 8), name="two"), name="relu_two")
    both = g.node("Concat", g.node("Add", one, two, name="sum"), one, name="join", axis=1)
    g.output(g.conv(both, (16, 4), name="boxes"))
    g.output(g.gemm(g.node("Flatten", both, name="flat"), 16 * 64, 5, name="scores"))
    return g.model()


def test_alone_and_without_are_what_the_recipe_does_to_these_layers() -> None:
    model, data = network(), samples({"x": (3, 8, 8)}, 20)
    recipe = Recipe((Step("weight_only", options=FrozenMap({"bits": 4})),))
    done = worked(model, recipe, VNNI)
    assert done.reference is not None
    found = differences(done.reference, done.settled(VNNI).slimmed(), VNNI, data)
    expected = outputs_of(model, data)

    def error(step: Step) -> float:
        return relative_error(expected, outputs_of(apply_recipe(model, Recipe((step,)), VNNI), data))

    with simulation(found, data) as simulated:
        measured = sensitivity(simulated, found, list(found.owners))
    for name in ("one", "two", "boxes", "scores"):
        options = FrozenMap({"bits": 4})
        assert measured[name].alone.error == pytest.approx(error(Step("weight_only", (name,), options=options)), rel=1e-3)
        assert measured[name].without.error == pytest.approx(error(Step("weight_only", exclude=(name,), options=options)), rel=1e-3)


def test_weights_and_grids_make_up_the_layer_and_layers_the_whole() -> None:
    model, data = network(), samples({"x": (3, 8, 8)}, 20)
    done = worked(model, Recipe((static(),)), VNNI, calibration=data)
    assert done.reference is not None
    made = done.settled(VNNI).slimmed()
    found = differences(done.reference, made, VNNI, data)
    assert set(found.owners) >= {"x", "one", "two", "sum", "boxes", "scores"}
    with simulation(found, data) as simulated:
        measured = sensitivity(simulated, found, list(found.owners))
        whole = simulated.damage(everything(found)).error
        assert whole == pytest.approx(relative_error(simulated.reference, outputs_of(made, data)), rel=0.02)
        assert simulated.damage(Variant()).error == 0.0
        with pytest.raises(Refused, match="nobody"):
            simulated.damage(Variant(grids={"nobody": next(iter(found.placed.values())).grid}))
    for each in measured.values():
        parts = [part.error for part in (each.weights, each.activations) if part is not None]
        assert each.alone.error == pytest.approx(sum(parts), rel=0.5)
    assert 0.5 * whole < sum(each.alone.error for each in measured.values()) < 3 * whole  # of two outputs the worse one counts
    assert all(each.without.error < 1.3 * whole for each in measured.values())


def test_layers_stand_worst_first_with_shares_and_signal_to_noise() -> None:
    found = explained(digits.network(), labels=True)
    damages = [layer.damage or 0.0 for layer in found.layers]
    assert damages == sorted(damages, reverse=True)
    assert sum(layer.share or 0.0 for layer in found.layers) == pytest.approx(1.0)
    assert [layer.name for layer in found.layers if layer.op == "input"] == ["image"]
    assert set(found.executed) == {layer.name for layer in found.layers}
    for layer in found.layers:
        if layer.sqnr_db is not None and layer.own_sqnr_db is not None:
            assert layer.own_sqnr_db > layer.sqnr_db - 1.5  # with the errors before it there is no less noise
    assert (found.metric, found.layers[0].drop_without is not None) == ("accuracy", True)
    assert found.layers[0].name in found.headline


def test_what_cannot_be_simulated_is_done_again_for_each_layer() -> None:
    found = explained(digits.network(), "dynamic")
    assert (found.how, found.agreement) == ("remade", None)
    assert [layer.name for layer in found.layers] == ["last"]
    assert found.layers[0].damage == pytest.approx(found.damage, rel=0.3)


# -- budgets, remedies, refusals -----------------------------------------------------------------------------------------------------


def test_only_as_many_layers_as_asked_are_measured() -> None:
    found = explained(digits.network(), layers=1)
    assert found.measured == 1
    assert any("1 of 4 layers" in note for note in found.notes)
    assert found.layers[0].damage is not None
    assert all(layer.damage is None for layer in found.layers[1:])
    assert explained(digits.network(), time_budget_s=0.0).measured == 1


def test_the_noisiest_layer_is_measured_first() -> None:
    model = scaled(digits.network(), w1=(5, 100.0), b1=(5, 100.0), w2_in=(5, 0.01))
    assert explained(model, layers=1).layers[0].name == "first"


def test_remedies_are_done_and_priced() -> None:
    model = scaled(digits.network(), w1=(5, 100.0), b1=(5, 100.0), w2_in=(5, 0.01))
    found = explained(model, labels=True, remedies=True, time_budget_s=60.0)
    by_name = {remedy.name: remedy for remedy in found.remedies}
    freed = by_name["first in float"]
    assert freed.recipe.steps[0].exclude == ("first",)
    assert freed.size_bytes is not None
    made = apply_recipe(load(model), freed.recipe, VNNI, calibration=Dataset.of({"image": digits.data()[0][:60]}))
    assert freed.size_bytes == len(made.content) - found.size_bytes
    assert freed.damage is not None
    assert freed.damage < found.damage / 3
    assert found.remedies[0].damage == min(remedy.damage for remedy in found.remedies if remedy.damage is not None) or found.quality
    assert "dB" in freed.price
    assert "% bytes" in freed.price.replace("\u00a0", " ")
    assert found.useful[0].name in found.headline


def test_refusals() -> None:
    with pytest.raises(Refused, match="rounds nothing"):
        explained(digits.network(), "equalize")
    with pytest.raises(Refused, match="no such technique"):
        explained(digits.network(), "nonsense")
    with pytest.raises(Refused, match="measure 0 layers"):
        explained(digits.network(), layers=0)


# -- the page -------------------------------------------------------------------------------------------------------------------------


def test_the_page_holds_every_layer_and_opens_offline() -> None:
    found = explained(digits.network(), labels=True)
    again = Explanation.from_json(found.to_json())
    page = render_explanation(again)
    assert again == found
    assert page.count("<svg") >= 5  # damage, along the network, histograms
    assert all(layer.name in page for layer in found.layers)
    assert [word for word in ("http:", "https:", " src=", "NaN", ">None<", "<link") if word in page.split("<script>")[0]] == []


def test_hostile_names_are_harmless() -> None:
    from dataclasses import replace

    found = explained(digits.network())
    worst = replace(found.layers[0], name="<script>alert(1)</script>\u202e")
    page = render_explanation(replace(found, layers=(worst, *found.layers[1:])))
    assert "<script>alert" not in page
    assert "\u202e" not in page


def test_an_explanation_of_nothing_known_still_renders() -> None:
    bare: Mapping[str, object] = {"model": "m", "target": "t", "recipe": {}, "headline": "h", "metric": "accuracy", "damage": 0.0}
    assert "No layer was measured" in render_explanation(Explanation.from_plain(bare))
