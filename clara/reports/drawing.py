"""Shared parts of a report's pictures: colours, lines of measurements, axes, legends."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from clara.reports.results import Measurement, Parameter
from clara.reports.tables import setting
from clara.terminal.printing import excerpt

MOST_LINES = 8
# Okabe and Ito's colours, which colour-blind readers can tell apart; brown instead of yellow,
# which is hard to see on white.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D31", "#000000")
MARKERS = "osDpvPX^"
_LABEL = 0.11  # of the width of a panel: room that the number of a size takes
# Names of the suites, each with the place of its colour and marker in every picture. Names that
# share a place do not appear in the same picture, or mean the same there.
_PLACES = {
    "ours": 0,
    "memory": 0,
    "text": 1,
    "torch": 1,
    "eager": 1,
    "memory, generator merged": 2,
    "ours, from the index on disk": 2,
    "torch.compile": 3,
    "compressed online": 4,
    "reference way": 5,
    "reference way, online": 5,
    "text by LLMLingua-2": 6,
    "FAISS": 7,
}
# For every picture, whatever the user's own settings say.
LOOK: dict[Any, Any] = {
    "font.size": 11.0,
    "axes.titlesize": 11.0,
    "axes.labelsize": 11.0,
    "xtick.labelsize": 10.0,
    "ytick.labelsize": 10.0,
    "legend.fontsize": 10.0,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}

Line = tuple[str, list[Measurement]]


def text(name: str, longest: int = 44) -> str:
    """A name as matplotlib shows it: neither a formula nor hidden from the legend."""
    shown = excerpt(name, longest).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker by name.

    A name of the suites has the same in every picture, unless another of the same place comes
    before it. Up to 64 names differ in colour or in marker.
    """
    names = list(dict.fromkeys(names))
    places: dict[str, int] = {}
    for name in names:
        if name in _PLACES and _PLACES[name] not in places.values():
            places[name] = _PLACES[name]
    free = iter([place for place in range(64) if place not in places.values()])
    for name in names:
        if name not in places:
            places[name] = next(free, 0)
    return {name: _style(place) for name, place in places.items()}


