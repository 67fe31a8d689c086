"""What pictures look like: colours that can be told apart, panels without gaps, axes with units."""

import itertools
import math

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from clara.reports.drawing import (
    COLOURS,
    MARKERS,
    bar_axis,
    grid,
    log_axis,
    size_axis,
    styles,
)
from clara.reports.results import Measurement, Results
from clara.reports.scaling import draw_growth, draw_roofline, draw_search

# How somebody without one kind of cone sees linear RGB (Machado et al. 2009, severity 1).
SIGHT = {
    "all cones": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}


def lab(colour, sight):
    """CIELAB of a colour as it is seen."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    red, green, blue = (
        min(1.0, max(0.0, sum(a * b for a, b in zip(row, linear)))) for row in SIGHT[sight]
    )
    x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.089
    x, y, z = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def apart(one, other, sight):
    return math.dist(lab(one, sight), lab(other, sight))


@pytest.mark.parametrize("sight", SIGHT)
def test_ours_torch_and_faiss_are_told_apart_by_everybody(sight):
    style = styles(["ours", "torch", "FAISS"])
    for one, other in itertools.combinations(style.values(), 2):
        assert apart(one["color"], other["color"], sight) > 50
        assert one["marker"] != other["marker"]
    for one, other in itertools.combinations(COLOURS, 2):
        assert apart(one, other, sight) > 15


def test_a_name_looks_the_same_in_every_picture():
    alone = styles(["FAISS"])["FAISS"]
    assert styles(["ours", "unknown", "torch", "FAISS"])["FAISS"] == alone
    assert styles(["reference way", "ours"])["ours"] == styles(["ours"])["ours"]
    assert {len(COLOURS), len(MARKERS), len(set(COLOURS)), len(set(MARKERS))} == {8}


def test_many_names_differ_in_colour_or_marker():
    looks = styles(f"way {number}" for number in range(64)).values()
    assert len({(look["color"], look["marker"]) for look in looks}) == 64


def search(name, suite="rank", **parameters):
    return [
        Measurement(
            *(suite, "search", name, {"rate": 4, "documents": count, **parameters}),
            samples=[1e-6 * count],
        )
        for count in (100, 1000)
    ]


def test_the_picture_of_a_search_tells_implementations_apart():
    rows = [each for name in ("ours", "torch", "FAISS") for each in search(name, dtype="float32")]
    rows += [*search("ours", dtype="int8"), *search("ours", "index")]
    figure = Figure()
    assert draw_search(Results({}, {}, rows), figure)
    lines = {bars.get_label(): bars.lines[0] for bars in figure.axes[0].containers}
    assert list(lines) == [
        "ours, float32",
        "torch, float32",
        "FAISS, float32",
        "ours, int8",
        "ours, from the index on disk",
    ]
    look = {
        name: (line.get_color(), line.get_marker(), line.get_linestyle())
        for name, line in lines.items()
    }
    ours, int8 = look["ours, float32"], look["ours, int8"]
    assert ours[:2] == int8[:2]  # one implementation
    assert ours[2] != int8[2]  # of two dtypes
    ways = [way for name, way in look.items() if name != "ours, int8"]
    assert len({way[0] for way in ways}) == len({way[1] for way in ways}) == 4
    assert ours[2] == look["torch, float32"][2] == look["FAISS, float32"][2]


@pytest.mark.parametrize("count", range(1, 13))
@pytest.mark.parametrize("columns", [2, 3])
def test_panels_fill_their_rows(count, columns):
    axes = grid(figure := Figure(), count, columns, (3.0, 3.0))
    assert len(axes) == len(figure.axes) == count
    rows = {}
    for axis in axes:
        place = axis.get_subplotspec()
        rows.setdefault(place.rowspan.start, []).extend(place.colspan)
    (whole,) = {axis.get_subplotspec().get_gridspec().ncols for axis in axes}
    assert sorted(rows) == list(range(-(-count // columns)))
    assert all(row == list(range(whole)) for row in rows.values())


def operator(name, implementation="ours", samples=(1e-3,), **quantities):
    return Measurement(
        *("operators", name, implementation), samples=list(samples), quantities=quantities
    )


def test_the_roofline_has_a_panel_only_for_what_was_measured():
    rows = [
        operator("sparsemax, forward", bytes=1e6, flops=1e6),
        operator("sparsemax, forward", "eager", bytes=1e6, flops=1e6),
        operator("select_topk, forward", bytes=1e6),
        operator("select_topk, backward", bytes=2e6, flops=4e6),
        operator("cosine_scores, forward", bytes=3e6, flops=6e6),
        operator("quantize_memory", bytes=0.0, flops=1e6),
        operator("dequantize_memory"),
        Measurement("operators", "memory_attention, forward", "ours", withheld="needs a GPU"),
    ]
    figure = Figure()
    assert draw_roofline(Results({}, {"bandwidth": 1e10, "matrix_rate": 1e11}, rows), figure)
    titles = [axis.get_title().partition("\n")[0] for axis in figure.axes]
    assert titles == [
        "sparsemax",
        "select_topk",
        "cosine_scores",
        "select_topk (cases without FLOPs)",
    ]
    for axis in figure.axes:
        points = [
            line for line in axis.lines if line.get_marker() != "None" and len(line.get_xdata())
        ]
        assert points
        low, high = axis.get_xlim()
        assert all(low < point.get_xdata()[0] < high for point in points)


def test_the_picture_of_growth_shows_each_exponent():
    rows = [
        Measurement("growth", "search", "ours", {"size": size, "of": "rows"}, samples=[cost])
        for size, cost in ((10, 1e-3), (1000, 1e-3), (100_000, 0.1))
    ]
    figure = Figure()
    assert draw_growth(Results({}, {}, rows), figure)
    costs, slopes = figure.axes
    (points,) = costs.containers
    assert list(points.lines[0].get_ydata()) == [1e-3, 1e-3, 0.1]
    assert len(costs.lines) == len(points.lines[1]) + 1  # nothing but the points and their bars
    steps = [line for line in slopes.lines if len({*line.get_ydata()}) == 1]
    flat, linear = steps[-2:]
    assert (list(flat.get_xdata()), flat.get_ydata()[0]) == ([10, 1000], pytest.approx(0))
    assert (list(linear.get_xdata()), linear.get_ydata()[0]) == ([1e3, 1e5], pytest.approx(1))
    assert [text.get_text() for text in slopes.texts] == ["0.00", "1.00"]
    assert [tick.get_text() for tick in slopes.get_xticklabels()] == ["10", "1,000", "100k"]


def test_sizes_have_numbers_where_there_is_room():
    axis = Figure().subplots()
    size_axis(axis, [20, 1000, 1000, 2000, 100_000], "documents")
    labels = dict(zip(axis.get_xticks(), (tick.get_text() for tick in axis.get_xticklabels())))
    assert labels == {20: "20", 1000: "1,000", 2000: "", 100_000: "100k"}
    size_axis(axis, [1, 4096, 10**6, 25 * 10**9], "documents")
    labels = [tick.get_text() for tick in axis.get_xticklabels()]
    assert labels == ["1", "4,096", "1M", "25G"]


@pytest.mark.parametrize(
    ("longest", "unit", "end"),
    [(3.0, "s", "3 s"), (0.3, "s", "300 ms"), (12 * 2**30, "bytes", "15 GiB"), (0.0, "s", None)],
)
def test_the_ticks_of_bars_have_one_unit(longest, unit, end):
    axis = Figure().subplots()
    bar_axis(axis, [0.0], ["x"], longest, unit)
    labels = [tick.get_text() for tick in axis.get_xticklabels()]
    assert len({label.split(" ")[1] for label in labels}) == 1
    assert end is None or end in labels


@pytest.mark.parametrize(("low", "high"), [(1.5, 3.5), (0.3, 0.4), (0.02, 2.0), (1e-5, 10.0)])
def test_an_axis_has_a_few_ticks(low, high):
    axis = (figure := Figure()).subplots()
    log_axis(axis, [low, high], "s")
    figure.canvas.draw()
    inside = [
        tick for tick in axis.get_yticks() if axis.get_ylim()[0] <= tick <= axis.get_ylim()[1]
    ]
    assert 3 <= len(inside) <= 9
