"""``whet explain``: the verdict first, then layers, causes and remedies; the same as JSON and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Task, Whet

from whet.cli.explanations import bar
from whet.core.errors import Refused
from whet.core.explanation import Explanation


@pytest.fixture
def line(task: Task) -> list[object]:
    return ["explain", task.model, "--recipe", "int8", "--data", task.data, "--calibration", task.calibration, "--target", "pi5"]


def test_people_get_the_verdict_the_layers_and_the_causes(whet: Whet, line: list[object], tmp_path: Path) -> None:
    done = whet(*line, "--no-remedies", "--report", tmp_path / "why.html")
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    assert "{" not in done.stdout
    lines = done.stdout.splitlines()
    assert "signal to noise at the output" in lines[0]
    assert lines[2].split()[:4] == ["layer", "operator", "damage", "share"]
    assert {each.split()[0] for each in lines[3:7]} == {"first/conv", "second/product", "answers", "x"}
    assert any(each.startswith("second/product: ") for each in lines)
    assert lines[-1] == f"report  {tmp_path / 'why.html'}"
    assert (tmp_path / "why.html").read_text().startswith("<!DOCTYPE html>")
    assert whet(*line, "--no-remedies", "--quiet").stdout.splitlines() == lines[:1]


def test_json_is_the_document(whet: Whet, line: list[object]) -> None:
    done = whet(*line, "--json", "--layers", "2", "--time-budget", "20s")
    assert done.exit_code == 0, done.output
    found = Explanation.from_json(done.stdout)
    assert (found.measured, found.metric, found.target) == (2, "accuracy", "pi5")
    assert found.remedies
    assert found.command.startswith("whet explain ")


def test_refusals_end_with_two(whet: Whet, task: Task, line: list[object], tmp_path: Path) -> None:
    for words, said in ((["explain", task.model, "--recipe", "nonsense", "--data", task.data], "no such technique"),
                        (["explain", task.model, "--data", task.data], "--recipe"),
                        (["explain", task.model, "--recipe", "int8"], "--data"),
                        ([*line, "--layers", "0"], "--layers"),
                        ([*line, "--report", tmp_path / "no" / "x" / "\0"], "")):
        done = whet(*words)
        assert done.exit_code != 0
        assert said in done.stderr


def test_what_is_asked_reaches_the_library(whet: Whet, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def recorded(model: object, recipe: object, **asked: object) -> None:
        seen.update(asked, model=model, recipe=recipe)
        raise Refused("stop here")

    monkeypatch.setattr("whet.explain", recorded)
    done = whet("explain", task.model, "--recipe", "r.toml", "--data", "d.npz", "--calibration", "c.npz", "--metric", "top-5", "--target",
                "pi5", "--layers", "7", "--time-budget", "2m", "--seconds", "300ms", "--threads", "3", "--seed", "5")  # fmt: skip
    assert done.stderr == "whet: stop here.\n"
    target = seen.pop("target")
    assert (target.name, target.threads) == ("pi5", 3)
    assert seen.pop("command").endswith("--seed 5")
    assert seen == {"model": str(task.model), "recipe": "r.toml", "data": "d.npz", "calibration": "c.npz", "metric": "top-5", "layers": 7,
                    "time_budget_s": 120.0, "seconds": 0.3, "seed": 5, "remedies": True}  # fmt: skip


def test_bars() -> None:
    assert [bar(share, 4) for share in (0.0, 1e-6, 0.25, 0.5, 1.0, 2.0)] == ["", "▏", "█", "██", "████", "████"]
