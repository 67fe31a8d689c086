"""`clara data show`: records as people read them."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from clara.cli.options import Json
from clara.terminal.printing import one_line, print_json, printable

# Shown first in this order; other fields follow in that of the record.
_FIRST = (
    *("id", "title", "data_type", "question", "answer", "golden_answers", "answerable"),
    *("positives", "contents", "docs", "candidates"),
)
_LABEL = 16  # columns


def show(
    file: Annotated[Path, typer.Argument(help="File of records: JSON lines of any of our kinds.")],
    number: Annotated[int, typer.Option("--number", min=1, help="Number of records.")] = 3,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another one draws others.")] = 0,
    as_json: Json = False,
) -> None:
    """Print records of a file, drawn from all over it, and say what it holds.

    A record takes one screen at most; what does not fit is cut.
    """
    from clara.data.samples import draw_samples

    samples = draw_samples(file.expanduser(), number, seed)
    if as_json:
        records = [{"line": s.line, "kind": s.kind, "record": s.fields} for s in samples.drawn]
        print_json({"file": str(file), "counts": samples.counts, "records": records})
        return
    counts = ", ".join(f"{kind}: {count:,}" for kind, count in samples.counts.items())
    print(f"{one_line(str(file))}: {counts}")
    width, height = shutil.get_terminal_size((100, 24))
    for sample in samples.drawn:
        print(f"\nline {sample.line}, {sample.kind}")
        for line in screen(sample.fields, max(40, width), max(8, height - 2)):
            print(line)


def screen(record: Mapping[str, Any], width: int, height: int) -> list[str]:
    """A record as at most `height` lines of at most `width` columns, nothing in it steering them.

    Long texts are cut, all to the same number of lines; of long lists some entries are left out.
    """
    blocks = list(_blocks(record))
    if len(blocks) > height // 2:
        kept = height // 2
        blocks = [*blocks[: kept - 1], ("…", f"and {len(blocks) - kept + 1} more")]
    columns = width - _LABEL
    wrapped = [(label, _wrapped(text, columns, height)) for label, text in blocks]
    longest = max(len(text) for _, text in wrapped)
    while longest > 1 and sum(min(len(text), longest) for _, text in wrapped) > height:
        longest -= 1
    lines = []
    for label, text in wrapped:
        for place, line in enumerate(_cut(text, longest, columns)):
            lines.append(f"{one_line(label) if place == 0 else '':<{_LABEL}}"[:_LABEL] + line)
    return [line.rstrip() for line in lines]


def _blocks(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Label and text of what a record holds: pairs of questions and answers side by side."""
    shown = dict(record)
    positives = _integers(shown.pop("pos_index", None))
    names = [name for name in _FIRST if name in shown]
    pairs = _pairs(shown)
    if pairs:
        for name in ("questions", "question", "answers"):
            shown.pop(name, None)
        names = [name for name in names if name in shown]
    for name in (*names, *(name for name in shown if name not in _FIRST)):
        value = shown[name]
        if isinstance(value, list) and name == "docs":
            # Those with the answer first, so that they are not among those left out.
            for place in sorted(range(len(value)), key=lambda place: place not in positives):
                mark = " *" if place in positives else ""
                yield f"document {place}{mark}", str(value[place])
        elif isinstance(value, list):
            yield name, ", ".join(map(str, value)) or "(none)"
        else:
            yield name, str(value)
    for question, answer in pairs:
        yield "question", f"{question}  →  {answer}"


def _pairs(record: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """The questions of a record with their answers, where it has lists of as many."""
    answers, questions = record.get("answers"), record.get("questions", record.get("question"))
    if not isinstance(questions, list) or not isinstance(answers, list):
        return []
    return list(zip(questions, answers)) if len(questions) == len(answers) else []


def _integers(value: Any) -> Sequence[int]:
    return [each for each in value if isinstance(each, int)] if isinstance(value, list) else []


def _wrapped(text: str, columns: int, height: int) -> list[str]:
    """Lines of a text; not all of them where they are far more than fit."""
    most = columns * height
    some = text if len(text) <= most else f"{text[:most]}…"
    return [
        part
        for line in printable(some).split("\n")
        for part in textwrap.wrap(one_line(line), columns, break_on_hyphens=False) or [""]
    ]


def _cut(lines: list[str], count: int, columns: int) -> list[str]:
    if len(lines) <= count:
        return lines
    return [*lines[: count - 1], f"{lines[count - 1][: columns - 1].rstrip()}…"]
