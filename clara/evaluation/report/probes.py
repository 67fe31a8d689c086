"""The tables of a report about probes: scores by condition."""

from __future__ import annotations

from clara.evaluation.probes import by_condition, condition_tables
from clara.evaluation.report.records import Run, by_rows
from clara.reports.tables import Cell, Table

_NOTES = {
    "exact match": "In per cent, over the n questions under each condition, which is what the "
    "questions of a probe vary.",
    "refused": "In per cent: answers that say that there is none, by a rule about English words. "
    "Under “absent” no document holds the answer, and a refusal is right.",
}


def probe_tables(run: Run) -> list[Table]:
    """Scores by condition, a table for each; none for a run without probes."""
    remarks = {entry.name: entry.remark for entry in run.entries}
    return [
        Table(
            f"Probes: {each.title}",
            tuple(each.head),
            [tuple(row) for row in each.rows],
            figures=1,
            note=_NOTES.get(each.title, ""),
        )
        for each in condition_tables(_conditions(run), remarks)
    ]


def probe_rows(run: Run) -> list[list[Cell]]:
    """The same figures as CSV."""
    rows: list[list[Cell]] = [
        ["entry", "condition", "questions", "exact_match", "cover_substring", "refused", "remark"]
    ]
    for entry, found in _conditions(run).items():
        for name, scores in found.items():
            row: list[Cell] = [entry, name]
            for each in ("questions", "exact_match", "cover_substring", "refused"):
                value = scores[each]
                row.append("" if value is None else value)
            rows.append([*row, run.by_name[entry].remark])
    return rows


def _conditions(run: Run) -> dict[str, dict[str, dict[str, float | None]]]:
    """Scores by entry, in the order of tables, and by condition."""
    found = by_condition(
        {
            "entry": line.entry,
            "question": line.question,
            "answer": line.answer,
            "answerable": line.answerable,
            "scores": line.scores,
        }
        for line in run.answers
    )
    return {each.name: found[each.name] for each in by_rows(run.entries) if each.name in found}
