"""Figures in Markdown pages, copied from committed results and never typed.

    python -m bench.quote README.md docs/*.md           # write the blocks anew
    python -m bench.quote --check README.md docs/*.md   # fail if one differs from its file

A block begins with `<!-- figures: bench/results/SOME/cpu.json TABLE -->` on a line of its own and
ends with `<!-- end of figures -->`; what is between is a table of `TABLES` and where it is from.
Blocks in fenced code are left alone.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from bench.forms.table import forms
from bench.learning.table import learning
from bench.reranking import reranking
from bench.runs import Run, common_environment, read_runs
from clara.reports.results import (
    REFERENCE_WAY,
    USUAL,
    Measurement,
    Results,
    pairs,
    ratios,
    read_results,
    spread,
    usual,
)
from clara.reports.tables import (
    Table,
    amount,
    at,
    escaped,
    promise_table,
    short,
    suite_name,
    times,
)
from clara.terminal.printing import one_line

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = PurePosixPath("bench/results")

_BEGIN = re.compile(r"<!-- figures: (\S+) (\S+) -->")
_LIKE_BEGIN = "<!-- figures:"
_END = "<!-- end of figures -->"
_VERSIONS = ("python", "torch", "cuda", "triton", "transformers", "peft", "clara")
_NEEDED = ("device", "threads", "torch", "date", "commit", "command")
_SHARE = f"divided by that of the {REFERENCE_WAY} or of text"
_ANSWERED_FROM = ("text", "memory", "memory, generator merged")


class QuoteError(ValueError):
    """A block that cannot be written; the message says where and why."""


def answers(results: Results) -> Table:
    """Time to the first token and of the whole answer, and how many times as fast as text."""
    cases = "time to first token", "whole answer"
    found = {case: usual(results.of("question", case)) for case in cases}
    settings = dict.fromkeys(_setting(each) for case in cases for each in found[case])
    rows = []
    for setting in settings:
        for way in _ANSWERED_FROM:
            cells = [cell for case in cases for cell in _beside_text(found[case], setting, way)]
            if any(cells):
                rows.append((setting, way, *cells))
    head = ("compression", "answered from", "first token", "times as fast as text")
    return Table("", (*head, "whole answer", "times as fast as text"), rows)


def _setting(found: Measurement) -> str:
    return at(found, but=USUAL)


def _beside_text(measured: Iterable[Measurement], setting: str, way: str) -> tuple[str, str]:
    by_name = {each.implementation: each for each in measured if _setting(each) == setting}
    if way not in by_name:
        return "", ""
    own, text = by_name[way], by_name.get("text")
    faster = _times(ratios(own, text)) if text is not None and text is not own else ""
    return _seconds(own), faster


def compress(results: Results) -> Table:
    """Documents and tokens per second, and how many times as fast as the reference way."""
    rows = []
    for own, other in pairs(results.of("compress", "throughput"), "ours", REFERENCE_WAY):
        speeds = [own.per_second(quantity) for quantity in ("documents", "tokens")]
        cells = ["" if speed is None else short(speed) for speed in speeds]
        faster = _times(ratios(own, other)) if other is not None else ""
        rows.append((at(own), *cells, faster))
    head = ("compression", "documents per second", "tokens per second")
    return Table("", (*head, f"times as fast as the {REFERENCE_WAY}"), rows, figures=1)


def training(results: Results) -> Table:
    """Seconds of steps, and how many times as fast as the reference way."""
    rows = []
    for case in dict.fromkeys(each.case for each in results.of("training")):
        for own, other in pairs(results.of("training", case), "ours", REFERENCE_WAY):
            if own.unit != "s":
                continue
            theirs = "" if other is None else _seconds(other)
            faster = "" if other is None else _times(ratios(own, other))
            rows.append((case, at(own), _seconds(own), theirs, faster))
    head = ("step", "settings", "ours", REFERENCE_WAY, f"times as fast as the {REFERENCE_WAY}")
    return Table("", head, rows)


def memory(results: Results) -> Table:
    """Bytes at the peak, and as a share of the reference way's or of text's."""
    rows = []
    measured = [each for each in results.measurements if each.unit == "bytes" and each.samples]
    for each in measured:
        names = suite_name(each.suite), each.case, at(each), each.implementation
        others = [(*each.case_key, name) for name in (REFERENCE_WAY, "text")]
        other = next((m for m in measured if m.key in others), None)
        share = ""
        if other is not None and other is not each and other.median:
            share = times(each.median / other.median)
        rows.append((*names, amount(each.median, "bytes"), share))
    head = ("suite", "measurement", "settings", "implementation", "peak memory", _SHARE)
    return Table("", head, rows, figures=4)


def decode(results: Results) -> Table:
    """Seconds of a step, which makes one token of each answer, by each way."""
    rows = []
    measured = results.of("decode")
    usual_way = {m.case_key: m for m in measured if m.implementation == "generate, float32"}
    for own in measured:
        other = usual_way.get(own.case_key)
        faster = "" if other is None or other is own else _times(ratios(own, other))
        rows.append((str(own.parameters["questions"]), own.implementation, _seconds(own), faster))
    head = ("questions at once", "way", "a step", "times as fast as generate in float32")
    return Table("", head, rows)


def dtype(results: Results) -> Table:
    """Seconds of the same work in float32 and bfloat16, and how many times as fast it is."""
    before = "float32, layers of transformers"
    measured = results.of("dtype")
    usual_way = {m.case_key: m for m in measured if m.implementation == before}
    rows = []
    for own in measured:
        other = usual_way.get(own.case_key)
        faster = "" if other is None or other is own else _times(ratios(own, other))
        speeds = {what: own.per_second(what) for what in ("documents", "positions")}
        shown = [f"{short(speed)} {what}" for what, speed in speeds.items() if speed is not None]
        last = shown[-1] if shown else ""  # of a training step both are known
        rows.append((own.case, own.implementation, _seconds(own), last, faster))
    head = ("work", "way", "time", "per second", f"times as fast as {before}")
    return Table("", head, rows)


def breakdown(results: Results) -> Table:
    """Seconds of some work as a whole, and of its parts."""
    measured = results.of("breakdown")
    parts = dict.fromkeys(name for each in measured for name in each.quantities)
    rows = []
    for each in measured:
        found = (each.quantities.get(name) for name in parts)
        cells = (amount(seconds, "s") if seconds else "" for seconds in found)
        rows.append((each.case, each.implementation, amount(each.median, "s"), *cells))
    return Table("", ("work", "dtype", "all", *parts), rows)


def views(results: Results) -> Table:
    """What views of an index cost, a row for each measurement and index."""
    rows = []
    for each in results.of("index"):
        if "ranking" not in each.parameters:  # of `test_index.py`
            continue
        documents = f"{each.parameters['documents']:,} {each.parameters['ranking']}"
        taken = _seconds(each) if each.unit == "s" else amount(each.median, each.unit)
        of_view = each.quantities.get("bytes")
        size = "" if of_view is None else amount(of_view, "bytes")
        rows.append((each.case, documents, taken, size))
    return Table("", ("measurement", "documents", "found", "size of the view"), rows, figures=2)


def promises(results: Results) -> Table:
    return promise_table(results.promises)


def operator(name: str, results: Results) -> Table:
    """Seconds of one operator's cases."""
    measured = results.of("operators")
    return _beside_ours([each for each in measured if each.case.startswith(f"{name}, ")], name)


