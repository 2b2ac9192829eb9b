"""Made-up models, each made once, and the command ``whet`` in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.checkpoint.made_up_models import made_up

from whet.device.machine import usable_cores
from whet.device.machine_limits import MachineLimits
from whet.device.targets import target

Models = Callable[..., Path]
Whet = Callable[..., Result]
HOST = target("x86-vnni")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The folder of a made-up model of a family, and of one with other settings; nobody may write there."""
    made: dict[str, Path] = {}

    def model(kind: str, **changed: Any) -> Path:
        key = f"{kind} {sorted(changed.items())}"
        if key not in made:
            made[key] = made_up(tmp_path_factory.mktemp(kind), kind, **changed)
        return made[key]

    return model


@pytest.fixture
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose limits are known, for measuring them takes seconds."""

    def limits(*, threads: int | None = None) -> MachineLimits:
        return MachineLimits(5e10, 2e11, 3e10, threads or usable_cores(), "f", "d", onnxruntime="o", at="2026-11-01T00:00:00Z")

    monkeypatch.setattr("whet.device.machine_limits.machine_limits", limits)


@pytest.fixture
def whet(known_machine: None, monkeypatch: pytest.MonkeyPatch) -> Whet:
    """The command, in this process."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*words: object) -> Result:
        from whet.cli import main

        return CliRunner().invoke(main, [str(word) for word in words], prog_name="whet")

    return run
