"""Names written into pictures: at the ends of lines, and beside points."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from clara.reports.drawing import text

_SMALL = 9.5  # points, of labels
_LETTER = 0.58  # width of a letter as a share of its height
_BESIDE = 1.04  # where names beside axes begin, as a share of the width of the axes


@dataclass(frozen=True)
class Label:
    """A name for a line that ends at a place, in data."""

    x: float
    y: float
    name: str
    colour: str


def label_ends(figure: Any, panels: Sequence[tuple[Any, Sequence[Label]]]) -> None:
    """Write names to the right of axes, none over another, with a thin line to each end."""
    for axis, labels in panels:
        for each in labels:
            # Room for the names, the highest too, which the layout then leaves free.
            axis.annotate(
                text(each.name),
                xy=(_BESIDE, 1),
                xycoords="axes fraction",
                fontsize=_SMALL,
                va="center",
                alpha=0,
                annotation_clip=False,
            )
    _lay_out(figure)
    for axis, labels in panels:
        low, high = axis.get_ylim()
        apart = 1.35 * _SMALL * figure.dpi / 72 / axis.get_window_extent().height
        places = _spread([(each.y - low) / (high - low) for each in labels], apart)
        for label, place in zip(labels, places):
            axis.annotate(
                text(label.name),
                xy=(label.x, label.y),
                xytext=(_BESIDE, place),
                textcoords="axes fraction",
                color=label.colour,
                fontsize=_SMALL,
                va="center",
                annotation_clip=False,
                in_layout=False,
                arrowprops={
                    "arrowstyle": "-",
                    "color": label.colour,
                    "lw": 0.6,
                    "shrinkA": 0,
                    "shrinkB": 4,
                    "relpos": (0, 0.5),
                },
            )


def _lay_out(figure: Any) -> None:
    """Put the axes where they stay."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def _spread(heights: Sequence[float], apart: float) -> list[float]:
    """Heights as near as they can be to those given, at least so far apart, in the same order."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    groups: list[list[float]] = []  # each of lowest place and number of labels
    for i in order:
        groups.append([_within(heights[i], 1, apart), 1])
        while len(groups) > 1 and groups[-1][0] < groups[-2][0] + groups[-2][1] * apart:
            upper, lower = groups.pop(), groups.pop()
            count = upper[1] + lower[1]
            middle_low = lower[0] + (lower[1] - 1) * apart / 2
            middle_high = upper[0] + (upper[1] - 1) * apart / 2
            middle = (middle_low * lower[1] + middle_high * upper[1]) / count
            groups.append([_within(middle - (count - 1) * apart / 2, count, apart), count])
    places = [low + row * apart for low, count in groups for row in range(int(count))]
    found = [0.0] * len(heights)
    for i, place in zip(order, places):
        found[i] = place
    return found


def _within(lowest: float, count: float, apart: float) -> float:
    """The lowest of so many places, moved so that all are beside the axes if they can be."""
    return max(0.0, min(lowest, 1 - (count - 1) * apart))


@dataclass(frozen=True)
class Point:
    """A point with a name, its style, and the ends of its bars across and upright, in data."""

    x: float
    y: float
    name: str
    style: dict[str, Any]
    across: tuple[float, float]
    upright: tuple[float, float]


Box = tuple[float, float, float, float]

# How far from its points a name is looked for, across and up in heights of a name, nearest first.
_OFFSETS = sorted(
    ((1.5 * across, 0.35 * up) for across in range(9) for up in range(-40, 41)),
    key=lambda offset: (abs(offset[0]) + abs(offset[1]), offset),
)


def label_points(figure: Any, axis: Any, points: Sequence[Point]) -> None:
    """Write names beside points, each where it covers no other name, no point and no bar.

    Points that nearly touch have a list of their names, highest first, with their markers.
    """
    _lay_out(figure)
    unit = figure.dpi / 72
    height = 1.25 * _SMALL * unit
    places = [tuple(axis.transData.transform((each.x, each.y))) for each in points]
    taken = [box for each in points for box in _covered(axis, each, unit)]
    for group in _groups(places, height):
        group.sort(key=lambda i: -points[i].y)
        several = len(group) > 1
        longest = max(len(text(points[i].name)) for i in group) + 2.5 * several
        size = _LETTER * _SMALL * unit * longest, height * len(group)
        around = (
            min(places[i][0] for i in group),
            min(places[i][1] for i in group),
            max(places[i][0] for i in group),
            max(places[i][1] for i in group),
        )
        box = _free(around, size, height, axis.get_window_extent(), taken)
        taken.append(box)
        for row, i in enumerate(group):
            up = box[3] - (row + 0.5) * height
            _write(figure, axis, points[i], places[i], (box[0], box[2], up), marker=several)


def _write(
    figure: Any,
    axis: Any,
    point: Point,
    place: tuple[float, ...],
    line: tuple[float, float, float],
    *,
    marker: bool,
) -> None:
    """Write the name of a point, with its marker before it or, if it is far, with a line to it.

    Args:
        place: of the point in pixels.
        line: left and right end and height of the line of text in pixels.
        marker: its name is in a list.
    """
    from matplotlib.transforms import ScaledTranslation

    unit, colour = figure.dpi / 72, point.style["color"]
    left, right, up = line
    across, height = place[0], 1.25 * _SMALL * unit
    far = max(abs(up - place[1]), left - across, across - right) > 1.6 * height and not marker
    if marker:
        shift = (left - across + 0.5 * height) / unit / 72, (up - place[1]) / unit / 72
        moved = axis.transData + ScaledTranslation(*shift, figure.dpi_scale_trans)
        style = {**point.style, "linestyle": "none", "markersize": 5}
        axis.plot([point.x], [point.y], transform=moved, in_layout=False, **style)
        left += 1.25 * height
    arrow = {
        "arrowstyle": "-",
        "color": colour,
        "lw": 0.6,
        "shrinkA": 0,
        "shrinkB": 4,
        "relpos": (0 if left > across else 1, 0.5),
    }
    axis.annotate(
        text(point.name),
        xy=(point.x, point.y),
        xytext=((left - across) / unit, (up - place[1]) / unit),
        textcoords="offset points",
        color=colour,
        fontsize=_SMALL,
        va="center",
        arrowprops=arrow if far else None,
    )


def _groups(places: Sequence[tuple[float, ...]], height: float) -> list[list[int]]:
    """Numbers of points, those together that nearly touch, in the order of the first of each."""
    groups: list[list[int]] = []
    for i, (x, y) in enumerate(places):
        near = [
            group
            for group in groups
            if any(
                abs(places[j][0] - x) < 2.5 * height and abs(places[j][1] - y) < 1.4 * height
                for j in group
            )
        ]
        joined = sorted([i, *(j for group in near for j in group)])
        groups = [group for group in groups if group not in near] + [joined]
    return sorted(groups)


def _covered(axis: Any, point: Point, unit: float) -> Iterable[Box]:
    """What a point and its bars cover."""
    x, y = axis.transData.transform((point.x, point.y))
    left, right = (axis.transData.transform((end, point.y))[0] for end in point.across)
    low, high = (axis.transData.transform((point.x, end))[1] for end in point.upright)
    size = 5 * unit
    return [
        (x - size, y - size, x + size, y + size),
        (left - unit, y - 2 * unit, right + unit, y + 2 * unit),
        (x - 2 * unit, low - unit, x + 2 * unit, high + unit),
    ]


def _free(
    around: Box, size: tuple[float, float], height: float, frame: Any, taken: Sequence[Box]
) -> Box:
    """A place for names right or left of points, on their height or above or below.

    Args:
        around: what the points cover.
        size: of the names in pixels, each line of which has this height.
        taken: what they must not cover.
    """
    width, high = size
    middle = (around[1] + around[3]) / 2
    for away, rise in _OFFSETS:
        gap = (0.6 + away) * height
        low = middle + rise * height - high / 2
        for left in (around[2] + gap, around[0] - gap - width):
            box = (left, low, left + width, low + high)
            inside = frame.x0 <= box[0] and box[2] <= frame.x1 and frame.y0 <= low
            if inside and box[3] <= frame.y1 and not any(_meet(box, each) for each in taken):
                return box
    left, low = around[2] + 0.6 * height, middle - high / 2
    return left, low, left + width, low + high


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
