"""The TOML writer against tomllib, which reads by the specification."""

from __future__ import annotations

import contextlib
import tomllib
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.core.words import TOML

from whet.core.errors import Refused
from whet.core.toml import parse_toml, to_toml


@given(TOML)
@example({"a": [{}, {"b": {}}, {}], "c": {"d": {"e": {}}}, "f": [[], [[]], [{}, 1]], "g": {"": {"": ""}}})
@example({"rows": [{"rows": [{"x": 1}, {}]}, {"rows": [{"x": 2}]}], "last": 1})
@example({"a.b": {"c\nd": {'"': "\\", "'": "\x00\x1f\x7f\x85\u2028\ufeff"}}, "=": "#", "[x]": "'''\"\"\"", "naïve": 0})
@example({"big": [2**63, -(2**63) - 1, 10**400], "small": [5e-324, 1.7976931348623157e308, -0.0, 1e16, 1e-7, 0.1], "yes": [True, False]})
@example({})
def test_what_is_written_is_read_again(plain: dict[str, Any]) -> None:
    text = to_toml(plain)
    again = tomllib.loads(text)
    assert same(again, plain)
    assert same(parse_toml(text, what="a test"), plain)


def same(one: Any, other: Any) -> bool:
    """Equal, and of equal types (1, 1.0 and True are three values)."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return len(one) == len(other) and all(map(same, one, other)) if isinstance(one, list) else one == other


@given(st.text(st.characters()))
def test_any_text_is_written_or_refused(text: str) -> None:
    try:
        written = to_toml({text: text})
    except Refused:
        with pytest.raises(UnicodeEncodeError):
            text.encode()
        return
    assert tomllib.loads(written) == {text: text}


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(Refused):
        assert isinstance(parse_toml(text, what="a test"), dict)


@pytest.mark.parametrize("text", [
    "a", "a = ", "a = 1\na = 2", "[a]\n[a]", "a = 1979-99-99", "a = " + "1" * 5000, "a = " + "[" * 20_000, "a = " + "[" * 100 + "]" * 100,
    "a.b.c = 1\na.b = 2", "\x00", "a = '\x01'",
])
def test_hostile_toml_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="read a test"):
        parse_toml(text, what="a test")


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), {1, 2}, b"x", "\ud800", [None]])
def test_what_toml_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(Refused, match="write TOML"):
        to_toml({"a": value})


def test_numpy_floats_are_written_as_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    assert tomllib.loads(to_toml({"a": numpy.float64(0.1), "b": [numpy.float64(2)]})) == {"a": 0.1, "b": [2.0]}


def test_people_can_read_it() -> None:
    plain = {"step": [{"apply": "static", "to": ["*"], "with": {"ranges": "mse"}}, {"apply": "float16"}], "name": "small"}
    assert to_toml(plain) == (
        'name = "small"\n\n[[step]]\napply = "static"\nto = ["*"]\n\n[step.with]\nranges = "mse"\n\n[[step]]\napply = "float16"\n'
    )
