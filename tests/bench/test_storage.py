"""What is found of memory in fewer bits."""

import json
from pathlib import Path

import pytest
import torch

from bench.runs import read_runs
from bench.storage import Answered, answered, compare, main, passages
from clara import Clara, ClaraConfig
from clara.data.examples import ExampleFile, ranking_example

BACKBONE = Path(__file__).resolve().parents[1] / "data" / "reference" / "base"
WORDS = [
    "mill",
    "stone",
    "grain",
    "salt",
    "bridge",
    "church",
    "river",
    "town",
    "farm",
    "field",
    "road",
    "hill",
]
RECORDS = [
    {
        "question": f"The {word} of {WORDS[place - 1]}",
        "docs": [f"The {word} of {WORDS[place - 1]} and a {WORDS[place - 2]}", "Nothing of it"],
        "pos_index": [0],
        "answer": word,
    }
    for place, word in enumerate(WORDS)
]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    config = ClaraConfig(
        memory_form="spans", compression_rate=2, rates=[1, 2], document_length=64, dtype="float32"
    )
    return Clara.from_backbone(str(BACKBONE), config)


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "ranking.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in RECORDS), encoding="utf-8")
    return file


def test_texts_with_answers_come_first(data):
    examples = list(ExampleFile(data, ranking_example))
    right = [record["docs"][0] for record in RECORDS]
    assert passages(examples, 5) == right[:5]
    assert passages(examples, 99) == [*right, "Nothing of it"]


def test_questions_are_answered_from_the_passage_that_holds_the_answer(data):
    examples = list(ExampleFile(data, ranking_example))
    texts = [RECORDS[1]["docs"][0], RECORDS[0]["docs"][0]]
    assert answered(examples, texts, 2) == [
        Answered(RECORDS[0]["question"], 1, "mill"),
        Answered(RECORDS[1]["question"], 0, "stone"),
    ]
    with pytest.raises(ValueError, match=r"^2 questions can be answered, --answers is 3$"):
        answered(examples, texts, 3)


def test_answers_are_compared_with_those_of_bfloat16(model, monkeypatch):
    """Each is read from its own passage; the storage decides what is read."""
    texts = [record["docs"][0] for record in RECORDS]
    compressed = model.compress(texts, compression_rate=1)
    seen = []

    def generate(questions, memory, **settings):
        seen.append([list(each.texts) for each in memory])
        given = [compressed[[row]] for row in (4, 3)]
        vectors = [[each.memory[0, : each.counts[0]] for each in some] for some in (memory, given)]
        return ["mill" if torch.equal(one, two) else "another" for one, two in zip(*vectors)]

    monkeypatch.setattr(model, "generate", generate)
    asked = [Answered("Which?", 4, "The Mill."), Answered("What?", 3, "salt")]
    found = dict(compare(model, texts, ["Which?"], 1, asked))
    assert seen == [[[texts[4]], [texts[3]]]] * 5
    assert (found["bfloat16"]["exact"], found["bfloat16"]["same"]) == (0.5, 1)
    assert (found["int4"]["exact"], found["int4"]["same"]) == (0, 0)


def test_what_is_found_is_compared_with_bfloat16(model):
    texts = [record["docs"][0] for record in RECORDS]
    questions = [record["question"] for record in RECORDS]
    found = dict(compare(model, texts, questions, 1))
    assert list(found) == ["bfloat16", "float32", "float16", "int8", "int4"]
    vectors = sum(model.compress(texts, compression_rate=1).counts)
    width = model.hidden_size
    saved = (found["bfloat16"]["bytes"] - found["int8"]["bytes"]) * len(texts)
    assert saved == pytest.approx(vectors * (2 * width - width - 4) - 9 * len(texts))
    assert found["float32"]["error"] == 0
    errors = [found[name]["error"] for name in ("float16", "bfloat16", "int8", "int4")]
    assert errors == sorted(errors)
    assert errors[-1] < 0.2
    names = ("found", "first", "found_reranked", "first_reranked")
    assert [found["bfloat16"][name] for name in names] == [1] * 4
    for storage in ("int8", "int4"):  # whose means are the same
        assert [found[storage][name] for name in names[:2]] == [1, 1]
    assert found["int4"]["found_reranked"] > 0.5


def test_the_command_keeps_what_is_finished(model, data, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    output = tmp_path / "storage.jsonl"
    options = ["--questions", "3", "--documents", "12", "--threads", "1", "--data", str(data)]
    options += ["--model", str(tmp_path / "model"), "--name", "mine", "--output", str(output)]
    assert main([*options, "--rates", "2"]) == 0
    assert main([*options, "--rates", "2"]) == 0
    runs = read_runs(output)
    assert [run.names["storage"] for run in runs] == [
        "bfloat16",
        "float32",
        "float16",
        "int8",
        "int4",
    ]
    assert runs[0].names == {"memory": "mine", "rate": 2, "storage": "bfloat16"}
    capsys.readouterr()
    assert main(["--table", "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| mine | 2 | bfloat16 |")
    assert lines[2].endswith("| 1.000 | 1.000 | 1.000 | 1.000 |  |  |")
    assert main([*options, "--rates", "3"]) == 1
    assert "error: " in capsys.readouterr().err


def test_bad_options(capsys):
    for given, said in (
        (["--name", "mine"], "--model and --name go together"),
        (["--documents", "0"], "--documents must be at least 1, got 0"),
    ):
        with pytest.raises(SystemExit):
            main(given)
        assert said in capsys.readouterr().err
