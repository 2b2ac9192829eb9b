"""Errors: one readable paragraph, made of parts that survive a process boundary."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.core.errors import Refused, Unreachable, Unsupported, Untrusted, WhetError

KINDS = [WhetError, Refused, Unsupported, Untrusted, Unreachable]


@pytest.mark.parametrize(("found", "do", "text"), [
    ("", "", "read a model."),
    ("it is empty", "", "read a model: it is empty."),
    ("it is empty.", "give another one.", "read a model: it is empty. give another one."),
    ("", "give another one", "read a model. give another one."),
])
def test_the_message(found: str, do: str, text: str) -> None:
    assert str(Refused("read a model.", found=found, do=do)) == text


@given(st.sampled_from(KINDS), st.text(), st.text(), st.text())
def test_errors_survive_pickling(kind: type[WhetError], asked: str, found: str, do: str) -> None:
    error = kind(asked, found=found, do=do)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is kind
        assert str(again) == str(error)
        assert (again.asked, again.found, again.do) == (asked, found, do)


@pytest.mark.parametrize("kind", KINDS)
def test_all_can_be_caught_as_one(kind: type[WhetError]) -> None:
    assert issubclass(kind, WhetError)
    assert not issubclass(kind, ValueError | OSError)
    assert [other for other in KINDS[1:] if issubclass(kind, other)] == [other for other in KINDS[1:] if other is kind]
