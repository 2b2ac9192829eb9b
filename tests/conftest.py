"""What all tests share: the sample models that are not part of the repository, and how hypothesis runs."""

from __future__ import annotations

import os
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
