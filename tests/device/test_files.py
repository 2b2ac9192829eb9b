"""Files and folders that are whole or not there: killed in the middle, on a full disk, over what was there before."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from whet.core.errors import Refused
from whet.device import files
from whet.device.files import new_folder, write_file

SRC = Path(__file__).resolve().parents[2] / "src"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def filled(folder: Path, **texts: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


# -- files -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["text with ü and \u20ac", b"\x00\xff bytes", ""])
def test_a_file_holds_what_was_written_and_nothing_else_is_left(tmp_path: Path, content: str | bytes) -> None:
    place = tmp_path / "deep" / "er" / "file.json"
    write_file(place, content)
    assert place.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(place.parent) == ["file.json"]
    assert place.stat().st_mode & 0o777 == 0o644


def test_a_file_that_is_there_is_replaced(tmp_path: Path) -> None:
    place = tmp_path / "f"
    write_file(place, "a long text that was there")
    write_file(place, "new")
    assert place.read_text() == "new"


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the disk is full"), (errno.EROFS, "Read-only")]
)
def test_a_full_disk_is_refused_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, number: int, words: str
) -> None:
    place = tmp_path / "f"
    place.write_text("old")

    def fails(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    if where == "write":
        real = os.fdopen

        def opened(handle: int, mode: str) -> Any:
            file = real(handle, mode)
            return _Failing(file, number)

        monkeypatch.setattr(files.os, "fdopen", opened)
    else:
        monkeypatch.setattr(files.os, where, fails)
    with pytest.raises(Refused, match=words):
        write_file(place, "new")
    monkeypatch.undo()
    assert place.read_text() == "old"
    assert names(tmp_path) == ["f"]


class _Failing:
    """A file whose write fails as on a full disk."""

    def __init__(self, file: Any, number: int) -> None:
        self._file, self._number = file, number

    def __enter__(self) -> _Failing:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, _: bytes) -> int:
        raise OSError(self._number, os.strerror(self._number))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_the_real_error_of_a_full_disk_is_the_one_that_is_looked_for() -> None:
    with pytest.raises(OSError, match="No space") as caught, open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")
    assert caught.value.errno == errno.ENOSPC


def test_a_file_where_a_folder_is_needed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    with pytest.raises(Refused, match="another output folder"):
        write_file(tmp_path / "f" / "g", "y")
    with pytest.raises(Refused), new_folder(tmp_path / "f" / "g"):
        pass


def test_a_folder_where_a_file_is_to_be_is_refused_and_stays(tmp_path: Path) -> None:
    filled(tmp_path / "there", a="1")
    with pytest.raises(Refused):
        write_file(tmp_path / "there", "y")
    assert names(tmp_path) == ["there"]


def test_an_error_that_is_no_disks_goes_through_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"):
        write_file(tmp_path / "f", "x")
    monkeypatch.undo()
    assert names(tmp_path) == []


# -- folders ---------------------------------------------------------------------------------------------------------------------


def test_a_folder_appears_when_it_is_full(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "out"
    with new_folder(place) as beside:
        (beside / "a").write_text("1")
        assert not place.exists()
    assert names(place) == ["a"]
    assert names(place.parent) == ["out"]
    assert place.stat().st_mode & 0o777 == 0o755


def test_an_old_folder_is_replaced_whole(tmp_path: Path) -> None:
    place = filled(tmp_path / "out", old="1", a="2")
    with new_folder(place) as beside:
        (beside / "a").write_text("new")
        assert names(place) == ["a", "old"]
    assert names(place) == ["a"]
    assert (place / "a").read_text() == "new"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("old", [True, False])
def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path, error: BaseException, old: bool) -> None:
    place = tmp_path / "out"
    if old:
        filled(place, a="old")

    def work() -> None:
        with new_folder(place) as beside:
            (beside / "a").write_text("new")
            raise error

    with pytest.raises(type(error)):
        work()
    assert names(tmp_path) == (["out"] if old else [])
    assert not old or (place / "a").read_text() == "old"


@pytest.mark.parametrize("failing", [1, 2])
def test_an_old_folder_comes_back_when_the_move_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    place = filled(tmp_path / "out", a="old")
    calls, real = [], os.replace

    def replace(source: Any, to: Any) -> None:
        calls.append(source)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, "full")
        real(source, to)

    monkeypatch.setattr(files.os, "replace", replace)
    with pytest.raises(Refused, match="the disk is full"), new_folder(place) as beside:
        (beside / "a").write_text("new")
    assert (place / "a").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_file_of_the_folders_name_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(Refused, match="a file of that name"), new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out").read_text() == "x"
    assert names(tmp_path) == ["out"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(Refused, match="ermission"):
        write_file(tmp_path / "f", "x")
    tmp_path.chmod(0o700)


def test_the_folder_one_stands_in_is_refused_without_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "here", a="1")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(Refused, match="another output folder"), new_folder(Path(".")) as beside:
        (beside / "b").write_text("2")
    assert names(tmp_path / "here") == ["a"]
    assert names(tmp_path) == ["here"]


def test_names_that_are_too_long_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused):
        write_file(tmp_path / ("x" * 300), "y")
    with pytest.raises(Refused), new_folder(tmp_path / ("x" * 300)):
        pass


# -- killed -----------------------------------------------------------------------------------------------------------------------

_KILLED = """
import os, signal, sys
from pathlib import Path
from whet.device import files
place, moment = Path(sys.argv[1]), sys.argv[2]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if moment == "fsync":
    files.os.fsync = die
if moment == "before replace":
    files.os.replace = die
if sys.argv[3] == "file":
    files.write_file(place, "new" * 1000)
else:
    with files.new_folder(place) as beside:
        (beside / "a").write_text("new")
        if moment == "inside":
            die()
"""


@pytest.mark.parametrize(
    ("kind", "moment"), [("file", "fsync"), ("file", "before replace"), ("folder", "inside"), ("folder", "before replace")]
)
def test_killed_in_the_middle_nothing_is_half_written(tmp_path: Path, kind: str, moment: str) -> None:
    place = tmp_path / "out"
    if kind == "file":
        place.write_text("old")
    else:
        filled(place, a="old")
    ended = subprocess.run(
        [sys.executable, "-c", _KILLED, str(place), moment, kind], env={**os.environ, "PYTHONPATH": str(SRC)}, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    assert (place if kind == "file" else place / "a").read_text() == "old"
    # What was being written lies beside under a hidden name, and is in nobody's way.
    assert all(name == "out" or name.startswith(".out.") for name in names(tmp_path))
    if kind == "file":
        write_file(place, "again")
        assert place.read_text() == "again"
