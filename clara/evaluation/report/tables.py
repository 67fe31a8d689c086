"""The tables of a report, and the same figures as CSV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from clara.evaluation.report.lead import outcome
from clara.evaluation.report.names import (
    interval,
    meanings,
    p_value,
    percent,
    points,
    with_interval,
)
from clara.evaluation.report.records import Entry, Pair, Run, Score, Timing, by_rows
from clara.evaluation.report.types import ordered_types, type_name
from clara.reports.tables import Cell, Table, amount, short

_SCORES = {
    "exact_match": "exact match",
    "f1": "F1",
    "cover_substring": "cover, substring",
    "cover_tokens": "cover, tokens",
    "rouge_l": "ROUGE-L",
}
_FEW = 10  # pairs that are shown without a selection of them


def entry_table(run: Run) -> Table:
    """Quality beside cost of every entry."""
    rows = by_rows(run.entries)
    names = _present(_SCORES, {name for entry in rows for name in entry.scores})
    costs = ["prompt tokens", "tokens per vector", "bytes per document", "time"]
    head = ["entry", "remark", *(_SCORES.get(name, name) for name in names), *costs]
    cells = []
    for entry in rows:
        scores = [_share(entry, name) for name in names]
        total = entry.total_ms
        figures = [
            _count(entry.prompt_tokens),
            "" if entry.compression is None else f"{entry.compression:.1f}",
            "" if entry.bytes_per_document is None else amount(entry.bytes_per_document, "bytes"),
            "" if total is None else _time(total.median),
        ]
        cells.append([entry.name, entry.remark, *scores, *figures])
    note = (
        f"{run.questions:,} questions. Exact match with its 95 % interval; the other scores are "
        "means. “Tokens per vector” is how many tokens of the documents one vector stands for, as "
        "measured. “Time” is that of a whole answer, the median. Controls stand below what they "
        "control."
    )
    return _table("Entries", head, cells, rows, note)


def _share(entry: Entry, name: str) -> str:
    score = entry.scores.get(name)
    if score is None:
        return ""
    if name == "exact_match":
        return with_interval(score, entry.questions)
    return percent(score.mean, entry.questions)


def stage_table(run: Run) -> Table:
    """Times of an answer by stage."""
    rows = [entry for entry in by_rows(run.entries) if entry.timings]
    stages = list(dict.fromkeys(stage for entry in rows for stage in entry.timings))
    cells = [
        [entry.name, entry.mark, *(_timing(entry.timings.get(stage)) for stage in stages)]
        for entry in rows
    ]
    note = (
        "Medians of one question, with their intervals. Questions that were answered together "
        "share the time equally; a single question takes longer."
    )
    return _table("Time by stage", ["entry", "remark", *stages], cells, rows, note)


def kept_table(run: Run) -> Table:
    """What systems keep of documents."""
    rows = []
    for each in run.kept:
        rows.append(
            (
                each.system,
                _marked_system(run, each.system),
                f"{each.documents:,}",
                _count(each.tokens),
                _count(each.vectors),
                "" if each.bytes is None else amount(each.bytes, "bytes"),
                "" if each.seconds is None else amount(each.seconds, "s"),
            )
        )
    head = "system", "remark", "documents", "tokens", "vectors", "bytes", "time to make"
    note = (
        "What is kept of a document: means of one document. A document that was compressed twice, "
        "for instance before and after a run was stopped, counts twice."
    )
    return _thinned(Table("What is kept of the documents", head, rows, figures=2, note=note))


def _marked_system(run: Run, system: str) -> str:
    """The mark of a system; with the names of its entries that have it if others have not."""
    own = [
        e for e in run.entries if e.control is None and e.name.partition("+")[0] + e.apart == system
    ]
    return own[0].mark if own and all(entry.mark for entry in own) else _remarks(own)


def meaning_table(run: Run) -> Table:
    """What the parts of entries' names mean."""
    note = "An entry is named after its system, its rate and its ranker: SYSTEM@RATE+RANKER."
    head = "part of a name", "what it means"
    return Table("What the names mean", head, meanings(by_rows(run.entries)), 2, note=note)


def type_table(run: Run) -> Table:
    """Exact match by the type of the answer."""
    rows = [entry for entry in by_rows(run.entries) if entry.by_type]
    types = ordered_types(name for entry in rows for name in entry.by_type)
    counts = {name: {e.by_type[name][0] for e in rows if name in e.by_type} for name in types}
    head = []
    for name in types:
        same = f" ({max(counts[name]):,})" if len(counts[name]) == 1 else ""
        head.append(f"{type_name(name)}{same}")
    cells = []
    for entry in rows:
        own = []
        for name in types:
            count, score = entry.by_type.get(name, (0, None))
            shown = with_interval(score)
            own.append(f"{shown} of {count:,}" if shown and len(counts[name]) > 1 else shown)
        cells.append([entry.name, entry.mark, *own])
    note = "Exact match by the type of the answer, with the number of questions of each type."
    return _table("Exact match by answer type", ["entry", "remark", *head], cells, rows, note)


