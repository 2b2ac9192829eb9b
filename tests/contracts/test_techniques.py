"""What every technique promises, whatever it does: walked over all of them and over all values of their options."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from tests.compress.small_graphs import Sketch, feeds_of, noise_ratio, outputs, samples, weights_of

from whet.compress.apply import apply_recipe
from whet.compress.artifacts import load
from whet.compress.data import Dataset
from whet.compress.data.dataset import ArraySamples
from whet.compress.graph import GraphModel
from whet.compress.plan import changes_of
from whet.compress.technique import Option, technique, technique_names
from whet.core.errors import Refused, Unsupported
from whet.core.recipe import Recipe, Step
from whet.device.targets import target, targets

pytestmark = pytest.mark.usefixtures("one_torch_thread")

Array = np.ndarray[Any, Any]
VNNI = target("x86-vnni")
KEEP_THE_FUNCTION = ("equalize", "smoothquant")  # they move factors between layers; nothing is rounded, and no layer is seen alone
# For language models: graphs have none of their layers (tests/checkpoint/, tests/compress/test_codebook.py).
OF_LANGUAGE_MODELS = ("autoround", "awq", "fp4", "mixed", "nf4", "rotate", "tune")
# Options that only layers of language models have a use for (tests/checkpoint/): graphs refuse them.
FOR_LANGUAGE_MODELS = {"rtn": "activations", "gptq": "activations"}
NAMES = tuple(name for name in technique_names() if name not in (*KEEP_THE_FUNCTION, *OF_LANGUAGE_MODELS))
UGLY = "serving_default_input_1:0"
DATA = samples({UGLY: (3, 8, 8)}, 12)
ROOT = Path(__file__).resolve().parents[2]


def network(opset: int = 17) -> Sketch:
    """Convolutions, a norm, a residual, a pool and a product, with names as exporters make them. All techniques can do something to it."""
    g = Sketch(opset)
    x = g.input(UGLY, ["batch size", 3, 8, 8])
    y = g.node("Relu", g.batch_norm(g.conv(x, (3, 8), name="StatefulPartitionedCall/model/conv2d;bias:0"), 8), name="re lu")
    z = g.conv(y, (8, 8), name="layers[0].conv")
    z = g.node("Relu", g.node("Add", z, y, name="op:Add"))
    z = g.conv(z, (8, 8), name="dep*wise", group=8)
    z = g.node("Flatten", g.node("GlobalAveragePool", z))
    z = g.node("Relu", g.gemm(z, 8, 72, name="fc/1"))
    g.output(g.node("Softmax", g.gemm(z, 72, 10, name="fc/2"), axis=-1, name="StatefulPartitionedCall"))
    g.output(z)
    return g


@cache
def original() -> GraphModel:
    """The model of ``network``, made once: nothing that is done with it may change it (two tests below make sure of that)."""
    return network().model()


@cache
def wanted_of_original() -> dict[str, Array]:
    """What it gives for DATA."""
    return outputs(original(), feeds_of(DATA))


def combinations(name: str) -> Iterator[dict[str, Any]]:
    """The defaults, and every value of every option with the others at their defaults."""
    yield {}
    for option in _options_for_graphs(name):
        yield from ({option.name: value} for value in option.search.values if value != option.default)


def extremes(name: str) -> Iterator[dict[str, Any]]:
    """All first and all last values at once."""
    options = _options_for_graphs(name)
    yield {option.name: option.search.values[0] for option in options}
    yield {option.name: option.search.values[-1] for option in options}


def _options_for_graphs(name: str) -> list[Option]:
    return [option for option in technique(name).options if option.name != FOR_LANGUAGE_MODELS.get(name)]


# Techniques that do nothing alone, in the company that they are used in; and options that make the learning ones quick.
COMPANY: dict[str, tuple[str, ...]] = {"bias_correct": ("static", "bias_correct"), "clip": ("clip", "static")}
QUICK: dict[str, dict[str, Any]] = {
    "gptq": {"bits": 8},
    "rtn": {"bits": 8},
    "hqq": {"bits": 8},
    "adaround": {"bits": 8, "iterations": 10},
    "reconstruct": {"bits": 8, "iterations": 5, "samples": 12},
}
LEARNING = ("adaround", "reconstruct")
BY_ORDER = (*LEARNING, "clip")  # samples are drawn by their numbers; a histogram's bins begin with the batch that comes first



def marks(name: str, options: dict[str, Any]) -> tuple[pytest.MarkDecorator, ...]:
    """Learning takes its time: only its defaults are walked in the fast suite."""
    return (pytest.mark.slow,) if name in LEARNING and options else ()


EVERY = [pytest.param(name, case, id=f"{name}-{','.join(f'{key}={value}' for key, value in case.items()) or 'defaults'}",
                      marks=marks(name, case)) for name in NAMES for case in (*combinations(name), *extremes(name))]


def done(
    name: str,
    options: dict[str, Any] | None = None,
    *,
    model: GraphModel | None = None,
    only: tuple[str, ...] = ("*",),
    without: tuple[str, ...] = (),
    where: Any = VNNI,
    data: Dataset | None = DATA,
) -> GraphModel:
    return apply_recipe(original() if model is None else model, recipe(name, options, only, without), where, calibration=data)


def made_once(name: str, options: dict[str, Any] | None = None) -> GraphModel:
    """What ``done`` gives by default, made once for all the tests that only look at it."""
    return _made_once(name, tuple((options or {}).items()))


@cache
def _made_once(name: str, options: tuple[tuple[str, Any], ...]) -> GraphModel:
    return done(name, dict(options))


def recipe(name: str, options: dict[str, Any] | None = None, only: tuple[str, ...] = ("*",), without: tuple[str, ...] = ()) -> Recipe:
    """The technique in its company, on the same layers."""
    quick = QUICK.get(name, {})
    own = {**quick, **(options or {}), **({"iterations": quick["iterations"]} if "iterations" in quick else {})}
    return Recipe(tuple(Step(each, only, without, own if each == name else {}) for each in COMPANY.get(name, (name,))))


# -- the description -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", technique_names())
def test_a_technique_describes_itself(name: str) -> None:
    found = technique(name)
    assert found.needs in ("nothing", "calibration", "labels", "training")
    assert all(len(text) > 10 for text in (found.sentence, found.paper, found.cost, found.limits))
    for option in found.options:
        assert option.kind in (bool, int, float, str)
        assert option.search.help
        assert option.default in option.search.values
        assert all(type(value) is option.kind for value in (option.default, *option.search.values))


@pytest.mark.parametrize("name", technique_names())
def test_wrong_options_are_refused_before_any_work(name: str) -> None:
    with pytest.raises(Refused, match="no such option"):
        done(name, {"no such": 1}, data=None)
    for option in technique(name).options:
        for wrong in (None, [], "nonsense", -12345):
            with pytest.raises(Refused, match=option.name):
                technique(name).checked({option.name: wrong})


# -- the result --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_every_value_of_every_option_gives_a_model_that_runs_and_still_does_its_job(name: str, options: dict[str, Any]) -> None:
    wanted, found = wanted_of_original(), outputs(made_once(name, options), feeds_of(DATA))
    bits = min(options.get("bits", 8), options.get("activation_bits", 8)) if name != "clip" else 8
    bound = 0.06 * 2.2 ** (8 - min(bits, 8)) if options.get("ranges") != "entropy" else 0.5
    for output in wanted:
        assert found[output].dtype == wanted[output].dtype
        assert found[output].shape == wanted[output].shape
        assert 0 < noise_ratio(found[output], wanted[output]) < min(bound, 1.5)


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_names_types_and_shapes_outside_stay(name: str, options: dict[str, Any]) -> None:
    before, after = original(), made_once(name, options)
    assert after.inputs == before.inputs
    assert after.outputs == before.outputs
    reloaded = {node.name for node in after.nodes}
    assert len(reloaded) == len(after.nodes)
    assert {"fc/1", "fc/2", "layers[0].conv", "dep*wise"} <= reloaded


@pytest.mark.parametrize("name", NAMES)
def test_the_original_is_left_as_it_is(name: str) -> None:
    model = network().model()
    before = model.content
    done(name, model=model)
    assert GraphModel(model.ir).content == before


@pytest.mark.parametrize("name", NAMES)
def test_layers_that_are_not_named_keep_their_weights_to_the_bit(name: str) -> None:
    sketch = network()
    made = done(name, only=("fc/2",))
    kept = {array.tobytes() for array in weights_of(made).values()}
    for layer in ("layers[0].conv", "dep*wise", "fc/1"):
        assert {f"{layer}.W", f"{layer}.B"} <= set(sketch.constants)
        assert all(sketch.constants[part].tobytes() in kept for part in (f"{layer}.W", f"{layer}.B"))
    assert sketch.constants["fc/2.W"].tobytes() not in kept


@pytest.mark.parametrize("name", NAMES)
def test_the_same_inputs_give_the_same_bytes(name: str) -> None:
    assert done(name, model=network().model()).content == made_once(name).content


_AGAIN = """
import hashlib, json, sys
from tests.contracts.test_techniques import VNNI, done
from whet.compress.technique import technique_names
from whet.device.targets import target
found = {}
for name in technique_names():
    for where in ("x86-vnni", "jetson"):
        try:
            found[f"{name} {where}"] = hashlib.sha256(done(name, where=target(where)).content).hexdigest()
        except Exception as error:
            found[f"{name} {where}"] = str(error)
