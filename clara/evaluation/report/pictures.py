"""The pictures of a report."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clara.evaluation.report.costs import (
    bars_of,
    by_bytes,
    by_latency,
    by_prompt,
    highest_of,
    score_of,
)
from clara.evaluation.report.labels import Label, label_ends
from clara.evaluation.report.lead import leaders
from clara.evaluation.report.look import (
    DARK,
    DPI,
    LIGHT,
    WIDTH,
    Theme,
    entry_style,
    ranker_style,
    share_axis,
)
from clara.evaluation.report.records import Entry, Run, rate_apart
from clara.evaluation.report.types import ordered_types, type_name
from clara.reports.drawing import grouped, say_left_out, text
from clara.reports.sections import Picture, inline
from clara.reports.tables import short

_MOST_LINES = 12
_MOST_PANELS = 6
_HOLLOW = "Hollow markers: answers do not come from memory, or a control."
_BARS = "Bars are 95 % intervals."


@dataclass(frozen=True)
class Drawn:
    """How a picture is made.

    Attributes:
        name: of its file, without suffix.
        missing: said where there is nothing to draw.
        draw: on a figure; False if there is nothing to draw.
    """

    name: str
    caption: str
    missing: str
    draw: Callable[[Run, Any, Theme], bool]


def draw_all(run: Run, folder: Path, prefix: str = "") -> list[Picture]:
    """Draw what there are figures for, as PNG files for light pages; dark ones are in the page.

    Args:
        prefix: of the names of files.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib  # its submodules may be there without it
    from matplotlib.figure import Figure

    pictures = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a font lacks a letter of somebody's name
        for kind in PICTURES:
            sources = []
            for theme, end in ((LIGHT, ""), (DARK, "-dark")):
                with matplotlib.rc_context(theme.settings):
                    figure = Figure(figsize=(WIDTH, 4.3), layout="constrained", dpi=DPI)
                    if not kind.draw(run, figure, theme):
                        break
                    file = folder / f"{prefix}{kind.name}{end}.png"
                    figure.savefig(file, format="png", dpi=DPI)
                sources.append(inline(file))
            if sources:
                dark = folder / f"{prefix}{kind.name}-dark.png"
                dark.unlink()
                width = round(100 * figure.get_figwidth())
                name = f"{prefix}{kind.name}.png"
                pictures.append(Picture(name, kind.caption, sources[0], sources[1], width))
    return pictures


def file_prefix(name: str) -> str:
    """A beginning for names of files, of letters, digits and hyphens."""
    return f"{'-'.join(re.findall('[a-z0-9]+', name.lower()))[:40] or 'run'}-"


