"""Hypothesis strategies: plain JSON and TOML values, and one strategy for each word of the house."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from whet.core.artifact import Artifact, ModelFile, TensorSpec
from whet.core.document import Document
from whet.core.gate import Gate, Reason, Verdict
from whet.core.inventory import Inventory, Layer
from whet.core.measurement import Interval, Measurement
from whet.core.outcome import LayerReport, Outcome, Trial
from whet.core.plan import Plan, PlannedLayer
from whet.core.recipe import Recipe, Step
from whet.core.target import Fact, Speed, Target

TEXT = st.text(max_size=12)
UGLY = ["conv1", "layers[0].mlp", "serving_default_input_1:0", "a/b/c", "", "x = 1", '"', "\x7f", "naïve ×"]
NAMES = st.one_of(TEXT, st.sampled_from(UGLY))
FINITE = st.floats(allow_nan=False, allow_infinity=False)
NUMBERS = st.one_of(FINITE, st.integers(-(2**53), 2**53))  # a whole number may stand where a float is expected
SIZES = st.integers(0, 2**70)
SCALARS = st.one_of(st.booleans(), st.integers(), FINITE, TEXT)


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Lists and tables of ``leaves``, some levels deep."""
    def deeper(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=4))

    return st.recursive(leaves, deeper, max_leaves=12)


JSON = nested(st.one_of(st.none(), SCALARS))
TOML = st.dictionaries(NAMES, nested(SCALARS), max_size=5)


def table(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(NAMES, values, max_size=3)


def many(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, max_size=3).map(tuple)


def word(kind: type[Document], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """``kind`` with these fields, some of the optional ones left at their default, and sometimes a field of a later version."""
    later = st.dictionaries(st.sampled_from(["later", "später", "x-note"]), JSON, max_size=2)
    return st.builds(kind, extra=st.one_of(st.just({}), later), **fields)


DIMENSIONS = many(st.one_of(SIZES, NAMES))
UP = st.sampled_from(["lower", "higher"])
SOURCE = st.sampled_from(["measured", "estimated"])
MAYBE_SIZE = st.one_of(st.none(), SIZES)

STEPS = word(Step, technique=NAMES, layers=many(NAMES), exclude=many(NAMES), options=table(JSON))
RECIPES = word(Recipe, steps=many(STEPS), name=NAMES)
SPECS = word(TensorSpec, name=NAMES, dtype=NAMES, shape=DIMENSIONS)
FILES = word(ModelFile, path=st.sampled_from(["model.onnx", "data/weights.bin", "naïve name.onnx"]), sha256=NAMES, size_bytes=SIZES)
ARTIFACTS = word(
    Artifact, format=NAMES, inputs=many(SPECS), outputs=many(SPECS), files=many(FILES), task=NAMES, parent=st.one_of(st.none(), NAMES),
    recipe=st.one_of(st.none(), RECIPES), target=NAMES, session_options=table(NAMES), tools=table(NAMES),
)
LAYERS = word(
    Layer, name=NAMES, op=NAMES, weight_shape=many(SIZES), weight_dtype=NAMES, parameters=SIZES, weight_bytes=SIZES, macs=MAYBE_SIZE,
    output_shape=DIMENSIONS, output_bytes=MAYBE_SIZE,
)
INVENTORIES = word(
    Inventory, layers=many(LAYERS), file_bytes=MAYBE_SIZE, peak_activation_bytes=MAYBE_SIZE, peak_layers=many(NAMES), notes=many(NAMES)
)
FACTS = word(Fact, claim=NAMES, source=NAMES, measured=st.booleans())
SPEEDS = word(Speed, technique=NAMES, op=NAMES, ratio=NUMBERS, source=NAMES, measured=st.booleans())
TARGETS = word(
    Target, name=NAMES, title=NAMES, runtime=NAMES, isa=NAMES, threads=SIZES, weight_bits=SIZES, providers=many(NAMES),
    fused_ops=many(NAMES), speeds=many(SPEEDS), memory_bytes=MAYBE_SIZE, limits=table(NUMBERS), macs_per_s=table(NUMBERS),
    bandwidth_bytes_per_s=NUMBERS, facts=many(FACTS), here=st.booleans(),
)
INTERVALS = word(Interval, low=NUMBERS, high=NUMBERS, confidence=NUMBERS)
MEASUREMENTS = word(
    Measurement, name=NAMES, value=st.one_of(st.none(), NUMBERS), unit=NAMES, interval=st.one_of(st.none(), INTERVALS), direction=UP,
    n=SIZES, artifact=NAMES, data=NAMES, device=NAMES, method=NAMES, source=SOURCE, at=NAMES, why=NAMES,
)
PLANNED = word(
    PlannedLayer, name=NAMES, op=NAMES, technique=NAMES, weights=NAMES, activations=NAMES, runs_as=NAMES, bytes_before=SIZES,
    bytes_after=SIZES, note=NAMES,
)
PLANS = word(Plan, model=NAMES, recipe=RECIPES, target=NAMES, layers=many(PLANNED), costs=many(MEASUREMENTS), warnings=many(NAMES))
GATES = word(Gate, measurement=NAMES, limit=NUMBERS, unit=NAMES, proven=st.booleans(), reason=NAMES)
REASONS = word(Reason, measurement=NAMES, passed=st.booleans(), text=NAMES, excess=NUMBERS)
VERDICTS = word(Verdict, passed=st.booleans(), reasons=many(REASONS))
TRIALS = word(
    Trial, name=NAMES, recipe=RECIPES, status=st.sampled_from(["measured", "skipped", "failed"]), note=NAMES,
    artifact=st.one_of(st.none(), ARTIFACTS), path=NAMES, measurements=table(MEASUREMENTS), verdict=st.one_of(st.none(), VERDICTS),
    on_front=st.booleans(), seconds=NUMBERS,
)
LAYER_REPORTS = word(
    LayerReport, name=NAMES, op=NAMES, bytes_before=SIZES, bytes_after=SIZES, dtype_before=NAMES, dtype_after=NAMES, macs=MAYBE_SIZE,
    sqnr_db=st.one_of(st.none(), NUMBERS), time_before_us=st.one_of(st.none(), NUMBERS),
)
OUTCOMES = word(
    Outcome, model=NAMES, target=NAMES, goal=NAMES, metric=NAMES, gates=many(GATES), trials=st.lists(TRIALS, max_size=1).map(tuple),
    winner=NAMES, headline=NAMES, closest=NAMES, blame=many(NAMES), layers=many(LAYER_REPORTS), data=table(JSON), tools=table(NAMES),
    seconds=NUMBERS,
)

WORDS: dict[type[Document], st.SearchStrategy[Any]] = {
    Artifact: ARTIFACTS, Inventory: INVENTORIES, Target: TARGETS, Recipe: RECIPES, Plan: PLANS, Measurement: MEASUREMENTS, Gate: GATES,
    Verdict: VERDICTS, Outcome: OUTCOMES,
}
ANY_WORD = st.one_of(*WORDS.values())
