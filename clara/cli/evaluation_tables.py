"""What `clara evaluate` prints of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from clara.cli.probes import probes_markdown
from clara.terminal.printing import UNTRAINED, console, one_line

if TYPE_CHECKING:
    from rich.table import Table

_COUNTED = ("questions", "documents")
_RANKING = ("recall@1", "recall@5", "recall@20", "mrr", "ndcg@10")


def print_summary(summary: dict[str, Any], output: Path) -> None:
    """Tables of the entries and the rankers, and below them what is to be known of both."""
    counts = (f"{summary[name]} {name[: -1 if summary[name] == 1 else None]}" for name in _COUNTED)
    print(", ".join(counts))
    if summary["entries"]:
        console().print(_entries(summary))
    if any("mrr" in ranker for ranker in summary["rankers"]):
        print()
        console().print(_rankers(summary))
    elif summary["rankers"] and not summary["entries"]:
        print("no ranking is measured: no question has positives, or ir-measures is not installed")
    remarks = {entry["entry"]: _remark(entry) for entry in summary["entries"]}
    if shown := probes_markdown(summary, remarks):
        print(f"\n{shown}")
    if any(entry["trained"] is False for entry in summary["entries"]):
        print(UNTRAINED)
    print(one_line(str(output)))


def _entries(summary: dict[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("entry", no_wrap=True)
    for title in ("exact match", "F1", "prompt tokens"):
        table.add_column(title, justify="right")
    table.add_column("remarks", overflow="fold")
    for entry in summary["entries"]:
        table.add_row(
            Text(one_line(entry["entry"])),
            _percent(entry["scores"]["exact_match"]),
            f"{100 * entry['scores']['f1']['mean']:.1f}",
            f"{entry['prompt_tokens']:.0f}",
            Text(_remark(entry)),
        )
    return table


def _remark(entry: dict[str, Any]) -> str:
    from clara.evaluation.summary import NOT_FROM_MEMORY

    remarks = [
        "control" if entry["control"] else "",
        "untrained" if entry["trained"] is False else "",
        NOT_FROM_MEMORY if entry["reads_memory"] is False else "",
    ]
    return "; ".join(filter(None, remarks))


def _rankers(summary: dict[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("ranker", overflow="fold")
    for name in _RANKING:
        table.add_column(name, justify="right")
    for ranker in summary["rankers"]:
        figures = (ranker[name]["mean"] if name in ranker else None for name in _RANKING)
        table.add_row(
            Text(one_line(ranker["ranker"])),
            *("" if value is None else f"{100 * value:.1f}" for value in figures),
        )
    return table


def _percent(interval: dict[str, float]) -> str:
    """A mean with the ends of its interval, in per cent."""
    mean, low, high = (100 * interval[name] for name in ("mean", "low", "high"))
    return f"{mean:.1f} ({low:.1f}–{high:.1f})"
