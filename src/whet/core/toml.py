"""TOML for people: ``tomllib`` reads, and this file writes the plain documents that Whet makes (tables, lists, scalars)."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, cast

from whet.core.document import bounded
from whet.core.errors import Refused

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def parse_toml(text: str, *, what: str) -> dict[str, Any]:
    """TOML text to plain dicts; Refused (naming ``what`` and the line) where it is not TOML."""
    try:
        return cast(dict[str, Any], bounded(tomllib.loads(text), what=what))
    except (ValueError, RecursionError) as error:  # ValueError alone where a number has too many digits
        raise Refused(f"read {what}", found=f"not valid TOML ({error})") from error


def to_toml(plain: Mapping[str, Any]) -> str:
    """Plain dicts to TOML text: scalars first, then tables, then arrays of tables. None cannot be written in TOML."""
    return "\n".join(_table(plain, ())).strip() + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterable[str]:
    nested = {name: value for name, value in table.items() if isinstance(value, Mapping) or _is_table_array(value)}
    for name, value in table.items():
        if name not in nested:
            yield f"{_key(name)} = {_value(value)}"
    for name, value in nested.items():
        inner = (*path, name)
        header = ".".join(map(_key, inner))
        if isinstance(value, Mapping):
            yield from ("", f"[{header}]", *_table(value, inner))
        else:
            for row in value:
                yield from ("", f"[[{header}]]", *_table(row, inner))


def _is_table_array(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(row, Mapping) for row in value)


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _text(name)


def _text(text: str) -> str:
    # JSON's escapes are TOML's too, but for DEL, which TOML wants escaped, and lone surrogates, which no TOML can hold.
    if any(0xD800 <= ord(letter) <= 0xDFFF for letter in text):
        raise Refused("write TOML", found=f"a text that is not valid Unicode ({text!r})")
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise Refused("write TOML", found=f"the number {value}")
        return float.__repr__(value)  # numpy's floats are floats with a repr of their own
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(name)} = {_value(item)}" for name, item in value.items()) + "}"
    raise Refused("write TOML", found=f"a {type(value).__name__}, which TOML cannot hold")
