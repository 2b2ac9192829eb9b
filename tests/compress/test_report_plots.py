"""The plots: everything inside and where its number says, labels apart, bars as long as they should be."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.compress.outcomes import HOSTILE, measurement, sample

from whet.compress.report import render
from whet.compress.report.axis import sizes, span
from whet.compress.report.labels import Box, Wish, place, text_width
from whet.compress.report.layers import SHOWN, bars, layer_rows, operator_rows
from whet.compress.report.numbers import BYTES, POINTS
from whet.compress.report.rows import rows
from whet.compress.report.scatter import Quantity, Scatter, scatter
from whet.compress.report.sections import plot_axes
from whet.core.outcome import Outcome


def drawn(outcome: Outcome) -> list[Scatter]:
    """Both plots of an outcome."""
    found, (across, drop, size, ratio) = rows(outcome), plot_axes(outcome)
    both = [scatter(found, across, drop, width=860, height=480), scatter(found, size, ratio, width=620, height=360)]
    return [plot for plot in both if plot is not None]


@pytest.fixture(scope="module", params=[{}, {"wins": False}, {"candidates": 40}, {"candidates": 2}])
def plots(request: pytest.FixtureRequest) -> list[Scatter]:
    found = drawn(sample(**request.param))
    assert len(found) == 2
    return found


def test_marks_and_whiskers_stay_in_the_frame(plots: list[Scatter]) -> None:
    for plot in plots:
        for mark in plot.marks:
            assert Box(mark.x, mark.y, mark.x, mark.y).within(plot.frame)
            assert not mark.off or mark.y - mark.radius == plot.frame.top  # a triangle that points out of the frame, and is whole
            assert all(plot.frame.left <= x <= plot.frame.right for whisker in mark.whiskers for x in whisker[::2])
            assert all(plot.frame.top <= y <= plot.frame.bottom for whisker in mark.whiskers for y in whisker[1::2])


@pytest.mark.parametrize("candidates", [2, 3, 9, 20, 40, 60])
@pytest.mark.parametrize("seed", [0, 1])
def test_labels_never_run_into_each_other(candidates: int, seed: int) -> None:
    for plot in drawn(sample(candidates, seed=seed)):
        texts = [mark.label.box for mark in plot.marks if mark.label] + [text.box for text in plot.limit_texts]
        assert not any(one.overlaps(other) for one, other in combinations(texts, 2))
        for mark in plot.marks:
            assert mark.label is None or mark.label.box.within(plot.frame)
            square = Box(mark.x - 3, mark.y - 3, mark.x + 3, mark.y + 3)
            assert not any(other.label.box.overlaps(square) for other in plot.marks if other.label)
        important = [mark for mark in plot.marks if mark.row.standing in ("winner", "original", "closest")]
        assert all(mark.label for mark in (important if candidates > 9 else plot.marks))


POINTS_IN_FRAME = st.lists(st.tuples(st.integers(20, 480), st.integers(20, 280), st.text(max_size=30)), min_size=1, max_size=30)


@given(POINTS_IN_FRAME)
def test_label_layout_holds_for_any_points(points: list[tuple[int, int, str]]) -> None:
    frame, taken = Box(0, 0, 500, 300), [Box(200, 100, 260, 120)]
    wishes = [Wish(x, y, 5, (text or "?", "7")) for x, y, text in points]
    found = place(wishes, frame, taken)
    labels = [label for label in found if label]
    assert len(found) == len(wishes)
    for label in labels:
        assert label.box.within(frame)
        assert label.box.right - label.box.left >= text_width(label.text) - 0.2
        assert not any(label.box.overlaps(box) for box in taken)
        assert not any(label.box.overlaps(Box(wish.x - 5, wish.y - 5, wish.x + 5, wish.y + 5)) for wish in wishes)
    assert not any(one.box.overlaps(other.box) for one, other in combinations(labels, 2))


def test_front_steps_down_and_right_through_what_nothing_beats(plots: list[Scatter]) -> None:
    for plot in plots:
        for (x1, y1), (x2, y2) in pairwise(plot.front):
            assert x2 >= x1
            assert y2 >= y1  # downwards on the page is better
            assert x1 == x2 or y1 == y2
        corners = plot.front[::2]
        for mark in (mark for mark in plot.marks if not mark.off):
            here = (mark.x, mark.y)
            beaten = any(x <= mark.x and y >= mark.y and (x, y) != here for x, y in corners)
            assert (here in corners) == (not beaten)


def test_marks_lie_where_their_numbers_say() -> None:
    plot = drawn(sample())[0]
    for mark in plot.marks:
        ratio, lost = mark.row.trial.value("latency_ratio"), mark.row.trial.value("drop")
        assert ratio is not None
        assert lost is not None
        assert mark.x == pytest.approx(plot.x.at(ratio), abs=0.06)
        assert mark.off == (lost > plot.y.high)
        if not mark.off:
            assert mark.y == pytest.approx(plot.y.at(lost), abs=0.06)
            assert (mark.y < (plot.limit_y or 0)) == (lost > 0.005)  # above the line on the page is beyond the limit
    assert [mark.row.trial.name for mark in plot.marks if mark.off] == [HOSTILE]
    assert plot.refused[0].bottom == pytest.approx(plot.limit_y, abs=0.06)
    assert (plot.refused[0].top, plot.refused[1].right) == (plot.frame.top, plot.frame.right)
    assert [row.standing for row in plot.absent] == ["skipped", "failed"]
    assert plot.marks[-1].row.standing == "winner"  # drawn last, so that nothing hides it


def test_one_that_lost_everything_leaves_room_for_the_others() -> None:
    near = [mark.y for mark in drawn(sample())[0].marks if not mark.off]
    assert max(near) - min(near) > 50
    alone = drawn(sample(candidates=2))[0]
    assert not any(mark.off for mark in alone.marks)


def test_x_follows_the_goal_and_falls_back_on_what_there_is() -> None:
    outcome = sample()
    assert plot_axes(outcome)[0].name == "latency_ratio"
    assert plot_axes(replace(outcome, goal="size"))[0].name == "size_bytes"
    assert plot_axes(replace(outcome, goal="memory"))[0].name == "model_rss_bytes"
    bare = [replace(trial, measurements={name: each for name, each in trial.measurements.items() if name != "latency_ratio"})
            for trial in outcome.trials]  # fmt: skip
    assert plot_axes(replace(outcome, trials=tuple(bare)))[0].name == "latency_ms"
    assert "nothing to plot" in render(replace(outcome, trials=outcome.trials[:1], winner=""))


def test_the_strictest_limit_is_drawn() -> None:
    outcome = sample()
    gates = (*outcome.gates, replace(outcome.gates[0], limit=0.003, reason="limit of the target"))
    assert plot_axes(replace(outcome, gates=gates))[1].limit == 0.003


def test_original_without_measured_drop_still_stands_at_zero() -> None:
    first, *others = rows(sample(candidates=6))
    assert first.standing == "original"
    stripped = [replace(first, trial=replace(first.trial, measurements={"size_bytes": measurement("size_bytes", 1e6)})), *others]
    plot = scatter(stripped, Quantity("size_bytes", "", BYTES), Quantity("drop", "", POINTS), width=600, height=300)
    assert plot
    assert [mark.y for mark in plot.marks if mark.row.standing == "original"] == [pytest.approx(plot.y.at(0.0), abs=0.06)]


@given(st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=20))
def test_size_axes_hold_all_values_in_order(values: list[float]) -> None:
    axis = sizes(values, BYTES, 10, 500)
    places = [axis.at(value) for value in sorted(values)]
    assert all(10 <= place <= 500 for place in places)
    assert places == sorted(places)
    assert all(axis.holds(value) for value in values)
    assert axis.log == (max(values) / min(values) > 8)
    marks = [tick.place for tick in axis.ticks]
    assert all(10 <= mark <= 500 for mark in marks)
    assert marks == sorted(marks)
    assert 1 <= len(marks) <= 12


@given(st.floats(-1, 1), st.floats(0, 2))
def test_span_axes_have_ticks_even_where_all_is_equal(low: float, width: float) -> None:
    axis = span(low, low + width, POINTS, 400, 20)
    assert axis.low < axis.high
    assert 1 <= len(axis.ticks) <= 9
    assert all(20 <= tick.place <= 400 for tick in axis.ticks)


def test_the_weightiest_layers_are_shown_in_the_order_of_execution() -> None:
    outcome = sample(layers=200)
    top, rest = layer_rows(outcome.layers)
    assert (len(top), len(rest)) == (SHOWN, 200 - SHOWN)
    assert sorted(row.place for row in (*top, *rest)) == list(range(1, 201))
    assert [row.place for row in top] == sorted(row.place for row in top)
    assert max(outcome.layers, key=lambda layer: layer.bytes_before) in [row.layer for row in top]
    assert outcome.layers[8] in [row.layer for row in top]  # the only one whose damage is known


def test_a_single_bad_layer_among_many_is_shown() -> None:
    layers = [replace(layer, sqnr_db=40.0, damage=None) for layer in sample(layers=120).layers]
    layers[77] = replace(layers[77], bytes_before=10, time_before_us=None, time_after_us=None, sqnr_db=3.0)
    assert 78 in [row.place for row in layer_rows(layers)[0]]


def test_bars_are_as_long_as_their_numbers() -> None:
    layers = sample().layers
    found = bars(layer_rows(layers)[0])
    assert found
    assert [panel.title.split(",")[0] for panel in found.panels] == ["Bytes", "Time", "SQNR"]
    before, after = ([bar for bar in found.panels[0].bars if bar.after == when] for when in (False, True))
    scale = found.panels[0].axis.at(1e5) - found.panels[0].axis.start
    for one, other, layer in zip(before, after, layers, strict=True):
        assert one.width == pytest.approx(scale * layer.bytes_before / 1e5, abs=0.06)
        assert other.width == pytest.approx(scale * layer.bytes_after / 1e5, abs=0.06)
        assert other.y > one.y
    assert len(found.panels[1].dashes) == sum(layer.time_before_us is None for layer in layers) > 0


def test_panels_without_any_number_are_left_out() -> None:
    bare = [replace(layer, time_before_us=None, time_after_us=None, sqnr_db=None) for layer in sample().layers]
    found = bars(layer_rows(bare)[0])
    assert found
    assert len(found.panels) == 1
    assert bars(()) is None


def test_operators_come_from_the_runtime_and_else_from_the_layers() -> None:
    outcome = sample()
    found, executed = operator_rows(outcome.layers, outcome.operators)
    assert executed
    assert found[0].op == "Conv"
    added, executed = operator_rows(outcome.layers, ())
    assert not executed
    conv = next(each for each in added if each.op == "Conv")
    assert conv.time_before_us == pytest.approx(sum(layer.time_before_us or 0 for layer in outcome.layers if layer.op == "Conv"))
    assert "added up by the operator" in render(replace(outcome, operators=()))