def _style(place: int) -> dict[str, Any]:
    """Colour and marker; each round through the colours moves the markers by one."""
    count = len(COLOURS)
    marker = MARKERS[(place + place // count) % count]
    return {"color": COLOURS[place % count], "marker": marker, "markersize": 6}


def number(found: Measurement, name: str) -> float | None:
    """A parameter that can lie on a logarithmic axis."""
    value = found.parameters.get(name)
    return float(value) if isinstance(value, int | float) and value > 0 else None


def lines(measured: Iterable[Measurement], along: str) -> list[Line]:
    """Measurements by implementation, and by all parameters that differ but `along`."""
    found = [each for each in measured if number(each, along)]
    names = dict.fromkeys(name for each in found for name in each.parameters if name != along)
    apart = [name for name in names if len({each.parameters.get(name) for each in found}) > 1]
    groups: dict[str, list[Measurement]] = {}
    for each in found:
        own = [_named(name, each.parameters[name]) for name in apart if name in each.parameters]
        groups.setdefault(", ".join([each.implementation, *own]), []).append(each)
    for group in groups.values():
        group.sort(key=lambda each: each.parameters[along])
    return list(groups.items())


def _named(name: str, value: Parameter) -> str:
    return value if isinstance(value, str) else setting(name, value)


def draw_lines(axis: Any, drawn: Sequence[Line], along: str, style: dict[str, Any]) -> None:
    """Medians with the 20th and 80th percentile; at most `MOST_LINES`, and says so."""
    for name, group in drawn[:MOST_LINES]:
        places = [number(each, along) for each in group]
        middle = [each.median for each in group]
        axis.errorbar(places, middle, bars(group), capsize=3, label=text(name), **style[name])
    say_left_out(axis, len(drawn) - MOST_LINES)


def bars(group: Sequence[Measurement]) -> list[list[float]]:
    """Distances of the 20th and 80th percentile from the median."""
    low = [max(0.0, each.median - each.spread[0]) for each in group]
    return [low, [max(0.0, each.spread[1] - each.median) for each in group]]


def say_left_out(axis: Any, count: int) -> None:
    if count > 0:
        axis.set_title(f"{axis.get_title()} (and {count} more in the tables)".strip())


def rate_axis(axis: Any, drawn: Sequence[Line]) -> None:
    """Compression rates, evenly spaced when doubled."""
    rates = sorted({rate for _, group in drawn for each in group if (rate := number(each, "rate"))})
    ticks = rates[:: -(-len(rates) // 8)]
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlim(rates[0] / 1.4, rates[-1] * 1.4)
    axis.set_xlabel("compression rate")
    axis.grid(alpha=0.3)


def log_axis(axis: Any, values: Sequence[float], unit: str, *, upright: bool = True) -> None:
    """A logarithmic axis over positive values whose ticks are numbers with a unit."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    low, high = min(values) / 1.4, max(values) * 1.4
    own = axis.yaxis if upright else axis.xaxis
    (axis.set_yscale if upright else axis.set_xscale)("log")
    (axis.set_ylim if upright else axis.set_xlim)(low, high)
    own.set_major_locator(LogLocator(subs=_subs(high / low, upright), numticks=9))
    own.set_major_formatter(EngFormatter(unit))
    own.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.3)


def _subs(span: float, upright: bool) -> tuple[float, ...]:
    """Where in a decade the ticks of an axis are that spans such a factor."""
    if span < 4:
        return 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0
    if span < 12:
        return 1.0, 1.5, 2.0, 3.0, 5.0, 7.0
    return (1.0, 2.0, 5.0) if span < (400 if upright else 60) else (1.0,)


def size_axis(axis: Any, values: Iterable[float], label: str) -> None:
    """A logarithmic horizontal axis with a tick at each measured size.

    Ticks that have no room for a number have none: the numbers of the largest and smallest size
    and of those that were measured most often come first.
    """
    from matplotlib.ticker import NullLocator

    counts = Counter(values)
    sizes = sorted(counts)
    log_axis(axis, sizes, "", upright=False)
    low, high = axis.get_xlim()
    least = _LABEL * math.log(high / low)
    shown: list[float] = []
    for size in sorted(sizes, key=lambda size: (size not in (sizes[0], sizes[-1]), -counts[size])):
        if all(abs(math.log(size / other)) > least for other in shown):
            shown.append(size)
    axis.set_xticks(sizes, [_count(size) if size in shown else "" for size in sizes])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel(text(label))


def _count(size: float) -> str:
    """A size in few letters, such as 7,680 or 100k."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= 10 * factor or (size >= factor and size % factor == 0 and factor > 1e3):
            return f"{size / factor:.4g}{letter}" if size < 1e13 else f"{size:.0e}"
    return f"{size:,.4g}" if size < 1000 else f"{size:,.0f}"


def reach(group: Iterable[Measurement]) -> list[float]:
    """What an axis has to hold: medians and percentiles, as far as they have a logarithm."""
    found = [v for m in group for v in (m.median, *m.spread)]
    return [value for value in found if value > 0]


def grouped(keys: Sequence[Any], gap: float = 0.5) -> list[float]:
    """Places of bars from 0 on: those of equal keys beside each other, a gap between others."""
    places, place = [], 0.0
    for number, key in enumerate(keys):
        place += (1.0 if keys[number - 1] == key else 1.0 + gap) if number else 0.0
        places.append(place)
    return places


_BAR_UNITS = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")),
    "bytes": ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes")),
}


def bar_axis(
    axis: Any, places: Sequence[float], names: Sequence[str], longest: float, unit: str
) -> None:
    """Names beside the bars, room for what is written behind them, and ticks of one unit.

    Args:
        longest: bar, in the unit of `Measurement`, "s" or "bytes".
    """
    from matplotlib.ticker import MaxNLocator

    axis.set_yticks(places, names)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(places[-1] + 0.7, -0.7)
    end = 1.25 * longest or 1.0
    axis.set_xlim(0, end)
    units = _BAR_UNITS[unit]
    size, name = next((each for each in units if longest >= each[0]), units[-1])
    steps = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(0, end / size)
    ticks = [step for step in steps if 0 <= step <= end / size]
    axis.set_xticks([step * size for step in ticks], [f"{step:,.10g} {name}" for step in ticks])
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)


def cells(figure: Any, count: int, columns: int, size: tuple[float, float]) -> list[Any]:
    """Places for that many panels of about a size in inches, in rows without an empty cell.

    Rows have at most that many columns, the first ones at most one more than the last; panels of a
    shorter row are wider.
    """
    rows = -(-count // columns)
    lengths = [count // rows + (row < count % rows) for row in range(rows)]
    figure.set_size_inches(max(6.5, size[0] * max(lengths)), size[1] * rows + 0.9)
    whole = figure.add_gridspec(rows, math.lcm(*lengths))
    found = []
    for row, length in enumerate(lengths):
        width = math.lcm(*lengths) // length
        found += [whole[row, width * place : width * (place + 1)] for place in range(length)]
    return found


def grid(figure: Any, count: int, columns: int, size: tuple[float, float]) -> list[Any]:
    """Panels in the places of `cells`."""
    return [figure.add_subplot(cell) for cell in cells(figure, count, columns, size)]


def legend_below(figure: Any, axes: Iterable[Any], columns: int = 3) -> None:
    """One legend of all that is drawn, below the figure, in rows of about the same length."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            found.setdefault(label, handle)
    rows = -(-len(found) // columns)
    figure.legend(
        list(found.values()),
        list(found),
        loc="outside lower center",
        ncols=-(-len(found) // rows),
        frameon=False,
    )