def scoring(results: Results) -> Table:
    """Seconds of exact searches."""
    return _beside_ours(results.of("scoring"))


def _beside_ours(measured: Sequence[Measurement], operator: str = "") -> Table:
    """Seconds of ours, and of the others with how many times as long they take.

    Args:
        operator: left out of the cases' names.
    """
    others = [name for name in dict.fromkeys(m.implementation for m in measured) if name != "ours"]
    found = {each.key: each for each in measured}
    rows = []
    for own in (each for each in measured if each.implementation == "ours"):
        row = [own.case.removeprefix(f"{operator}, "), at(own), amount(own.median, "s")]
        for name in others:
            other = found.get((*own.case_key, name))
            factor = 0.0 if other is None else statistics.median(ratios(own, other))
            row.append("" if other is None else f"{amount(other.median, 's')} ({times(factor)})")
        rows.append(tuple(row))
    return Table("", ("case", "settings", "ours", *others), rows)


OPERATORS = (
    "memory_attention",
    "memory_alignment_loss",
    "cosine_scores",
    "select_topk",
    "rank_and_select",
    "sparsemax",
    "quantize_memory",
    "dequantize_memory",
    "cosine_topk",
)
RUN_TABLES: dict[str, Callable[[Sequence[Run]], Table]] = {
    "forms": forms,
    "learning": learning,
    "reranking": reranking,
}
"""From a file of `bench.runs`."""
TABLES: dict[str, Callable[[Results], Table]] = {
    "answers": answers,
    "compress": compress,
    "memory": memory,
    "training": training,
    "promises": promises,
    "breakdown": breakdown,
    "decode": decode,
    "dtype": dtype,
    "scoring": scoring,
    "views": views,
    **{name: partial(operator, name) for name in OPERATORS},
}


def _seconds(found: Measurement) -> str:
    """Median, in brackets the 20th and 80th percentile."""
    low, high = (amount(value, "s") for value in found.spread)
    span = f" ({low} to {high})" if len(found.samples) > 1 else ""
    return f"{amount(found.median, 's')}{span}"


def _times(found: Sequence[float]) -> str:
    """The median of the rounds' ratios, in brackets the 20th and 80th percentile."""
    if not found:
        return ""
    low, high = map(times, spread(found))
    span = f" ({low} to {high})" if len(found) > 1 else ""
    return f"{times(statistics.median(found))}{span}"


