"""Pictures begin at 0, have the bars that were measured, and are left out where nothing was."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from clara.evaluation.report import costs
from clara.evaluation.report.completing import completed
from clara.evaluation.report.labels import _spread
from clara.evaluation.report.lead import leaders
from clara.evaluation.report.look import DARK, LIGHT
from clara.evaluation.report.pictures import PICTURES, file_prefix
from clara.evaluation.report.reading import read_run
from clara.evaluation.report.records import Score, Timing

KINDS = {kind.name: kind for kind in PICTURES}


@pytest.fixture(scope="module")
def read(run):
    return completed(read_run(run))


def drawn(name, run, theme=LIGHT):
    figure = Figure(figsize=(7.2, 4.3), layout="constrained", dpi=100)
    assert KINDS[name].draw(run, figure, theme)
    return figure


def texts(axis):
    return [each.get_text() for each in axis.texts if each.get_alpha() != 0]


def test_accuracy_by_rate(read):
    figure = drawn("accuracy-by-rate", read)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["documents by bm25", "documents by minilm", "documents by gold"]
    tops = {axis.get_ylim() for axis in figure.axes}
    assert len(tops) == 1
    assert tops.pop()[0] == 0
    first = figure.axes[0]
    assert texts(first) == ["text", "clara", "clara-shuffled", "clara-none", "closed-book",
                            "text-tuned", "lead"]  # fmt: skip
    assert [tick.get_text() for tick in first.get_xticklabels()] == ["4", "16"]
    lines = [line for line in first.get_lines() if len(line.get_xdata()) == 2]
    heights = [list(line.get_ydata()) for line in lines]
    means = [read.by_name[f"clara@{rate}+bm25"].exact_match.mean for rate in (4, 16)]
    assert means in heights
    shuffled = [read.by_name[f"clara-shuffled@{r}+bm25"].exact_match.mean for r in (4, 16)]
    assert lines[heights.index(shuffled)].get_linestyle() == "--"
    across = read.by_name["text+bm25"].exact_match.mean
    assert [across, across] in heights
    hollow = [
        line.get_markerfacecolor()
        for line in first.get_lines()
        if list(line.get_ydata()) == [means[1]]
    ]
    assert LIGHT.ground in hollow


def test_rankers_without_text_are_compared_with_the_best_text(read):
    entries = [entry for entry in read.entries if entry.name != "text+minilm"]
    axis = drawn("accuracy-by-rate", replace(read, entries=entries)).axes[1]
    assert axis.get_title(loc="left") == "documents by minilm"
    assert "text+bm25" in texts(axis)


def ranked_at_rates(run):
    """The run as if MiniLM were CLaRa's ranking: at each entry's rate, and at both for text."""
    entries = []
    for entry in run.entries:
        if entry.ranker != "minilm":
            entries.append(entry)
        elif entry.rate is not None:
            name = f"{entry.name.partition('+')[0]}+clara"
            entries.append(replace(entry, name=name, ranker=f"clara@{entry.rate:g}"))
        else:
            names = ("clara@4", "clara@16")
            entries += [replace(entry, name=f"text+{name}", ranker=name) for name in names]
    return replace(run, entries=entries)


def test_rankings_of_all_rates_share_a_panel(read):
    axis = drawn("accuracy-by-rate", ranked_at_rates(read)).axes[1]
    assert axis.get_title(loc="left") == "documents by clara"
    assert texts(axis) == ["text", "clara", "clara-shuffled", "clara-none", "closed-book"]
    means = [read.by_name[f"clara@{rate}+minilm"].exact_match.mean for rate in (4, 16)]
    text = read.by_name["text+minilm"].exact_match.mean
    heights = [list(line.get_ydata()) for line in axis.get_lines()]
    assert means in heights
    (at,) = (line for line in axis.get_lines() if list(line.get_ydata()) == [text] * 2)
    assert at.get_xdata() == pytest.approx([4, 16], rel=0.1)  # not a line from side to side
    # What reads memory of one rate that was ranked by that of another has a panel of its own.
    entries = [
        replace(entry, ranker="clara@4", name=f"{entry.name}@4")
        if (entry.system, entry.ranker, entry.rate) == ("clara", "minilm", 16)
        else entry
        for entry in read.entries
    ]
    mixed = drawn("accuracy-by-rate", replace(read, entries=entries))
    assert mixed.axes[2].get_title(loc="left") == "documents by clara@4"


def test_rankers_of_several_rates_have_lines_of_their_own(read):
    names = ["clara@4", "clara@16", "bm25"]
    rankers = [replace(each, name=name) for each, name in zip(read.rankers, names)]
    axis = drawn("recall", replace(read, rankers=rankers)).axes[0]
    assert texts(axis) == names
    four, sixteen, words = (each.lines[0] for each in axis.containers)
    assert four.get_color() == sixteen.get_color() != words.get_color()
    assert four.get_marker() == sixteen.get_marker() != words.get_marker()
    assert [each.get_linestyle() for each in (four, sixteen, words)] == ["-", "--", "-"]


def test_bars_are_the_intervals(read):
    axis = drawn("recall", read).axes[0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["1", "3", "5"]
    assert axis.get_ylim()[0] == 0
    assert texts(axis) == ["bm25", "minilm", "gold"]
    score = read.rankers[0].scores["recall@3"]
    (bar,) = [
        segment[:, 1].tolist()
        for segment in axis.containers[0].lines[2][0].get_segments()
        if abs(segment[0, 0] - 1) < 0.1
    ]
    assert bar == pytest.approx([score.low, score.high])


def test_recall_ends_before_all_candidates_are_taken(read):
    rankings = [replace(line, ranked=4) for line in read.rankings]
    axis = drawn("recall", replace(read, rankings=rankings)).axes[0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["1", "3"]


def test_names_beside_lines_are_drawn_whole(read):
    best = [
        replace(each, name=name, scores=dict.fromkeys(each.scores, Score(1.0, 1.0, 1.0)))
        for each, name in zip(read.rankers, ["random", "clara", "bm25"])
    ]
    figure = drawn("recall", replace(read, rankers=best))
    figure.draw_without_rendering()
    (axis,) = figure.axes
    for name in axis.texts:
        box = name.get_window_extent()
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1


@pytest.mark.parametrize("name", ["prompt-tokens", "latency", "bytes"])
def test_costs_against_accuracy(read, name):
    figure = drawn(name, read)
    axis = figure.axes[0]
    named = {entry.name for entry in read.entries if entry.control is None}
    if name == "bytes":
        named -= {"closed-book"}
        assert "(logarithmic)" in axis.get_xlabel()
    elif name == "latency":
        assert axis.get_xlim()[0] == 0
    assert axis.get_ylim()[0] == 0
    assert set(texts(axis)) == named
    boxes = [each.get_window_extent() for each in axis.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_a_narrow_range_of_costs_begins_at_0(read):
    entries = [replace(e, bytes_per_document=1000.0 + i) for i, e in enumerate(read.entries)]
    axis = drawn("bytes", replace(read, entries=entries)).axes[0]
    assert axis.get_xlim()[0] == 0
    assert axis.get_xscale() == "linear"


@pytest.mark.parametrize(("longest", "scale"), [(30.0, "linear"), (3000.0, "log")])
def test_an_axis_of_times_holds_their_intervals(read, longest, scale):
    """A machine that paused once makes the interval of few batches far wider than the medians."""
    first, *others = [
        replace(e, timings={"generate": Timing(10.0, 9.0, 11.0)})
        for e in read.entries
        if e.control is None
    ]
    first = replace(first, timings={"generate": Timing(10.0, 9.0, longest)})
    axis = drawn("latency", replace(read, entries=[first, *others])).axes[0]
    assert axis.get_xscale() == scale
    assert axis.get_xlim()[1] > longest / 1000


def test_errors_by_answer_type(read):
    axis = drawn("errors", read).axes[0]
    assert axis.get_xlim()[0] == 0
    shown = leaders(read)
    assert len(axis.patches) == 5 * len(shown)
    count, score = shown[0].by_type["number"]
    assert axis.patches[0].get_width() == pytest.approx(1 - score.mean)
    assert f"number: {count} questions" in texts(axis)
    low, high = axis.containers[1].lines[2][0].get_segments()[0][:, 0]
    assert (low, high) == pytest.approx((1 - score.high, 1 - score.low))


def test_nothing_to_draw_is_no_picture(read):
    bare = [
        replace(
            entry, rate=None, timings={}, bytes_per_document=None, prompt_tokens=None, by_type={}
        )
        for entry in read.entries
    ]
    nothing = replace(read, entries=bare, rankers=[])
    for kind in PICTURES:
        assert kind.draw(nothing, Figure(), LIGHT) is False
        assert kind.missing.startswith("No picture of ")


def test_many_entries_are_left_to_the_tables(read, monkeypatch):
    monkeypatch.setattr(costs, "_MOST_POINTS", 3)
    axis = drawn("latency", read).axes[0]
    ways = [entry for entry in read.entries if entry.control is None]
    assert axis.get_title() == f"(and {len(ways) - 3} more in the tables)"
    assert len(texts(axis)) == 3


@pytest.mark.parametrize(
    ("heights", "places"),
    [
        ([0.5, 0.2], [0.5, 0.2]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.52, 0.5, 0.1], [0.56, 0.46, 0.1]),
        ([0.0, 0.0, 0.0], [0.0, 0.1, 0.2]),
        ([1.0, 1.0], [0.9, 1.0]),
    ],
)
def test_names_beside_lines_stand_apart(heights, places):
    assert _spread(heights, 0.1) == pytest.approx(places)


def test_dark_pictures_have_a_dark_ground():
    assert DARK.settings["figure.facecolor"] == DARK.ground != LIGHT.ground
    assert len(DARK.colours) == len(LIGHT.colours)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("Fact book_1", "fact-book-1-"),
        ("../\x1b<x>", "x-"),
        ("ß" * 300, "run-"),
        ("a" * 300, "a" * 40 + "-"),
    ],
)
def test_names_of_files(name, prefix):
    assert file_prefix(name) == prefix


@pytest.mark.parametrize(("factor", "unit"), [(1.0, "seconds"), (1e-3, "milliseconds")])
def test_short_times_are_drawn_in_milliseconds(read, factor, unit):
    entries = []
    for each in read.entries:
        total = each.total_ms
        timing = total and Timing(*(factor * ms for ms in (total.median, total.low, total.high)))
        entries.append(replace(each, timings={"total": timing} if timing else {}))
    axis = drawn("latency", replace(read, entries=entries)).axes[0]
    assert axis.get_xlabel().startswith(f"time of an answer in {unit}, median")
    times = {container.lines[0].get_xdata()[0] for container in axis.containers}
    total = max(each.total_ms.median for each in entries if each.total_ms and not each.control)
    assert max(times) == pytest.approx(total / (1000 if unit == "seconds" else 1))
