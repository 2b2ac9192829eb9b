"""The floors hold: a room imports only rooms below it, and each floor lives where the packages of the floors above are missing."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "whet"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Floor:
    """What a floor may import beside the standard library.

    rooms: the floors, itself included. extras: the parts of pyproject.toml that name its packages ("" is the bare install).
    bring: packages that come with those, and that it may use too. leave: declared packages that it may still not use.
    """

    rooms: frozenset[str]
    extras: tuple[str, ...]
    bring: frozenset[str] = frozenset()
    leave: frozenset[str] = frozenset()


TOP = ""  # src/whet/__init__.py: the Python API, above all floors but the command line
ON_THE_CLI = {"__main__", "demo"}  # modules beside the floors that belong to the command line
SCREEN = frozenset({"click", "rich"})
FLOORS = {
    "core": Floor(frozenset({"core"}), ()),
    "device": Floor(frozenset({"core", "device"}), ("",), bring=frozenset({"tokenizers", "llama_cpp"}), leave=SCREEN),
    "compress": Floor(
        frozenset({"core", "device", "compress"}), ("", "compress", "llm", "eval"), bring=frozenset({"ml_dtypes", "google"}), leave=SCREEN
    ),
    "hub": Floor(frozenset({"core", "hub"}), ("hub",), bring=frozenset({"starlette", "pydantic"})),
    "cli": Floor(frozenset({"core", "device", "compress", "hub", "cli", TOP}), ("", "compress", "llm", "eval", "hub")),
    TOP: Floor(frozenset({"core", "device", "compress", "hub", TOP}), ("", "compress", "llm", "eval", "hub")),
}
# Where it is not the name in pyproject.toml.
IMPORT_NAMES = {"pillow": "PIL", "scikit-learn": "sklearn", "onnx-ir": "onnx_ir", "lm-eval": "lm_eval"}
# Slow to import or large: only inside the functions that need them. Measured: torch 1.8 s and 528 MB, scikit-learn 1 s.
HEAVY = ("torch", "scipy", "sklearn", "PIL", "soundfile", "pyarrow", "matplotlib", "pandas", "transformers", "lm_eval", "datasets")
# These are about torch from the first line to the last; nothing may import them before it needs them.
ABOUT_TORCH = re.compile(r"whet\.compress\.((mirror|checkpoint)(\.\w+)*|walks\.(?!layers$|sites$|unequal_\w+$|chains$|shared_inputs$)\w+"
                         r"|mixed\.fisher|(soft|column)_rounding|layer_products|fake|adam|threads|learned_grids|distilling)")


# -- what the source says -----------------------------------------------------------------------------------------------------


def declared(extra: str) -> list[Requirement]:
    """The requirements of an extra; "" is the bare install."""
    project = PYPROJECT["project"]
    return [Requirement(line) for line in (project["optional-dependencies"][extra] if extra else project["dependencies"])]


def packages_of(floor: Floor) -> set[str]:
    """The import names of everything outside Whet that the floor may use."""
    names = {requirement.name for extra in floor.extras for requirement in declared(extra)}
    return ({IMPORT_NAMES.get(name, name) for name in names} | floor.bring) - floor.leave


def imports_of(text: str, module: str, *, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that the text imports, inside functions and under TYPE_CHECKING too.

    ``import whet`` alone gives nothing (the parent is there anyway); what counts is each ``whet.name`` that is then used.
    """
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name != "whet" or alias.asname)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "whet":
            yield node.lineno, f"whet.{node.attr}"
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield node.lineno, leading_text(node.args[0])


def leading_text(node: ast.expr) -> str:
    """The literal beginning of a text: of ``f"whet.compress.{name}"`` it is ``whet.compress.``."""
    if isinstance(node, ast.JoinedStr) and node.values:
        return leading_text(node.values[0])
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def room_of(name: str) -> str:
    """The floor on which a module of Whet stands; "" for the API and whatever else lies beside the floors."""
    part = [*name.split("."), ""][1]
    if part in ON_THE_CLI:
        return "cli"
    if re.fullmatch(r"__\w+__", part):  # whet.__version__, whet.__path__: they are everybody's
        return "core"
    return part if part in FLOORS else TOP


