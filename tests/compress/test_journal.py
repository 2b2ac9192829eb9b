"""A run that is stopped goes on behind what it has learned, to the same bytes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.compress.small_graphs import Sketch, feeds_of, samples

import whet
from whet.compress.graph import GraphModel
from whet.compress.grid import Grid, weight_grid
from whet.compress.grid import quantise as on_grid
from whet.compress.journal import Journal
from whet.compress.technique import Change, technique
from whet.compress.views import Learned
from whet.core.errors import Refused
from whet.core.recipe import Recipe, Step

DATA = feeds_of(samples({"x": (3, 8, 8)}, 32))
OPTIONS: dict[str, dict[str, Any]] = {"adaround": {"iterations": 3, "samples": 16}, "reconstruct": {"iterations": 3, "samples": 16},
                                      "gptq": {"samples": 16}, "clip": {}}
applying = importlib.import_module("whet.compress.apply")


def network() -> GraphModel:
    g = Sketch()
    x = g.node("Relu", g.conv(g.input("x", ["N", 3, 8, 8]), (3, 8), name="stem"))
    x = g.node("Relu", g.conv(x, (8, 8), name="middle"))
    g.output(g.gemm(g.node("Flatten", g.node("GlobalAveragePool", x)), 8, 5, name="head"))
    return g.model()


def recipe(name: str, **options: Any) -> Recipe:
    return Recipe((Step(name, options={**OPTIONS[name], **options}), Step("static")))


class Calls:
    """Counts what the techniques are asked for, and stops the run at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.name, self.count, self.stop_at = name, 0, 0
        monkeypatch.setattr(applying, "technique", self.technique)

    def technique(self, name: str) -> Any:
        found = technique(name)
        return replace(found, apply=self.counted(found.apply)) if name == self.name else found

    def counted(self, apply: Callable[..., Any]) -> Callable[..., Any]:
        def applied(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.stop_at:
                raise KeyboardInterrupt
            return apply(*arguments, **options)

        return applied


def run(name: str, out: Path, data: Any = DATA, **options: Any) -> bytes:
    whet.apply(network(), recipe(name, **options), calibration=data, out=out)
    return (out / "model.onnx").read_bytes()


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_a_stopped_run_goes_on_where_it_was(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                            caplog: pytest.LogCaptureFixture) -> None:
    calls = Calls(monkeypatch, name)
    whole = run(name, tmp_path / "whole")
    layers, calls.count, calls.stop_at = calls.count, 0, 3
    assert layers >= 3
    with pytest.raises(KeyboardInterrupt):
        run(name, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    calls.count, calls.stop_at = 0, 0
    with caplog.at_level("WARNING"):
        assert run(name, tmp_path / "out") == whole
    assert [record.getMessage() for record in caplog.records if "going on" in record.getMessage()] == [
        "going on where an earlier run stopped: 2 layers, blocks or ranges were learned"]
    assert calls.count == layers - 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


@pytest.mark.parametrize(("data", "options"), [(DATA, {"seed": 1}), ({"x": DATA["x"][::-1].copy()}, {})])
def test_other_work_learns_anew(data: Any, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, "adaround")
    wanted = run("adaround", tmp_path / "whole", data, **options)
    calls.count, calls.stop_at = 0, 3
    with pytest.raises(KeyboardInterrupt):
        run("adaround", tmp_path / "out")
    calls.count, calls.stop_at = 0, 0
    assert run("adaround", tmp_path / "out", data, **options) == wanted
    assert calls.count == 3


def test_damaged_notes_are_learned_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, "adaround")
    wanted = run("adaround", tmp_path / "whole")
    calls.count, calls.stop_at = 0, 3
    with pytest.raises(KeyboardInterrupt):
        run("adaround", tmp_path / "out")
    notes = sorted((tmp_path / ".out.whet-learned").glob("*/*.npz"))
    assert len(notes) == 2
    notes[0].write_bytes(notes[0].read_bytes()[:-40])
    notes[1].write_bytes(b"no archive")
    calls.count, calls.stop_at = 0, 0
    assert run("adaround", tmp_path / "out") == wanted
    assert calls.count == 3


def test_a_place_that_holds_something_else_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, "adaround")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(Refused, match="other files"):
        run("adaround", tmp_path / "out")
    assert calls.count == 0


