"""Figures of tables and CSV are those of the run, and every table with a marked entry marks it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from clara.evaluation.answer_types import NO_ANSWER
from clara.evaluation.report import tables
from clara.evaluation.report.completing import completed
from clara.evaluation.report.lead import contestants, leaders
from clara.evaluation.report.names import p_value, percent, points, with_interval
from clara.evaluation.report.reading import read_run
from clara.evaluation.report.records import Score
from clara.evaluation.report.types import example_rows, example_tables
from clara.evaluation.summary import NOT_FROM_MEMORY

MARKED = "clara@16+bm25"


@pytest.fixture(scope="module")
def read(run):
    return completed(read_run(run))


def by_first(table):
    return {row[0]: dict(zip(table.head, row)) for row in table.rows}


def test_entries(read, run):
    found = {e["entry"]: e for e in json.loads((run / "summary.json").read_text())["entries"]}
    rows = by_first(tables.entry_table(read))
    row, expected = rows["clara@4+bm25"], found["clara@4+bm25"]["scores"]["exact_match"]
    low, high = (round(100 * expected[end]) for end in ("low", "high"))
    assert row["exact match"] == f"{100 * expected['mean']:.0f} % ({low} to {high})"
    assert row["prompt tokens"] == "340"
    assert row["tokens per vector"] == "3.9"
    assert row["bytes per document"] == "144 KiB"
    assert row["time"] == "420 ms"
    assert rows["closed-book"]["bytes per document"] == ""
    assert tables.entry_table(read).marks[:3] == ["", "", "control"]


def test_every_table_marks_an_entry_whose_answers_do_not_come_from_memory(read):
    entry = read.by_name[MARKED]
    assert entry.reads_memory is False
    shown = [
        tables.entry_table(read),
        tables.stage_table(read),
        tables.kept_table(read),
        tables.break_even_table(read),
        tables.type_table(read),
        *tables.pair_tables(read, [*leaders(read), entry]),
        *example_tables(read, [entry]),
    ]
    titles = set()
    for table in shown:
        for row in table.rows:
            if MARKED in row or row[0] == "clara@16":
                titles.add(table.title)
                assert any(NOT_FROM_MEMORY in cell for cell in row), table.title
    assert {"Entries", "Time by stage", "What is kept of the documents", "Break-even",
            "Exact match by answer type", "All pairs", "Errors: date"} <= titles  # fmt: skip


def test_every_csv_file_marks_it_too(read):
    files = {**tables.csv_files(read), "errors.csv": example_rows(read, [read.by_name[MARKED]])}
    marked = set()
    for name, (head, *rows) in files.items():
        for row in rows:
            assert len(row) == len(head)
            if MARKED in row:
                marked.add(name)
                assert NOT_FROM_MEMORY in str(row[-1])
    assert marked == {"entries.csv", "answer_types.csv", "pairs.csv", "break_even.csv",
                      "errors.csv"}  # fmt: skip


def test_csv_has_figures_as_they_were_measured(read):
    head, *rows = tables.csv_files(read)["entries.csv"]
    row = dict(zip(head, next(row for row in rows if row[0] == "clara@4+bm25")))
    score = read.by_name["clara@4+bm25"].exact_match
    assert (row["exact_match"], row["exact_match_low"]) == (score.mean, score.low)
    assert (row["rate"], row["control"], row["reads_memory"]) == (4.0, "", "true")
    assert row["read_ms"] == pytest.approx(294)


def test_rankers(read):
    table = tables.ranker_table(read)
    rows = by_first(table)
    assert list(rows) == ["bm25", "minilm", "gold"]
    assert rows["gold"]["recall@1"] == "100 % (100 to 100)"
    assert rows["gold"]["MRR"] == "1.00 (1.00 to 1.00)"
    assert "With at most 20 candidates, recall@20 is always 100 %." in table.note


def test_pairs(read):
    best, every = tables.pair_tables(read, leaders(read))
    assert len(best.rows) == 6
    assert len(every.rows) == len(read.pairs)
    first = best.rows[0]
    pair = read.pair(first[0], first[1])
    cells = dict(zip(best.head, first))
    assert cells["difference"] == points(pair.difference)
    assert cells["p"] == p_value(pair.p)
    (alone,) = tables.pair_tables(read, [])
    assert alone.title == "Pairs"


def test_break_even(read):
    rows = by_first(tables.break_even_table(read))
    assert rows["clara@4+bm25"]["questions per document"] == "0.214"
    assert rows["clara@16+bm25"]["questions per document"] == "never"


def test_answer_types_have_intervals_from_the_lines(read):
    table = tables.type_table(read)
    assert table.head == ("entry", "remark", "number (20)", "date (20)", "name (20)", "place (20)",
                          "phrase (20)")  # fmt: skip
    count, score = read.by_name["text+bm25"].by_type["date"]
    assert count == 20
    assert score.low < score.mean < score.high
    assert by_first(table)["text+bm25"]["date (20)"] == with_interval(score)


def test_examples_are_errors(read):
    shown = contestants(read)
    found = example_tables(read, shown)
    assert [table.title for table in found] == [
        f"Errors: {name}" for name in ("number", "date", "name", "place", "phrase")
    ]
    for table in found:
        assert 2 <= len(table.rows) <= 6
        answers = [dict(zip(table.head, row)) for row in table.rows]
        for first, second in zip(answers[::2], answers[1::2]):
            assert [first["entry"], second["entry"]] == [entry.name for entry in shown]
            assert second["question"] == second["golden answers"] == ""
            assert first["golden answers"].startswith("answer ")
            wrong = [each for each in (first, second) if each["answer"].startswith("not ")]
            assert wrong
            assert all("right" not in each["remark"] for each in wrong)
            assert first["rank"] in ("1 of 5", "2 of 5", "3 of 5", "4 of 5", "5 of 5",
                                     "not among the 5")  # fmt: skip


def test_a_refusal_is_right_where_no_document_answers(read):
    entry = read.by_name["text+bm25"]
    line = read.answers[0]
    asked = {"answerable": False, "golds": (), "gold_rank": None, "answer_type": NO_ANSWER}
    lines = [
        replace(line, question="a", answer="Oslo", **asked),
        replace(line, question="b", answer="It is not mentioned.", **asked),
    ]
    (table,) = example_tables(replace(read, answers=lines), [entry])
    assert table.title == "Errors: no answer"
    (row,) = table.rows
    cells = dict(zip(table.head, row))
    assert cells["golden answers"] == "(none: no document answers this)"
    assert (cells["answer"], cells["rank"]) == ("Oslo", "there is none")


def test_names_are_explained(read):
    meanings = dict(tables.meaning_table(read).rows)
    assert meanings["clara-shuffled@RATE"].startswith("a control")
    assert meanings["+bm25"] == "documents by BM25"
    assert {"text", "clara@RATE", "closed-book", "lead@RATE", "+gold"} <= meanings.keys()


def test_meanings_of_rankings_at_a_rate(read):
    def meant(*rankers):
        entries = [
            replace(entry, ranker=ranker)
            for entry in read.entries
            for ranker in rankers
            if entry.name in ("clara@4+bm25", "text+bm25")
        ]
        found = dict(tables.meaning_table(replace(read, entries=entries)).rows)
        return {name: what for name, what in found.items() if name.startswith("+")}

    at_four = "documents by CLaRa's ranking at rate 4"
    own = "documents by CLaRa's ranking at the rate of the entry"
    assert meant("clara@4") == {"+clara": own, "+clara@4": at_four}
    assert meant("clara@4", "clara@16") == {
        "+clara": own,
        "+clara@4": at_four,
        "+clara@16": "documents by CLaRa's ranking at rate 16",
    }
    # Runs of earlier versions ranked all entries alike, and do not say at which rate.
    assert meant("clara") == {"+clara": "documents by CLaRa's ranking"}
    assert meant("clara@4", "clara")["+clara"] == "documents by CLaRa's ranking"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (percent(0.4149), "41 %"),
        (percent(0.4149, 1000), "41.5 %"),
        (points(-0.123), "−12"),
        (points(0.123), "+12"),
        (points(-0.001), "0"),
        (with_interval(Score(0.4, 0.31, 0.5)), "40 % (31 to 50)"),
        (with_interval(Score(0.4)), "40 %"),
        (with_interval(Score(0.0, -0.004, 0.004)), "0 % (0 to 0)"),
        (with_interval(None), ""),
        (p_value(0.0002), "< 0.001"),
        (p_value(0.0321), "0.032"),
        (p_value(None), ""),
    ],
)
def test_how_numbers_are_written(shown, expected):
    assert shown == expected