def _by_rate(run: Run, figure: Any, theme: Theme) -> bool:
    """Lines of entries by their rate, a panel for each ranker of CLaRa's.

    What reads text that was ranked by memory of a rate stands at that rate.
    """
    scored = [
        replace(entry, rate=entry.ranker_rate) if entry.rate is None else entry
        for entry in run.entries
        if entry.exact_match is not None
    ]
    rated = [entry for entry in scored if entry.system == "clara" and entry.rate]
    rankers = list(dict.fromkeys(_ranking(entry) for entry in rated))
    if not rated:
        return False
    panels = [
        _with_text([entry for entry in scored if _ranking(entry) in (ranker, None)], scored)
        for ranker in rankers[:_MOST_PANELS]
    ]
    rows, columns = -(-len(panels) // 2), min(2, len(panels))
    figure.set_size_inches(WIDTH if columns == 1 else 9.6, 4.3 if columns == 1 else 3.6 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.remove()
    highest = max(highest_of(entry) for panel in panels for entry in panel)
    labels = []
    for axis, ranker, panel in zip(axes, rankers, panels):
        axis.set_title("" if ranker is None else text(f"documents by {ranker}"), loc="left")
        labels.append(_rate_lines(axis, panel, theme))
        share_axis(axis, highest, "answered exactly")
    say_left_out(axes[0], len(rankers) - len(panels))
    label_ends(figure, list(zip(axes, labels)))
    return True


def _ranking(entry: Entry) -> str | None:
    """The ranker of an entry; without its rate where that is the entry's own."""
    own = entry.ranker_rate in (None, entry.rate)
    return entry.ranker_kind if own else entry.ranker


def _with_text(panel: list[Entry], scored: Sequence[Entry]) -> list[Entry]:
    """The entries of a panel; where none is of text, with the best one of another ranker."""
    texts = [entry for entry in scored if entry.system == "text"]
    if not texts or any(entry.system == "text" for entry in panel):
        return panel
    best = max(texts, key=lambda entry: (entry.ranker != "gold", score_of(entry).mean))
    # Under its whole name, since the title of the panel names another ranker.
    return [*panel, replace(best, system=best.name, rate=None)]


def _rate_lines(axis: Any, entries: Sequence[Entry], theme: Theme) -> list[Label]:
    """Draw the entries of one ranker; where each line ends."""
    rates = sorted({entry.rate for entry in entries if entry.rate})
    low, high = rates[0] / 1.5, rates[-1] * 1.25
    lines: dict[str, list[Entry]] = {}
    for entry in entries:
        lines.setdefault(f"{entry.system}{entry.apart}", []).append(entry)
    rows = sum(1 for group in lines.values() if group[0].rate)
    labels, row = [], 0
    for name, group in lines.items():
        style = entry_style(group[0], theme)
        colour = style["color"]
        if group[0].rate:
            group = sorted(group, key=lambda entry: entry.rate or 0)
            apart = 1 + 0.05 * (row - (rows - 1) / 2)
            _rate_line(axis, group, apart, theme)
            row += 1
            at = (group[-1].rate or 0) * apart
        else:
            score, at = score_of(group[0]), high
            line = {"color": colour, "linestyle": style["linestyle"], "lw": 1.5}
            axis.plot([low, high], [score.mean] * 2, **line)
            if score.low is not None and score.high is not None:
                band = {"color": colour, "alpha": 0.15, "lw": 0}
                axis.fill_between([low, high], score.low, score.high, **band)
        labels.append(Label(at, score_of(group[-1]).mean, name, colour))
    axis.set_xscale("log", base=2)
    axis.set_xticks(rates, [short(rate) for rate in rates])
    axis.minorticks_off()
    axis.set_xlim(low, high)
    axis.set_xlabel("compression rate")
    return labels


def _rate_line(axis: Any, group: Sequence[Entry], apart: float, theme: Theme) -> None:
    """A line through an entry's rates, with a marker of its own for each."""
    places = [(entry.rate or 0) * apart for entry in group]
    scores = [score_of(entry) for entry in group]
    style = entry_style(group[0], theme)
    line = {"color": style["color"], "linestyle": style["linestyle"]}
    axis.plot(places, [score.mean for score in scores], **line)
    for place, score, entry in zip(places, scores, group):
        own = {**entry_style(entry, theme), "linestyle": "-"}
        axis.errorbar([place], [score.mean], bars_of([score]), capsize=3, lw=1.2, **own)


def _recall(run: Run, figure: Any, theme: Theme) -> bool:
    """Recall by how many documents are taken, a line for each ranker."""
    names = {name for each in run.rankers for name in each.scores if name.startswith("recall@")}
    # Where all candidates are taken, every ranker has found everything.
    most = max((line.ranked for line in run.rankings), default=0)
    known = {int(name[7:]) for name in names if name[7:].isdigit()}
    cuts = sorted(k for k in known if not most or k < most)
    if not cuts:
        return False
    axis = figure.subplots()
    labels = []
    rankers = [each for each in run.rankers if names & each.scores.keys()][:_MOST_LINES]
    for row, ranker in enumerate(rankers):
        found = {k: ranker.scores[f"recall@{k}"] for k in cuts if f"recall@{k}" in ranker.scores}
        apart = 0.03 * (row - (len(rankers) - 1) / 2)
        places = [cuts.index(k) + apart for k in found]
        scores = list(found.values())
        kinds = [rate_apart(each.name)[0] for each in rankers[: row + 1]]
        style = ranker_style(ranker.name, theme, kinds.count(kinds[row]) - 1)
        bars = bars_of(scores)
        axis.errorbar(places, [s.mean for s in scores], bars, capsize=3, elinewidth=1.2, **style)
        labels.append(Label(places[-1], scores[-1].mean, ranker.name, style["color"]))
    axis.set_xticks(range(len(cuts)), [f"{k}" for k in cuts])
    axis.set_xlim(-0.3, len(cuts) - 0.7)
    axis.set_xlabel("documents taken, best first")
    share_axis(axis, 1.0, "gold documents among them")
    label_ends(figure, [(axis, labels)])
    return True


def _errors(run: Run, figure: Any, theme: Theme) -> bool:
    """Share of wrong answers by type, a bar for each of the leading entries."""
    entries = [entry for entry in leaders(run) if entry.by_type]
    types = ordered_types(name for entry in entries for name in entry.by_type)
    bars = [(name, entry) for name in types for entry in entries if name in entry.by_type]
    if not bars:
        return False
    places = grouped([name for name, _ in bars], gap=1.3)
    figure.set_size_inches(WIDTH, 1.1 + 0.25 * (places[-1] + 2))
    axis = figure.subplots()
    for row, (place, (name, entry)) in enumerate(zip(places, bars)):
        count, score = entry.by_type[name]
        wrong = 1 - score.mean
        style = entry_style(entry, theme)
        axis.barh(
            place,
            wrong,
            height=0.8,
            color=theme.ground if entry.mark else style["color"],
            edgecolor=style["color"],
            hatch="////" if entry.mark else None,
        )
        low, high = bars_of([score])
        axis.errorbar([wrong], [place], xerr=[high, low], color=theme.ink, capsize=2.5, lw=1.1)
        end = wrong + low[0]
        axis.text(end + 0.015, place, f"{100 * wrong:.0f} %", va="center", fontsize=9.5)
        if not row or bars[row - 1][0] != name:
            asked = f"{text(type_name(name))}: {count:,} question{'' if count == 1 else 's'}"
            axis.text(0.005, place - 0.95, asked, va="center", fontweight="bold", fontsize=10)
    axis.set_yticks(places, [text(entry.name) for _, entry in bars])
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(places[-1] + 0.7, -1.6)
    axis.set_xlim(0, 1.12)
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    axis.set_xticks(ticks, [f"{100 * tick:.0f} %" for tick in ticks])
    axis.set_xlabel("not answered exactly")
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    return True


PICTURES = (
    Drawn(
        "accuracy-by-rate",
        "Exact match by compression rate: how many tokens of a document one vector stands for, or "
        f"one token of a text that was cut. Bars and bands are 95 % intervals. What is not "
        f"compressed is a line across; controls are grey and dashed. {_HOLLOW}",
        "No picture of exact match by compression rate: no entry of CLaRa has one.",
        _by_rate,
    ),
    Drawn(
        "prompt-tokens",
        f"Exact match by the length of the prompt, memory vectors included. {_BARS} Up and to the "
        f"left is better. {_HOLLOW}",
        "No picture of exact match by the prompt’s length: no entry counted its tokens.",
        by_prompt,
    ),
    Drawn(
        "latency",
        f"Exact match by the time of an answer. {_BARS} Up and to the left is better. {_HOLLOW}",
        "No picture of exact match by time: no entry was timed.",
        by_latency,
    ),
    Drawn(
        "bytes",
        f"Exact match by what is kept of a document beforehand. {_BARS} Up and to the left is "
        f"better. {_HOLLOW}",
        "No picture of exact match by bytes: no entry keeps anything of documents.",
        by_bytes,
    ),
    Drawn(
        "recall",
        f"Recall by the number of documents taken, for each ranker. {_BARS}",
        "No picture of recall: no ranker was measured on questions with known documents.",
        _recall,
    ),
    Drawn(
        "errors",
        f"Share of questions that are not answered exactly, by the type of the answer. {_BARS} "
        "Hatched: answers do not come from memory.",
        "No picture of errors by answer type: no answer has a type.",
        _errors,
    ),
)
