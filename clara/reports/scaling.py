"""Pictures on two logarithmic axes: search, growth, and the roofline of the operators."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from clara.reports.drawing import (
    MOST_LINES,
    Line,
    bars,
    cells,
    draw_lines,
    grid,
    legend_below,
    lines,
    log_axis,
    reach,
    say_left_out,
    size_axis,
    styles,
    text,
)
from clara.reports.growth import Curve, curves
from clara.reports.results import Measurement, Results
from clara.reports.tables import limit_share, short

_MOST_PANELS = 12
_FEW_LABELS = 8
_DASHES = ("-", "--", ":", "-.")
_OTHER = "fastest other"
_FROM_DISK = "ours, from the index on disk"


def draw_search(results: Results, figure: Any) -> bool:
    """Seconds of a search by documents, a panel for each compression rate."""
    measured = [
        each
        for each in [*results.of("rank", "search"), *results.of("index", "search")]
        if each.unit == "s" and each.median > 0
    ]
    rates = dict.fromkeys(each.parameters.get("rate") for each in measured)
    panels: list[tuple[Any, list[Line]]] = []
    for rate in rates:
        at_rate = [each for each in measured if each.parameters.get("rate") == rate]
        drawn = [
            (name if suite == "rank" else name.replace("ours", _FROM_DISK, 1), group)
            for suite in ("rank", "index")
            for name, group in lines([m for m in at_rate if m.suite == suite], "documents")
        ]
        if drawn:
            panels.append((rate, drawn))
    if not panels:
        return False
    axes = grid(figure, len(panels[:_MOST_PANELS]), 3, (3.6, 3.8))
    style = _search_styles([drawn for _, drawn in panels])
    for axis, (rate, drawn) in zip(axes, panels):
        axis.set_title("" if rate is None else text(f"{rate}x compression"))
        draw_lines(axis, drawn, "documents", style)
        points = [each for _, group in drawn for each in group]
        sizes = [float(each.parameters["documents"]) for each in points]
        log_axis(axis, reach(points), "s")
        size_axis(axis, sizes, "documents")
    counts = {each.quantities.get("queries", 1) for each in measured}
    several = f" by {short(max(counts))} queries" if len(counts) == 1 else ""
    axes[0].set_ylabel(f"time of a search{several}")
    legend_below(figure, axes)
    return True


def _search_styles(panels: Sequence[Sequence[Line]]) -> dict[str, dict[str, Any]]:
    """Colour and marker by implementation; dashes by what follows its name, such as the dtype."""
    named = {
        name: _FROM_DISK if name.startswith(_FROM_DISK) else group[0].implementation
        for drawn in panels
        for name, group in drawn
    }
    style = styles(named.values())
    kinds = list(dict.fromkeys(name.replace(way, "", 1) for name, way in named.items()))
    dashes = {kind: _DASHES[place % len(_DASHES)] for place, kind in enumerate(kinds)}
    return {
        name: {**style[way], "linestyle": dashes[name.replace(way, "", 1)]}
        for name, way in named.items()
    }


def draw_growth(results: Results, figure: Any) -> bool:
    """Cost by size, a panel for each kind of size; below it the exponents between its points."""
    panels: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves(results):
        panels.setdefault((curve.of, curve.unit), []).append(curve)
    if not panels:
        return False
    places = cells(figure, len(list(panels)[:_MOST_PANELS]), 2, (4.8, 4.6))
    for place, ((of, unit), drawn) in zip(places, panels.items()):
        parts = place.subgridspec(2, 1, height_ratios=(2.4, 1))
        costs, slopes = (figure.add_subplot(part) for part in parts)
        style = styles(curve.name for curve in drawn)
        for curve in drawn[:MOST_LINES]:
            medians = [each.median for each in curve.points]
            costs.errorbar(
                *(curve.sizes, medians, bars(curve.points)),
                label=text(curve.name, 60),
                capsize=3,
                **style[curve.name],
            )
        say_left_out(costs, len(drawn) - MOST_LINES)
        _exponents(slopes, drawn[:MOST_LINES], style)
        sizes = [size for curve in drawn for size in curve.sizes]
        spans = reach(each for curve in drawn for each in curve.points)
        log_axis(costs, spans, "s" if unit == "s" else "B")
        for axis in (costs, slopes):
            size_axis(axis, sizes, of)
        costs.set_xlabel("")
        costs.tick_params(labelbottom=False)
        costs.set_ylabel("time" if unit == "s" else "memory")
        costs.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1.0))
    return True


def _exponents(axis: Any, drawn: Sequence[Curve], style: dict[str, dict[str, Any]]) -> None:
    """A step for each two neighbouring points, as wide as the sizes are apart."""
    exponents = [slope.exponent for curve in drawn for slope in curve.slopes]
    low, high = min(0.0, *exponents), max(1.0, *exponents)
    room = 0.3 * (high - low)
    axis.set_ylim(low - 0.5 * room, high + 1.8 * room)
    axis.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    for curve in drawn:
        colour = style[curve.name]["color"]
        for slope in curve.slopes:
            axis.plot(slope.sizes, [slope.exponent] * 2, color=colour, solid_capstyle="butt")
            if len(exponents) <= _FEW_LABELS and len(drawn) == 1:
                middle = math.sqrt(slope.sizes[0]) * math.sqrt(slope.sizes[1])
                shown = f"{slope.exponent:.2f}"
                axis.text(
                    *(middle, slope.exponent + 0.2 * room, shown),
                    ha="center",
                    va="bottom",
                    fontsize=10,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
                )
    axis.set_ylabel("exponent")
    axis.grid(alpha=0.3)


def draw_roofline(results: Results, figure: Any) -> bool:
    """What operators reach of the measured bandwidth and matrix rate, a panel for each.

    Cases that begin with the same word share it; drawn are ours and the fastest of the others.
    Where there are no FLOPs, bandwidth is the only limit, and the panel has bytes/s by bytes.
    """
    limits = tuple(results.ceilings.get(name, 0.0) for name in ("bandwidth", "matrix_rate"))
    measured = _ours_and_fastest([each for each in results.of("operators") if _has_work(each)])
    if not measured or min(limits) <= 0:
        return False
    panels: dict[tuple[bool, str], list[Measurement]] = {}
    for each in measured:
        panels.setdefault((_computes(each), _words(each)[0]), []).append(each)
    shown = sorted(panels.items(), key=lambda panel: not panel[0][0])[:_MOST_PANELS]
    axes = grid(figure, len(shown), 3, (3.5, 3.2))
    style = _roofline_styles()
    for axis, ((computes, operator), drawn) in zip(axes, shown):
        _roof(axis, [each for each in measured if _computes(each) == computes], limits)
        for each in sorted(drawn, key=_is_ours):
            filled = "none" if _is_backward(each) else "full"
            way = "ours" if _is_ours(each) else _OTHER
            axis.plot(*([value] for value in _place(each)), fillstyle=filled, **style[way])
        kind = "" if computes else " (cases without FLOPs)"
        axis.set_title(text(operator) + kind + _reached(drawn, results.ceilings))
    for name, own in style.items():
        axes[0].plot([], [], label=name, **own)
    if any(_is_backward(each) for _, drawn in shown for each in drawn):
        for name, filled in (("forward", "full"), ("backward", "none")):
            look = {**style["ours"], "color": "grey", "fillstyle": filled}
            axes[0].plot([], [], label=name, **look)
    legend_below(figure, axes, columns=5)
    return True


def _roofline_styles() -> dict[str, dict[str, Any]]:
    names = styles(["ours", "eager"])
    looks = {"ours": names["ours"], _OTHER: names["eager"]}
    sizes = {"ours": 8, _OTHER: 6}
    return {n: {**look, "linestyle": "", "markersize": sizes[n]} for n, look in looks.items()}


def _ours_and_fastest(measured: Sequence[Measurement]) -> list[Measurement]:
    """For each case, ours and the fastest of the others."""
    chosen: dict[tuple[Any, ...], Measurement] = {}
    for each in measured:
        key = *each.case_key, _is_ours(each)
        if key not in chosen or each.median < chosen[key].median:
            chosen[key] = each
    return list(chosen.values())


def _words(found: Measurement) -> list[str]:
    """The words of a case such as "sparsemax, backward, long rows"."""
    return re.split(r"[\s,]+", found.case.strip())


def _is_ours(found: Measurement) -> bool:
    return found.implementation == "ours"


def _is_backward(found: Measurement) -> bool:
    return "backward" in _words(found)


def _roof(axis: Any, measured: Sequence[Measurement], limits: Sequence[float]) -> None:
    """The limit over the span of all measurements of its kind, and axes for them."""
    bandwidth, rate = limits
    places, reached = zip(*map(_place, measured), strict=True)
    if _computes(measured[0]):
        ends = min(*places, rate / bandwidth), max(*places, rate / bandwidth)
        corners = [ends[0] / 2, rate / bandwidth, ends[1] * 2]
        roof = [min(rate, bandwidth * corner) for corner in corners]
        units, label = ("", "FLOP/s"), "FLOP per byte"
    else:
        ends = min(places), max(places)
        corners, roof = [ends[0] / 2, ends[1] * 2], [bandwidth] * 2
        units, label = ("B", "B/s"), "bytes read and written"
    axis.plot(corners, roof, color="black", linewidth=1, label="measured limit")
    log_axis(axis, ends, units[0], upright=False)
    log_axis(axis, [*reached, max(roof)], units[1])
    axis.set_xlabel(label)


def _reached(drawn: Sequence[Measurement], ceilings: dict[str, float]) -> str:
    """How much of the limit ours reaches, over all of an operator's cases."""
    own = [limit_share(each, ceilings) for each in drawn if _is_ours(each)]
    shares = sorted(share for share in own if share)
    shown = dict.fromkeys(f"{share:.0%}" for share in [*shares[:1], *shares[-1:]])
    return f"\nours: {' to '.join(shown)} of the limit" if shown else ""


def _has_work(found: Measurement) -> bool:
    return found.unit == "s" and found.median > 0 and found.quantities.get("bytes", 0) > 0


def _computes(found: Measurement) -> bool:
    return found.quantities.get("flops", 0) > 0


def _place(found: Measurement) -> tuple[float, float]:
    """The place of a measurement in its panel."""
    moved, flops = found.quantities["bytes"], found.quantities.get("flops", 0)
    if _computes(found):
        return flops / moved, flops / found.median
    return moved, moved / found.median
