"""Each deliberate mistake is made in a copy of the source, and the tests that guard that place must fail on it.

A test that fails on no mistake guards nothing. The copies are tested in fresh processes; a mistake that stops the tests from being
collected does not count as noticed.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from types import SimpleNamespace

import pytest
from tests.sabotage.mistakes import FILES, FOLD, GRID, Mistake
from tests.sabotage.mistakes_of_optimize import CHOOSE, GATES, SEARCH, WORDS
from tests.sabotage.warm_process import WarmProcess

from whet.compress.technique import technique_names

pytestmark = pytest.mark.slow
AT_ONCE = 2
Ending = subprocess.CompletedProcess[str] | None
_NOTHING = SimpleNamespace(params={})
ROOT = Path(__file__).resolve().parents[2]
TABLES = sorted(file.stem for file in Path(__file__).parent.glob("mistakes*.py"))
MISTAKES: list[Mistake] = [mistake for table in TABLES for mistake in importlib.import_module(f"tests.sabotage.{table}").MISTAKES]

# Where the mathematics of a technique stands, beside its own file.
MATHEMATICS = {
    "static": ("put/integer.py", "grid.py"),
    "weight_only": ("put/storage.py",),
    "dynamic": ("put/dynamic.py",),
    "float16": ("put/half.py",),
    "gptq": ("column_rounding.py",),
    "rtn": ("weight_search.py",),
    "adaround": ("soft_rounding.py", "walks/rounding.py"),
    "reconstruct": ("soft_rounding.py", "walks/blocks.py"),
    "bias_correct": ("walks/errors.py",),
    "clip": ("ranges.py", "walks/tensors.py"),
    "equalize": ("walks/chains.py",),
    "smoothquant": ("put/scaling.py", "walks/shared_inputs.py"),
    "nf4": ("codebook.py", "checkpoint/bitsandbytes_layout.py"),
    "fp4": ("codebook.py",),
    "autoround": ("learned_grids.py",),
    "tune": ("distilling.py", "checkpoint/tuning.py"),
}


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("sabotage")
    yield copy_of_source(folder)
    shutil.rmtree(folder, ignore_errors=True)


def copy_of_source(folder: Path) -> Path:
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "src"


@pytest.fixture(scope="module")
def endings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Ending]]]:
    """How the tests ended on each mistake that was selected, two at a time, each in a copy of its own."""
    chosen = [item.callspec.params["mistake"] for item in request.session.items if "mistake" in getattr(item, "callspec", _NOTHING).params]
    free: Queue[tuple[Path, WarmProcess]] = Queue()
    places = [(copy_of_source(tmp_path_factory.mktemp(f"sabotage{number}")), WarmProcess(ROOT)) for number in range(AT_ONCE)]
    for place in places:
        free.put(place)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {mistake.what: pool.submit(sabotaged, mistake, free) for mistake in chosen}
        pool.shutdown(cancel_futures=True)
    for _, process in places:
        process.close()


def sabotaged(mistake: Mistake, free: Queue[tuple[Path, WarmProcess]]) -> Ending:
    """The tests on a copy with the mistake; None where the place is not as the table says."""
    source, process = free.get()
    place = source / "whet" / mistake.file
    right = place.read_text(encoding="utf-8")
    try:
        if right.count(mistake.old) != 1:
            return None
        place.write_text(right.replace(mistake.old, mistake.new), encoding="utf-8")
        return run(source, mistake.tests, mistake.only, process)
    finally:
        place.write_text(right, encoding="utf-8")
        free.put((source, process))


def run(source: Path, tests: str, only: str, process: WarmProcess) -> subprocess.CompletedProcess[str]:
    """The tests on the source in ``source``; the exit status is pytest's (0: all passed, 1: some failed)."""
    chosen = [str(ROOT / "tests" / name) for name in tests.split()]
    return process.run(["-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider", "-m", "not slow",
                        "-o", f"pythonpath={source} {ROOT}", *(["-k", only] if only else []), *chosen])  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what)
def test_the_tests_notice(endings: dict[str, Future[Ending]], mistake: Mistake) -> None:
    ended = endings[mistake.what].result()
    assert ended is not None, f"{mistake.file} has changed: write the mistake again"
    assert ended.returncode == 1, f"{mistake.what}: nobody noticed\n{ended.stdout[-1500:]}{ended.stderr[-500:]}"


def test_without_a_mistake_the_tests_pass_and_they_test_the_copy(copied: Path) -> None:
    (copied / "whet" / "compress" / "sabotaged.py").write_text("")
    control = copied.parent / "test_control.py"
    control.write_text("def test_copy():\n    import whet.compress.sabotaged\n")
    process = WarmProcess(ROOT)
    ended = run(copied, f"{GRID} {FOLD} {FILES} {CHOOSE} {GATES} {SEARCH} {WORDS} {os.path.relpath(control, ROOT / 'tests')}", "", process)
    process.close()
    assert ended.returncode == 0, ended.stdout[-1500:]


def test_every_place_has_mistakes_of_its_own() -> None:
    counts = Counter(mistake.file for mistake in MISTAKES)
    body = ("grid", "fold", "ranges", "put/integer", "put/storage", "put/dynamic")
    decisions = tuple(f"optimize/{name}" for name in ("choose", "gates", "search", "words"))
    assert min(counts[f"compress/{name}.py"] for name in (*body, *decisions)) >= 4
    assert sum(counts[f"compress/optimize/{name}.py"] for name in ("run", "place", "question", "searching")) >= 6
    assert len({mistake.what for mistake in MISTAKES}) == len(MISTAKES)


@pytest.mark.parametrize("name", technique_names())
def test_every_technique_has_mistakes_of_its_own(name: str) -> None:
    """In its file, or in one of those that do its mathematics or show it the model."""
    places = {f"compress/techniques/{name}.py", *(f"compress/{file}" for file in MATHEMATICS.get(name, ()))}
    assert sum(mistake.file in places for mistake in MISTAKES) >= 3
