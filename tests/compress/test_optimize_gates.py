"""What an optimised model must satisfy."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.compress.optimize.gates import Limits, gates_for, measured_by
from whet.core.document import FrozenMap
from whet.core.errors import Refused
from whet.core.gate import Gate, judge
from whet.core.measurement import Interval, Measurement
from whet.core.outcome import GOALS
from whet.core.target import Target
from whet.device.targets import target

PLAIN = Target("plain", "a device of which nothing is known", "onnxruntime", "", 1)
ORIGINAL = {"latency_ratio": 1.0, "size_bytes": 5000.0, "model_rss_bytes": 9000.0, "energy_mj": 3.0, "drop": 0.0}
LIMIT = st.one_of(st.none(), st.floats(0, 1e12, allow_nan=False))


def gates(goal: str = "latency", limits: Limits | None = None, place: Target = PLAIN, **original: float) -> dict[str, list[Gate]]:
    """The gates by what they measure."""
    found: dict[str, list[Gate]] = {}
    for gate in gates_for(goal, limits or Limits(), place, {**ORIGINAL, **original}, 0.01):
        found.setdefault(gate.measurement, []).append(gate)
    return found


@given(st.sampled_from(sorted(GOALS)), LIMIT, LIMIT, LIMIT, LIMIT)
def test_every_limit_that_was_given_is_a_gate_and_the_drop_comes_first(goal: str, drop: float | None, latency: float | None,
                                                                     size: float | None, memory: float | None) -> None:
    found = gates_for(goal, Limits(drop, latency, size, memory), PLAIN, ORIGINAL, 0.01)
    assert found[0] == Gate("drop", 0.01 if drop is None else drop, reason="the default" if drop is None else "asked with --max-drop")
    asked = {(gate.measurement, gate.reason): gate.limit for gate in found[1:] if gate.reason.startswith("asked")}
    given_limits = {("latency_ms", "asked with --max-latency"): latency, ("size_bytes", "asked with --max-size"): size,
                    ("model_rss_bytes", "asked with --max-memory"): memory}
    assert asked == {name: limit for name, limit in given_limits.items() if limit is not None}


@pytest.mark.parametrize("goal", sorted(GOALS))
def test_the_goal_may_not_get_worse_nor_the_file_larger(goal: str) -> None:
    found = gates(goal)
    ratio = found.pop("latency_ratio", [])
    assert (len(ratio), [gate.limit for gate in ratio]) == ((1, [1.0]) if goal in ("latency", "drop") else (0, []))
    assert [gate.limit for gate in found["size_bytes"]] == [5000.0]
    assert ("model_rss_bytes" in found) == (goal == "memory")
    assert ("energy_mj" in found) == (goal == "energy")
    if goal in ("memory", "energy"):
        assert found[GOALS[goal]][0].limit == ORIGINAL[GOALS[goal]]


def test_quality_and_speed_must_be_proven_bytes_need_not() -> None:
    found = gates("latency", Limits(0.01, 5.0, 1e6, 1e6))
    proven = {name: {gate.proven for gate in each} for name, each in found.items()}
    assert proven == {"drop": {True}, "latency_ratio": {True}, "latency_ms": {True}, "size_bytes": {False}, "model_rss_bytes": {False}}


def test_the_units_are_those_of_the_measurements() -> None:
    found = gates("energy", Limits(0.01, 5.0, 1e6, 1e6), replace(PLAIN, limits=FrozenMap({"latency_p95_ms": 3.0, "flips": 0.1})))
    units = {name: {gate.unit for gate in each} for name, each in found.items()}
    assert units == {"drop": {""}, "energy_mj": {" mJ"}, "size_bytes": {" B"}, "latency_ms": {" ms"}, "model_rss_bytes": {" B"},
                     "latency_p95_ms": {" ms"}, "flips": {""}}


def test_the_devices_own_limits_are_gates_that_name_it() -> None:
    small = replace(PLAIN, memory_bytes=1000, storage_bytes=2000, limits=FrozenMap({"latency_ms": 40.0}))
    found = gates("latency", Limits(), small)
    assert [(gate.limit, gate.reason) for gate in found["size_bytes"]] == [(5000.0, "not larger than the original"),
                                                                          (2000, "storage of plain")]
    assert [(gate.limit, gate.reason) for gate in found["model_rss_bytes"]] == [(1000, "memory of plain")]
    assert [(gate.limit, gate.reason, gate.proven) for gate in found["latency_ms"]] == [(40.0, "limit of plain", True)]


def test_what_the_table_says_twice_is_asked_once() -> None:
    found = gates("latency", Limits(), target("mcu"))
    assert len(found["size_bytes"]) == 2
    assert len({gate.limit for gate in found["size_bytes"]}) == 2


def test_the_users_limit_and_the_devices_both_hold() -> None:
    found = gates_for("size", Limits(max_size_bytes=100), replace(PLAIN, storage_bytes=50), ORIGINAL, 0.01)
    for size, passes in ((49.0, True), (51.0, False), (101.0, False)):
        numbers = {"drop": Measurement("drop", 0.0), "size_bytes": Measurement("size_bytes", size)}
        assert judge(found, numbers).passed == passes


def test_a_latency_that_only_may_be_better_is_not_better() -> None:
    found = gates_for("latency", Limits(), PLAIN, ORIGINAL, 0.01)
    numbers = {"drop": Measurement("drop", 0.0), "size_bytes": Measurement("size_bytes", 10.0)}
    for high, passes in ((0.99, True), (1.01, False)):
        ratio = Measurement("latency_ratio", 0.9, interval=Interval(0.8, high, 0.95), n=40)
        assert judge(found, {**numbers, "latency_ratio": ratio}).passed == passes


@pytest.mark.parametrize("goal", ["", "beauty", "Latency", "latency_ms"])
def test_an_unknown_goal_is_refused_with_those_there_are(goal: str) -> None:
    with pytest.raises(Refused, match="latency, size, memory, energy"):
        gates(goal)
    with pytest.raises(Refused, match="latency, size, memory, energy"):
        measured_by(goal)


@pytest.mark.parametrize("goal", sorted(GOALS))
def test_a_goal_of_which_the_original_has_no_number_is_refused(goal: str) -> None:
    known = {name: value for name, value in ORIGINAL.items() if name != GOALS[goal]}
    with pytest.raises(Refused, match=f"minimise the {goal} on plain.*{GOALS[goal]}"):
        gates_for(goal, Limits(), PLAIN, known, 0.01)


@pytest.mark.parametrize("name", ["max_drop", "max_latency_ms", "max_size_bytes", "max_memory_bytes"])
@pytest.mark.parametrize("value", [-1e-9, -5, -math.inf, math.nan])
def test_a_limit_that_nothing_can_meet_is_refused_by_name(name: str, value: float) -> None:
    changed: dict[str, Any] = {name: value}
    with pytest.raises(Refused, match=name):
        Limits(**changed)


def test_a_limit_of_zero_is_a_limit() -> None:
    found = gates("latency", Limits(max_drop=0.0, max_size_bytes=0))
    assert found["drop"][0].limit == 0.0
    assert [gate.limit for gate in found["size_bytes"]] == [5000.0, 0]
