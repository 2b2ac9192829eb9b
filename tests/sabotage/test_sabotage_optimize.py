"""Deliberate mistakes in what decides, measures and tells must not go unnoticed. See test_sabotage.py for how they are made."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from tests.sabotage import test_sabotage
from tests.sabotage.mistakes import Mistake
from tests.sabotage.mistakes_of_optimize import CHOOSE, GATES, MISTAKES, SEARCH, WORDS

pytestmark = pytest.mark.slow
copied = test_sabotage.copied


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what)
def test_the_tests_notice(copied: Path, mistake: Mistake) -> None:
    test_sabotage.test_the_tests_notice(copied, mistake)


def test_without_a_mistake_the_tests_pass(copied: Path) -> None:
    ended = test_sabotage.run(copied, f"{CHOOSE} {GATES} {SEARCH} {WORDS}", "")
    assert ended.returncode == 0, ended.stdout[-1500:]


def test_every_place_has_mistakes_of_its_own() -> None:
    counts = Counter(mistake.file for mistake in MISTAKES)
    assert min(counts[f"compress/optimize/{name}.py"] for name in ("choose", "gates", "search", "words", "blame")) >= 4
    assert sum(counts[f"compress/optimize/{name}.py"] for name in ("run", "place", "question", "searching")) >= 6
    assert len({mistake.what for mistake in MISTAKES}) == len(MISTAKES)