@dataclass(frozen=True)
class Block:
    """Lines `begin` to `end` of a page, counted from 0; the content is between them."""

    begin: int
    end: int
    file: str
    table: str


def blocks(lines: Sequence[str], page: str) -> list[Block]:
    """All blocks of a page.

    Raises:
        QuoteError: a block does not end, ends twice, or begins in a way that is not understood.
    """
    found: list[Block] = []
    opened: tuple[int, str, str] | None = None
    fence = ""
    for number, line in enumerate(lines):
        text = line.strip()
        if opened is None and (mark := re.match(r"`{3,}|~{3,}", text)):
            if not fence:
                fence = mark.group()
            elif text.startswith(fence) and not text.strip(fence[0]):
                fence = ""
            continue
        if fence:
            continue
        if text.startswith(_LIKE_BEGIN):
            match = _BEGIN.fullmatch(text)
            if opened is not None:
                raise QuoteError(f"{page}:{opened[0] + 1}: the block has no '{_END}'")
            if match is None:
                raise QuoteError(f"{page}:{number + 1}: must be '{_LIKE_BEGIN} FILE TABLE -->'")
            opened = number, match.group(1), match.group(2)
        elif text == _END:
            if opened is None:
                raise QuoteError(f"{page}:{number + 1}: no block ends here")
            found.append(Block(opened[0], number, *opened[1:]))
            opened = None
    if opened is not None:
        raise QuoteError(f"{page}:{opened[0] + 1}: the block has no '{_END}'")
    return found


def quoted(file: str, table: str, root: Path) -> str:
    """What a block holds.

    Raises:
        ValueError: there is no such table, file, or nothing for the table in it.
    """
    if table not in TABLES | RUN_TABLES:
        raise QuoteError(f"no table {table!r}; there are {', '.join(TABLES | RUN_TABLES)}")
    path = PurePosixPath(file)
    if COMMITTED not in path.parents or ".." in path.parts:
        raise QuoteError(f"{file}: figures come from a file in {COMMITTED}")
    if table in RUN_TABLES:
        runs = read_runs(root / path)
        made, known = RUN_TABLES[table](runs), common_environment(runs)
    else:
        results = read_results(root / path)
        made, known = TABLES[table](results), results.environment
    if not made.rows:
        raise QuoteError(f"{file}: holds nothing for the table {table!r}")
    return f"\n{made.markdown(level=0)}\n{_source(file, known)}\n\n"


def _source(file: str, known: Mapping[str, Any]) -> str:
    """Where figures are from, in one line."""
    for name in _NEEDED:
        if not known.get(name):
            raise QuoteError(f"{file}: its environment does not say {name!r}")
    if "-dirty" in str(known["commit"]):
        raise QuoteError(f"{file}: was measured with changes that no commit holds")
    versions = [f"{name} {known[name]}" for name in _VERSIONS if known.get(name)]
    command = one_line(str(known["command"])).replace("`", "'")
    parts = [f"{known['device']}, {known['threads']} threads", ", ".join(versions)]
    parts.append(f"{known['date']}, commit {known['commit']}")
    return f"{escaped('; '.join(parts))}; `{command}`"


def rewritten(text: str, page: str, root: Path = ROOT) -> tuple[str, list[Block]]:
    """The page with all blocks written anew, and those whose content was another.

    Raises:
        QuoteError: a block cannot be written.
    """
    lines = text.splitlines(keepends=True)
    changed: list[Block] = []
    for block in reversed(blocks(lines, page)):
        try:
            content = quoted(block.file, block.table, root).splitlines(keepends=True)
        except ValueError as error:
            shown = str(error).replace(f"{root}{os.sep}", "")
            raise QuoteError(f"{page}:{block.begin + 1}: {shown}") from error
        ending = "\r\n" if lines[block.begin].endswith("\r\n") else "\n"
        content = [line.replace("\n", ending) for line in content]
        if lines[block.begin + 1 : block.end] != content:
            changed.insert(0, block)
            lines[block.begin + 1 : block.end] = content
    return "".join(lines), changed


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description="Copy figures from results into pages.")
    parser.add_argument("pages", nargs="+", type=Path, help="Markdown files")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if a block differs from its file"
    )
    options = parser.parse_args(arguments)
    try:
        written = [_write(page, root, options.check) for page in options.pages]
    except (OSError, ValueError) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
        print(f"error: {one_line(str(reason))}", file=sys.stderr)
        return 1
    for write in written:
        write()
    return 0


def _write(page: Path, root: Path, check: bool) -> Callable[[], object]:
    """Writes the page if it has to be; nothing is written before all pages are known."""
    try:
        before = page.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise QuoteError(f"{page}: is not UTF-8") from error
    text, changed = rewritten(before, str(page), root)
    if not changed:
        return lambda: None
    if check:
        first = changed[0]
        raise QuoteError(f"{page}:{first.begin + 1}: differs from {first.file} {first.table}")
    return partial(page.write_bytes, text.encode("utf-8"))


if __name__ == "__main__":
    sys.exit(main())
