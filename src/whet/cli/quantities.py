"""What people type for sizes, times, shares and shapes, as numbers: ``300kB``, ``20ms``, ``0.5%``, ``x=1,3,32,32``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click

_NUMBER = re.compile(r"(\+?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-zµμ%]*)")
_BYTES = {
    "": 1.0, "b": 1.0, "k": 1e3, "kb": 1e3, "m": 1e6, "mb": 1e6, "g": 1e9, "gb": 1e9,
    "ki": 2.0**10, "kib": 2.0**10, "mi": 2.0**20, "mib": 2.0**20, "gi": 2.0**30, "gib": 2.0**30,
}  # fmt: skip
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_SHARES = {"": 1.0, "%": 0.01, "pt": 0.01, "pts": 0.01}


def size_bytes(text: str) -> float:
    """ "300kB" to 300000.0 and "64MiB" to 67108864.0; a bare number is bytes. Raises ValueError."""
    return _quantity(text, _BYTES, fold=True, example="300kB, 2MB or 64MiB")


def seconds(text: str) -> float:
    """ "10m" to 600.0; a bare number is seconds. Raises ValueError."""
    return _quantity(text, {"": 1.0, **_SECONDS}, example="90s, 10m or 1h")


def milliseconds(text: str) -> float:
    """ "20ms" to 20.0 and "1.5s" to 1500.0; a bare number is refused, for nobody knows which unit was meant. Raises ValueError."""
    return 1e3 * _quantity(text, _SECONDS, example="20ms, 1.5s or 300us")


def share(text: str) -> float:
    """ "0.5%" to 0.005, "0.5pts" too; a bare number is what it is. Raises ValueError."""
    return _quantity(text, _SHARES, example="0.01, 1% or 0.5%")


@dataclass(frozen=True)
class Shape:
    """The shape of an example input. name: "" where it goes by its place. dtype: as torch calls it."""

    sizes: tuple[int, ...]
    name: str = ""
    dtype: str = "float32"


def shape(text: str) -> Shape:
    """ "1,3,32,32", "x=1,3,32,32" or "ids=1,16:int64". Raises ValueError."""
    found = re.fullmatch(r"(?:([^=:,]+)=)?\s*(\d+(?:\s*[,x]\s*\d+)*)\s*(?::\s*(\w+))?", text.strip())
    if not found:
        raise ValueError(f"{text!r} is no shape; write 1,3,32,32 or name=1,3,32,32 or name=1,16:int64")
    name, sizes, dtype = found.groups()
    numbers = tuple(map(int, re.split(r"[,x]", sizes)))
    if 0 in numbers:
        raise ValueError(f"{text!r} has a size of 0")
    return Shape(numbers, (name or "").strip(), dtype or "float32")


def loss(text: str) -> float | str:
    """ "0.5%" to 0.005, a drop of the metric; "kl<0.02" as it is, for ``core.gate.loss_gate``. Raises ValueError."""
    if "<" not in text:
        return share(text)
    from whet.core.errors import Refused
    from whet.core.gate import loss_gate

    try:
        loss_gate(text)
    except Refused as error:
        raise ValueError(str(error)) from error
    return text


class Parsed(click.ParamType):  # type: ignore[type-arg]  # older versions of click have it without arguments
    """A parameter that one of the functions above reads."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name, self._read = name, read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


SIZE, SECONDS, LATENCY, SHARE, SHAPE, LOSS = (
    Parsed("size", size_bytes), Parsed("time", seconds), Parsed("time", milliseconds), Parsed("share", share), Parsed("shape", shape),
    Parsed("loss", loss),
)  # fmt: skip


def _quantity(text: str, units: Mapping[str, float], *, example: str, fold: bool = False) -> float:
    found = _NUMBER.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is no amount of 0 or more; write {example}")
    number, unit = found.groups()
    known = unit.lower() if fold else unit
    if known not in units:
        raise ValueError(f"{text!r} has {f'the unknown unit {unit!r}' if unit else 'no unit'}; write {example}")
    value = float(number) * units[known]
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is too large")
    return value
