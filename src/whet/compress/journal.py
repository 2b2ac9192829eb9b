"""What a recipe has learned so far, layer by layer, in a folder beside its artifact: a run that was stopped goes on where it was.

Only what was learned is kept. The samples go through the model again, which costs little beside it, and find each layer as it was.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from whet.compress.grid import Array, Grid, Quantised
from whet.compress.technique import Change
from whet.compress.views import Learned
from whet.core.document import canonical_json, digest
from whet.core.errors import Refused
from whet.device.files import write_file

Result = TypeVar("Result", bound="Change | Learned | tuple[float, float]")
_FORM = "form"  # the name of the array in a note that says what the others are
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Journal:
    """Notes of results in ``folder``; without one nothing is noted.

    key: the hash of all that the results depend on, asked for when there is something to note. place: where in the recipe this is.
    """

    folder: Path | None = None
    key: Callable[[], str] = field(default=lambda: "")
    place: tuple[str, ...] = ()

    @classmethod
    def beside(cls, place: Path, key: Callable[[], str]) -> Journal:
        """The journal of what is being made at ``place``, in a hidden folder beside it."""
        return cls(place.with_name(f".{place.name}.whet-learned"), key)

    def inside(self, *place: str) -> Journal:
        """The same journal at a place of its own."""
        return Journal(self.folder, lambda: self._key, (*self.place, *place))

    def once(self, name: str, make: Callable[[], Result]) -> Result:
        """What ``make`` gives, or gave in an earlier run. Raises whatever it raises, and Refused where the disk is full."""
        if self.folder is None:
            return make()
        path = self.folder / self._key / f"{digest([*self.place, name])}.npz"
        if path.is_file() and (found := _read(path)) is not None:
            return found
        made = make()
        if (note := _note(made)) is not None:
            write_file(path, note)
        return made

    def tell(self) -> None:
        """Say how much of the work an earlier run has done."""
        if self.folder is not None and self.folder.is_dir() and (notes := list((self.folder / self._key).glob("*.npz"))):
            _log.warning("going on where an earlier run stopped: %d layers, blocks or ranges were learned", len(notes))

    def forget(self) -> None:
        """All that was noted, once the whole is there."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    @cached_property
    def _key(self) -> str:
        return self.key()


def _note(made: Change | Learned | tuple[float, float]) -> bytes | None:
    """The bytes of a note; None of a change that is more than a weight on a grid and its kernel."""
    arrays: dict[str, Array] = {}
    if isinstance(made, Learned):
        form: dict[str, Any] = {"weights": {name: _put(each, f"weight {name}", arrays) for name, each in made.weights.items()},
                                "activations": {name: _put_grid(each, f"grid {name}", arrays) for name, each in made.activations.items()}}
    elif isinstance(made, tuple):
        form = {"range": list(made)}
    elif isinstance(made.weight, Quantised) and made.bias is None and not made.inputs and made.output is None:
        form = {"weight": _put(made.weight, "weight", arrays), "compute": made.compute, "kernel": dict(made.kernel)}
    else:
        return None
    buffer = io.BytesIO()
    np.savez(buffer, **{_FORM: np.frombuffer(canonical_json(form), np.uint8)}, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _read(path: Path) -> Any:
    """What was noted; None where the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        form = json.loads(arrays[_FORM].tobytes())
        if "range" in form:
            low, high = form["range"]
            return float(low), float(high)
        if "weight" in form:
            return Change(_got(form["weight"], "weight", arrays), form["compute"], kernel=form["kernel"])
        return Learned({name: _got(each, f"weight {name}", arrays) for name, each in form["weights"].items()},
                       {name: _got_grid(each, f"grid {name}", arrays) for name, each in form["activations"].items()})
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, Refused):
        return None


def _put(made: Quantised, name: str, arrays: dict[str, Array]) -> dict[str, Any]:
    arrays[f"{name} codes"] = made.codes
    return _put_grid(made.grid, name, arrays)


def _put_grid(grid: Grid, name: str, arrays: dict[str, Array]) -> dict[str, Any]:
    arrays[f"{name} scale"], arrays[f"{name} zero"] = np.asarray(grid.scale), np.asarray(grid.zero_point)
    return {"bits": grid.bits, "signed": grid.signed, "axis": grid.axis, "block": grid.block}


def _got(form: Mapping[str, Any], name: str, arrays: Mapping[str, Array]) -> Quantised:
    return Quantised(arrays[f"{name} codes"], _got_grid(form, name, arrays))


def _got_grid(form: Mapping[str, Any], name: str, arrays: Mapping[str, Array]) -> Grid:
    return Grid(form["bits"], form["signed"], arrays[f"{name} scale"], arrays[f"{name} zero"], form["axis"], form["block"])
