"""What was exported is asked what the checkpoint is asked, and whatever differs is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoint.conftest import Models, Whet
from tests.checkpoint.made_up_models import of_transformers

import whet as library
from whet.compress.checkpoint import Checkpoint, open_checkpoint
from whet.compress.checkpoint import agreement as asking
from whet.compress.checkpoint.agreement import agreement, answers_of, compared
from whet.compress.export import export_language
from whet.core.errors import Refused

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def four_bits(source: Path, folder: Path) -> Checkpoint:
    made = library.apply(str(source), "rtn", options={"bits": 4, "block": 16}, out=folder)
    assert isinstance(made, Checkpoint)
    return made


def test_a_difference_is_measured_as_it_is_defined() -> None:
    one, other = torch.tensor([[2.0, 0.0], [1.0, 0.0]]).double(), torch.tensor([[2.0, 0.5], [0.0, 1.0]]).double()
    shares = [torch.softmax(each, -1) for each in (one, other)]
    found = compared(one, other, encoder=False)
    assert (found.tokens, found.largest, found.same_top_token) == (2, 1.0, 0.5)
    assert found.kl == pytest.approx(float((shares[0] * (shares[0] / shares[1]).log()).sum(1).mean()))
    states = compared(one, other, encoder=True)
    cosines = [float(a @ b / a.norm() / b.norm()) for a, b in zip(one, other, strict=True)]
    assert states.cosine_lost == pytest.approx(1 - float(np.mean(cosines)))
    assert (states.kl, states.same_top_token) == (None, None)
    assert "NaN" in compared(one, one * float("nan"), encoder=False).why


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_answers_are_those_of_transformers(models: Models, kind: str) -> None:
    tokens = torch.randint(3, 90, (20,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        right = of_transformers(models(kind))(tokens[None])
    expected = right.last_hidden_state if kind == "bert" else right.logits
    torch.testing.assert_close(answers_of(open_checkpoint(models(kind)), tokens), expected[0].double(), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_an_onnx_folder_runs_and_its_level_is_seen(models: Models, tmp_path: Path, kind: str) -> None:
    made = four_bits(models(kind), tmp_path / "made")
    exact, fast = (export_language(made, tmp_path / f"{level}", accuracy_level=level).agreement for level in (0, 4))
    assert exact is not None
    assert fast is not None
    assert exact.tokens == 64
    assert (exact.largest or 1.0) < 1e-3 < (fast.largest or 0.0)
    lost = [each.cosine_lost if kind == "bert" else each.kl for each in (exact, fast)]
    assert 0 <= (lost[0] or 0.0) < 1e-7 < (lost[1] or 0.0) < 0.1


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_folder_for_transformers_is_read_back(models: Models, tmp_path: Path, kind: str) -> None:
    """gpt2's layers become float again, in the dtype of its weights: float32 here."""
    found = export_language(four_bits(models(kind), tmp_path / "made"), tmp_path / "hf", format="hf").agreement
    assert found is not None
    assert (found.largest, found.kl, found.same_top_token) == (0.0, 0.0, 1.0)


def test_a_gguf_file_is_decoded(assets: Path, tmp_path: Path) -> None:
    if not (assets / "stories260K").is_dir():
        pytest.skip("no stories260K")
    exact, mixed = (export_language(open_checkpoint(assets / "stories260K"), tmp_path / f"{kind}.gguf", format="gguf", kind=kind).agreement
                    for kind in ("auto", "q4_0"))
    assert exact is not None
    assert mixed is not None
    assert (exact.kl or 0.0) < 1e-9 < 0.01 < (mixed.kl or 0.0) < 1.0


def test_an_export_that_went_wrong_is_seen(models: Models, tmp_path: Path) -> None:
    made = four_bits(models("llama"), tmp_path / "made")
    export_language(made, tmp_path / "hf", format="hf", check=False)
    held = load_file(tmp_path / "hf/model.safetensors")
    name = next(name for name in held if name.endswith("up_proj.weight_scale"))
    save_file({**held, name: held[name] * 2}, tmp_path / "hf/model.safetensors", {"format": "pt"})
    assert (agreement(made, tmp_path / "hf", "hf").kl or 0.0) > 1e-3


def test_what_cannot_be_run_is_told(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = open_checkpoint(models("llama"))
    export_language(made, tmp_path / "onnx", check=False)
    (tmp_path / "onnx/model.onnx").write_bytes(b"no model")
    assert "does not run" in agreement(made, tmp_path / "onnx", "onnx").why
    monkeypatch.setattr(asking, "MOST_DECODED", 10)
    assert "decoded into memory" in agreement(made, tmp_path / "x.gguf", "gguf").why
    with pytest.raises(Refused, match="accuracy level 0"):
        export_language(made, tmp_path / "hf", format="hf", accuracy_level=0)


def test_the_command_tells_it(whet: Whet, models: Models, tmp_path: Path) -> None:
    made = four_bits(models("llama"), tmp_path / "made")
    done = whet("export", made.folder, "--accuracy-level", "0", "-o", tmp_path / "a")
    assert done.exit_code == 0, done.output
    assert "same top token 100.0%" in " ".join(done.stdout.split())
    told = json.loads(whet("export", made.folder, "--to", "hf", "-o", tmp_path / "b", "--json").stdout)
    assert told["agreement"]["largest"] == 0.0
    assert "agreement" not in json.loads(whet("export", made.folder, "--no-check", "-o", tmp_path / "c", "--json").stdout)
