"""Answers by their type: the order of types, and examples of errors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from clara.evaluation.answer_types import NO_ANSWER, TYPES
from clara.evaluation.probes.refusal import is_refusal
from clara.evaluation.report.records import AnswerLine, Entry, Run
from clara.reports.tables import Cell, Table
from clara.terminal.printing import excerpt

EXAMPLES = 3
"""Questions of each type whose wrong answers are shown."""

_NOTE = (
    "The first questions of each type that not all of these entries answer exactly. “Rank” is that "
    "of the first document known to hold the answer among those that were read."
)
_LONGEST = 160  # characters of a text in an example
_MOST_GOLDS = 4


def ordered_types(names: Iterable[str]) -> list[str]:
    """Types in their usual order, others after them."""
    found = set(names)
    return [name for name in TYPES if name in found] + sorted(found.difference(TYPES))


def type_name(name: str) -> str:
    """A type as it is shown."""
    return "no answer" if name == NO_ANSWER else name


def wrong(line: AnswerLine) -> bool:
    """Whether an answer is not exactly a golden one, or none where no document answers."""
    if not line.answerable:
        return not is_refusal(line.answer)
    return line.scores.get("exact_match", 1.0) < 1.0


def example_tables(run: Run, shown: Sequence[Entry]) -> list[Table]:
    """Wrong answers of some entries to a few questions of each type, a table for each type."""
    tables: list[Table] = []
    for name, questions in _examples(run, shown).items():
        rows = [
            (
                excerpt(line.text, _LONGEST) if not place else "",
                golds(line) if not place else "",
                line.entry,
                excerpt(line.answer, _LONGEST) or "(empty answer)",
                rank(line),
                _remark(line, run.by_name[line.entry]),
            )
            for lines in questions
            for place, line in enumerate(lines)
        ]
        head = "question", "golden answers", "entry", "answer", "rank", "remark"
        note = _NOTE if not tables else ""
        tables.append(Table(f"Errors: {type_name(name)}", head, rows, 6, note=note, prose=True))
    return tables


def example_rows(run: Run, shown: Sequence[Entry]) -> list[list[Cell]]:
    """The same examples under a head, texts in full."""
    head = ["answer_type", "question_id", "question", "golden_answers", "entry", "answer"]
    rows: list[list[Cell]] = [[*head, "gold_rank", "exact_match", "remark"]]
    for name, questions in _examples(run, shown).items():
        for line in (line for lines in questions for line in lines):
            entry = run.by_name[line.entry]
            texts = [name, line.question, line.text, " | ".join(line.golds)]
            ranked = "" if line.gold_rank is None else line.gold_rank
            figures = [ranked, line.scores.get("exact_match", "")]
            rows.append([*texts, line.entry, line.answer, *figures, entry.mark])
    return rows


def _examples(run: Run, shown: Sequence[Entry]) -> dict[str, list[list[AnswerLine]]]:
    """By type, lines of those entries for the first questions that one of them answers wrongly."""
    names = [entry.name for entry in shown]
    lines: dict[str, dict[str, AnswerLine]] = {}
    for line in run.answers:
        if line.entry in names:
            lines.setdefault(line.question, {})[line.entry] = line
    found: dict[str, list[list[AnswerLine]]] = {}
    for own in lines.values():
        answers = [own[name] for name in names if name in own]
        if any(map(wrong, answers)):
            found.setdefault(answers[0].answer_type, []).append(answers)
    return {name: found[name][:EXAMPLES] for name in ordered_types(found)}


def golds(line: AnswerLine) -> str:
    """The golden answers on one line; of many, the first ones."""
    if not line.answerable or not line.golds:
        return "(none: no document answers this)"
    more = len(line.golds) - _MOST_GOLDS
    texts = [excerpt(text, _LONGEST) for text in line.golds[:_MOST_GOLDS]]
    return "; ".join(texts) + (f"; and {more} more" if more > 0 else "")


def rank(line: AnswerLine) -> str:
    """Where a document with the answer was among those that were read."""
    if not line.ranked:
        return "reads none"
    if line.gold_rank is None:
        return f"not among the {len(line.ranked)}" if line.answerable else "there is none"
    return f"{line.gold_rank} of {len(line.ranked)}"


def _remark(line: AnswerLine, entry: Entry) -> str:
    return "; ".join(filter(None, ("" if wrong(line) else "right", entry.mark)))
