"""The smallest version that passes is found, kept and told; where nothing passes, nothing is shipped."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import whet
from whet.cli.group import main
from whet.compress.checkpoint import open_checkpoint
from whet.compress.checkpoint.search import RUNGS, Idea, averages_below, idea, smallest_passing
from whet.compress.checkpoint.turned import rotation_for
from whet.core.errors import Refused
from whet.core.gate import loss_gate
from whet.core.outcome import Outcome, Trial
from whet.core.recipe import Recipe

from .conftest import HOST, Models


def tokens(seed: int, windows: int = 10) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 90, (windows, 32))


# -- the search, purely -------------------------------------------------------------------------------------------------------


@given(count=st.integers(1, 40), first=st.integers(0, 45))
def test_bisection_finds_the_first_rung_that_passes(count: int, first: int) -> None:
    asked: list[int] = []

    def passes(index: int) -> bool:
        asked.append(index)
        return index >= first

    assert smallest_passing(count, passes) == (first if first < count else None)
    assert len(asked) <= math.ceil(math.log2(count)) + 1


def test_rungs_go_up_in_size() -> None:
    bits_a_weight = [bits + 16 / group + bits / group for bits, group in RUNGS]
    assert bits_a_weight == sorted(bits_a_weight)
    assert all(average < bits for bits, _ in RUNGS for average in averages_below(bits))


def test_an_idea_rounds_blocks_tables_and_a_head_of_its_own() -> None:
    step, tables = idea("gptq", 4, 32, head=True).recipe.steps
    assert (step.technique, step.layers, dict(step.options)) == ("gptq", ("*",), {"bits": 4, "block": 32, "symmetric": False})
    assert (tables.technique, tables.layers, tables.options["bits"]) == ("rtn", ("op:Embedding", "op:Head"), 8)
    assert idea("gptq", 4, 32, head=False).recipe.steps[1].layers == ("op:Embedding",)
    assert [step.technique for step in idea("tune", 3, 32, head=False).recipe.steps] == ["gptq", "rtn", "tune"]
    assert dict(idea("mixed", 3.5, 32, head=False).recipe.steps[0].options)["average"] == 3.5


@pytest.mark.parametrize(
    ("asked", "measurement", "limit"), [("kl<0.02", "kl", 0.02), ("nats<0.1", "drop", 0.1), ("nats<1.5", "drop", 1.5), (0.3, "drop", 0.3)]
)
def test_what_may_be_lost_is_read(asked: float | str, measurement: str, limit: float) -> None:
    gate = loss_gate(asked)
    assert (gate.measurement, gate.limit) == (measurement, limit)


@pytest.mark.parametrize("asked", ["kl", "kl<", "accuracy<0.1", "kl<much", "kl<-1", "nats<nan", "nats<inf"])
def test_what_is_no_limit_is_refused(asked: str) -> None:
    with pytest.raises(Refused, match=r"kl<0\.02"):
        loss_gate(asked)


# -- on a model ---------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("known_machine")
def test_the_smallest_rung_wins_where_all_pass_and_a_second_call_makes_nothing_again(models: Models, tmp_path: Path) -> None:
    def optimized() -> whet.compress.optimize.Outcome:
        return whet.optimize(str(models("llama")), data=tokens(0), calibration=tokens(1), max_drop="kl<100", out=tmp_path / "out")

    outcome = optimized()
    assert outcome.winner == "gptq 2 bits, group 32"
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/trials").glob("*/whet.json")}
    assert optimized().winner == outcome.winner
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out/trials").glob("*/whet.json")} == made
    best = open_checkpoint(tmp_path / "out/best")
    assert {layout.bits for layout in best.layouts.values()} == {2, 8}
    trial = outcome.trial(outcome.winner)
    assert trial is not None
    assert trial.value("size_bytes") == sum(path.stat().st_size for path in (tmp_path / "out/best").glob("*.safetensors"))
    assert (tmp_path / "out/report.html").is_file()
    again = whet.apply(str(models("llama")), tmp_path / "out/recipe.toml", calibration=tokens(1), out=tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "out/best/model.safetensors").read_bytes()
    assert again.layouts == best.layouts


@pytest.mark.usefixtures("known_machine")
def test_an_encoder_is_searched_by_its_states(models: Models, tmp_path: Path) -> None:
    outcome = encoder_search(models, tmp_path, "sentence<2")
    first = outcome.trial("original")
    assert first is not None
    assert (first.value("drop"), first.value("cosine")) == (0, 1)
    assert (outcome.winner, outcome.metric, outcome.gates[0].measurement) == ("gptq 2 bits, group 32", "cosine", "sentence_drop")
    assert "cosine of sentences lost" in outcome.headline
    assert {layout.bits for layout in open_checkpoint(tmp_path / "out/best").layouts.values()} == {2, 8}
    with pytest.raises(Refused, match=r"cosine<0\.01"):
        encoder_search(models, tmp_path, "kl<0.1")


def encoder_search(models: Models, tmp_path: Path, limit: str) -> Outcome:
    return whet.optimize(str(models("bert")), data=tokens(0), calibration=tokens(1), max_drop=limit, out=tmp_path / "out")


@pytest.mark.slow
@pytest.mark.usefixtures("known_machine")
def test_an_encoder_goes_through_all_stages_but_tuning(models: Models, tmp_path: Path) -> None:
    """4 bits pass and 3 do not: bits by layer and learned rounding are tried below."""
    outcome = encoder_search(models, tmp_path, "cosine<1e-5")
    assert "cosine lost 0.0000" in outcome.headline
    names = [trial.name for trial in outcome.trials]
    assert any(name.startswith("mixed") for name in names)
    assert any(name.startswith("autoround") for name in names)
    assert not any(name.startswith("tune") for name in names)
    assert all(trial.status == "measured" for trial in outcome.trials)


@pytest.mark.usefixtures("known_machine")
@pytest.mark.parametrize("helps", [True, False])
def test_a_rotation_is_kept_where_less_is_lost_for_it(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, helps: bool) -> None:
    """A judge that sees nothing but whether the model was turned, and 4 bits that pass where 3 do not."""
    from whet.compress.checkpoint import optimize as search

    made_of: dict[str, Recipe] = {}

    class Told(search._Search):
        def _loss(self, tried: Idea) -> float:
            self._try(tried)
            return 1.0 if (tried.recipe.steps[0].technique == "rotate") == helps else 2.0

        def _try(self, tried: Idea) -> bool:
            made_of[tried.name] = tried.recipe
            self.trials.append(Trial(tried.name, tried.recipe))
            return "4 bits, group 32" in tried.name or "8 bits" in tried.name

    monkeypatch.setattr(search, "_Search", Told)
    whet.optimize(str(models("llama")), data=tokens(0), calibration=tokens(1), max_drop="kl<1", out=tmp_path / "out")
    turned = made_of["rotate, gptq 4 bits, group 32"].steps[0]
    assert (turned.technique, dict(turned.options)) == ("rotate", {"residual": True, "heads": True})
    later = {name for name in made_of if "mixed" in name or "autoround" in name}
    assert later
    assert {name.startswith("rotate, ") for name in later} == {helps}


def test_what_can_be_turned_without_growing_is_turned(models: Models) -> None:
    found = {kind: rotation_for(open_checkpoint(models(kind)), HOST) for kind in ("llama", "qwen2", "gemma2", "phi", "gpt2")}
    options = {kind: None if step is None else dict(step.options) for kind, step in found.items()}
    whole, heads = {"residual": True, "heads": True}, {"residual": False, "heads": True}
    assert options == {"llama": whole, "qwen2": heads, "gemma2": heads, "phi": heads, "gpt2": None}  # qwen2's head is its table


@pytest.mark.usefixtures("known_machine")
def test_other_text_makes_other_trials(models: Models, tmp_path: Path) -> None:
    """Long texts that differ in the middle alone, and one of the same length: nothing is told by how an array prints, or by a name."""
    counts = []
    for seed in (1, 2):
        calibration = tokens(1, 60)
        calibration[20:40] = tokens(seed, 20)
        whet.optimize(str(models("llama")), data=tokens(0), calibration=calibration, max_drop="kl<1e-12", out=tmp_path / "out")
        counts.append(len(list((tmp_path / "out/trials").glob("*/whet.json"))))
    assert counts[1] == 2 * counts[0] > 0


@pytest.mark.usefixtures("known_machine")
def test_nothing_is_shipped_where_nothing_passes(models: Models, tmp_path: Path) -> None:
    np.save(tmp_path / "eval.npy", tokens(0))
    np.save(tmp_path / "calib.npy", tokens(1))
    words = ["--data", "eval.npy", "--calibration", "calib.npy", "--max-drop", "kl<1e-12", "-o", "out"]
    given_ = [str(tmp_path / word) if word.endswith((".npy", "out")) else word for word in words]
    done = CliRunner().invoke(main, ["optimize", str(models("llama")), *given_, "--json"])
    assert done.exit_code == 3, done.output
    said = json.loads(done.stdout)
    assert said["winner"] == ""
    assert said["closest"] == "gptq 8 bits, group 128"
    assert not (tmp_path / "out/best").exists()


def test_questions_without_an_honest_answer_are_refused(models: Models, tmp_path: Path) -> None:
    model = str(models("llama"))
    for given_, said in (({"data": tokens(0)}, "no calibration text"), ({"data": tokens(0, 3), "calibration": tokens(1)}, "3 windows"),
                         ({"data": tokens(0), "calibration": tokens(0)}, "same text"),
                         ({"data": tokens(0), "calibration": tokens(1), "metric": "accuracy"}, "only these"),
                         ({"data": tokens(0), "calibration": tokens(1), "minimize": "latency"}, "only these")):
        with pytest.raises(Refused, match=said):
            whet.optimize(model, out=tmp_path / "out", **given_)  # type: ignore[arg-type]
    assert not (tmp_path / "out/best").exists()