def faults(text: str, module: str, *, is_package: bool = False) -> list[str]:
    """Every import of the text that its floor does not allow."""
    floor = FLOORS[room_of(module)]
    allowed, found = packages_of(floor), []
    for line, name in imports_of(text, module, is_package=is_package):
        top = name.split(".")[0]
        if top == "whet" and room_of(name) not in floor.rooms:
            found.append(f"{module}:{line} imports {name}, which is not below {room_of(module) or 'the API'}")
        elif top not in {"whet", "", *sys.stdlib_module_names, *allowed}:
            found.append(f"{module}:{line} imports {top}, which {room_of(module) or 'the API'} may not use")
    return found


def modules() -> dict[str, Path]:
    """Every module under src/whet by its full name."""
    files = sorted(SOURCE.rglob("*.py"))
    return {".".join(["whet", *file.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__"): file for file in files}


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_what_its_floor_may(module: str) -> None:
    file = modules()[module]
    assert faults(file.read_text(encoding="utf-8"), module, is_package=file.name == "__init__.py") == []


def test_every_folder_is_a_floor() -> None:
    folders = {path.parent.relative_to(SOURCE).parts[0] for path in SOURCE.rglob("*.py") if path.parent != SOURCE}
    assert folders <= set(FLOORS)


def test_every_package_has_its_init() -> None:
    """A folder without ``__init__.py`` imports all the same, but is no part of what some tools see as the package."""
    folders = {path.parent for path in SOURCE.rglob("*.py")}
    assert [str(folder.relative_to(ROOT)) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize(("module", "text", "named"), [
    ("whet.core.x", "import numpy", "numpy"),
    ("whet.core.x", "from numpy.linalg import inv", "numpy"),
    ("whet.core.x", "from whet.device.session import run", "whet.device.session"),
    ("whet.core.x", "import whet\nx = whet.load('x')", "whet.load"),
    ("whet.core.x", "import whet as w", "whet"),
    ("whet.core.x", "import whet\nx = whet.device.session.run()", "whet.device"),
    ("whet.core.x", "from whet import load", "whet.load"),
    ("whet.device.x", "import torch", "torch"),
    ("whet.device.x", "def f():\n    import torch.nn as nn", "torch"),
    ("whet.device.x", "try:\n    from onnx import helper\nexcept ImportError:\n    pass", "onnx"),
    ("whet.device.x", "import os, onnx_ir", "onnx_ir"),
    ("whet.device.x", "import rich", "rich"),
    ("whet.device.x", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", "torch"),
    ("whet.device.x", "from ..compress import grid", "whet.compress.grid"),
    ("whet.device.deep.x", "from ...compress.grid import rounded", "whet.compress.grid"),
    ("whet.device.x", "from .. import compress", "whet.compress"),
    ("whet.device.x", "from whet import compress", "whet.compress"),
    ("whet.device.x", "import importlib\nimportlib.import_module('torch.nn')", "torch"),
    ("whet.device.x", "__import__('whet.compress')", "whet.compress"),
    ("whet.device.x", "from importlib import import_module\nimport_module(f'whet.compress.techniques.{name}')", "whet.compress"),
    ("whet.compress.x", "import fastapi", "fastapi"),
    ("whet.compress.x", "import requests", "requests"),
    ("whet.compress.x", "import click", "click"),
    ("whet.compress.x", "from whet.cli import main", "whet.cli.main"),
    ("whet.compress.x", "from whet.hub import server", "whet.hub.server"),
    ("whet.compress.x", "from whet import demo", "whet.demo"),
    ("whet.hub.x", "import whet.device.session", "whet.device.session"),
    ("whet.hub.x", "import torch", "torch"),
    ("whet.hub.x", "import onnxruntime", "onnxruntime"),
    ("whet.compress.x", "from whet.__main__ import main", "whet.__main__.main"),
    ("whet", "import whet.cli", "whet.cli"),
    ("whet.demo", "import seaborn", "seaborn"),
    ("whet.cli.x", "import tensorflow", "tensorflow"),
])
def test_sabotage_is_noticed(module: str, text: str, named: str) -> None:
    found = faults(text, module)
    assert len(found) == 1
    assert re.search(rf"{re.escape(module)}:\d imports {re.escape(named)}", found[0])


@pytest.mark.parametrize(("module", "text"), [
    ("whet.compress.x", "from whet import __version__\nimport whet\nx = whet.__version__, whet.core.gate"),
    ("whet.core.x", "import json, os.path\nfrom whet.core.document import digest\nfrom . import gate\nfrom .toml import to_toml"),
    ("whet.device.x", "import numpy as np\nimport onnxruntime\nfrom whet.core import gate\nfrom ..core.gate import judge"),
    ("whet.compress.x", "import onnx_ir\nfrom whet.device import session\n\ndef f():\n    import torch, sklearn.metrics, PIL.Image"),
    ("whet.hub.x", "import fastapi, sqlalchemy\nfrom pydantic import BaseModel\nfrom whet.core import document"),
    ("whet.cli.x", "import click, rich, whet\nfrom whet.compress import grid\nfrom whet import load"),
    ("whet.demo", "from whet.cli import main\nimport torch, sklearn"),
    ("whet", "from whet.compress import grid\nfrom whet.core.errors import Refused"),
])
def test_what_is_allowed_is_not_reported(module: str, text: str) -> None:
    assert faults(text, module) == []


def test_a_package_resolves_its_relative_imports_from_itself() -> None:
    assert list(imports_of("from . import x", "whet.device", is_package=True)) == [(1, "whet.device.x")]
    assert list(imports_of("from . import x", "whet.device.y")) == [(1, "whet.device.x")]
    assert list(imports_of("from .. import x", "whet.device", is_package=True)) == [(1, "whet.x")]


# -- what really happens -------------------------------------------------------------------------------------------------------

# Imports the named modules where some packages cannot be found, and says which heavy ones were loaded. With "stub", the package
# `whet` is only a path, so that a floor is seen without the API above it.
WALL = """
import importlib, importlib.abc, json, sys, types
job = json.loads(sys.argv[1])

class Wall(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in job["blocked"] or any((name + ".").startswith(room + ".") for room in job["blocked"]):
            raise ModuleNotFoundError(f"No module named {name!r} (it stands on a floor above)", name=name)

sys.meta_path.insert(0, Wall())
sys.path.insert(0, job["path"])
if job["stub"]:
    sys.modules["whet"] = types.ModuleType("whet")
    sys.modules["whet"].__path__ = [job["path"] + "/whet"]
for name in job["modules"]:
    importlib.import_module(name)
exec(job["then"])
print(json.dumps([name for name in job["heavy"] if name in sys.modules]))
"""


@cache
def closure(extras: tuple[str, ...]) -> frozenset[str]:
    """The distributions that installing these extras brings, with all that they require."""
    found: set[str] = set()
    waiting = [requirement.name for extra in extras for requirement in declared(extra)]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        requirements = map(Requirement, lines)
        waiting += [other.name for other in requirements if other.marker is None or other.marker.evaluate({"extra": ""})]
    return frozenset(found)


@cache
def importable() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def blocked(extras: tuple[str, ...]) -> list[str]:
    """The import names of everything installed here that would not be there after installing only these extras."""
    there = closure(extras)
    return [name for name, owners in importable().items() if name != "whet" and not any(canonicalize_name(o) in there for o in owners)]


def run_behind_wall(
    names: list[str], *, extras: tuple[str, ...], rooms: frozenset[str], path: Path = SOURCE.parent, stub: bool = True, then: str = ""
) -> subprocess.CompletedProcess[str]:
    """Import the modules in a fresh process that has only the packages of ``extras`` and the floors ``rooms``."""
    walls = blocked(extras) + [f"whet.{room}" for room in FLOORS if room not in rooms and room]
    job = {"blocked": walls, "modules": names, "path": str(path), "stub": stub, "then": then, "heavy": HEAVY}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [sys.executable, "-c", WALL, json.dumps(job)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=ROOT, check=False)


BARE_EXTRAS = {"core": (), "device": ("",), "compress": ("", "compress"), "hub": ("hub",)}


@pytest.mark.parametrize("room", BARE_EXTRAS)
def test_a_floor_lives_without_the_floors_above(room: str) -> None:
    names = [name for name in modules() if name.startswith(f"whet.{room}.") or name == f"whet.{room}"]
    if not names:
        pytest.skip(f"there is no floor {room} yet")
    missing = [requirement.name for extra in BARE_EXTRAS[room] for requirement in declared(extra) if not installed(requirement.name)]
    if missing:
        pytest.skip(f"not installed here: {', '.join(missing)}")
    done = run_behind_wall(names, extras=BARE_EXTRAS[room], rooms=FLOORS[room].rooms)
    assert done.returncode == 0, done.stderr
    light = [name for name in names if not ABOUT_TORCH.fullmatch(name)]
    done = run_behind_wall(light, extras=BARE_EXTRAS[room], rooms=FLOORS[room].rooms) if len(light) < len(names) else done
    assert json.loads(done.stdout.splitlines()[-1]) == [], "imported when the module is, not when a function needs it"


def installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def test_a_floor_that_needs_one_above_falls(tmp_path: Path) -> None:
    room = tmp_path / "whet" / "device"
    room.mkdir(parents=True)
    (room / "__init__.py").write_text("")
    (room / "good.py").write_text("import numpy, onnxruntime")
    (room / "bad.py").write_text("import onnx_ir")
    (room / "worse.py").write_text("import whet.compress")
    (room / "slow.py").write_text("import email, sys\nsys.modules['torch'] = email")

    def run(name: str) -> subprocess.CompletedProcess[str]:
        return run_behind_wall([f"whet.device.{name}"], extras=("",), rooms=FLOORS["device"].rooms, path=tmp_path)

    assert run("good").returncode == 0, run("good").stderr
    assert "No module named 'onnx_ir' (it stands on a floor above)" in run("bad").stderr
    assert "No module named 'whet.compress' (it stands on a floor above)" in run("worse").stderr
    assert json.loads(run("slow").stdout) == ["torch"]


EVERY_ROOM = frozenset(FLOORS)


def test_the_api_can_be_imported_after_a_bare_install() -> None:
    if not (SOURCE / "__init__.py").exists():
        pytest.skip("there is no API yet")
    done = run_behind_wall(["whet"], extras=("",), rooms=EVERY_ROOM, stub=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_the_command_line_can_be_asked_after_a_bare_install(arguments: list[str]) -> None:
    if not (SOURCE / "cli").exists():
        pytest.skip("there is no command line yet")
    done = run_behind_wall(["whet.cli"], extras=("",), rooms=EVERY_ROOM, stub=False, then=f"""
from whet.cli import main
main({arguments!r}, prog_name="whet", standalone_mode=False)
""")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


# A function that needs the compress extra says so, and how to get it, in place of a bare ModuleNotFoundError.
ASK_FOR_MORE = """
import sys, whet
try:
    whet.load(sys.executable)
except Exception as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
"""


def test_what_a_bare_install_lacks_is_named_with_the_way_to_get_it() -> None:
    if not (SOURCE / "__init__.py").exists():
        pytest.skip("there is no API yet")
    done = run_behind_wall([], extras=("",), rooms=EVERY_ROOM, stub=False, then=ASK_FOR_MORE)
    assert done.returncode == 0, done.stderr
    assert "whet[compress]" in done.stderr
    assert re.match(r"(Refused|Unsupported|ImportError|ModuleNotFoundError): ", done.stderr), done.stderr
