"""Pictures of exact match by what an answer costs: tokens of the prompt, time, bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clara.evaluation.report.labels import Point, label_points
from clara.evaluation.report.look import Theme, entry_style, share_axis
from clara.evaluation.report.records import Entry, Run, Score
from clara.reports.drawing import say_left_out
from clara.reports.tables import short

_MOST_POINTS = 24
_FAR = 40  # times as large: from there on an axis is logarithmic

Cost = tuple[Entry, float, tuple[float, float]]


def by_prompt(run: Run, figure: Any, theme: Theme) -> bool:
    """Exact match by the length of the prompt, memory vectors included."""
    points = []
    for entry in _ways(run):
        tokens = entry.prompt_tokens
        if tokens is not None and tokens > 0:
            points.append((entry, tokens, (tokens, tokens)))
    return _scatter(figure, theme, points, "tokens and vectors of the prompt, mean")


def by_latency(run: Run, figure: Any, theme: Theme) -> bool:
    """Exact match by the time of an answer."""
    points = []
    for entry in _ways(run):
        total = entry.total_ms
        if total is not None and total.median > 0:
            ends = (total.low or total.median, total.high or total.median)
            points.append((entry, total.median, ends))
    if all(high < 100 for _, _, (_, high) in points):
        return _scatter(figure, theme, points, "time of an answer in milliseconds, median")
    points = [(entry, ms / 1000, (low / 1000, high / 1000)) for entry, ms, (low, high) in points]
    return _scatter(figure, theme, points, "time of an answer in seconds, median")


def by_bytes(run: Run, figure: Any, theme: Theme) -> bool:
    """Exact match by what is kept of a document."""
    points = []
    for entry in _ways(run):
        kept = entry.bytes_per_document
        if kept is not None and kept > 0:
            points.append((entry, kept / 1024, (kept / 1024, kept / 1024)))
    return _scatter(figure, theme, points, "KiB kept for each document")


def _ways(run: Run) -> list[Entry]:
    """Entries but for controls, which take what the entries take that they control."""
    return [e for e in run.entries if e.control is None and e.exact_match is not None]


def _scatter(figure: Any, theme: Theme, points: list[Cost], label: str) -> bool:
    """Exact match by a cost; `points` are entries, the cost of each, and its interval."""
    if not points:
        return False
    axis = figure.subplots()
    labels = []
    for entry, cost, (low, high) in points[:_MOST_POINTS]:
        score, style = score_of(entry), entry_style(entry, theme)
        across = [[max(0.0, cost - low)], [max(0.0, high - cost)]]
        axis.errorbar([cost], [score.mean], bars_of([score]), across, capsize=2, lw=1, **style)
        upright = (score.low or score.mean, score.high or score.mean)
        labels.append(Point(cost, score.mean, entry.name, style, (low, high), upright))
    _cost_axis(axis, points, label)
    share_axis(axis, max(highest_of(entry) for entry, _, _ in points), "answered exactly")
    say_left_out(axis, len(points) - _MOST_POINTS)
    label_points(figure, axis, labels)
    return True


def _cost_axis(axis: Any, points: Sequence[Cost], label: str) -> None:
    """From 0, or logarithmic where some cost many times as much as others, and says so.

    It holds the intervals too: bars are drawn beyond an axis that does not.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low = min(min(cost, *ends) for _, cost, ends in points)
    high = max(max(cost, *ends) for _, cost, ends in points)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.grid(axis="x", alpha=0.3)
    if high <= _FAR * low:
        axis.set_xlim(0, 1.25 * high)
        axis.set_xlabel(label)
        return
    axis.set_xscale("log")
    axis.set_xlim(low / 2.5, high * 4)
    axis.xaxis.set_major_locator(LogLocator(numticks=9))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.set_xlabel(f"{label} (logarithmic)")


def score_of(entry: Entry) -> Score:
    return entry.exact_match or Score(0.0)


def highest_of(entry: Entry) -> float:
    """What the upright axis has to hold of an entry."""
    score = score_of(entry)
    return score.mean if score.high is None else score.high


def bars_of(scores: Sequence[Score]) -> list[list[float]]:
    """Distances of the ends of intervals from the means."""
    low = [0.0 if s.low is None else max(0.0, s.mean - s.low) for s in scores]
    return [low, [0.0 if s.high is None else max(0.0, s.high - s.mean) for s in scores]]
