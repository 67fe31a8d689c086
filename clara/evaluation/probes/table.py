"""What a run's answers say of the conditions of probes, and that as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from clara.evaluation.probes.conditions import condition_of
from clara.evaluation.probes.refusal import is_refusal

Scores = dict[str, Any]
ByCondition = dict[str, Scores]

_COLUMNS = {
    "exact_match": "exact match",
    "cover_substring": "answer contains it",
    "refused": "refused",
}


def by_condition(lines: Iterable[Mapping[str, Any]]) -> dict[str, ByCondition]:
    """Mean scores of each entry under each condition.

    Args:
        lines: of answers.jsonl; those of questions that are not of a probe are passed over.

    Returns:
        By entry, then by condition, in their natural order: {"questions": 20, "exact_match": 0.35,
        "cover_substring": 0.4, "refused": 0.1}. "refused" is the share of answers that `is_refusal`
        takes for one; for a question without an answer that is what is right, and "exact_match" and
        "cover_substring" are None under a condition that has only such. What several conditions
        have in common, such as "needle/256" of all depths and "needle", is a condition too.
    """
    groups: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    leaves: dict[str, set[str]] = {}
    for line in lines:
        name = condition_of(line["question"])
        if name is None:
            continue
        parts = name.split("/")
        for depth in range(1, len(parts) + 1):
            shared = "/".join(parts[:depth])
            leaves.setdefault(shared, set()).add(name)
            groups.setdefault(line["entry"], {}).setdefault(shared, []).append(line)
    return {
        entry: {
            name: _means(found[name])
            for name in sorted(found, key=_natural)
            if leaves[name] == {name} or _is_group(leaves[name], found[name])
        }
        for entry, found in groups.items()
    }


class ConditionTable(NamedTuple):
    """One score of all entries by condition, in percent.

    Attributes:
        title: of the score.
        head: "condition", "n" and the entries.
        rows: as long as the head; "" where an entry has no score. The first has the remarks, if
            there are any.
    """

    title: str
    head: list[str]
    rows: list[list[str]]


def condition_tables(
    table: Mapping[str, Mapping[str, Mapping[str, Any]]], remarks: Mapping[str, str] | None = None
) -> list[ConditionTable]:
    """A table for each score: a row for each condition, a column for each entry.

    Conditions under which nobody refused are left out of the table of refusals, but for those of
    the probe "refusal".

    Args:
        table: of `by_condition`.
        remarks: by entry, such as that its answers do not come from memory.
    """
    entries = list(table)
    said = [(remarks or {}).get(entry, "") for entry in entries]
    names = sorted({name for found in table.values() for name in found}, key=_natural)
    tables = []
    for score, title in _COLUMNS.items():
        rows = []
        for name in names:
            found = [table[entry].get(name, {}) for entry in entries]
            values = [each.get(score) for each in found]
            empty = all(value is None for value in values)
            if empty or (score == "refused" and not _tells(name, values)):
                continue
            count = max(each["questions"] for each in found if each)
            cells = ["" if value is None else f"{100 * value:.1f}" for value in values]
            rows.append([name, str(count), *cells])
        if rows and any(said):
            rows.insert(0, ["remark", "", *said])
        if rows:
            tables.append(ConditionTable(title, ["condition", "n", *entries], rows))
    return tables


def _tells(name: str, refused: Sequence[float | None]) -> bool:
    return name.startswith("refusal/") or any(refused)


def _is_group(conditions: set[str], lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether conditions have something in common that their mean tells: one alone says it itself,
    and a refusal is right under some and wrong under others."""
    return len(conditions) > 1 and len({line.get("answerable", True) for line in lines}) == 1


def conditions_markdown(
    table: Mapping[str, Mapping[str, Mapping[str, Any]]], remarks: Mapping[str, str] | None = None
) -> str:
    """`condition_tables` as Markdown; empty without conditions."""
    parts = [
        f"Probes: {each.title}, %\n\n{_markdown(each.head, each.rows)}\n"
        for each in condition_tables(table, remarks)
    ]
    return "\n".join(parts)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    """A name that people chose, as Markdown shows it."""
    shown = "".join(each if each.isprintable() else " " for each in text)
    return " ".join(shown.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _means(lines: Sequence[Mapping[str, Any]]) -> Scores:
    answerable = [line for line in lines if line.get("answerable", True)]
    scores: Scores = {"questions": len(lines)}
    for name in ("exact_match", "cover_substring"):
        values = [float(line["scores"][name]) for line in answerable if name in line["scores"]]
        scores[name] = sum(values) / len(values) if values else None
    scores["refused"] = sum(is_refusal(line["answer"]) for line in lines) / len(lines)
    return scores


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts "needle/64" before "needle/256"."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in name.split("/")]
