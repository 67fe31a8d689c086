"""The curves of a run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clara.training.folder import LOG, read_log

_PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("loss", ("loss", "eval_loss")),
    ("terms", ("ce", "mse", "contrastive", "eval_ce", "eval_mse", "eval_contrastive")),
    ("recall", ("recall@1", "recall@3", "recall@5", "eval_recall@1")),
    (
        "gradient norm",
        (
            "grad_norm_compressor",
            "grad_norm_query_reasoner",
            "grad_norm_generator",
            "grad_norm_memory_tokens",
            "grad_norm_backbone",
        ),
    ),
    ("learning rate", ("learning_rate",)),
    ("positions per second", ("tokens_per_second",)),
)

# Okabe and Ito's, which people with any form of colour blindness tell apart.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00")


def plot_run(run: Path, output: Path) -> None:
    """Draw what a run has logged so far, one panel for each kind of figure.

    Args:
        run: folder with a `log.jsonl`.
        output: PNG file to write.

    Raises:
        ValueError: no such run, nothing logged yet, or matplotlib is not installed.
    """
    file = run / LOG
    if not file.is_file():
        raise ValueError(f"{run}: is not a training run: it has no {LOG}")
    records = read_log(file)
    panels = [
        (title, drawn)
        for title, names in _PANELS
        if (drawn := [(name, series) for name in names if (series := _series(records, name))])
    ]
    if not panels:
        raise ValueError(f"{file}: nothing is logged yet")
    if find_spec("matplotlib") is None:
        raise ValueError("drawing needs the package matplotlib: pip install matplotlib")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(10, 3 * rows), layout="constrained")
    axes = figure.subplots(rows, min(len(panels), 2), squeeze=False).flatten()
    steps = [record["step"] for record in records]
    room = max(0.02 * (max(steps) - min(steps)), 0.5)
    for axis, (title, drawn) in zip(axes, panels):
        _draw(axis, drawn)
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


def _draw(axis: Any, drawn: Sequence[tuple[str, list[tuple[int, float]]]]) -> None:
    """The curves of a panel; an evaluation is dashed, in the colour of what it evaluates."""
    colours: dict[str, str] = {}
    for name, series in drawn:
        steps, values = zip(*series)
        evaluated = name.startswith("eval_")
        colour = colours.setdefault(name.removeprefix("eval_"), _COLOURS[len(colours)])
        axis.plot(
            steps,
            values,
            label=name,
            color=colour,
            linestyle="--" if evaluated else "-",
            marker=("x" if evaluated else ".") if len(steps) < 30 else None,
        )
    if len(drawn) > 1:
        axis.legend(fontsize="small")


def _series(records: Sequence[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(r["step"], r[name]) for r in records if isinstance(r.get(name), int | float)]
