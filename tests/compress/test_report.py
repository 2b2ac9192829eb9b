"""The report's page: what it says, that hostile text stays text, and that it needs nothing from outside."""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from tests.compress.outcomes import HOSTILE, sample

from whet.compress.report import finite, render, summary_rows, write_report
from whet.compress.report.page import _TEMPLATES
from whet.compress.report.rows import rows
from whet.core.errors import Refused
from whet.core.gate import judge
from whet.core.measurement import Interval, Measurement
from whet.core.outcome import Outcome
from whet.core.recipe import Recipe, Step

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
SHAPES = {"plain": {}, "nothing passed": {"wins": False}, "large": {"candidates": 40, "layers": 200}, "two": {"candidates": 2, "layers": 1}}


class Page(HTMLParser):
    """A page taken apart: every tag is closed where it must be; texts and attributes are kept."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice in <{tag}>"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def having(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module", params=SHAPES)
def outcome(request: pytest.FixtureRequest) -> Outcome:
    return sample(**SHAPES[request.param])


@pytest.fixture(scope="module")
def page(outcome: Outcome) -> Page:
    return Page(render(outcome))


def as_read(text: str) -> str:
    """``text`` as a reader of the page gets it."""
    return " ".join(re.sub("[\x00\u202e\ud800]", "\ufffd", text).split())


def test_page_is_one_whole_that_needs_nothing_from_outside(outcome: Outcome) -> None:
    text = render(outcome)
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    for name, attributes in page.tags:
        assert name not in ("link", "img", "iframe", "object", "embed", "base", "form", "image", "use", "foreignobject")
        assert not {"src", "href", "xlink:href", "action", "style", "srcset"} & set(attributes)
        assert not any(attribute.startswith("on") for attribute in attributes)
        assert all(value.startswith("url(#") for value in attributes.values() if "url(" in value)
    assert not re.search(r"https?://", text)
    assert not re.search(r"@import|url\(", "".join(re.findall(r"<style>(.*?)</style>", text, re.DOTALL)))
    text.encode("utf-8")


def test_ids_are_unique_and_every_reference_has_its_target(page: Page) -> None:
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert max(ids.values()) == 1
    for _, attributes in page.tags:
        for name in attributes.get("aria-labelledby", "").split():
            assert name in ids


def test_headings_go_down_one_step_at_a_time_and_headers_say_of_what(page: Page) -> None:
    levels = [int(name[1]) for name, _ in page.tags if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.having("th"))
    assert len(page.having("caption")) == len(page.having("table"))


def test_sections_stand_in_order(page: Page) -> None:
    order = ["Verdict", "Asked and found", "The front", "Candidates", "Layer by layer", "Profile, before and after", "How to make it again",
             "How it was measured"]  # fmt: skip
    places = [page.texts.index(heading) for heading in order]
    assert places == sorted(places)


def test_nothing_hostile_becomes_markup(outcome: Outcome) -> None:
    text = render(replace(outcome, model=HOSTILE, target=HOSTILE, metric="a:" + HOSTILE, headline=HOSTILE, command=HOSTILE, goal=HOSTILE,
                          data={HOSTILE: HOSTILE}, machine={HOSTILE: [HOSTILE]}, tools={HOSTILE: HOSTILE}, began=HOSTILE))  # fmt: skip
    page = Page(text)
    assert [name for name, _ in page.tags].count("script") == 1
    assert not page.having("img")
    assert "<script>alert" not in text
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)


def test_only_the_pages_own_script_and_style_may_run() -> None:
    text = render(sample())
    found = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert found
    policy = html.unescape(found[1])
    for tag in ("script", "style"):
        (inner,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_every_trial_gate_layer_blame_and_note_appears(outcome: Outcome, page: Page) -> None:
    for trial in outcome.trials:
        assert as_read(trial.name) in page.text
        if trial.note:
            assert as_read(trial.note) in page.text
    assert len([one for one in page.having("tr") if one.get("class") == "gate"]) == len(outcome.gates)
    for gate in outcome.gates:
        assert gate.reason in page.text
    for layer in outcome.layers:
        assert as_read(layer.name) in page.text
    for sentence in (*outcome.blame, *outcome.notes, outcome.headline, outcome.command):
        assert as_read(sentence) in page.text


def test_candidates_are_one_row_each_and_only_the_winner_is_marked(outcome: Outcome, page: Page) -> None:
    drawn = [one for one in page.having("tr") if "data-verdict" in one]
    assert len(drawn) == len(outcome.trials)
    assert [one["class"] for one in drawn].count("winner") == bool(outcome.winner)
    assert [one["class"] for one in drawn].count("closest") == (not outcome.winner)
    marks = [one["class"].split() for name, one in page.tags if name in ("path", "rect", "circle") and "mark" in one.get("class", "")]
    assert any("original" in mark for mark in marks)
    assert any("winner" in mark for mark in marks) == bool(outcome.winner)


def test_gates_tell_pass_and_fail_with_a_sign() -> None:
    assert "✗ fail" not in Page(render(sample())).text
    refused = Page(render(sample(wins=False))).text
    assert refused.count("✗ fail") == 1
    assert "✗ Nothing passed" in refused
    assert "✓ pass" in refused


def test_two_gates_on_one_measurement_keep_their_own_verdicts() -> None:
    outcome = sample()
    gates = (*outcome.gates, replace(outcome.gates[2], limit=1e5, reason="storage of tiny"))
    winner = outcome.trial(outcome.winner)
    assert winner
    judged = replace(winner, verdict=judge(gates, winner.measurements))
    page = Page(render(replace(outcome, gates=gates, trials=(outcome.trials[0], judged))))
    assert page.text.count("✗ fail") == 1
    assert page.text.count("✓ pass") >= 4
    assert "asked at most 100.0 kB" in page.text.replace("\u00a0", " ")


def test_a_missing_number_is_a_dash_with_its_reason(page: Page, outcome: Outcome) -> None:
    titles = [one["title"] for one in page.having("abbr") if one.get("class") == "nothing"]
    assert titles
    assert all(titles)
    if len(outcome.trials) > 4:
        assert "no rate for 2-bit products" in titles
        assert "skipped: matrix products are 0.2 % of the model's arithmetic" in titles
        assert "no rate for 2-bit products (candidates" in page.text


def test_an_estimate_is_marked_wherever_it_stands(outcome: Outcome) -> None:
    for row in rows(outcome):
        if not row.cells["energy"].missing:
            assert row.cells["energy"].text.startswith("≈")
            assert row.cells["energy"].title.startswith("estimated, not measured")
        assert not row.cells["latency"].text.startswith("≈")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_number_is_ever_nan_infinity_or_none(bad: float, tmp_path: Path) -> None:
    outcome = sample()
    spoiled = outcome.trials[1]
    found = {name: replace(each, value=bad, interval=Interval(bad, bad, 0.9)) for name, each in spoiled.measurements.items()}
    half = {name: replace(each, interval=Interval(-math.inf, bad, 0.9)) for name, each in outcome.trials[2].measurements.items()}
    trials = (outcome.trials[0], replace(spoiled, measurements=found), replace(outcome.trials[2], measurements=half), *outcome.trials[3:])
    layers = (replace(outcome.layers[0], sqnr_db=bad, time_before_us=bad, damage=bad), *outcome.layers[1:])
    broken = replace(outcome, trials=trials, layers=layers, seconds=bad, winner=spoiled.name)
    for text in (render(broken), str(summary_rows(broken))):
        assert not re.search(r"\b(nan|inf|None|NaN|Infinity)\b", re.sub(r"<(script|style)>.*?</\1>", "", text, flags=re.DOTALL))
    write_report(replace(broken, seconds=0.0), tmp_path)
    read = Outcome.from_json((tmp_path / "report.json").read_bytes())
    assert read.trials[1].value("drop") is None
    assert "not a finite number" in read.trials[1].measurements["drop"].why


def test_an_outcome_of_nothing_still_makes_a_page() -> None:
    bare = Outcome("m.onnx", "host", "latency", "accuracy", (), (), "", "Nothing was tried.")
    assert "Nothing was tried." in Page(render(bare)).text
    gated = sample()
    failed = tuple(replace(trial, status="failed", note="disk full", measurements={}, verdict=None) for trial in gated.trials)
    page = Page(render(replace(gated, trials=failed, winner="", closest="", layers=(), operators=())))
    assert page.text.count("✗ fail") == len(gated.gates)


def test_json_round_trip_and_nothing_but_two_files(tmp_path: Path) -> None:
    outcome = sample()
    path = write_report(outcome, tmp_path / "new" / "out")
    assert path.read_text(encoding="utf-8") == render(outcome)
    assert Outcome.from_json((path.parent / "report.json").read_bytes()) == outcome
    assert sorted(each.name for each in path.parent.iterdir()) == ["report.html", "report.json"]
    assert finite(outcome) == outcome


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(Refused, match="out"):
        write_report(sample(), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_same_outcome_same_bytes() -> None:
    assert render(sample()) == render(sample())


def test_everything_drawn_is_finite_and_inside_its_viewbox(page: Page) -> None:
    wide = high = left = top = math.nan
    checked = 0
    for tag, one in page.tags:
        if tag == "svg":
            left, top, wide, high = map(float, one["viewbox"].split())
        elif tag in ("rect", "line", "circle", "text") and not {"transform", "scope"} & set(one) and one.get("class") != "hatch":
            for name in {"x", "y", "x1", "y1", "x2", "y2", "cx", "cy", "r", "width", "height"} & set(one):
                value = float(one[name])
                checked += 1
                limit = wide if name in ("x", "x1", "x2", "cx", "width") else high
                assert math.isfinite(value)
                assert min(left, top) <= value <= limit, (tag, one)
        for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", one.get("points", "")):
            assert 0 <= float(x) <= wide
            assert 0 <= float(y) <= high
    assert checked > 50


def test_the_rest_of_many_layers_is_folded_away() -> None:
    page = Page(render(sample(layers=200)))
    assert len(page.having("details")) == 1
    assert "The other 170 layers" in page.text
    assert not Page(render(sample(layers=30))).having("details")


def test_recipe_that_toml_cannot_hold_is_shown_as_json() -> None:
    outcome = sample()
    odd = Recipe((Step("static", options={"seed": None}),))
    trials = tuple(replace(trial, recipe=odd) if trial.name == outcome.winner else trial for trial in outcome.trials)
    assert '"seed": null' in Page(render(replace(outcome, trials=trials))).text


def test_an_unknown_measurement_is_still_told() -> None:
    outcome = sample()
    extra = {**outcome.trials[1].measurements, "queue_depth": Measurement("queue_depth", 7.0, unit=" frames", method="counted by hand")}
    trials = (outcome.trials[0], replace(outcome.trials[1], measurements=extra), *outcome.trials[2:])
    page = Page(render(replace(outcome, trials=trials)))
    assert "Queue depth" in page.text
    assert "counted by hand" in page.text


def test_hashes_versions_machine_and_options_are_told() -> None:
    outcome = sample()
    text, winner = Page(render(outcome)).text, outcome.trial(outcome.winner)
    assert winner
    assert winner.artifact
    told = [winner.artifact.artifact_id, "9e" * 32, "c3" * 32, "5f" * 32, "a7" * 32, "session.qdq_matmulnbits_accuracy_level",
            "avx2, fma, avx512f, avx512_vnni", "25.8\u00a0GB", "1.23.2"]  # fmt: skip
    for each in told:
        assert " ".join(each.split()) in text
    assert " ".join(winner.recipe.to_text().split()) in text


def _luminance(colour: str) -> float:
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_has_the_contrast_that_people_need_in_light_dark_and_print() -> None:
    """WCAG 2.2, success criterion 1.4.3: 4.5 to 1."""
    style = (_TEMPLATES / "style.css").read_text(encoding="utf-8")
    themes = [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)]
    assert len(themes) == 3
    for theme in themes:
        for ink in ("ink", "soft", "accent", "bad"):
            for ground in ("paper", "panel"):
                bright, dim = sorted((_luminance(theme[ink]), _luminance(theme[ground])), reverse=True)
                assert (bright + 0.05) / (dim + 0.05) >= 4.5, (ink, ground)
