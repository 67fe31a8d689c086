"""Pictures on two logarithmic axes: search, growth, and the roofline of the operators."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from clara.benchmarks.drawing import (
    COLOURS,
    MOST_LINES,
    Line,
    bars,
    draw_lines,
    grid,
    legend_below,
    lines,
    log_axis,
    reach,
    say_left_out,
    styles,
    text,
)
from clara.benchmarks.growth import Curve, curves
from clara.benchmarks.results import Measurement, Results
from clara.benchmarks.tables import limit_share, short

_MOST_PANELS = 12
_OURS, _OTHER = COLOURS[0], COLOURS[1]
_DASHES = ("-", "--", ":", "-.")


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
            (name if suite == "rank" else f"index: {name}", group)
            for suite in ("rank", "index")
            for name, group in lines([m for m in at_rate if m.suite == suite], "documents")
        ]
        if drawn:
            panels.append((rate, drawn))
    if not panels:
        return False
    axes = grid(figure, len(panels[:_MOST_PANELS]), 3, (4.2, 3.6))
    style = _search_styles([drawn for _, drawn in panels])
    for axis, (rate, drawn) in zip(axes, panels):
        axis.set_title("" if rate is None else text(f"{rate}x"), fontsize=10)
        draw_lines(axis, drawn, "documents", style)
        points = [each for _, group in drawn for each in group]
        sizes = [float(each.parameters["documents"]) for each in points]
        log_axis(axis, sizes, "", upright=False)
        log_axis(axis, reach(points), "s")
        axis.set_xlabel("documents")
    counts = {each.quantities.get("queries", 1) for each in measured}
    several = f" by {short(max(counts))} queries" if len(counts) == 1 else ""
    axes[0].set_ylabel(f"time of a search{several}")
    legend_below(figure, axes, columns=4)
    return True


def _search_styles(panels: Sequence[Sequence[Line]]) -> dict[str, dict[str, Any]]:
    """Colours by what follows the implementation's name, such as the dtype; its own dashes."""
    named = {name: group[0].implementation for drawn in panels for name, group in drawn}
    ways = list(dict.fromkeys(named.values()))
    kinds = {name: name.replace(way, "", 1) or way for name, way in named.items()}
    style = styles(kinds.values())
    dashes = {way: _DASHES[place % len(_DASHES)] for place, way in enumerate(ways)}
    return {n: {**style[kind], "linestyle": dashes[named[n]]} for n, kind in kinds.items()}


def draw_growth(results: Results, figure: Any) -> bool:
    """Cost by size with the fitted power laws, a panel for each kind of size."""
    panels: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves(results):
        panels.setdefault((curve.of, curve.unit), []).append(curve)
    if not panels:
        return False
    axes = grid(figure, len(list(panels)[:_MOST_PANELS]), 2, (5.2, 4.2))
    for axis, ((of, unit), drawn) in zip(axes, panels.items()):
        style = styles(curve.name for curve in drawn)
        for curve in drawn[:MOST_LINES]:
            colour = style[curve.name]["color"]
            axis.plot(curve.sizes, [curve.law.at(s) for s in curve.sizes], color=colour, alpha=0.5)
            label = text(f"{curve.name}: exponent {curve.law.exponent:.2f}", 60)
            costs = [each.median for each in curve.points]
            spread = bars(curve.points)
            axis.errorbar(
                curve.sizes,
                costs,
                spread,
                label=label,
                linestyle="",
                capsize=3,
                **style[curve.name],
            )
        say_left_out(axis, len(drawn) - MOST_LINES)
        log_axis(axis, [size for curve in drawn for size in curve.sizes], "", upright=False)
        spans = reach(each for curve in drawn for each in curve.points)
        log_axis(axis, spans, "s" if unit == "s" else "B")
        axis.set_xlabel(text(of))
        axis.set_ylabel("time" if unit == "s" else "memory")
        axis.legend(fontsize="small", frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1.0))
    return True


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
    axes = grid(figure, len(shown), 3, (3.9, 3.2))
    for axis, ((computes, operator), drawn) in zip(axes, shown):
        _roof(axis, [each for each in measured if _computes(each) == computes], limits)
        for each in sorted(drawn, key=_is_ours):
            _point(axis, each)
        axis.set_title(text(operator) + _reached(drawn, results.ceilings), fontsize=9)
    legends = {"ours": (_OURS, "full"), "fastest other": (_OTHER, "full")}
    if any(_is_backward(each) for _, drawn in shown for each in drawn):
        legends |= {"forward": ("grey", "full"), "backward": ("grey", "none")}
    for name, (colour, filled) in legends.items():
        axes[0].plot([], [], "o", color=colour, fillstyle=filled, label=name)
    legend_below(figure, axes, columns=5)
    return True


def _ours_and_fastest(measured: Sequence[Measurement]) -> list[Measurement]:
    """Of each case ours and the fastest of the others."""
    chosen: dict[tuple[Any, ...], Measurement] = {}
    for each in measured:
        key = *each.case_key, _is_ours(each)
        if key not in chosen or each.median < chosen[key].median:
            chosen[key] = each
    return list(chosen.values())


def _words(found: Measurement) -> list[str]:
    """Of a case such as "sparsemax, backward, long rows"."""
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
        units, label = ("B", "B/s"), "read and written"
    axis.plot(corners, roof, color="black", linewidth=1, label="measured limit")
    log_axis(axis, ends, units[0], upright=False)
    log_axis(axis, [*reached, max(roof)], units[1])
    axis.tick_params(labelsize=8)
    axis.set_xlabel(label, fontsize=8)


def _point(axis: Any, found: Measurement) -> None:
    place, reached = _place(found)
    colour, size = (_OURS, 7) if _is_ours(found) else (_OTHER, 5)
    filled = "none" if _is_backward(found) else "full"
    axis.plot([place], [reached], "o", color=colour, fillstyle=filled, markersize=size)


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
    """Of a measurement in its panel."""
    moved, flops = found.quantities["bytes"], found.quantities.get("flops", 0)
    if _computes(found):
        return flops / moved, flops / found.median
    return moved, moved / found.median
