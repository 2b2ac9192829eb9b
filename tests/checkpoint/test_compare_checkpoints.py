"""Two language models on one text: what is said of them is what comes out when everything is computed at once, slowly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.checkpoint.conftest import Models
from tests.checkpoint.made_up_models import changed_copy, of_transformers, tokens
from tests.checkpoint.test_text import with_words, words
from tests.slow_papers import next_tokens

from whet.compress.checkpoint import compare as comparing
from whet.compress.checkpoint import open_checkpoint
from whet.compress.checkpoint.compare import LanguageComparison, compare_checkpoints
from whet.compress.compare import compare
from whet.core.errors import Refused

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def noisy(source: Path, folder: Path, size: float = 0.02) -> Path:
    """The model with other numbers in the middle and at the head."""
    number = torch.Generator().manual_seed(3)
    held = open_checkpoint(source)
    names = [name for name in held.entries if ".1." in name or name.endswith(("norm.weight", "lm_head.weight"))]
    return changed_copy(source, folder, tensors={
        name: held.tensor(name) + size * torch.randn(held.tensor(name).shape, generator=number).to(held.dtype) for name in names})


@pytest.mark.parametrize(("kind", "changed"), [("llama", {}), ("gpt2", {}), ("gemma2", {}), ("qwen3", {"dtype": torch.bfloat16})])
def test_a_model_beside_itself_loses_nothing_at_all(models: Models, kind: str, changed: dict[str, Any]) -> None:
    found = compare_checkpoints(models(kind, **changed), models(kind, **changed), tokens(5))
    assert (found.drop.value, found.kl.value, found.kl_p999.value, found.same_top_token.value) == (0.0, 0.0, 0.0, 1.0)
    assert found.parent.value == found.candidate.value
    assert found.parent_size == found.candidate_size
    assert found.drop.interval is not None
    assert (found.drop.interval.low, found.drop.interval.high) == (0.0, 0.0)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text"])
def test_the_numbers_are_those_of_the_slow_way(models: Models, tmp_path: Path, kind: str) -> None:
    one, other, ids = models(kind), noisy(models(kind), tmp_path / "x"), tokens(5)
    found = compare_checkpoints(one, other, ids)
    wanted = next_tokens.compared(of_transformers(one), of_transformers(other), ids, skip=0)
    agrees(found, wanted)
    assert 0 < (found.kl.value or 0) < 5
    assert 0 < (found.same_top_token.value or 0) < 1
    assert (found.windows, found.tokens) == (5, 5 * 23)
    assert found.parent_size.value == (one / "model.safetensors").stat().st_size


def agrees(found: LanguageComparison, wanted: dict[str, float]) -> None:
    got = {"parent": found.parent, "candidate": found.candidate, "drop": found.drop, "kl": found.kl, "kl_p999": found.kl_p999,
           "same_top_token": found.same_top_token}
    assert {name: each.value for name, each in got.items()} == pytest.approx(wanted, rel=1e-5, abs=1e-7)
    assert all(each.interval is None or each.interval.low <= (each.value or 0) <= each.interval.high for each in got.values())


def test_what_follows_the_mark_for_the_beginning_is_not_counted(models: Models, tmp_path: Path) -> None:
    """Nothing is known before it. A text without such a mark is counted from its second token on."""
    text = [words(0, 400)]
    for starts in (True, False):
        reader = with_words(models("llama"), tmp_path / f"{starts}", starts=starts)
        other = noisy(models("llama"), tmp_path / f"{starts} noisy")
        found = compare_checkpoints(reader, other, text, length=16)
        ids = torch.tensor([[1] * starts + list(range(3, 19 - starts))])
        windows = comparing.windows_of(reader, text, length=16).tokens
        assert torch.equal(windows[:1], ids)
        agrees(found, next_tokens.compared(of_transformers(reader.folder), of_transformers(other), windows, skip=int(starts)))
        assert found.tokens == len(windows) * (14 if starts else 15)


def test_a_head_that_is_run_in_pieces_says_the_same(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = noisy(models("llama"), tmp_path / "x")
    whole = compare_checkpoints(models("llama"), other, tokens(3))
    monkeypatch.setattr(comparing, "LOGITS", 96 * 7)
    cut = compare_checkpoints(models("llama"), other, tokens(3))
    assert cut.kl.value == pytest.approx(whole.kl.value, rel=1e-6)
    assert cut.drop.value == pytest.approx(whole.drop.value, rel=1e-5)
    assert cut.tokens == whole.tokens


def test_divergence_is_from_parent_to_candidate(models: Models, tmp_path: Path) -> None:
    other = noisy(models("llama"), tmp_path / "x", 0.1)
    there, back = (compare_checkpoints(*pair, tokens(4)) for pair in ((models("llama"), other), (other, models("llama"))))
    assert there.kl.value != pytest.approx(back.kl.value, rel=1e-3)
    assert there.drop.value == pytest.approx(-(back.drop.value or 0))
    assert (there.parent.value, there.candidate.value) == (back.candidate.value, back.parent.value)


def test_one_window_has_no_interval(models: Models) -> None:
    found = compare_checkpoints(models("llama"), models("llama"), tokens(1))
    assert found.kl.interval is None
    assert "one window" in found.kl.method


def test_more_confidence_is_a_wider_interval(models: Models, tmp_path: Path) -> None:
    other = noisy(models("llama"), tmp_path / "x")
    narrow, wide = (compare_checkpoints(models("llama"), other, tokens(6), confidence=level).kl.interval for level in (0.8, 0.99))
    assert narrow is not None
    assert wide is not None
    assert wide.low < narrow.low < narrow.high < wide.high
    assert narrow.confidence == pytest.approx(0.6)  # two-sided, so that its upper end alone has 80 %


def test_memory_is_given_back_and_nothing_is_left_on_the_disk(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    compare_checkpoints(models("llama"), models("llama"), tokens(2))
    assert list(tmp_path.iterdir()) == []


def test_the_python_api_takes_folders(models: Models, tmp_path: Path) -> None:
    other = noisy(models("llama"), tmp_path / "x")
    np.save(tmp_path / "t.npy", tokens(3).numpy())
    found = compare(models("llama"), str(other), data=tmp_path / "t.npy")
    assert isinstance(found, LanguageComparison)
    assert set(found.measurements) == {"nats_per_token", "drop", "kl", "kl_p999", "same_top_token", "size_bytes"}
    assert LanguageComparison.from_json(found.to_json()) == found


@pytest.mark.parametrize(("parent", "candidate", "data", "word"), [
    ("llama", "other rows", "ids", "vocabularies of 96 and 100"),
    ("llama", "llama", None, "no text"), ("llama", "nowhere", "ids", "nowhere"), ("llama", "an onnx file", "ids", "model.onnx"),
    ("llama", "bert", "ids", "encoder"),
])
def test_what_cannot_be_compared(models: Models, tmp_path: Path, parent: str, candidate: str, data: str | None, word: str) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    places = {"llama": lambda: models("llama"), "bert": lambda: models("bert"), "nowhere": lambda: tmp_path / "nowhere",
              "other rows": lambda: models("llama", vocab_size=100), "an onnx file": lambda: tmp_path / "model.onnx"}
    with pytest.raises(Refused, match=word):
        compare(places[parent](), places[candidate](), data=None if data is None else tokens(2))


def test_a_metric_of_graphs_is_refused(models: Models) -> None:
    with pytest.raises(Refused, match="leave the metric out"):
        compare(models("llama"), models("llama"), data=tokens(2), metric="accuracy")
