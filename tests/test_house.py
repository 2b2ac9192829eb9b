"""The house rules that a machine can see: short files, short functions, plain names, no print, no global state."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "whet"
MOST_LINES, MOST_FUNCTION_LINES = 400, 60
FORBIDDEN = {"manager", "handler", "helper", "helpers", "util", "utils", "common", "base", "factory"}
MAY_PRINT = ("cli/", "demo.py")
FILES = sorted(str(file.relative_to(SOURCE)) for file in SOURCE.rglob("*.py"))


def words_of(name: str) -> set[str]:
    """``fooBar_baz`` to {foo, bar, baz}."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def faults(text: str, path: str) -> Iterator[str]:
    """Every house rule that the text of src/whet/``path`` breaks."""
    lines = text.splitlines()
    if len(lines) > MOST_LINES and "one thing" not in lines[0]:
        yield f"{len(lines)} lines, and the first one does not say that it is one thing"
    for number, line in enumerate(lines, 1):
        if re.search(r"\b(TODO|FIXME|XXX)\b", line) and not re.search(r"(issue |#)\d+", line):
            yield f"line {number}: a TODO without an issue"
    for word in words_of(Path(path).stem) & FORBIDDEN:
        yield f"the file is called {word}"
    tree = ast.parse(text)
    annotated = any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.AnnAssign) for node in tree.body)
    if annotated and "from __future__ import annotations" not in text:
        yield "no `from __future__ import annotations`"
    if tree.body and not ast.get_docstring(tree):
        yield "no docstring"
    for node in ast.walk(tree):
        yield from faults_of(node, path)


def faults_of(node: ast.AST, path: str) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        for word in words_of(node.name) & FORBIDDEN:
            yield f"line {node.lineno}: {node.name} is called {word}"
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
        length = node.end_lineno - node.lineno + 1
        if length > MOST_FUNCTION_LINES:
            yield f"line {node.lineno}: {node.name} has {length} lines"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print" and not path.startswith(MAY_PRINT):
        yield f"line {node.lineno}: print"
    if isinstance(node, ast.Global):
        yield f"line {node.lineno}: global state ({', '.join(node.names)})"


@pytest.mark.parametrize("path", FILES)
def test_the_house_rules_are_kept(path: str) -> None:
    assert list(faults((SOURCE / path).read_text(encoding="utf-8"), path)) == []


HEAD = '"""It."""\n\nfrom __future__ import annotations\n'


@pytest.mark.parametrize(("text", "path", "fault"), [
    (HEAD + "\n" * 400, "core/x.py", "403 lines"),
    (HEAD + "def f():\n" + "    x = 1\n" * 60, "core/x.py", "line 4: f has 61 lines"),
    (HEAD + "async def f():\n" + "    x = 1\n" * 60, "core/x.py", "line 4: f has 61 lines"),
    (HEAD + "def make_factory():\n    pass\n", "core/x.py", "make_factory is called factory"),
    (HEAD + "class ModelManager:\n    pass\n", "core/x.py", "ModelManager is called manager"),
    (HEAD, "core/utils.py", "the file is called utils"),
    (HEAD + "def f():\n    print(1)\n", "device/x.py", "line 5: print"),
    (HEAD + "def f():\n    global state\n    state = 1\n", "device/x.py", "global state (state)"),
    (HEAD + "# TODO: later\n", "core/x.py", "line 4: a TODO without an issue"),
    ("from __future__ import annotations\n", "core/x.py", "no docstring"),
    ('"""It."""\ndef f(): ...\n', "core/x.py", "no `from __future__"),
])
def test_sabotage_is_noticed(text: str, path: str, fault: str) -> None:
    found = list(faults(text, path))
    assert len(found) == 1
    assert fault in found[0]


@pytest.mark.parametrize(("text", "path"), [
    (HEAD.replace("It.", "It is long because it is one thing.") + "\n" * 500, "core/x.py"),
    (HEAD + "# TODO (issue 12): later\n# TODO #3: too\n", "core/x.py"),
    (HEAD + "print(1)\n", "cli/show.py"),
    (HEAD + "print(1)\n", "demo.py"),
    (HEAD + "def database(): ...\ndef based(): ...\ndef rebase_layers(): ...\n", "core/x.py"),
    ("", "core/__init__.py"),
    ('"""Only words."""\n', "core/__init__.py"),
])
def test_good_text_is_not_reported(text: str, path: str) -> None:
    assert list(faults(text, path)) == []
