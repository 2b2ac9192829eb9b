"""Frozen dataclasses that are also documents: canonical JSON, a hash, and unknown fields that survive.

A field that holds its default is left out of the document, so a later version may add an optional field without changing the
id of what exists. A field that this version does not know is kept in ``extra`` and written back where it stood.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import reprlib
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Self

from whet.core.errors import Refused

MOST_LEVELS = 64  # of nesting in what is read; far below Python's own limit, which every reader here must stay under

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

_IN_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


class FrozenMap(Mapping[str, Any]):
    """An immutable, hashable, picklable mapping. Lists inside become tuples and mappings become FrozenMaps."""

    __slots__ = ("_items",)
    _items: dict[str, Any]

    def __init__(self, items: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        merged = {**(items or {}), **more}
        object.__setattr__(self, "_items", {key: freeze(value) for key, value in merged.items()})

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return f"FrozenMap({self._items!r})"

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a FrozenMap cannot be changed")

    def __reduce__(self) -> tuple[Any, ...]:
        return (FrozenMap, (dict(self._items),))


def freeze(value: Any) -> Any:
    """Lists and tuples to tuples, mappings to FrozenMaps, everything else as it is."""
    if isinstance(value, FrozenMap):
        return value
    if isinstance(value, Mapping):
        return FrozenMap(value)
    if isinstance(value, list | tuple):
        return tuple(freeze(item) for item in value)
    return value


def key(name: str) -> Any:
    """Metadata for a field whose key in the document is not its Python name (``except``, ``with``)."""
    return {"key": name}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """What every word of DESIGN section 2 inherits: ``to_plain``, ``from_plain``, ``to_json``, ``digest``."""

    extra: Mapping[str, Any] = dataclasses.field(default_factory=FrozenMap)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, freeze(getattr(self, field.name)))

    def to_plain(self) -> dict[str, Json]:
        """The document as plain dicts, lists and scalars, without the fields that hold their default."""
        plain: dict[str, Json] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "extra" or value == _default(field):
                continue
            plain[field.metadata.get("key", field.name)] = plain_of(value)
        return plain | {name: plain_of(value) for name, value in self.extra.items()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """The inverse of ``to_plain``. Raises Refused where a field is missing or of the wrong type."""
        if not isinstance(plain, Mapping):
            raise Refused(f"read a {cls.__name__}", found=f"a {type(plain).__name__} where a table was expected")
        kind: type = cls  # of type[Self] mypy does not know that it can be hashed
        hints, known, values = _hints(kind), set(), {}
        for field in dataclasses.fields(cls):
            if field.name == "extra":
                continue
            name = field.metadata.get("key", field.name)
            known.add(name)
            if name in plain:
                values[field.name] = _typed(hints[field.name], plain[name], f"{cls.__name__}.{name}")
            elif _default(field) is dataclasses.MISSING:
                raise Refused(f"read a {cls.__name__}", found=f"the field {name!r} is missing", do=f"add {name!r}")
        extra = {name: _plain(value, f"{cls.__name__}.{name}") for name, value in plain.items() if name not in known}
        return cls(**values, extra=extra)

    def to_json(self, *, indent: int | None = 2) -> str:
        """Readable JSON, keys in the order of the class; always writable as UTF-8."""
        text = json.dumps(self.to_plain(), indent=indent, ensure_ascii=False, allow_nan=False)
        # Half a surrogate pair (a file name that is not UTF-8) has no UTF-8 of its own and is written as \udcff.
        return re.sub(r"[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The inverse of ``to_json``. Raises Refused where the text is no JSON or not this document."""
        return cls.from_plain(parse_json(text, what=f"a {cls.__name__}"))

    @property
    def digest(self) -> str:
        """sha256 (hex) of the canonical JSON."""
        return digest(self.to_plain())


