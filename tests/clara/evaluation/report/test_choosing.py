"""The best entry within a limit of what an answer costs."""

from dataclasses import replace

import pytest

from clara.evaluation.report.choosing import choice_table
from clara.evaluation.report.reading import read_run
from clara.evaluation.report.records import Score, Timing


@pytest.fixture
def read(run):
    return read_run(run)


def entry(of, name, right, tokens, milliseconds, **changes):
    return replace(
        of,
        **{
            "name": name,
            "system": name.partition("@")[0].partition("+")[0],
            "ranker": name.partition("+")[2] or None,
            "control": None,
            "scores": {"exact_match": Score(right, right - 0.1, right + 0.1)},
            "prompt_tokens": tokens,
            "timings": {"generate": Timing(milliseconds)},
            "bytes_per_document": 2048.0,
            "reads_memory": None,
            "trained": None,
            **changes,
        },
    )


def test_the_most_right_answers_within_each_limit(read):
    of = read.entries[0]
    entries = [
        entry(of, "text+bm25", 0.5, 1000.0, 2000.0),
        entry(of, "text-tuned+bm25", 0.75, 1000.0, 2000.0),
        entry(of, "text-tuned+gold", 0.95, 1000.0, 2000.0),
        entry(of, "clara@4+bm25", 0.625, 250.0, 1500.0, reads_memory=True),
        entry(of, "clara@16+bm25", 0.375, 100.0, 150.0, reads_memory=True),
        entry(of, "clara@64+bm25", 0.625, 30.0, 100.0, reads_memory=False),
        entry(of, "clara@8+bm25", 0.875, 30.0, 100.0, trained=False),
        entry(of, "clara-none", 0.9, 30.0, 100.0, control="none"),
    ]
    table = choice_table(replace(read, entries=entries))
    assert [row[:2] for row in table.rows] == [
        ("at most 1,000 tokens, as text-tuned+bm25", "text-tuned+bm25"),
        ("at most 500 tokens, half of that", "clara@4+bm25"),
        ("at most 250 tokens, a quarter", "clara@4+bm25"),
        ("at most 100 tokens, a tenth", "clara@16+bm25"),
        ("at most 2.00 s, as text-tuned+bm25", "text-tuned+bm25"),
        ("at most 1.00 s, half of that", "clara@16+bm25"),
        ("at most 500 ms, a quarter", "clara@16+bm25"),
        ("at most 200 ms, a tenth", "clara@16+bm25"),
    ]
    row = dict(zip(table.head, table.rows[1]))
    assert (row["prompt tokens"], row["time"]) == ("250", "1.50 s")
    assert row["bytes per document"] == "2.00 KiB"
    slow = [replace(each, timings={"generate": Timing(2000.0)}) for each in entries]
    assert choice_table(replace(read, entries=slow)).rows[-1][1:3] == ("none", "")
    untimed = [replace(each, timings={}) for each in entries]
    assert len(choice_table(replace(read, entries=untimed)).rows) == 4


def test_without_a_choice_there_is_no_table(read):
    texts = [each for each in read.entries if each.system == "text"]
    assert choice_table(replace(read, entries=texts)).rows == ()
    others = [each for each in read.entries if not each.system.startswith("text")]
    assert choice_table(replace(read, entries=others)).rows == ()
