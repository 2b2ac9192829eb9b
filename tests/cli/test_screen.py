"""The screen: tables that fit, texts that cannot steer the terminal, progress that says what runs."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from whet.cli.progress import Bars
from whet.cli.screen import Column, Screen, fitted
from whet.cli.words import Part, counted, listed, plain, shortened
from whet.core.progress import reporting, task, track


@pytest.mark.parametrize(("text", "shown"), [
    ("a\u00a0b\u202fc \u22121", "a b c -1"),
    ("two\nlines\tand  spaces", "two lines and spaces"), ("\x1b[31mred\x07", "\ufffd[31mred\ufffd"),
    ("right\u202eto left", "right\ufffdto left"), ("half \ud800", "half \ufffd"), ("[bold]no markup[/]", "[bold]no markup[/]"),
])  # fmt: skip
def test_plain_text_has_nothing_that_a_terminal_obeys(text: str, shown: str) -> None:
    assert plain(text) == shown


@pytest.mark.parametrize(("keep", "cut"), [("start", "abcde…"), ("end", "…ghijk"), ("ends", "abc…jk")])
def test_which_part_is_kept(keep: Part, cut: str) -> None:
    assert shortened("abcdefghijk", 6, keep=keep) == cut
    assert shortened("abcdef", 6, keep=keep) == "abcdef"


@given(st.text(max_size=30), st.integers(0, 30), st.sampled_from(["start", "end", "ends"]))
def test_a_shortened_text_fits(text: str, room: int, keep: Part) -> None:
    found = shortened(text, room, keep=keep)
    assert len(found) <= room or found == ""
    assert found == text or len(text) > room


COLUMNS = (Column("name", flexible=True), Column("value", right=True), Column("more", optional=True))


@given(st.lists(st.text("abc", max_size=60), min_size=1, max_size=4), st.integers(40, 100))
def test_a_table_fits_the_terminal(names: list[str], width: int) -> None:
    columns, rows = fitted(COLUMNS, [[name, "12345", "y" * 12] for name in names], width)
    widths = [max(len(column.title), *(len(row[at]) for row in rows)) for at, column in enumerate(columns)]
    assert sum(widths) + 2 * (len(widths) - 1) <= width


def test_the_optional_column_goes_before_the_flexible_one_suffers() -> None:
    columns, rows = fitted(COLUMNS, [["n" * 50, "1", "y" * 12]], 40)
    assert [column.title for column in columns] == ["name", "value"]
    assert rows == [["…" + "n" * 32, "1"]]
    assert len(fitted(COLUMNS, [["n" * 50, "1", "y" * 12]], 80)[0]) == 3


def test_what_is_piped_is_neither_cut_nor_wrapped_nor_coloured(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.table(COLUMNS, [["n" * 200, "1", "two"]], ["red"])
    screen.line("w " * 200, "bold")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == ["n" * 200 + "  " + "    1" + "  two", " ".join("w" * 200)]


def test_quiet_leaves_remarks_out(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(quiet=True)
    screen.remark("a remark")
    screen.gap()
    screen.line("the result")
    assert capsys.readouterr().out == "the result\n"


def test_a_narrow_encoding_gives_question_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    Screen().line("★ 3×")
    assert raw.getvalue() == b"? 3?\n"


def test_while_working_no_foreign_word_comes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen(as_json=True).working():
        print("a model that prints")
    Screen(as_json=True).document({"a": "é"})
    found = capsys.readouterr()
    assert found.out == '{\n  "a": "\\u00e9"\n}\n'
    assert "a model that prints" in found.err


def test_bars_say_what_runs_how_far_and_on_what() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80, color_system=None)
    with Bars(console) as bars, reporting(bars), task("outer [red]", None) as outer:
        for _ in track(range(3), "inner\x1b[2J"):
            pass
        outer.advance(note="candidate [/] done")
        bars._draw(now=True)
    shown = stream.getvalue()
    assert "outer [red]" in shown
    assert "0/3" in shown
    assert "candidate [/] done" in shown
    assert "\x1b[2J" not in shown
    assert "inner\ufffd[2J" in shown


def test_words() -> None:
    assert [counted(0, "layer"), counted(1, "layer"), counted(1234, "layer")] == ["0 layers", "1 layer", "1,234 layers"]
    assert listed(["a", "b", "c"], 3) == "a, b, c"
    assert listed(["a", "b", "c", "d"], 3) == "a, b, c and 1 more"