def parse_json(text: str | bytes, *, what: str) -> Any:
    """JSON text to plain values; Refused (naming ``what``) where it is not JSON, or holds NaN, infinity or very deep nesting."""
    try:
        return bounded(json.loads(text, parse_constant=_no_constant, parse_float=_finite), what=what)
    except (ValueError, RecursionError) as error:
        raise Refused(f"read {what}", found=f"not valid JSON ({error})") from error


def bounded(value: Any, *, what: str) -> Any:
    """``value`` itself; Refused where it is nested deeper than ``MOST_LEVELS``, which only a file made to hurt is."""
    level = [value]
    for _ in range(MOST_LEVELS):
        level = [inner for item in level if isinstance(item, dict | list) for inner in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return value
    raise Refused(f"read {what}", found=f"tables or lists nested more than {MOST_LEVELS} deep")


def canonical_json(value: Any) -> bytes:
    """One spelling for one value: sorted keys, no spaces, UTF-8, shortest round-trip floats, no NaN or infinity.

    A float without a fraction is written as the whole number that it equals: 1.0 and 1 are equal, and so are their documents.
    """
    plain = _whole(plain_of(value))
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "surrogatepass")


def digest(value: Any) -> str:
    """sha256 (hex) of ``canonical_json(value)``."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def plain_of(value: Any) -> Any:
    """Documents, mappings and tuples to dicts and lists; scalars as they are; anything else is a Refused."""
    if isinstance(value, Document):
        return value.to_plain()
    if isinstance(value, Mapping):
        return {str(name): plain_of(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_of(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise Refused("write a document", found=f"the number {value}", do="leave the field out and say why instead")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise Refused("write a document", found=f"a {type(value).__name__}, which JSON cannot hold")


def _whole(plain: Any) -> Any:
    """Floats without a fraction to ints, at every level."""
    if isinstance(plain, dict):
        return {name: _whole(item) for name, item in plain.items()}
    if isinstance(plain, list):
        return [_whole(item) for item in plain]
    return int(plain) if isinstance(plain, float) and plain.is_integer() else plain


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return dataclasses.MISSING


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is too large")
    return number


def _plain(value: Any, where: str) -> Any:
    """``value`` frozen, of whatever type JSON can hold; what could not be written again (a date, infinity) is not read."""
    try:
        return freeze(plain_of(value))
    except Refused as refusal:
        raise Refused(f"read {where}", found=refusal.found) from refusal


def _typed(hint: Any, value: Any, where: str) -> Any:
    """``value`` read as ``hint``; the few kinds of types that the words use, and no others."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return _plain(value, where)
    if origin in (typing.Union, types.UnionType):
        return _typed_union(arguments, value, where)
    if origin is typing.Literal:
        return _checked(value in arguments, value, where, " or ".join(map(repr, arguments)))
    if origin is tuple:
        _checked(isinstance(value, list | tuple), value, where, "a list")
        return tuple(_typed(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        _checked(isinstance(value, Mapping), value, where, "a table")
        return FrozenMap({name: _typed(arguments[1], item, f"{where}.{name}") for name, item in value.items()})
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and issubclass(hint, Document):
        return hint.from_plain(value)
    if hint is float:
        # The bounds keep out NaN, infinity and whole numbers that no float can hold.
        number = isinstance(value, int | float) and not isinstance(value, bool) and -sys.float_info.max <= value <= sys.float_info.max
        return float(_checked(number, value, where, "a number"))
    exact = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
    return _checked(exact, value, where, _IN_WORDS.get(hint, str(hint)))


def _typed_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if type(None) in options:
        if value is None:
            return None
        options = tuple(option for option in options if option is not type(None))
    if len(options) == 1:  # so that the refusal speaks of what is wrong inside
        return _typed(options[0], value, where)
    for option in options:
        try:
            return _typed(option, value, where)
        except Refused:
            continue
    return _checked(False, value, where, " or ".join(_IN_WORDS.get(option, str(option)) for option in options))


def _checked(holds: bool, value: Any, where: str, wanted: str) -> Any:
    if not holds:
        raise Refused(f"read {where}", found=f"{reprlib.repr(value)} where {wanted} was expected")
    return value
