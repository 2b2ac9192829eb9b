"""Two encoders on one text: what is said of their states is what comes out when everything is computed at once, slowly."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.checkpoint.conftest import Models, Whet
from tests.checkpoint.made_up_models import changed_copy, of_transformers, saved_tokens, tokens
from tests.slow_papers import states as slow

from whet.compress.checkpoint import open_checkpoint
from whet.compress.checkpoint.compare import compare_checkpoints
from whet.compress.checkpoint.states import EncoderComparison, lost
from whet.compress.compare import compare
from whet.core.errors import Refused
from whet.core.gate import loss_gate

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture
def bert(models: Models, tmp_path: Path) -> Path:
    """A made-up encoder without its biases, so that states differ from token to token."""
    held = open_checkpoint(models("bert"))
    return changed_copy(models("bert"), tmp_path / "bert", tensors={
        name: torch.zeros_like(held.tensor(name)) for name in held.entries if name.endswith(".bias")})


def shaken(source: Path, folder: Path, size: float = 0.03) -> Path:
    """The encoder with other numbers in its second block."""
    random, held = torch.Generator().manual_seed(3), open_checkpoint(source)
    names = [name for name in held.entries if ".1." in name]
    return changed_copy(source, folder, tensors={
        name: held.tensor(name) + size * torch.randn(held.tensor(name).shape, generator=random) for name in names})


def compared(one: Path, other: Path, ids: torch.Tensor, **options: float) -> EncoderComparison:
    found = compare_checkpoints(one, other, ids, **options)  # type: ignore[arg-type]
    assert isinstance(found, EncoderComparison)
    return found


def test_an_encoder_beside_itself_loses_nothing_at_all(bert: Path) -> None:
    found = compared(bert, bert, tokens(5))
    assert [each.value for each in (found.cosine, found.sentence_cosine)] == [1, 1]
    assert [each.value for each in (found.drop, found.drop_p999, found.sentence_drop)] == [0, 0, 0]
    assert found.sqnr_db.value is None
    assert "identical" in found.sqnr_db.why


def test_the_states_are_as_far_apart_as_in_the_slow_way(bert: Path, tmp_path: Path) -> None:
    one, other, ids = bert, shaken(bert, tmp_path / "x"), tokens(6)
    found = compared(one, other, ids)
    wanted = slow.compared(of_transformers(one), of_transformers(other), ids)
    assert {name: found.measurements[name].value for name in wanted} == pytest.approx(wanted, rel=1e-4, abs=1e-7)
    assert 1e-4 < (found.drop.value or 0) < 0.5
    assert (found.drop_p999.value or 0) > 1.05 * (found.drop.value or 0)
    assert found.sentence_drop.value != pytest.approx(found.drop.value, rel=1e-3)
    assert (found.windows, found.tokens) == (6, 6 * 24)
    assert found.candidate_size.value == (other / "model.safetensors").stat().st_size


def test_intervals_are_over_windows_and_hold_the_value(bert: Path, tmp_path: Path) -> None:
    other = shaken(bert, tmp_path / "x")
    found, wider = (compared(bert, other, tokens(8), confidence=level) for level in (0.8, 0.99))
    for each in (found.cosine, found.drop, found.sentence_cosine, found.sentence_drop, found.sqnr_db):
        assert each.interval is not None
        assert each.interval.low < (each.value or 0) < each.interval.high
        assert each.interval.confidence == pytest.approx(0.6)
        assert each.n == 8
    assert found.drop.interval is not None
    assert wider.drop.interval is not None
    assert wider.drop.interval.high > found.drop.interval.high
    assert found.cosine.interval is not None
    assert found.cosine.interval.low == pytest.approx(1 - found.drop.interval.high)
    assert compared(bert, other, tokens(1)).drop.interval is None


@given(st.integers(0, 1000), st.floats(1e-9, 10))
def test_a_loss_is_one_less_the_cosine(seed: int, size: float) -> None:
    random = np.random.default_rng(seed)
    one = random.standard_normal(12)
    other = one + size * random.standard_normal(12)
    found = float(lost(torch.tensor(one), torch.tensor(other * 3)))
    assert found == pytest.approx(1 - slow.cosine(one.tolist(), other.tolist()), rel=1e-6, abs=1e-14)
    assert found >= 0
    assert math.isfinite(float(lost(torch.zeros(3), torch.ones(3))))


def test_what_is_said_is_a_document(models: Models, tmp_path: Path) -> None:
    found = compare(models("bert"), str(shaken(models("bert"), tmp_path / "x")), data=tokens(3))
    assert isinstance(found, EncoderComparison)
    assert set(found.measurements) == {"cosine", "drop", "drop_p999", "sentence_cosine", "sentence_drop", "sqnr_db", "size_bytes"}
    assert EncoderComparison.from_json(found.to_json()) == found


def test_encoders_that_cannot_be_compared(models: Models, tmp_path: Path) -> None:
    broken = open_checkpoint(models("bert")).tensor("encoder.layer.1.output.dense.weight") * math.nan
    lame = changed_copy(models("bert"), tmp_path / "x", tensors={"encoder.layer.1.output.dense.weight": broken})
    narrow = models("bert", hidden_size=16)
    for other, word in ((models("llama"), "an encoder and a model that predicts"), (narrow, "32 and 16"), (lame, "NaN")):
        with pytest.raises(Refused, match=word):
            compare_checkpoints(models("bert"), other, tokens(2))
    with pytest.raises(Refused, match="cosine similarity"):
        compare(models("bert"), models("bert"), data=tokens(2), metric="accuracy")


# -- what may be lost ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "encoder", "measurement"), [
    ("cosine<0.01", True, "drop"), ("sentence<0.01", True, "sentence_drop"), (0.01, True, "drop"), ("drop<0.01", True, "drop"),
    ("cosine<0.01", None, "drop"), ("nats<0.01", None, "drop"), ("kl<0.01", False, "kl"),
])
def test_limits_of_encoders(asked: str | float, encoder: bool | None, measurement: str) -> None:
    gate = loss_gate(asked, encoder=encoder)
    assert (gate.measurement, gate.limit) == (measurement, 0.01)


@pytest.mark.parametrize(("asked", "encoder", "word"), [
    ("kl<0.01", True, "predicts no next token. write cosine<0.01"), ("nats<0.01", True, "predicts no next token"),
    ("cosine<0.01", False, "no encoder, whose states are looked at. write kl<0.02"), ("sentence<1", False, "no encoder"),
    ("angle<1", True, "no such limit. write cosine<0.01"), ("cosine<-1", True, "below zero"), ("angle<1", None, "of an encoder cosine"),
])
def test_limits_that_are_not_measured_of_such_a_model(asked: str, encoder: bool | None, word: str) -> None:
    with pytest.raises(Refused, match=word):
        loss_gate(asked, encoder=encoder)


@pytest.mark.parametrize(("gate", "code"), [("cosine<0.0000001", 3), ("cosine<0.9", 0), ("sentence<0.9", 0), ("0.9", 0), ("kl<1", 2)])
def test_gates_of_encoders_end_with_their_code(whet: Whet, models: Models, tmp_path: Path, gate: str, code: int) -> None:
    other = shaken(models("bert"), tmp_path / "x")
    line = ("compare", models("bert"), other, "--data", saved_tokens(tmp_path), "--max-drop", gate)
    done, as_json = whet(*line), whet(*line, "--json")
    assert (done.exit_code, as_json.exit_code) == (code, code), done.output
    if code == 2:
        assert "predicts no next token" in done.stderr
        return
    words = ("Cosine similarity of tokens", "one token in 1000", "SQNR", "refused: " if code else "passed: ")
    assert all(word in done.stdout for word in words)
    said = json.loads(as_json.stdout)
    assert said["verdict"]["passed"] == (code == 0)
    assert 0 < said["drop"]["value"] < said["drop_p999"]["value"] < 1
    assert f"{said['cosine']['value']:.5f}" in done.stdout
    assert f"{1 - said['drop_p999']['value']:.5f}" in done.stdout
