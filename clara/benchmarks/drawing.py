"""What the pictures of a report share: colours, lines of measurements, axes, legends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from clara.benchmarks.results import Measurement, Parameter
from clara.benchmarks.tables import short
from clara.cli.output import excerpt

MOST_LINES = 8
# Okabe and Ito's, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D31", "#000000")
_MARKERS = "osD^vPX*"
_ALWAYS = {
    "ours": 0,
    "memory": 0,
    "memory, generator merged": 2,
    "compressed online": 4,
    "text": 1,
    "reference way": 5,
    "reference way, online": 5,
    "torch": 1,
    "eager": 1,
    "torch.compile": 3,
}

Line = tuple[str, list[Measurement]]


def text(name: str, longest: int = 44) -> str:
    """A name as matplotlib shows it: neither a formula nor hidden from the legend."""
    shown = excerpt(name, longest).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker by name; names that suites use have the same in most pictures."""
    names = list(dict.fromkeys(names))
    places: dict[str, int] = {}
    for name in names:
        if name in _ALWAYS and _ALWAYS[name] not in places.values():
            places[name] = _ALWAYS[name]
    free = [place for place in range(len(COLOURS)) if place not in places.values()] or [0]
    others = [name for name in names if name not in places]
    for number, name in enumerate(others):
        places[name] = free[number % len(free)]
    return {
        name: {"color": COLOURS[place], "marker": _MARKERS[place], "markersize": 5}
        for name, place in places.items()
    }


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
    if isinstance(value, str):
        return value
    return f"{short(value)}x" if name == "rate" else f"{name} {short(value)}"


def draw_lines(axis: Any, drawn: Sequence[Line], along: str, style: dict[str, Any]) -> None:
    """Medians with the 20th and 80th percentile; at most `MOST_LINES`, and says so."""
    for name, group in drawn[:MOST_LINES]:
        places = [number(each, along) for each in group]
        middle = [each.median for each in group]
        axis.errorbar(places, middle, bars(group), capsize=3, label=text(name), **style[name])
    say_left_out(axis, len(drawn) - MOST_LINES)


def bars(group: Sequence[Measurement]) -> list[list[float]]:
    """Distances of the 20th and 80th percentile from the median."""
    low = [max(0.0, each.median - each.percentile(0.2)) for each in group]
    return [low, [max(0.0, each.percentile(0.8) - each.median) for each in group]]


def say_left_out(axis: Any, count: int) -> None:
    if count > 0:
        axis.set_title(f"{axis.get_title()} (and {count} more in the tables)".strip(), fontsize=9)


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
    steps = (1.0, 2.0, 5.0) if high / low < (400 if upright else 30) else (1.0,)
    own.set_major_locator(LogLocator(subs=steps, numticks=9))
    own.set_major_formatter(EngFormatter(unit))
    own.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.3)


def reach(group: Iterable[Measurement]) -> list[float]:
    """What an axis has to hold: medians and percentiles, as far as they have a logarithm."""
    found = [v for m in group for v in (m.median, m.percentile(0.2), m.percentile(0.8))]
    return [value for value in found if value > 0]


def grouped(keys: Sequence[Any]) -> list[float]:
    """Places of bars from 0 on: those of equal keys beside each other, a gap between others."""
    places, place = [], 0.0
    for number, key in enumerate(keys):
        place += (1.0 if keys[number - 1] == key else 1.5) if number else 0.0
        places.append(place)
    return places


def bar_axis(axis: Any, places: Sequence[float], names: Sequence[str], longest: float) -> None:
    """Names at the first bar of each group, and room for what is written behind bars."""
    axis.set_yticks(places, names, fontsize="small")
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(places[-1] + 0.7, -0.7)
    axis.set_xlim(0, 1.22 * longest or 1)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)


def grid(figure: Any, count: int, columns: int, size: tuple[float, float]) -> list[Any]:
    """That many panels of a size in inches, in rows."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure.set_size_inches(max(6.5, size[0] * columns), size[1] * rows + 0.9)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[count:]:
        axis.remove()
    return list(axes[:count])


def legend_below(figure: Any, axes: Iterable[Any], columns: int = 3) -> None:
    """One legend of all that is drawn, below the figure."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            found.setdefault(label, handle)
    figure.legend(
        list(found.values()),
        list(found),
        loc="outside lower center",
        ncols=min(columns, len(found)),
        fontsize="small",
        frameon=False,
    )