json.dump(found, sys.stdout)
"""


@pytest.mark.slow
def test_the_same_inputs_give_the_same_bytes_in_processes_that_hash_otherwise() -> None:
    def run(seed: str) -> dict[str, str]:
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
        ended = subprocess.run([sys.executable, "-c", _AGAIN], env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
        return dict(json.loads(ended.stdout))

    one, other = run("1"), run("2")
    assert one == other
    assert one["static x86-vnni"] == hashlib.sha256(done("static").content).hexdigest()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BY_ORDER])
def test_the_order_of_the_samples_of_a_batch_does_not_matter(name: str) -> None:
    turned = DATA.take(np.arange(len(DATA))[::-1])
    assert done(name, data=turned).content == made_once(name).content


def weight_error(name: str, options: dict[str, Any], layer: str = "fc/2") -> float:
    """Of the weights alone: the layer computes on exact one-hot inputs, so that its outputs are its weights."""
    known = {option.name for option in technique(name).options}
    options = {key: value for key, value in options.items() if key in known}
    sketch = Sketch()
    y = sketch.output(sketch.matmul(sketch.input("x", [72, 72]), 72, 10, name=layer))
    feeds = {"x": np.eye(72, dtype=np.float32)}
    model = sketch.model()
    made = apply_recipe(model, recipe(name, options), VNNI, calibration=Dataset.of(feeds))
    return noise_ratio(outputs(made, feeds)[y], outputs(model, feeds)[y])


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name != "clip" and "bits" in {option.name for option in technique(name).options}]
)
def test_the_error_falls_as_bits_rise(name: str) -> None:
    (bits,) = (option.search.values for option in technique(name).options if option.name == "bits")
    errors = [weight_error(name, {"bits": each, "accuracy_level": 0}) for each in sorted(bits)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 4 * errors[-1]


@pytest.mark.parametrize("name", [name for name in NAMES if "block" in {option.name for option in technique(name).options}])
@pytest.mark.parametrize("bits", [4, 8])
def test_smaller_blocks_are_no_worse(name: str, bits: int) -> None:
    errors = [weight_error(name, {"bits": bits, "block": block, "accuracy_level": 0}) for block in (16, 32, 64, 128, 0)]
    assert all(small <= large * 1.02 for small, large in itertools.pairwise(errors))


@pytest.mark.parametrize("name", [name for name in NAMES if "per_channel" in {option.name for option in technique(name).options}])
def test_a_scale_a_channel_is_no_worse_than_one_for_all(name: str) -> None:
    assert weight_error(name, {"per_channel": True}) <= weight_error(name, {"per_channel": False})


# -- techniques that keep the function ---------------------------------------------------------------------------------------------


def chained() -> Sketch:
    """A norm that feeds products, and products that feed each other: something to move for all of them."""
    g = Sketch()
    x = g.input("x", ["N", 6, 16])
    gains, shifts = g.constant(g.random.uniform(0.1, 9, 16)), g.constant(g.random.standard_normal(16))
    y = g.node("LayerNormalization", x, gains, shifts, axis=-1)
    y = g.node("Relu", g.node("Add", g.matmul(y, 16, 24, name="one"), g.constant(g.random.standard_normal(24))))
    y = g.node("Flatten", g.node("ReduceMean", g.matmul(y, 24, 12, name="two"), axes=[1], keepdims=0))
    y = g.node("Relu", g.gemm(y, 12, 20, name="three"))
    g.output(g.gemm(y, 20, 5, name="four"))
    return g


ROWS = samples({"x": (6, 16)}, 24)
MOVING = [pytest.param(name, case, id=f"{name}-{case}") for name in KEEP_THE_FUNCTION for case in (*combinations(name), *extremes(name))]


@pytest.mark.parametrize(("name", "options"), MOVING)
def test_what_keeps_the_function_keeps_it_and_still_changes_weights(name: str, options: dict[str, Any]) -> None:
    model = chained().model()
    before = model.content
    made, again = (apply_recipe(model, Recipe((Step(name, options=options),)), VNNI, calibration=ROWS) for _ in range(2))
    wanted, found = outputs(model, feeds_of(ROWS)), outputs(made, feeds_of(ROWS))
    assert all(noise_ratio(found[output], wanted[output]) < 1e-5 for output in wanted)
    assert made.content == again.content
    assert model.content == before
    assert (made.inputs, made.outputs) == (model.inputs, model.outputs)
    kept = {array.tobytes() for array in weights_of(made).values()}
    assert any(array.tobytes() not in kept for constant, array in chained().constants.items() if constant.endswith(".W"))


@pytest.mark.parametrize("name", KEEP_THE_FUNCTION)
def test_what_keeps_the_function_goes_before_what_rounds(name: str) -> None:
    model = chained().model()
    made = apply_recipe(model, Recipe((Step(name), Step("static"))), VNNI, calibration=ROWS)
    wanted = outputs(model, feeds_of(ROWS))
    assert all(noise_ratio(found, wanted[output]) < 0.06 for output, found in outputs(made, feeds_of(ROWS)).items())
    with pytest.raises((Refused, Unsupported)):
        apply_recipe(model, Recipe((Step("weight_only"), Step(name))), VNNI, calibration=ROWS)


@pytest.mark.parametrize("name", [*NAMES, *KEEP_THE_FUNCTION])
def test_the_callers_model_is_left_as_it_is(name: str) -> None:
    proto = (chained() if name in KEEP_THE_FUNCTION else network()).proto()
    before = proto.SerializeToString(deterministic=True)
    apply_recipe(load(proto), recipe(name), VNNI, calibration=ROWS if name in KEEP_THE_FUNCTION else DATA)
    assert proto.SerializeToString(deterministic=True) == before


# -- what it is asked of -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("only", "without"),
    [(("no such layer",), ()), (("*",), ("no such layer",)), (("op:LSTM",), ()), (("fc/2",), ("*",)), (("conv*x",), ())],
)
def test_a_selector_that_matches_nothing_is_refused(name: str, only: tuple[str, ...], without: tuple[str, ...]) -> None:
    with pytest.raises(Refused):
        done(name, only=only, without=without)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("only", "without"), [(("op:Softmax",), ()), (("*",), ("op:Conv", "op:Gemm"))])
def test_layers_to_which_it_can_do_nothing_are_unsupported(name: str, only: tuple[str, ...], without: tuple[str, ...]) -> None:
    with pytest.raises(Unsupported):
        done(name, only=only, without=without)


@pytest.mark.parametrize("name", OF_LANGUAGE_MODELS)
def test_graphs_have_no_layers_of_language_models(name: str) -> None:
    with pytest.raises(Unsupported, match="language models"):
        done(name)


@pytest.mark.parametrize("name", FOR_LANGUAGE_MODELS)
def test_graphs_have_no_use_for_what_layers_of_language_models_read(name: str) -> None:
    with pytest.raises(Unsupported, match="static and dynamic"):
        done(name, {FOR_LANGUAGE_MODELS[name]: 8})


@pytest.mark.parametrize("name", NAMES)
def test_ugly_names_are_selected_as_they_stand(name: str) -> None:
    for layer in ("layers[0].conv", "dep*wise", "StatefulPartitionedCall/model/conv2d;bias:0"):
        options = {"convolutions": True} if name == "dynamic" else {}
        kept = {array.tobytes() for array in weights_of(done(name, options, only=(layer,))).values()}
        part = "layers[0].conv.W" if layer != "layers[0].conv" else "dep*wise.W"
        assert network().constants[part].tobytes() in kept
        assert network().constants[f"{layer}.W"].tobytes() not in kept


@pytest.mark.parametrize("name", [name for name in NAMES if technique(name).needs == "calibration"])
def test_calibration_that_is_missing_or_empty_is_refused(name: str) -> None:
    with pytest.raises(Refused, match="calibration"):
        done(name, data=None)
    with pytest.raises(Refused, match="empty"):
        done(name, data=DATA.take([]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", [each.name for each in targets()])
def test_every_target_gets_a_model_or_a_reason(name: str, where: str) -> None:
    try:
        made = done(name, where=target(where))
    except Unsupported as error:
        if not error.found:
            raise
        return
    wanted = wanted_of_original()
    assert all(noise_ratio(found, wanted[output]) < 0.06 for output, found in outputs(made, feeds_of(DATA)).items())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("opset", [11, 12, 13, 18, 21, 22])
def test_every_opset(name: str, opset: int) -> None:
    sketch = Sketch(opset)
    y = sketch.node("Relu", sketch.conv(sketch.input(UGLY, ["N", 3, 8, 8]), (3, 4)))
    sketch.output(sketch.gemm(sketch.node("Flatten", y), 256, 10))
    model = sketch.model()
    wanted = outputs(model, feeds_of(DATA))
    for options in ({}, {"bits": 4}, {"block": 32}) if name == "weight_only" else ({},):
        found = outputs(done(name, options, model=model), feeds_of(DATA))
        assert all(noise_ratio(found[output], wanted[output]) < 0.15 for output in wanted)


# -- what foresee says is what is done ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_the_layers_that_were_foreseen_are_those_that_change(name: str, options: dict[str, Any]) -> None:
    foreseen = changes_of(original(), recipe(name, options), VNNI)
    kept = {array.tobytes() for array in weights_of(made_once(name, options)).values()}
    sketch = network()
    for layer in ("layers[0].conv", "dep*wise", "fc/1", "fc/2"):
        assert (sketch.constants[f"{layer}.W"].tobytes() in kept) is (layer not in foreseen)


# -- graphs that are hard for all -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_inputs_as_well(name: str) -> None:
    """Before IR version 4 every weight was an input; they are weights all the same."""
    sketch = network()
    proto = sketch.proto()
    for constant, array in sketch.constants.items():
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        proto.graph.input.append(helper.make_tensor_value_info(constant, kind, array.shape))
    model = load(proto)
    assert [spec.name for spec in model.inputs] == [UGLY]
    found, wanted = outputs(done(name, model=model), feeds_of(DATA)), wanted_of_original()
    assert all(noise_ratio(found[output], wanted[output]) < 0.06 for output in wanted)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [1, 4])
def test_graphs_of_a_fixed_batch(name: str, batch: int) -> None:
    sketch = Sketch()
    y = sketch.node("Relu", sketch.conv(sketch.input(UGLY, [batch, 3, 8, 8]), (3, 4)))
    sketch.output(sketch.gemm(sketch.node("Flatten", y), 256, 10))
    model = sketch.model()
    feeds = feeds_of(DATA, batch)
    wanted = outputs(model, feeds)
    assert all(noise_ratio(found, wanted[output]) < 0.06 for output, found in outputs(done(name, model=model), feeds).items())


@pytest.mark.parametrize("name", NAMES)
def test_sizes_that_change_from_run_to_run(name: str) -> None:
    sketch = Sketch()
    y = sketch.node("Relu", sketch.conv(sketch.input(UGLY, ["N", 3, "height", None]), (3, 4)))
    sketch.output(sketch.gemm(sketch.node("Flatten", sketch.node("GlobalAveragePool", y)), 4, 10))
    model = sketch.model()
    made = done(name, model=model)
    for size in (3, 8, 17):
        feeds = feeds_of(samples({UGLY: (3, size, size + 1)}, 2))
        wanted = outputs(model, feeds)
        assert all(noise_ratio(found, wanted[output]) < 0.08 for output, found in outputs(made, feeds).items())


@pytest.mark.parametrize("name", NAMES)
def test_branches_and_their_names_survive(name: str) -> None:
    """A subgraph with constants of its own, whose names are just those that an editor would make."""
    sketch = Sketch()
    x, c = sketch.input(UGLY, ["N", 3, 8, 8]), sketch.input("c", [], TensorProto.BOOL)
    y = sketch.conv(x, (3, 4), name="conv")
    held = {f"c{at}": np.full((1,), 2.0, np.float32) for at in range(30)} | {f"v{at}": np.ones((1,), np.float32) for at in range(5)}
    inner = [helper.make_node("Mul", [y, "c0"], ["t0"], name="n0"), helper.make_node("Add", ["t0", "v0"], ["t1"], name="n1")]
    then = sketch.subgraph(inner, ["t1"], held)
    other = sketch.subgraph([helper.make_node("Neg", [y], ["t2"], name="n2")], ["t2"])
    z = sketch.node("If", c, then_branch=then, else_branch=other)
    sketch.output(sketch.gemm(sketch.node("Flatten", z), 256, 10, name="product"))
    model = sketch.model(infer=False)
    for choice in (True, False):
        data = Dataset(ArraySamples(feeds_of(DATA)), constants={"c": np.array(choice)})
        made = done(name, model=model, data=data)
        found, wanted = outputs(made, feeds_of(data)), outputs(model, feeds_of(data))
        assert all(noise_ratio(found[output], wanted[output]) < 0.06 for output in wanted)
        graph = made.ir.graph
        outside = {value.name for node in graph for value in node.outputs} | set(graph.initializers)
        assert not outside & {value for inner in graph.subgraphs() for value in inner.initializers}
