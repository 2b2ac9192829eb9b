"""The front: nobody on it is beaten, and everybody off it is beaten by somebody on it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.core.front import beats, front

# Few different values, so that ties and duplicates come up.
POINT = st.tuples(*[st.sampled_from([0.0, 1.0, 2.0, 3.5])] * 3)
POINTS = st.dictionaries(st.text(max_size=3), POINT, max_size=12)


@given(POINTS)
def test_nobody_on_the_front_is_beaten(points: dict[str, tuple[float, ...]]) -> None:
    members = front(points)
    assert not any(beats(points[one], points[other]) for one in points for other in members)


@given(POINTS)
def test_everybody_off_the_front_is_beaten_by_a_member(points: dict[str, tuple[float, ...]]) -> None:
    members = front(points)
    for name in points.keys() - set(members):
        assert any(beats(points[member], points[name]) for member in members)
    assert bool(members) == bool(points)


@given(POINTS)
def test_the_order_is_kept_and_does_not_matter(points: dict[str, tuple[float, ...]]) -> None:
    members = front(points)
    assert list(members) == [name for name in points if name in members]
    assert set(front(dict(reversed(points.items())))) == set(members)


@given(POINTS, POINT)
def test_duplicates_share_their_fate(points: dict[str, tuple[float, ...]], point: tuple[float, ...]) -> None:
    both = {**points, "first twin": point, "second twin": point}
    members = front(both)
    assert ("first twin" in members) == ("second twin" in members)


@given(POINT, POINT, POINT)
def test_beats_is_a_strict_order(a: tuple[float, ...], b: tuple[float, ...], c: tuple[float, ...]) -> None:
    assert not beats(a, a)
    assert not (beats(a, b) and beats(b, a))
    if beats(a, b) and beats(b, c):
        assert beats(a, c)


def test_by_hand() -> None:
    points = {"float": (10, 4, 0.0), "int8": (3, 1, 0.1), "worse int8": (3, 1, 0.2), "float16": (10, 2, 0.0), "int4": (12, 0.5, 0.5)}
    assert front(points) == ("int8", "float16", "int4")
    assert front({}) == ()
    assert front({"only": (1, 2)}) == ("only",)


def test_points_of_different_lengths_are_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"argument 2 is (longer|shorter)"):
        front({"a": (1, 2), "b": (1, 2, 3)})
