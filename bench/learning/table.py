"""The table of forms of memory on the small task, from the trainings that are finished so far."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench.memory_forms import FORMS
from bench.runs import Run
from clara.reports.tables import Table

COMPARISON = "learning"


def learning(runs: Sequence[Run]) -> Table:
    """Steps until so many held-out questions are answered from the right memory, by seed."""
    groups: dict[tuple[int, str, str], list[Run]] = {}
    for run in runs:
        if run.comparison == COMPARISON:
            key = run.names["vectors"], run.names["form"], run.names["ablation"]
            groups.setdefault(key, []).append(run)
    forms = list(FORMS)
    order = sorted(groups, key=lambda key: (key[2] != "none", -key[0], forms.index(key[1]), key[2]))
    rows = []
    for vectors, form, ablation in order:
        found = [run.found for run in groups[vectors, form, ablation]]
        reached = [each["steps"] for each in found if each["steps"] is not None]
        rows.append(
            (
                str(vectors),
                FORMS[form],
                "" if ablation == "none" else ablation,
                "; ".join(_steps(each["steps"]) for each in found),
                f"{statistics.median(reached):.0f}" if len(reached) == len(found) else "",
                "; ".join(f"{each['curve'][-1]['memory']:.2f}" for each in found),
            )
        )
    head = ("vectors", "form", "changed", "steps to the goal, by seed", "median", "answered then")
    return Table("", head, rows, figures=3)


def _steps(steps: int | None) -> str:
    return "not reached" if steps is None else str(steps)
