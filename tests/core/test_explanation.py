"""An explanation is a document: it goes to JSON and comes back, and says which remedies are useful."""

from __future__ import annotations

from dataclasses import replace

from whet.core.document import FrozenMap
from whet.core.explanation import Cause, Counted, Explanation, LayerBlame, Remedy
from whet.core.measurement import Measurement
from whet.core.recipe import Recipe, Step

CAUSE = Cause("weight_channel", "weights", "channel 3's weights reach 41.2", FrozenMap({"channel": 3}))
LAYER = LayerBlame("conv", "Conv", 0.01, 0.5, 0.009, 0.001, 0.002, 0.1, 20.0, 25.0, 0.04, ("t1",), (CAUSE,))
FOUND = Explanation(
    "m.onnx", "host", Recipe((Step("static"),)), "it hurts", "accuracy", 0.02, {"drop": Measurement("drop", 0.05)}, (LAYER,), ("conv",),
    (Remedy("conv in float", "conv", "+3.9 pts", damage=0.001), Remedy("range", "conv", damage=0.0195), Remedy("x", "", status="failed")),
    (Counted("conv", "conv", "weights", -1.0, 0.5, (1, 2, 3), -1.0, 1.0, 0.1),), 1, 64, 400,
)  # fmt: skip


def test_it_goes_to_json_and_comes_back() -> None:
    again = Explanation.from_json(FOUND.to_json())
    assert again == FOUND
    assert again.digest == FOUND.digest
    assert isinstance(again.layers[0].causes[0], Cause)
    assert again.histograms[0].counts == (1, 2, 3)


def test_what_is_not_known_is_left_out() -> None:
    plain = LayerBlame("conv", "Conv").to_plain()
    assert plain == {"name": "conv", "op": "Conv"}


def test_useful_remedies_take_away_a_tenth_of_the_damage() -> None:
    assert [remedy.name for remedy in FOUND.useful] == ["conv in float"]
    assert replace(FOUND, damage=0.0).useful == ()
