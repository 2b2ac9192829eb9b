"""The folder that a checkpoint is written into: filled block by block beside its place, and moved into it when it is whole.

A run that was killed leaves the folder beside, with a journal; the same work finds it again and goes on behind the last block that was
done. Every tensor has its place from the start, so what is written twice lands where it was, and the result is the same to the byte.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from whet.compress.checkpoint.tensor_writer import INDEX_NAME, Shape, TensorWriter, index_of, shards_of
from whet.core.errors import Refused
from whet.device.files import disk_errors, write_file

JOURNAL_NAME = "journal.json"
WAITING = 6  # tensors that may wait for the disk: more would fill memory

_log = logging.getLogger(__name__)


class Destination:
    """A folder being filled. done: how many blocks are finished."""

    def __init__(self, folder: Path, key: str, shapes: Iterable[Shape]) -> None:
        self.folder, self._key = folder, key
        self.done = int(_journal(folder).get("done", 0))
        shards = shards_of(shapes)
        self._writer = TensorWriter(folder, shards)
        if len(shards) > 1:
            write_file(folder / INDEX_NAME, index_of(shards))
        self._pool = ThreadPoolExecutor(1)
        self._waiting: list[Future[None]] = []

    def put(self, tensors: Mapping[str, Tensor], then: Callable[[], None] | None = None) -> None:
        """Write tensors, while the caller goes on. then: done once they are written."""
        for name, tensor in tensors.items():
            self._waiting.append(self._pool.submit(self._writer.write, name, tensor))
        if then is not None:
            self._waiting.append(self._pool.submit(then))
        while len(self._waiting) > WAITING:
            self._waiting.pop(0).result()

    def finished(self, blocks: int) -> None:
        """So many blocks are done; once they are on the disk the journal says so."""
        self.done = blocks
        self._waiting.append(self._pool.submit(self._note, blocks))

    def settle(self) -> None:
        """Wait until everything is on the disk."""
        while self._waiting:
            self._waiting.pop(0).result()

    def _note(self, blocks: int) -> None:
        self._writer.flush()
        write_file(self.folder / JOURNAL_NAME, json.dumps({"key": self._key, "done": blocks}))

    def close(self) -> None:
        """Wait for the disk, and leave the folder as it is."""
        try:
            self.settle()
        finally:
            self._pool.shutdown()
            self._writer.close()


@contextmanager
def filling(out: Path, key: str) -> Iterator[Path]:
    """The folder beside ``out`` in which it is made: what an earlier run with the same ``key`` left, or an empty one. It takes the place of
    ``out`` when the block ends well, and stays for the next run when it does not. Raises Refused while another run fills it.
    """
    beside = out.parent / f".{out.name}.whet-part"
    beside.mkdir(parents=True, exist_ok=True)
    lock = os.open(beside / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refused(f"write {out}", found="another run that is writing it", do="wait for it, or choose another folder") from error
        with disk_errors(out):
            _begin(beside, key)
            yield beside
            _move(beside, out)
    finally:
        os.close(lock)


def _begin(beside: Path, key: str) -> None:
    """Empty the folder unless it was left by the same work."""
    found = _journal(beside)
    for path in beside.glob(".*"):  # a file that was being written when its run was killed (device.files.write_file)
        path.unlink()
    if found.get("key") == key:
        if found.get("done"):
            _log.warning("going on behind block %d, where an earlier run stopped", found["done"])
        return
    for path in beside.iterdir():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_file(beside / JOURNAL_NAME, json.dumps({"key": key, "done": 0}))


def _move(beside: Path, out: Path) -> None:
    """Put what was made into its place; what is there already has been refused or may be replaced. The lock goes last: who found it open
    before the move would take the folder for one to begin in.
    """
    (beside / JOURNAL_NAME).unlink(missing_ok=True)
    old = out.with_name(f".{out.name}.whet-old")
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)  # of a run that was killed right here
        os.replace(out, old)
    os.replace(beside, out)
    (out / "lock").unlink(missing_ok=True)
    shutil.rmtree(old, ignore_errors=True)


def _journal(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / JOURNAL_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
