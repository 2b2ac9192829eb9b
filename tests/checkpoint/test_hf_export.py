"""What is exported for transformers is what was simulated: packed where it can be read, float where it cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import whet
from whet.compress.checkpoint import Checkpoint, open_checkpoint
from whet.compress.checkpoint.hf_export import export_hf
from whet.compress.checkpoint.rows import rounded_by_rows
from whet.compress.grid import Floats, Quantised, quantise, weight_grid
from whet.core.errors import Refused

from .conftest import Models


def rounded(models: Models, tmp_path: Path, kind: str, **options: object) -> Checkpoint:
    found = whet.apply(str(models(kind)), "rtn", options=options, out=tmp_path / "rounded")
    assert isinstance(found, Checkpoint)
    return found


def test_layers_whose_groups_divide_stay_packed(models: Models, tmp_path: Path) -> None:
    made = rounded(models, tmp_path, "llama", bits=4, block=0)
    report = export_hf(made, tmp_path / "hf")
    assert not report.opened
    back = open_checkpoint(tmp_path / "hf")
    assert back.layouts == made.layouts
    assert all(torch.equal(back.tensor(name), made.tensor(name)) for name in made.entries)


@pytest.mark.parametrize(("kind", "options"), [("gpt2", {"bits": 4, "block": 16}), ("llama", {"bits": 3, "block": 32})])
def test_what_transformers_cannot_read_is_float_again_and_computes_the_same(models: Models, tmp_path: Path, kind: str,
                                                                           options: dict[str, int]) -> None:
    made = rounded(models, tmp_path, kind, **options)
    report = export_hf(made, tmp_path / "hf")
    ragged = {layer for layer in made.layouts if made.size(layer)[1] % options["block"]}
    assert set(report.opened) == (set(made.layouts) if kind == "gpt2" else ragged)
    back = open_checkpoint(tmp_path / "hf")
    assert all(torch.equal(back.weight(layer), made.weight(layer)) for layer in made.layouts)
    if not report.packed:
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
        name = next(iter(made.layouts))
        weight = model.get_submodule(name).weight
        assert torch.equal(weight.t() if kind == "gpt2" else weight, made.weight(name))


def test_a_folder_with_files_is_left_alone(models: Models, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/mine.txt").write_text("mine")
    with pytest.raises(Refused, match="files in it"):
        export_hf(open_checkpoint(models("llama")), tmp_path / "hf")
    assert (tmp_path / "hf/mine.txt").read_text() == "mine"


@pytest.mark.parametrize(("rows", "columns", "block"), [(3, 700_000, 0), (1500, 1000, 32), (5, 7, 0), (1, 2_200_000, 64)])
def test_rows_rounded_in_pieces_are_those_rounded_at_once(rows: int, columns: int, block: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).half()

    def make(numbers: Floats) -> Quantised:
        return quantise(numbers, weight_grid(numbers, bits=4, axis=1 if block else 0, block=block, scales="float16", either_sign=True))

    found, whole = rounded_by_rows(weight, make), make(weight.float().numpy())
    assert np.array_equal(found.codes, whole.codes)
    assert np.array_equal(found.grid.scale, whole.grid.scale)
    assert np.array_equal(found.values, whole.values)
