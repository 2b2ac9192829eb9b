"""Rotations: they are what they should be, and a turned model computes what it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.checkpoint.conftest import HOST, Models
from tests.checkpoint.made_up_models import config_of, files_of, of_transformers, saved_tokens, tokens
from tests.slow_papers import rotate as slow

from whet.compress.checkpoint import open_checkpoint
from whet.compress.checkpoint.apply import apply_to_checkpoint
from whet.compress.checkpoint.plan import plan_checkpoint
from whet.compress.checkpoint.turned import Turned, turned
from whet.compress.hadamard import paley, rotation
from whet.compress.techniques.rotate import foresee, rotate
from whet.compress.views import Stream
from whet.core.artifact import MANIFEST_NAME, Artifact
from whet.core.document import FrozenMap
from whet.core.errors import Refused, Unsupported
from whet.core.inventory import Layer
from whet.core.recipe import Recipe, Step

pytestmark = pytest.mark.usefixtures("one_torch_thread")


# -- rotations -----------------------------------------------------------------------------------------------------------------


def test_paleys_matrices_are_hadamard_matrices() -> None:
    known = [order for order in range(2, 110) if paley(order) is not None]
    assert {4, 8, 12, 20, 24, 28, 36, 44, 60, 76, 84, 104, 108} <= set(known)
    assert all(order % 4 == 0 for order in known)
    for order in known[:12]:
        matrix = paley(order)
        assert matrix is not None
        assert slow.is_hadamard(matrix)


@pytest.mark.parametrize("size", [1, 2, 12, 16, 24, 45, 72, 90, 128, 172, 192, 576])
def test_a_rotation_is_orthogonal_and_what_its_factors_say(size: int) -> None:
    found = rotation(size, 3)
    whole = found.of(np.eye(size))
    np.testing.assert_allclose(whole @ whole.T, np.eye(size), atol=1e-5)
    if size <= 192:
        np.testing.assert_allclose(whole, slow.kronecker(found.signs, list(found.factors)), atol=1e-6)
    assert found.exact == (size not in (45, 90, 172))
    if found.exact:
        np.testing.assert_allclose(np.abs(whole), 1 / np.sqrt(size), atol=1e-6)
    assert set(np.unique(found.signs)) <= {-1.0, 1.0}


def test_the_seed_chooses_the_signs_and_the_size_does() -> None:
    assert np.array_equal(rotation(64, 1).signs, rotation(64, 1).signs)
    assert not np.array_equal(rotation(64, 1).signs, rotation(64, 2).signs)
    assert not np.array_equal(rotation(64, 1).signs, rotation(128, 1).signs[:64])


def test_large_arrays_are_rotated_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values, found = np.random.default_rng(0).standard_normal((5, 7, 24)).astype(np.float32), rotation(24, 0)
    wanted = found.of(values)
    np.testing.assert_allclose(wanted, values @ found.of(np.eye(24)), atol=1e-5)
    monkeypatch.setattr("whet.compress.hadamard.PART", 60)
    np.testing.assert_allclose(found.of(values), wanted, atol=1e-6)


def test_outliers_are_spread() -> None:
    vector = np.zeros((1, 64), np.float32)
    vector[0, 5] = 8.0
    found = rotate(Stream("x", 64, {"a": vector}), HOST)["a"]
    np.testing.assert_allclose(np.abs(found), 1.0, atol=1e-5)


# -- models --------------------------------------------------------------------------------------------------------------------

RESIDUAL = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "phi3")
HEADS_ALONE = ("gemma2", "gemma3_text", "phi", "bert")


def rotated(folder: Path, out: Path, *more: Step, calibration: Any = None, **options: Any) -> Path:
    recipe = Recipe((Step("rotate", options=FrozenMap(options)), *more))
    apply_to_checkpoint(open_checkpoint(folder), recipe, HOST, out=out, calibration=calibration)
    return out


def answers(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        found = of_transformers(folder)(tokens())
    given: torch.Tensor = found.last_hidden_state if hasattr(found, "last_hidden_state") else found.logits
    return given


def differs(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("kind", RESIDUAL)
@pytest.mark.parametrize("options", [{}, {"heads": False}, {"residual": False}], ids=str)
def test_a_turned_model_computes_what_it_did(models: Models, kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    folder = models(kind)
    made = rotated(folder, tmp_path / "out", **options)
    assert differs(answers(made), answers(folder)) < 1e-5
    before, after = open_checkpoint(folder), open_checkpoint(made)
    turned_layers = {layer for layer in before.block_layers(1) if differs(after.weight(layer), before.weight(layer)) > 0.1}
    wanted = {layer for layer in before.block_layers(1) if options.get("residual", True) or layer.endswith(before.family.values)}
    assert turned_layers == wanted


@pytest.mark.parametrize("kind", HEADS_ALONE)
def test_where_norms_stand_in_the_way_the_heads_can_be_turned(models: Models, kind: str, tmp_path: Path) -> None:
    folder = models(kind)
    with pytest.raises(Unsupported, match="residual = false"):
        rotated(folder, tmp_path / "refused")
    made = rotated(folder, tmp_path / "out", residual=False)
    assert differs(answers(made), answers(folder)) < 1e-5
    assert made.joinpath("model.safetensors").read_bytes() != folder.joinpath("model.safetensors").read_bytes()


def test_a_model_without_values_of_its_own_is_refused(models: Models, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="heads = false"):
        rotated(models("gpt2"), tmp_path / "out")
    with pytest.raises(Unsupported, match="LayerNorm"):
        rotated(models("gpt2"), tmp_path / "out", heads=False)
    with pytest.raises(Refused, match="turn one of them"):
        rotated(models("llama"), tmp_path / "out", heads=False, residual=False)
    assert not list(tmp_path.iterdir())


def test_a_tied_embedding_gets_a_head_of_its_own_or_is_refused(models: Models, tmp_path: Path) -> None:
    folder = models("qwen2")
    assert open_checkpoint(folder).tied
    made = rotated(folder, tmp_path / "out")
    assert not open_checkpoint(made).tied
    assert config_of(made)["tie_word_embeddings"] is False
    with pytest.raises(Refused, match="untie = true"):
        rotated(folder, tmp_path / "refused", untie=False)
    assert open_checkpoint(rotated(folder, tmp_path / "heads", untie=False, residual=False)).tied


def test_sixteen_bits_stay_sixteen_bits(models: Models, tmp_path: Path) -> None:
    folder = models("llama", dtype=torch.bfloat16)
    made = rotated(folder, tmp_path / "out")
    assert {entry.dtype for _, entry in open_checkpoint(made).entries.values()} == {"BF16"}
    assert differs(answers(made), answers(folder)) < 0.05


def test_norms_have_no_gains_left_and_nothing_else_changes_shape(models: Models, tmp_path: Path) -> None:
    for kind, left in (("llama", 1.0), ("gemma", 0.0)):
        before = open_checkpoint(models(kind))
        after = open_checkpoint(rotated(models(kind), tmp_path / kind))
        for name in before.entries:
            assert after.entries[name][1].shape == before.entries[name][1].shape
            if "norm" in name:
                assert bool((after.tensor(name) == left).all()), name


def test_steps_behind_it_see_the_turned_model(models: Models, tmp_path: Path) -> None:
    folder, text = models("llama"), saved_tokens(tmp_path)
    alone = open_checkpoint(rotated(folder, tmp_path / "alone"))
    for step in (Step("rtn", options=FrozenMap({"bits": 8})), Step("gptq", options=FrozenMap({"bits": 8, "block": 16, "enough": 0.0}))):
        made = open_checkpoint(rotated(folder, tmp_path / step.technique, step, calibration=text))
        for layer in made.block_layers(2):
            assert differs(made.weight(layer), alone.weight(layer)) < 0.02


def test_a_seed_gives_the_same_bytes_and_another_one_others(models: Models, tmp_path: Path) -> None:
    folder = models("llama")
    one, again, other = (rotated(folder, tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert files_of(one) == files_of(again)
    assert (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_it_stands_first_and_is_for_the_whole_model(models: Models, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(models("llama"))
    rtn = Step("rtn", options=FrozenMap({"bits": 4}))
    with pytest.raises(Refused, match="put rotate first"):
        turned(checkpoint, Recipe((rtn, Step("rotate"))), HOST)
    with pytest.raises(Refused, match="leave the names out"):
        turned(checkpoint, Recipe((Step("rotate", layers=("*q_proj",)),)), HOST)
    apply_to_checkpoint(checkpoint, Recipe((rtn,)), HOST, out=tmp_path / "rounded")
    with pytest.raises(Refused, match="begin with the float model"):
        turned(open_checkpoint(tmp_path / "rounded"), Recipe((Step("rotate"),)), HOST)
    same, left = turned(checkpoint, Recipe((rtn,)), HOST)
    assert same is checkpoint
    assert left.steps == (rtn,)
    both, left = turned(checkpoint, Recipe((Step("rotate"), Step("rotate", options=FrozenMap({"seed": 1})), rtn)), HOST)
    assert isinstance(both, Turned)
    assert isinstance(both.before, Turned)
    assert left.steps == (rtn,)


def test_it_changes_no_types(models: Models) -> None:
    found = foresee(Layer("x", "Linear", weight_shape=(8, 6), weight_dtype="bfloat16"), HOST)
    assert (found.applies, found.adjusts, found.weights) == (True, True, "bfloat16")
    assert not foresee(Layer("x", "Conv", weight_shape=(8, 6, 3, 3)), HOST).applies


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_its_plan_is_exact_to_the_byte(models: Models, kind: str, known_machine: None, tmp_path: Path) -> None:
    recipe = Recipe((Step("rotate"), Step("rtn", options=FrozenMap({"bits": 4, "block": 16}))))
    for steps in (recipe.steps[:1], recipe.steps):
        plan = plan_checkpoint(open_checkpoint(models(kind)), Recipe(steps), HOST)
        made = apply_to_checkpoint(open_checkpoint(models(kind)), Recipe(steps), HOST, out=tmp_path / f"{len(steps)}")
        assert plan.recipe == made_recipe(made.folder) == Recipe(steps)
        size = next(cost.value for cost in plan.costs if cost.name == "size_bytes")
        assert size == (made.folder / "model.safetensors").stat().st_size


def made_recipe(folder: Path) -> Recipe | None:
    return Artifact.from_json((folder / MANIFEST_NAME).read_bytes()).recipe
