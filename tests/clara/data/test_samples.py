"""Samples of files of records."""

import json

import pytest

from clara.data import DataError
from clara.data.samples import draw_samples


@pytest.fixture
def write(tmp_path):
    def written(*records):
        path = tmp_path / "records.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return written


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({"id": "a", "contents": "x"}, "document"),
        ({"id": "a", "question": "x?", "golden_answers": []}, "question"),
        ({"question": "x?", "docs": ["d"], "answer": "a"}, "question with documents"),
        ({"question": "x?", "docs": ["d"], "pos_index": [0]}, "question with ranked documents"),
        ({"docs": ["d"], "questions": ["x?"], "answers": ["a"]}, "questions of documents"),
        (
            {"data_type": "qa", "question": ["x?"], "answers": ["a"], "docs": ["d"]},
            "pretraining",
        ),
    ],
)
def test_kinds(write, record, kind):
    samples = draw_samples(write(record), 3)
    assert samples.counts == {kind: 1}
    assert [(each.line, each.kind, each.fields) for each in samples.drawn] == [(1, kind, record)]


def test_what_is_drawn(write):
    path = write(*({"id": str(i), "contents": f"text {i}"} for i in range(100)))
    drawn = draw_samples(path, 5, seed=1).drawn
    assert len(drawn) == 5
    lines = [each.line for each in drawn]
    assert lines == sorted(set(lines))
    assert [each.fields["id"] for each in drawn] == [str(line - 1) for line in lines]
    assert draw_samples(path, 5, seed=1).drawn == drawn
    assert draw_samples(path, 5, seed=2).drawn != drawn
    assert len(draw_samples(path, 200).drawn) == 100
    # Each record is drawn as often as another.
    last = sum(draw_samples(path, 10, seed).drawn[-1].line > 50 for seed in range(20))
    assert last >= 15


def test_mistakes(write, tmp_path):
    with pytest.raises(DataError, match=r"records\.jsonl:2: no record of a known kind: its fields"):
        draw_samples(write({"id": "a", "contents": "x"}, {"a": 1, "b": 2}), 1)
    with pytest.raises(DataError, match=r"records\.jsonl:1: there are 2 questions and 1 answers"):
        draw_samples(write({"docs": ["d"], "questions": ["x?", "y?"], "answers": ["a"]}), 1)
    with pytest.raises(DataError, match="holds no records"):
        draw_samples(write(), 1)
    with pytest.raises(DataError, match="No such file"):
        draw_samples(tmp_path / "none.jsonl", 1)
