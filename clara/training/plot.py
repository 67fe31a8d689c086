"""The curves of a run, or of runs that go on from one another, as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from clara.training.folder import LOG, RunError, read_log
from clara.training.settings import GROUPS

_PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("loss", ("loss", "eval_loss")),
    (
        "terms",
        ("ce", "mse", "kl", "contrastive", "eval_ce", "eval_mse", "eval_kl", "eval_contrastive"),
    ),
    ("recall", ("recall@1", "recall@3", "recall@5", "eval_recall@1")),
    (
        "gradient norm",
        tuple(f"grad_norm_{group}" for group in GROUPS),
    ),
    ("learning rate", ("learning_rate", *(f"learning_rate_{group}" for group in GROUPS))),
    ("positions per second", ("tokens_per_second",)),
)

# Held-out questions answered in every evaluation, see `clara.training.controls`, and held-out
# examples at each of several rates of their candidates: titles, and what the names of figures begin
# with, which may end with a rate.
_CONTROLS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "exact match of held-out answers",
        (
            ("eval_exact_match@", "right memory"),
            ("eval_exact_match_other@", "another's memory"),
            ("eval_exact_match_none", "no memory"),
            ("eval_exact_match_text", "text"),
        ),
    ),
    (
        "loss of held-out answers",
        (
            ("eval_loss_memory@", "right memory"),
            ("eval_loss_other@", "another's memory"),
            ("eval_loss_none", "no memory"),
            ("eval_loss_text", "text"),
        ),
    ),
    (
        "recall among held-out documents",
        (("eval_recall@1@", "first"), ("eval_recall@5@", "first five")),
    ),
    ("held-out loss by rate", (("eval_loss@", "eval_loss"),)),
    (
        "recall among a question's candidates",
        (("eval_recall_candidates@1@", "first"), ("eval_recall_candidates@5@", "first five")),
    ),
)
_RATES = ("-", "--", ":", "-.")  # of lines, from the lowest rate on

# Okabe and Ito's, which people with any form of colour blindness tell apart.
_COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7"),
    *("#D55E00", "#56B4E9", "#000000", "#F0E442"),
)


def plot_runs(runs: Sequence[Path], output: Path, begins: Sequence[int] = ()) -> None:
    """Draw what runs have logged so far, one panel for each kind of figure.

    Args:
        runs: folders with a `log.jsonl`. Several are one training, each going on from the model of
            the one before.
        output: PNG file to write.
        begins: see `joined`.

    Raises:
        RunError: see `joined`; or nothing is logged yet, or matplotlib is not installed.
    """
    records = joined(runs, begins)
    panels = [
        (title, curves)
        for title, curves in (
            *((title, _logged(records, names)) for title, names in _PANELS),
            *((title, _compared(records, kinds)) for title, kinds in _CONTROLS),
        )
        if curves
    ]
    if not panels:
        raise RunError(f"{runs[0] / LOG}: nothing is logged yet")
    if find_spec("matplotlib") is None:
        raise RunError("drawing needs the package matplotlib: pip install matplotlib")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(10, 3 * rows), layout="constrained")
    axes = figure.subplots(rows, min(len(panels), 2), squeeze=False).flatten()
    steps = [record["step"] for record in records]
    room = max(0.02 * (max(steps) - min(steps)), 0.5)
    for axis, (title, curves) in zip(axes, panels):
        _draw(axis, curves)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.set_xlim(min(steps) - room, max(steps) + room)  # the same steps in all panels
        axis.xaxis.set_major_locator(
            MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
        )
        axis.ticklabel_format(axis="y", scilimits=(-3, 5))
        axis.grid(alpha=0.3)
    for axis in axes[len(panels) :]:
        axis.remove()
    figure.savefig(output, format="png", dpi=120)


def joined(runs: Sequence[Path], begins: Sequence[int] = ()) -> list[dict[str, Any]]:
    """The records of runs that go on from one another, with the steps of all together.

    A run may have gone on from a checkpoint before the last: what the run before it logged after
    that step is left out.

    Args:
        runs: folders with a `log.jsonl`, at least one.
        begins: for each run, how many steps were done when it began, ascending. Default: 0, and
            then what the runs before have logged.

    Raises:
        RunError: no such run, a log is damaged, or `begins` has another length or another order.
    """
    logs = []
    for run in runs:
        if not (run / LOG).is_file():
            raise RunError(f"{run}: is not a training run: it has no {LOG}")
        logs.append(read_log(run / LOG))
    if not begins:
        lengths = [max((record["step"] for record in log), default=0) for log in logs]
        begins = list(accumulate(lengths[:-1], initial=0))
    elif len(begins) != len(runs):
        raise RunError(f"begin must be given for each of the {len(runs)} runs, got {len(begins)}")
    elif begins[0] < 0 or any(later <= former for former, later in pairwise(begins)):
        shown = ", ".join(map(str, begins))
        raise RunError(f"begin must be steps in ascending order, the first 0 or more: {shown}")
    ends = [*begins[1:], math.inf]
    return [
        {**record, "step": begin + record["step"]}
        for log, begin, end in zip(logs, begins, ends, strict=True)
        for record in log
        if begin + record["step"] <= end
    ]


class _Curve(NamedTuple):
    label: str
    series: list[tuple[int, float]]
    colour: str
    line: str
    marker: str


def _logged(records: Sequence[dict[str, Any]], names: Sequence[str]) -> list[_Curve]:
    """The curves of names; an evaluation is dashed, in the colour of what it evaluates."""
    colours: dict[str, str] = {}
    curves = []
    for name in names:
        series = _series(records, name)
        if not series:
            continue
        evaluated = name.startswith("eval_")
        colour = colours.setdefault(name.removeprefix("eval_"), _COLOURS[len(colours)])
        line, marker = ("--", "x") if evaluated else ("-", ".")
        curves.append(_Curve(name, series, colour, line, marker))
    return curves


def _compared(records: Sequence[dict[str, Any]], kinds: Sequence[tuple[str, str]]) -> list[_Curve]:
    """The curves of each kind in its colour, those of a rate in its line."""
    names = {name for record in records for name in record}
    found = [
        (beginning, label, name.removeprefix(beginning))
        for beginning, label in kinds
        for name in names
        if name == beginning or (beginning.endswith("@") and name.startswith(beginning))
    ]
    rates = sorted({int(rate) for *_, rate in found if rate.isdigit()})
    curves = []
    for colour, (beginning, label) in zip(_COLOURS, kinds):
        for rate in (*map(str, rates), ""):
            series = _series(records, beginning + rate)
            if series and (beginning, label, rate) in found:
                line = _RATES[rates.index(int(rate)) % len(_RATES)] if rate else "-"
                shown = f"{label}, rate {rate}" if rate else label
                curves.append(_Curve(shown, series, colour, line, "x"))
    return curves


def _draw(axis: Any, curves: Sequence[_Curve]) -> None:
    for curve in curves:
        steps, values = zip(*curve.series)
        axis.plot(
            steps,
            values,
            label=curve.label,
            color=curve.colour,
            linestyle=curve.line,
            marker=curve.marker if len(steps) < 30 else None,
        )
    if len(curves) > 1:
        many = len(curves) > 4
        axis.legend(fontsize="x-small" if many else "small", framealpha=0.6)


def _series(records: Sequence[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(r["step"], r[name]) for r in records if isinstance(r.get(name), int | float)]
