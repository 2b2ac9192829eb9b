"""What all tests share: the sample models that are not part of the repository, and how hypothesis and the garbage collector run."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# The same examples in every run: a test that fails in CI fails here too. HYPOTHESIS_PROFILE=explore looks further, at random.
settings.register_profile(
    "same", max_examples=50, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(scope="module", autouse=True)
def only_what_is_new_is_collected() -> None:
    """Whet collects garbage before it times; without this it would look through all that pytest and the imports hold: 630,000 things
    after collection, and 0.6 s each time on a busy machine."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """For modules of many small products in torch: with two threads they mostly wait for each other where others work as well."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of sample models and data sets (WHET_ASSETS, else ../shared/assets); skips where there is none."""
    folder = Path(os.environ.get("WHET_ASSETS", ROOT.parent / "shared" / "assets")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no sample models: {folder} is not a folder (set WHET_ASSETS)")
    return folder