def test_nothing_is_left_where_nothing_was_learned(tmp_path: Path) -> None:
    with pytest.raises(Refused):
        whet.apply(network(), "adaround", out=tmp_path / "out")
    whet.apply(network(), "static", calibration=DATA, out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# -- what is noted -------------------------------------------------------------------------------------------------------------------

RANDOM = np.random.default_rng(5)


def noted(made: Any, folder: Path) -> tuple[Any, bool]:
    """What a second run gets, and whether it had to make it itself."""
    again: list[bool] = []
    Journal(folder, lambda: "key").once("layer", lambda: made)
    found = Journal(folder, lambda: "key").once("layer", lambda: (again.append(True), made)[1])
    return found, bool(again)


def assert_same_grid(found: Grid, wanted: Grid) -> None:
    assert (found.bits, found.signed, found.axis, found.block) == (wanted.bits, wanted.signed, wanted.axis, wanted.block)
    for mine, theirs in ((found.scale, wanted.scale), (found.zero_point, wanted.zero_point)):
        assert np.asarray(mine).dtype == np.asarray(theirs).dtype
        np.testing.assert_array_equal(mine, theirs, strict=True)


@pytest.mark.parametrize("block", [0, 16])
def test_a_weight_comes_back_as_it_was(block: int, tmp_path: Path) -> None:
    weight = RANDOM.standard_normal((4, 40)).astype(np.float32)
    made = on_grid(weight, weight_grid(weight, bits=4, axis=1 if block else 0, block=block, symmetric=False))
    found, again = noted(Change(made, "dynamic", kernel={"accuracy_level": 4}), tmp_path)
    assert not again
    assert (found.compute, found.kernel) == ("dynamic", {"accuracy_level": 4})
    np.testing.assert_array_equal(found.weight.codes, made.codes, strict=True)
    assert_same_grid(found.weight.grid, made.grid)


def test_a_block_and_a_range_come_back_as_they_were(tmp_path: Path) -> None:
    weight = RANDOM.standard_normal((4, 8)).astype(np.float32)
    rounded = on_grid(weight, weight_grid(weight, bits=3, axis=0))
    activation = Grid(8, False, np.asarray(0.1, np.float32), np.asarray(3, np.int32))
    found, again = noted(Learned({"a/b": rounded, "c": rounded}, {"x": activation}), tmp_path / "block")
    assert not again
    assert list(found.weights) == ["a/b", "c"]
    np.testing.assert_array_equal(found.weights["c"].codes, rounded.codes, strict=True)
    assert_same_grid(found.weights["a/b"].grid, rounded.grid)
    assert_same_grid(found.activations["x"], activation)
    assert noted((-0.1, 1 / 3), tmp_path / "range") == ((-0.1, 1 / 3), False)


def test_the_same_layer_in_another_step_is_other_work(tmp_path: Path) -> None:
    journal = Journal(tmp_path, lambda: "key")
    assert journal.inside("0", "0").once("x", lambda: (0.0, 1.0)) == (0.0, 1.0)
    assert journal.inside("1", "0").once("x", lambda: (0.0, 2.0)) == (0.0, 2.0)
    assert journal.inside("0", "0").once("x", lambda: (0.0, 3.0)) == (0.0, 1.0)


def test_what_is_more_than_a_weight_on_a_grid_is_not_noted(tmp_path: Path) -> None:
    weight = RANDOM.standard_normal((4, 8)).astype(np.float32)
    made = Change(weight=on_grid(weight, weight_grid(weight, bits=8, axis=0)), bias=np.zeros(4, np.float32))
    found, again = noted(made, tmp_path)
    assert again
    assert found is made
