"""Writing files so that nobody ever sees half of one: beside their place, then moved into it."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from whet.core.errors import Refused

# The place is at fault, and another one may do. EBUSY: the folder that one stands in, or that a disk is mounted on.
_WRONG_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EBUSY, errno.ENAMETOOLONG,
                errno.ELOOP)


def write_file(path: Path, content: bytes | str) -> None:
    """Replace ``path`` by ``content`` in one step. Raises Refused where the disk is full or the place cannot be written."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of ``path`` when the block ends well and vanishes when it does not.

    An old folder at ``path`` stays whole until then. Raises Refused where the disk is full or the place cannot be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            yield beside
            os.chmod(beside, 0o755)
            _replace_folder(beside, path)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise


def _replace_folder(new: Path, path: Path) -> None:
    if not path.exists():
        os.replace(new, path)
        return
    if not path.is_dir():
        raise Refused(f"write the folder {path}", found="a file of that name", do="choose another output folder")
    # A folder that is not empty cannot be replaced in one step: the old one steps aside first, and comes back if need be.
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        os.replace(path, old)
        try:
            os.replace(new, path)
        except BaseException:
            os.replace(old, path)
            raise
    except BaseException:
        with suppress(OSError):
            old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What the system says of the place ``path``, as Refused."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Refused(f"write {path}", found="the disk is full", do="free some space, or choose another output folder") from error
        if error.errno in _WRONG_PLACE:
            raise Refused(f"write {path}", found=error.strerror or str(error), do="choose another output folder") from error
        raise