def ranker_table(run: Run) -> Table:
    """Recall, MRR and nDCG of every ranker."""
    names = list(dict.fromkeys(name for each in run.rankers for name in each.scores))
    cells = []
    for ranker in run.rankers:
        total = sum(stage.median for stage in ranker.timings.values())
        time = _time(total) if ranker.timings else ""
        scores = [_ranked(ranker.scores.get(name), name, run.questions) for name in names]
        cells.append((ranker.name, *scores, time))
    head = ("ranker", *map(score_name, names), "time")
    most = max((line.ranked for line in run.rankings), default=0)
    trivial = f" With at most {most} candidates, recall@{most} is always 100 %."
    note = (
        "Means with their 95 % intervals. Recall@k is the share of a question's gold documents "
        "that are among the first k. “Time” is that of ranking for one question, the median."
        + (trivial if f"recall@{most}" in names else "")
    )
    return _thinned(Table("Rankers", head, cells, figures=1, note=note))


def score_name(name: str) -> str:
    """A measure of rankers as people write it."""
    return name.replace("mrr", "MRR").replace("ndcg", "nDCG")


def _ranked(score: Score | None, name: str, questions: int) -> str:
    if score is None or name.startswith("recall"):
        return with_interval(score, questions)
    ends = (
        "" if score.low is None or score.high is None else f" ({score.low:.2f} to {score.high:.2f})"
    )
    return f"{score.mean:.2f}{ends}"


def pair_tables(run: Run, shown: Sequence[Entry]) -> list[Table]:
    """Some entries beside each other, then every two of them.

    Args:
        shown: entries of the first table.
    """
    names = {entry.name for entry in shown}
    found = [pair for pair in run.pairs if pair.score == "exact_match"]
    place = {entry.name: row for row, entry in enumerate(by_rows(run.entries))}
    found.sort(key=lambda pair: (place[pair.a], place[pair.b]))
    own = [pair for pair in found if {pair.a, pair.b} <= names]
    note = (
        "Difference of exact match in points, the first less the second, on the same questions, "
        "with its 95 % interval and the p-value of a paired randomisation test. A tie is a "
        "difference whose interval holds 0."
    )
    if not own or len(found) <= _FEW:
        return [_pairs("Pairs", run, found, note)]
    many = (
        "Of many pairs that are the same, one in twenty looks different by chance. pairs.csv has "
        "other scores too."
    )
    best = _pairs("The best entry of each kind", run, own, note)
    return [best, _pairs("All pairs", run, found, many)]


def _pairs(title: str, run: Run, pairs: Sequence[Pair], note: str) -> Table:
    names = run.by_name
    rows = []
    for pair in pairs:
        difference, ends = points(pair.difference, run.questions), _ends(pair, run.questions)
        remark = _remarks([names[pair.a], names[pair.b]])
        rows.append((pair.a, pair.b, outcome(pair), remark, difference, ends, p_value(pair.p)))
    head = "first", "second", "outcome", "remark", "difference", "interval", "p"
    return _thinned(Table(title, head, rows, 4, note=note))


def _ends(pair: Pair, questions: int) -> str:
    return interval(Score(pair.difference, pair.low, pair.high), questions)


def break_even_table(run: Run) -> Table:
    """From how many questions per document on compressing beforehand pays."""
    names = run.by_name
    rows = []
    for each in run.break_even:
        count = each.questions_per_document
        shown = "never" if count is None else short(count) if count >= 0.1 else "less than 0.1"
        rows.append((each.entry, names[each.entry].mark, each.against, each.why, shown))
    head = "entry", "remark", "against", "why", "questions per document"
    note = (
        "How many questions have to be asked for each document until compressing all of them "
        "beforehand has cost less time than reading their text anew each time. Of a prefix cache: "
        "how many about the same list of documents."
    )
    return _thinned(Table("Break-even", head, rows, 4, note=note))


def csv_files(run: Run) -> dict[str, list[list[Cell]]]:
    """Rows of CSV files by name, each under a head; figures as they were measured."""
    found = {
        "entries.csv": _entry_rows(run),
        "answer_types.csv": _type_rows(run),
        "rankers.csv": _ranker_rows(run),
        "pairs.csv": _pair_rows(run),
        "break_even.csv": _break_even_rows(run),
    }
    return {name: rows for name, rows in found.items() if len(rows) > 1}


