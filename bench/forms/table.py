"""The table of forms of memory, from the trainings that are finished so far."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from bench.memory_forms import FORMS
from bench.runs import Run
from clara.reports.tables import Table

COMPARISON = "forms"
_HEAD = ("tokens a vector", "form", "seeds")
_COLUMNS = 4  # of losses, spread over the steps


def forms(runs: Sequence[Run]) -> Table:
    """Losses per token with the right memory / with another text's, and without memory at the end.

    Means over seeds; for the right memory at the end, the lowest and the highest in brackets.
    """
    groups: dict[tuple[int, str], list[Run]] = {}
    for run in runs:
        if run.comparison == COMPARISON:
            groups.setdefault((run.names["rate"], run.names["form"]), []).append(run)
    order = list(FORMS)
    keys = sorted(groups, key=lambda key: (key[0], order.index(key[1])))
    if not keys:
        return Table("", _HEAD, [])
    steps = [record["step"] for record in _shown(groups[keys[0]][0])]
    columns = [f"right / another's, step {step}" for step in steps]
    rows = [
        (
            str(rate),
            FORMS[form],
            str(len(groups[rate, form])),
            *_cells([_shown(run) for run in groups[rate, form]]),
        )
        for rate, form in keys
    ]
    return Table("", (*_HEAD, *columns, "no memory"), rows)


def _shown(run: Run) -> list[dict[str, Any]]:
    """Records of a training that have a column, the last among them."""
    records: list[dict[str, Any]] = run.found["losses"]
    ends = (len(records) * part // _COLUMNS for part in range(1, _COLUMNS + 1))
    return [records[end - 1] for end in dict.fromkeys(ends) if end]


def _cells(curves: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
    cells = []
    for records in zip(*curves, strict=True):
        right = [record["right"] for record in records]
        last = records[0]["step"] == curves[0][-1]["step"]
        span = f" ({min(right):.2f} to {max(right):.2f})" if last and len(right) > 1 else ""
        other = statistics.mean(record["other"] for record in records)
        cells.append(f"{statistics.mean(right):.2f}{span} / {other:.2f}")
    return [*cells, f"{statistics.mean(curve[-1]['none'] for curve in curves):.2f}"]
