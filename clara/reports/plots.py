"""The pictures of a report."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clara.reports.drawing import (
    COLOURS,
    LOOK,
    MOST_LINES,
    bar_axis,
    draw_lines,
    grid,
    grouped,
    legend_below,
    lines,
    log_axis,
    number,
    rate_axis,
    reach,
    say_left_out,
    size_axis,
    styles,
    text,
)
from clara.reports.results import USUAL, Measurement, Results, usual
from clara.reports.scaling import draw_growth, draw_roofline, draw_search
from clara.reports.tables import amount, at, suite_name

_SIZE = (8.0, 4.5)
_DPI = 110
_MOST_BARS = 40
_MOST_PANELS = 12
# Stages of an answer in the order of time, and what a legend calls them.
_STAGES = {
    "query": "encode the question",
    "rank": "search",
    "compress": "compress the documents",
    "first token": "read the prompt, first token",
    "further tokens": "further tokens",
}


def draw_all(results: Results, folder: Path) -> list[tuple[str, str]]:
    """Draw what there are figures for, as PNG.

    Returns:
        File name and caption of each.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib  # its submodules may be there without it
    from matplotlib.figure import Figure

    drawn = []
    with matplotlib.rc_context(LOOK), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a font lacks a letter of somebody's name
        for name, caption, draw in _PLOTS:
            figure = Figure(figsize=_SIZE, layout="constrained")
            if draw(results, figure):
                figure.savefig(folder / f"{name}.png", format="png", dpi=_DPI)
                drawn.append((f"{name}.png", caption))
    return drawn


def _throughput(results: Results, figure: Any) -> bool:
    measured = [
        each
        for each in usual(results.of("compress", "throughput"), but=("documents",))
        if each.per_second("documents") and min(each.samples) > 0
    ]
    drawn = lines(measured, "rate")
    if not drawn:
        return False
    axis = figure.subplots()
    style = styles(name for name, _ in drawn)
    for name, group in drawn[:MOST_LINES]:
        counts = [each.quantities["documents"] for each in group]
        middle = [n / each.median for n, each in zip(counts, group)]
        low = [v - n / each.spread[1] for v, n, each in zip(middle, counts, group)]
        high = [n / each.spread[0] - v for v, n, each in zip(middle, counts, group)]
        places = [number(each, "rate") for each in group]
        spread = [[max(0.0, v) for v in low], [max(0.0, v) for v in high]]
        axis.errorbar(places, middle, spread, capsize=3, label=text(name), **style[name])
    say_left_out(axis, len(drawn) - MOST_LINES)
    rate_axis(axis, drawn)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("documents compressed per second")
    legend_below(figure, [axis])
    return True


def _answers(results: Results, figure: Any) -> bool:
    """Times of an answer by rate, a row of panels for each backbone and whatever else differs."""
    cases = "time to first token", "whole answer"
    found = {case: _timed(usual(results.of("question", case))) for case in cases}
    rows = dict.fromkeys(_apart(each) for case in cases for each in found[case])
    panels = [
        (", ".join(filter(None, (case, row))), drawn)
        for row in rows
        for case in cases
        if (drawn := lines([each for each in found[case] if _apart(each) == row], "rate"))
    ][:_MOST_PANELS]
    if not panels:
        return False
    axes = grid(figure, len(panels), 2, (4.8, 3.8))
    style = styles(name for _, drawn in panels for name, _ in drawn)
    for axis, (title, drawn) in zip(axes, panels):
        axis.set_title(text(title))
        draw_lines(axis, drawn, "rate", style)
        rate_axis(axis, drawn)
        log_axis(axis, reach(each for _, group in drawn for each in group), "s")
    legend_below(figure, axes)
    return True


def _apart(found: Measurement) -> str:
    """Parameters besides the rate and those that are swept."""
    return at(found, but=("rate", "stage", *USUAL))


def _sweeps(results: Results, figure: Any) -> bool:
    """The time to the first token by what else was varied, at the most common rate."""
    measured = _timed(results.of("question", "time to first token"))
    panels = []
    for along, label in (("k", "documents selected"), ("documents", "documents in the index")):
        varied = usual(measured, but=(along,))
        rates = [each.parameters.get("rate") for each in varied if number(each, along) is not None]
        if not rates:
            continue
        wide = max(dict.fromkeys(rates), key=lambda rate: len(_values(varied, along, rate)))
        chosen = [each for each in varied if each.parameters.get("rate") == wide]
        drawn = [line for line in lines(chosen, along) if len(line[1]) > 1]
        if drawn:
            title = label if wide is None else f"{label}, at {wide}x"
            panels.append((along, title, drawn))
    if not panels:
        return False
    axes = grid(figure, len(panels), 2, (4.8, 3.8))
    style = styles(name for _, _, drawn in panels for name, _ in drawn)
    for axis, (along, title, drawn) in zip(axes, panels):
        draw_lines(axis, drawn, along, style)
        points = [each for _, group in drawn for each in group]
        log_axis(axis, reach(points), "s")
        size_axis(axis, [n for each in points if (n := number(each, along))], title)
    axes[0].set_ylabel("time to first token")
    legend_below(figure, axes)
    return True


def _values(measured: list[Measurement], along: str, rate: Any) -> set[Any]:
    return {m.parameters[along] for m in measured if m.parameters.get("rate") == rate}


