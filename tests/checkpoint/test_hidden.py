"""Hidden states in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from whet.compress.checkpoint import hidden
from whet.compress.checkpoint.hidden import Hidden

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_what_is_written_is_read_and_stays_for_the_next_run(tmp_path: Path) -> None:
    values = numbers(5, 7, 3)
    found = Hidden(tmp_path / "h", (5, 7, 3))
    found.write(2, values[2:5])
    found.write(0, values[:2].transpose(1, 2).contiguous().transpose(1, 2))  # not row by row in memory
    found.flush()
    assert torch.equal(found.read(1, 4), values[1:4])
    assert torch.equal(torch.cat(list(found)), values)
    assert torch.equal(found.mapped(), values)
    assert (tmp_path / "h").stat().st_size == 4 * 5 * 7 * 3
    found.close()
    again = Hidden(tmp_path / "h", (5, 7, 3))
    assert torch.equal(again.read(0, 5), values)
    again.close()


def test_what_was_read_is_nobody_elses(tmp_path: Path) -> None:
    found = Hidden(tmp_path / "h", (2, 2, 2))
    found.write(0, torch.ones(2, 2, 2))
    found.read(0, 2).zero_()
    assert bool((found.read(0, 2) == 1).all())
    found.close()


@pytest.mark.parametrize(("windows", "length", "wanted"), [
    (5, 4, [(0, 2), (2, 4), (4, 5)]), (4, 8, [(0, 1), (1, 2), (2, 3), (3, 4)]), (3, 100, [(0, 1), (1, 2), (2, 3)]), (2, 4, [(0, 2)])])
def test_parts_hold_as_many_windows_as_go_through_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, windows: int, length: int,
                                                           wanted: list[tuple[int, int]]) -> None:
    monkeypatch.setattr(hidden, "TOKENS_AT_ONCE", 8)
    found = Hidden(tmp_path / "h", (windows, length, 2))
    assert found.parts == wanted
    found.close()
