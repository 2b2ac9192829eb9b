"""Targets: what is known of each device, in tables. One TOML file a target, every figure with its source.

``target("pi5")`` is a built-in table, ``target("host")`` this machine, ``target("my_board.toml")`` a table of the user's own, which
may stand on another one:

    extends = "pi5"
    title = "Pi 5 in a closed box"
    threads = 2

    [limits]
    latency_ms = 40
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.core.errors import Refused
from whet.core.target import Fact, Speed, Target
from whet.core.toml import parse_toml

if TYPE_CHECKING:
    from whet.device.machine import Machine

HOST = "host"
_FOLDER = Path(__file__).parent  # which importlib.resources takes most of a millisecond to find
_BYTES_AT_MOST = 1 << 20  # a table of facts is a few kB; a model handed over by mistake must not be read whole
_TABLES = ("limits", "macs_per_s")
_APPENDED = {"facts": Fact, "speeds": Speed}
_DTYPES = {"activation_dtype": ("uint8", "int8", "uint16", "int16"), "weight_dtype": ("int8", "uint8")}


def target(name_or_path: str) -> Target:
    """The target of that name, or of that TOML file. Raises Refused, naming what there is or what is wrong in the file."""
    if name_or_path == HOST:
        return host()
    if name_or_path in built_in_names():
        return _target(_built_in(name_or_path), name_or_path)
    path = Path(name_or_path)
    if path.suffix == ".toml" or os.path.isfile(path):  # unlike Path.is_file, it answers no to a name that no file can have
        return _target(_from_file(path, ()), path.stem)
    near = difflib.get_close_matches(name_or_path, (HOST, *built_in_names()), n=1)
    raise Refused(f"find the target {name_or_path!r}", found=f"there are {', '.join((HOST, *built_in_names()))}",
                  do=f"name one of them ({near[0]} is near), or a TOML file" if near else "name one of them, or a TOML file of your own")


def targets() -> tuple[Target, ...]:
    """Every built-in target, this machine first."""
    return (host(), *(target(name) for name in built_in_names()))


def built_in_names() -> tuple[str, ...]:
    """The names of the tables that come with Whet, without ``host``, which is no table."""
    names = (entry.name for entry in _FOLDER.iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml") and not name.startswith("_")))


def host(machine: Machine | None = None) -> Target:
    """This machine (or ``machine``): the table of its kind of processor, with its own instructions, cores and memory.

    macs_per_s and bandwidth_bytes_per_s are empty: what the table has of them was another machine's, and here they can be
    measured (whet.device.machine_limits).
    """
    if machine is None:
        from whet.device.machine import describe  # it imports onnxruntime, which a look at the other tables needs not

        machine = describe()
    return _host_on(machine)


@lru_cache(maxsize=4)
def _host_on(machine: Machine) -> Target:
    """Kept, for a table takes a millisecond to read, and every call of the library asks for it."""
    kind = kind_of(machine.arch, machine.isa)
    table = _built_in(kind)
    own = {
        "name": HOST, "title": f"this machine: {machine.cpu or machine.arch}, {table['title']}", "isa": " ".join(machine.isa),
        "threads": machine.cores, "memory_bytes": machine.memory_bytes or None, "macs_per_s": {}, "bandwidth_bytes_per_s": 0.0,
        "here": True,
    }  # fmt: skip
    found = {"claim": f"{machine.cores} cores, {machine.memory_bytes} bytes of memory; read as {kind.removeprefix('_')}",
             "source": "asked of the operating system", "measured": True}
    return _target({**table, **own, "facts": [found, *table["facts"]]}, HOST)


def kind_of(arch: str, isa: Iterable[str]) -> str:
    """The name of the table for a processor: ``arch`` as platform.machine() says it, ``isa`` by the kernel's names."""
    arch = arch.lower()
    if arch in ("x86_64", "amd64", "i386", "i686"):
        return "x86-vnni" if {"avx512_vnni", "avx_vnni"} & set(isa) else "x86"
    return "arm64" if arch in ("aarch64", "arm64") else "_onnxruntime-cpu"


def _built_in(name: str) -> dict[str, Any]:
    text = (_FOLDER / f"{name}.toml").read_text("utf-8")
    plain = parse_toml(text, what=f"the target {name}")
    parent = plain.pop("extends", None)
    return {**_merged(_built_in(parent) if parent else {}, plain), "name": name}


