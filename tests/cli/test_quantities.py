"""What people type for sizes, times and shares is read as they meant it, and what is ambiguous is refused."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.cli.quantities import Shape, milliseconds, seconds, shape, share, size_bytes


@pytest.mark.parametrize(("read", "text", "value"), [
    (size_bytes, "300kB", 300e3), (size_bytes, "300 KB", 300e3), (size_bytes, "1KiB", 1024), (size_bytes, "64MiB", 64 * 2**20),
    (size_bytes, "2MB", 2e6), (size_bytes, "1.5GB", 1.5e9), (size_bytes, "17", 17), (size_bytes, "2e3B", 2000), (size_bytes, ".5k", 500),
    (milliseconds, "20ms", 20), (milliseconds, "1.5s", 1500), (milliseconds, "300us", 0.3), (milliseconds, "300µs", 0.3),
    (milliseconds, "1m", 60e3), (seconds, "10m", 600), (seconds, "90", 90), (seconds, "1h", 3600), (seconds, "0.1", 0.1),
    (share, "0.01", 0.01), (share, "1%", 0.01), (share, "0.5%", 0.005), (share, "0.3pts", 0.003), (share, "0", 0), (share, "12", 12),
])  # fmt: skip
def test_amounts(read: Callable[[str], float], text: str, value: float) -> None:
    assert read(text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(("read", "text", "said"), [
    (milliseconds, "20", "no unit; write 20ms"), (size_bytes, "3 parsecs", "unknown unit 'parsecs'"), (size_bytes, "-1kB", "0 or more"),
    (share, "-1%", "0 or more"), (share, "nan", "0 or more"), (share, "inf", "0 or more"),
    (share, "1e999", "too large"), (share, "", "0 or more"),
    (share, "1,5%", "0 or more"), (seconds, "10MS", "unknown unit"), (size_bytes, "3%", "unknown unit"), (share, "1 % of it", "0 or more"),
])  # fmt: skip
def test_what_is_no_amount_is_refused_with_an_example(read: Callable[[str], float], text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        read(text)


@given(st.floats(0, 1e6, allow_subnormal=False))
def test_units_agree_with_each_other(value: float) -> None:
    assert share(f"{value!r}%") == pytest.approx(share(repr(value)) / 100)
    assert size_bytes(f"{value!r}kB") == pytest.approx(1000 * size_bytes(repr(value)))
    assert milliseconds(f"{value!r}s") == pytest.approx(1000 * seconds(repr(value)))


@pytest.mark.parametrize(("text", "found"), [
    ("1,3,32,32", Shape((1, 3, 32, 32))), ("x=1,16", Shape((1, 16), "x")), ("ids = 1,16:int64", Shape((1, 16), "ids", "int64")),
    ("1x3x8", Shape((1, 3, 8))), ("5", Shape((5,))),
])  # fmt: skip
def test_shapes(text: str, found: Shape) -> None:
    assert shape(text) == found


@pytest.mark.parametrize("text", ["", "x=", "1,,2", "1,-2", "a,b", "1,0", "x=y=1", "1,2:"])
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"shape|size of 0"):
        shape(text)