def _stages(results: Results, figure: Any) -> bool:
    """A bar for every way to answer, divided into stages; a panel leaves out the long last one."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for each in usual(results.of("question", "stage")):
        where = at(each, but=("stage", *USUAL))
        bar = found.setdefault((where, each.implementation), {})
        bar[str(each.parameters.get("stage", ""))] = each.median
    if not found:
        return False
    bars = dict(list(found.items())[:_MOST_BARS])
    named = dict.fromkeys(stage for bar in bars.values() for stage in bar)
    stages = [s for s in _STAGES if s in named] + [s for s in named if s not in _STAGES]
    panels = [stages]
    if "further tokens" in stages and len(stages) > 1:
        panels.insert(0, [stage for stage in stages if stage != "further tokens"])
    places = grouped([rate for rate, _ in bars])
    figure.set_size_inches(5.2 * len(panels), 1.9 + 0.3 * places[-1])
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    names = [text(", ".join(filter(None, key))) for key in bars]
    for axis, shown in zip(axes, panels):
        # A bar without its last stage would pass for a whole answer.
        whole = [bar if shown[-1] in bar else {} for bar in bars.values()]
        ends = _stack(axis, places, whole, stages, shown)
        bar_axis(axis, places, names, max(ends), "s")
    axes[0].set_title("until the first token" if len(panels) > 1 else "")
    axes[-1].set_title("whole answer" if "further tokens" in stages else "")
    say_left_out(axes[0], len(found) - len(bars))
    legend_below(figure, axes)
    return True


def _stack(
    axis: Any,
    places: list[float],
    bars: list[dict[str, float]],
    stages: list[str],
    shown: list[str],
) -> list[float]:
    """Bars of the stages shown; where they end."""
    ends = [0.0] * len(bars)
    for stage in shown:
        colour = COLOURS[stages.index(stage) % len(COLOURS)]
        widths = [bar.get(stage, 0.0) for bar in bars]
        axis.barh(
            places,
            widths,
            left=ends,
            label=text(_STAGES.get(stage, stage)),
            height=0.8,
            color=colour,
        )
        ends = [a + b for a, b in zip(ends, widths)]
    for place, end in zip(places, ends):
        label = amount(end, "s") if end else "not measured"
        axis.text(end, place, f"  {label}", va="center", fontsize=10)
    return ends


def _memory(results: Results, figure: Any) -> bool:
    """Peaks, a panel for each suite, in it a group of bars for each case."""
    panels: dict[str, list[Measurement]] = {}
    measured = [each for each in results.measurements if each.unit == "bytes" and each.samples]
    for each in measured[:_MOST_BARS]:
        panels.setdefault(each.suite, []).append(each)
    if not panels:
        return False
    panels = {suite: _by_case(group) for suite, group in panels.items()}
    places = [grouped([each.case_key for each in group], gap=1.0) for group in panels.values()]
    heights = [group[-1] + 2.2 for group in places]
    figure.set_size_inches(_SIZE[0], 0.5 + 0.6 * len(panels) + 0.32 * sum(heights))
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, at_places, (suite, group) in zip(axes, places, panels.items()):
        axis.set_title(text(suite_name(suite)), loc="left", fontweight="bold")
        _peaks(axis, at_places, group)
    say_left_out(axes[0], len(measured) - _MOST_BARS)
    return True


def _by_case(group: list[Measurement]) -> list[Measurement]:
    """Measurements by case: those of one case together, cases in the order of their first one."""
    cases: dict[tuple[Any, ...], list[Measurement]] = {}
    for each in group:
        cases.setdefault(each.case_key, []).append(each)
    return [each for case in cases.values() for each in case]


def _peaks(axis: Any, places: list[float], group: list[Measurement]) -> None:
    """Bars with the names of implementations beside them, above each group what was measured."""
    style = styles(each.implementation for each in group)
    longest = max(each.median for each in group)
    for row, (place, each) in enumerate(zip(places, group)):
        colour = style[each.implementation]["color"]
        axis.barh(place, each.median, color=colour, height=0.8)
        shown = amount(each.median, "bytes")
        axis.text(each.median, place, f"  {shown}", va="center", fontsize=10)
        if not row or each.case_key != group[row - 1].case_key:
            case = text(", ".join(filter(None, (each.case, at(each)))), 90)
            axis.text(0.008 * 1.25 * longest, place - 0.75, case, va="center", fontsize=10)
    bar_axis(axis, places, [text(each.implementation) for each in group], longest, "bytes")
    axis.set_ylim(places[-1] + 0.7, -1.3)


def _timed(measured: list[Measurement]) -> list[Measurement]:
    """The measurements that can lie on a logarithmic axis."""
    return [each for each in measured if each.unit == "s" and each.median > 0]


_PLOTS: tuple[tuple[str, str, Callable[[Results, Any], bool]], ...] = (
    (
        "throughput",
        "Documents compressed per second by compression rate: median, 20th to 80th percentile",
        _throughput,
    ),
    (
        "answers",
        "Time to the first token and time of a whole answer by compression rate: median, 20th to "
        "80th percentile",
        _answers,
    ),
    (
        "sweeps",
        "Time to the first token by the number of selected documents and by the size of the index: "
        "median, 20th to 80th percentile",
        _sweeps,
    ),
    ("stages", "How long each stage of an answer takes: medians", _stages),
    (
        "search",
        "Time of a search by the number of documents: median, 20th to 80th percentile",
        draw_search,
    ),
    (
        "growth",
        "How cost grows with size: medians with the 20th and 80th percentile and, below them, the "
        "exponent between neighbouring sizes (0 is constant, 1 is linear, 2 is quadratic)",
        draw_growth,
    ),
    ("memory", "Peak memory", _memory),
    (
        "roofline",
        "Speed of each operator beside the limit that the bandwidth and the matrix rate of the "
        "same machine set",
        draw_roofline,
    ),
)