def _from_file(path: Path, below: tuple[Path, ...]) -> dict[str, Any]:
    """The table in a file, on top of what it extends. ``below``: the files that led here, so that a circle is seen."""
    what = f"the target {path}"
    plain = parse_toml(_text(path), what=what)
    if path.resolve() in below:
        raise Refused(f"read {what}", found="it extends itself, by way of " + ", ".join(map(str, below)), do="break the circle")
    _check_keys(plain, what)
    parent = plain.pop("extends", None)
    plain.setdefault("name", path.stem)
    if parent is None:
        return plain
    if not isinstance(parent, str):
        raise Refused(f"read {what}", found=f"extends = {parent!r}", do="name one target or TOML file, in quotes")
    if parent == HOST:
        base = host().to_plain()
    elif parent in built_in_names():
        base = _built_in(parent)
    elif parent.endswith(".toml"):
        base = _from_file(path.parent / parent, (*below, path.resolve()))
    else:
        names = ", ".join((HOST, *built_in_names()))
        raise Refused(f"read {what}", found=f"it extends {parent!r}, which is none of {names}", do="correct `extends`")
    return _merged(base, plain)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_BYTES_AT_MOST + 1)
        if len(content) > _BYTES_AT_MOST:
            raise Refused(f"read the target {path}", found="the file is over 1 MiB", do="give the TOML file of a target")
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"read the target {path}", found="the file is not UTF-8 text", do="give the TOML file of a target") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = getattr(error, "strerror", None) or str(error)
        raise Refused(f"read the target {path}", found=why, do="give a name that `whet targets` lists, or a TOML file") from error


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``base``: tables are joined, speeds and facts go before the inherited ones, all else replaces.

    Measured on another kind of device is not measured on this one.
    """
    merged = {**base, **over}
    for name in _TABLES:
        own = over.get(name, {})
        merged[name] = {**base.get(name, {}), **own} if isinstance(own, Mapping) else own
    for name in _APPENDED:
        inherited = [{key: value for key, value in entry.items() if key != "measured"} for entry in base.get(name, ())]
        own = over.get(name, [])
        merged[name] = [*own, *inherited] if isinstance(own, list) else own
    return merged


def _check_keys(plain: Mapping[str, Any], what: str) -> None:
    """A misspelt key in a file that people edit must not be kept in silence: `weight_bit = 7` would saturate."""
    rows: list[tuple[type, Mapping[str, Any], set[str]]] = [(Target, plain, {"extends"})]
    for name, kind in _APPENDED.items():
        entries = plain.get(name, [])
        rows += [(kind, entry, set()) for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []
    for kind, table, more in rows:
        known = ({field.name for field in fields(kind)} | more) - {"extra", "here"}  # no file makes another machine this one
        for key in table:
            if key not in known:
                near = difflib.get_close_matches(key, sorted(known), n=1)
                raise Refused(f"read {what}", found=f"unknown key {key!r}",
                              do=f"write {near[0]}" if near else f"known are {', '.join(sorted(known))}")


def _target(plain: Mapping[str, Any], name: str) -> Target:
    """The table as a Target. Raises Refused where a field is missing, of the wrong type or of an impossible value."""
    try:
        found = Target.from_plain({"name": name, **{key: value for key, value in plain.items() if value is not None}})
    except Refused as error:
        raise Refused(f"read the target {name}", found=f"{error.asked.removeprefix('read ')}: {error.found}", do=error.do) from error
    for field, allowed in _DTYPES.items():
        if getattr(found, field) not in allowed:
            raise Refused(f"read the target {name}", found=f"{field} = {getattr(found, field)!r}", do=f"write {' or '.join(allowed)}")
    numbers = {"threads": found.threads, "memory_bytes": found.memory_bytes, "storage_bytes": found.storage_bytes,
               **{f"limits.{key}": value for key, value in found.limits.items()}}  # fmt: skip
    for field, number in numbers.items():
        if number is not None and not number > 0:  # NaN too
            raise Refused(f"read the target {name}", found=f"{field} = {number}", do="write a number above 0, or leave it out")
    if not 2 <= found.weight_bits <= 8:
        raise Refused(f"read the target {name}", found=f"weight_bits = {found.weight_bits}", do="write 2 to 8")
    strangers = set(found.moving_ops) - set(found.fused_ops)
    if strangers:
        raise Refused(f"read the target {name}", found=f"moving_ops names {sorted(strangers)[0]}, which fused_ops does not",
                      do="an operator that moves data runs in integers too: name it in both")
    return found


__all__ = ["Fact", "Speed", "Target", "built_in_names", "host", "kind_of", "target", "targets"]