def _entry_rows(run: Run) -> list[list[Cell]]:
    names = _present(_SCORES, {name for entry in run.entries for name in entry.scores})
    stages = list(dict.fromkeys(stage for entry in run.entries for stage in entry.timings))
    head = ["entry", "system", "rate", "ranker", "control", "questions"]
    head += [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    head += ["prompt_tokens", "text_prompt_tokens", "compression", "bytes_per_document"]
    head += [f"{stage}_ms{end}" for stage in stages for end in ("", "_low", "_high")]
    rows: list[list[Cell]] = [[*head, "reads_memory", "remark"]]
    for entry in by_rows(run.entries):
        row = [entry.name, entry.system, _cell(entry.rate), entry.ranker or ""]
        row += [entry.control or "", entry.questions]
        row += [cell for name in names for cell in _score_cells(entry.scores.get(name))]
        row += [_cell(entry.prompt_tokens), _cell(entry.text_prompt_tokens)]
        row += [_cell(entry.compression), _cell(entry.bytes_per_document)]
        row += [cell for stage in stages for cell in _timing_cells(entry.timings.get(stage))]
        reads = {True: "true", False: "false", None: ""}[entry.reads_memory]
        rows.append([*row, reads, entry.mark])
    return rows


def _type_rows(run: Run) -> list[list[Cell]]:
    rows: list[list[Cell]] = [
        ["entry", "answer_type", "questions", "exact_match", "low", "high", "remark"]
    ]
    for entry in by_rows(run.entries):
        for name in ordered_types(entry.by_type):
            count, score = entry.by_type[name]
            rows.append([entry.name, name, count, *_score_cells(score), entry.mark])
    return rows


def _ranker_rows(run: Run) -> list[list[Cell]]:
    rows: list[list[Cell]] = [["ranker", "measure", "mean", "low", "high"]]
    for ranker in run.rankers:
        rows += [[ranker.name, name, *_score_cells(each)] for name, each in ranker.scores.items()]
    return rows


def _pair_rows(run: Run) -> list[list[Cell]]:
    names = run.by_name
    head = ["first", "second", "score", "difference", "low", "high", "p", "outcome", "remark"]
    rows: list[list[Cell]] = [[*head]]
    for pair in run.pairs:
        figures = [pair.difference, _cell(pair.low), _cell(pair.high), _cell(pair.p)]
        remark = _remarks([names[pair.a], names[pair.b]])
        rows.append([pair.a, pair.b, pair.score, *figures, outcome(pair), remark])
    return rows


def _break_even_rows(run: Run) -> list[list[Cell]]:
    rows: list[list[Cell]] = [["entry", "against", "questions_per_document", "why", "remark"]]
    for each in run.break_even:
        count = _cell(each.questions_per_document)
        remark = _remarks([run.by_name[each.entry]])
        rows.append([each.entry, each.against, count, each.why, remark])
    return rows


def _cell(value: float | None) -> Cell:
    return "" if value is None else value


def _score_cells(score: Score | None) -> list[Cell]:
    return ["", "", ""] if score is None else [score.mean, _cell(score.low), _cell(score.high)]


def _timing_cells(timing: Timing | None) -> list[Cell]:
    if timing is None:
        return ["", "", ""]
    return [timing.median, _cell(timing.low), _cell(timing.high)]


def _present(order: Iterable[str], names: set[str]) -> list[str]:
    """Names in the usual order, others after them."""
    usual = [name for name in order if name in names]
    return usual + sorted(names.difference(usual))


def _remarks(entries: Sequence[Entry]) -> str:
    """Marks of the entries of a row, with their names."""
    marked = [entry for entry in entries if entry.mark]
    if not marked:
        return ""
    return f"{marked[0].mark} ({' and '.join(entry.name for entry in marked)})"


def _marks(entries: Iterable[Entry]) -> list[str]:
    return ["control" if entry.control is not None else "" for entry in entries]


def _table(
    title: str, head: list[str], cells: list[list[str]], rows: Sequence[Entry], note: str
) -> Table:
    """Rows of entries; columns in which there is nothing are left out."""
    marks = _marks(rows)
    return _thinned(Table(title, tuple(head), [tuple(row) for row in cells], 2, marks, note))


def _thinned(table: Table) -> Table:
    """A table without the columns in which no row has anything."""
    used = [place for place, _ in enumerate(table.head) if any(row[place] for row in table.rows)]
    return Table(
        table.title,
        tuple(table.head[place] for place in used),
        [tuple(row[place] for place in used) for row in table.rows],
        sum(place < table.figures for place in used),
        table.marks,
        table.note,
    )


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def _time(milliseconds: float) -> str:
    return amount(milliseconds / 1000, "s")


def _timing(timing: Timing | None) -> str:
    if timing is None:
        return ""
    ends = ""
    if timing.low is not None and timing.high is not None:
        ends = f" ({_time(timing.low)} to {_time(timing.high)})"
    return f"{_time(timing.median)}{ends}"
