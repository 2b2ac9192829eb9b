"""The output folder: taken for one run at a time, and filled so that nothing half-written or out of date is left in it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from whet.compress.artifacts import read_artifact
from whet.compress.report import write_report
from whet.core.artifact import MANIFEST_NAME
from whet.core.errors import Refused
from whet.core.outcome import Outcome
from whet.device.files import new_folder, write_file


@contextmanager
def taken(out: Path) -> Iterator[Path]:
    """The output folder. Finished trials in it stay, whatever happens: a later call goes on from them. Where there are none, a folder
    that was made here goes again."""
    made = [folder for folder in (out / "trials", out) if not folder.exists()]
    if (out / "best").exists() and not (out / "best" / MANIFEST_NAME).is_file():
        raise Refused(f"write {out / 'best'}", found="it is there already, and not what Whet wrote", do="choose another output folder")
    try:
        (out / "trials").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"write into {out}", found=error.strerror or str(error), do="choose another output folder") from error
    try:
        with _locked(out):
            yield out
    except BaseException:
        for folder in made:
            with suppress(OSError):  # not empty
                folder.rmdir()
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Nobody else optimises into the folder meanwhile: two would slow each other down, and take away each other's files."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system that knows no locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Refused(f"optimise into {folder}", found="another run is at work there",
                              do="wait until it has ended, or choose another output folder") from error
        yield
    finally:
        os.close(handle)


def written(outcome: Outcome, folder: Path) -> Outcome:
    """best/, recipe.toml and the reports; what an earlier call left there is replaced or taken away."""
    trial = outcome.trial(outcome.winner)
    if trial is not None and trial.artifact is not None:
        with new_folder(folder / "best") as best:
            made = (folder / trial.path).parent
            read_artifact(made)  # nothing is shipped that is not what was measured
            for file in sorted(made.iterdir()):  # copytree would wrap a full disk into an error without a number
                shutil.copyfile(file, best / file.name)
        write_file(folder / "recipe.toml", trial.recipe.to_text())
        shipped = tuple(replace(each, path=f"best/{Path(trial.path).name}") if each is trial else each for each in outcome.trials)
        outcome = replace(outcome, trials=shipped)
    else:
        _take_away(folder)
    write_report(outcome, folder)
    return outcome


def _take_away(folder: Path) -> None:
    """A best/ of an earlier, laxer question must not pass for the answer to this one."""
    if (folder / "best").is_dir():
        with tempfile.TemporaryDirectory(dir=folder, prefix=".old-") as old:
            os.replace(folder / "best", Path(old) / "best")
    (folder / "recipe.toml").unlink(missing_ok=True)
