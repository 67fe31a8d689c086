"""Recall by the mean and by every vector."""

import json
from pathlib import Path

import pytest

from bench.reranking import main, recalls
from bench.runs import read_runs
from clara import Clara, ClaraConfig
from clara.data.examples import ExampleFile, ranking_example

BACKBONE = Path(__file__).resolve().parents[1] / "data" / "reference" / "base"
SALT = "The mill of salt"
# The right text holds the question word for word, which the mean of so many words hides.
RECORDS = [
    {
        "question": "The mill of stone",
        "docs": ["The mill of stone grinds the grain of four towns and a farm", SALT],
        "pos_index": [0],
        "answer": "grain",
    },
    {"question": SALT, "docs": ["A bridge", SALT, "A church"], "pos_index": [1], "answer": "salt"},
]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    """At one token a vector, memory without training is the embeddings of a text."""
    config = ClaraConfig(
        memory_form="spans", compression_rate=1, rates=[1, 2], document_length=64, dtype="float32"
    )
    return Clara.from_backbone(str(BACKBONE), config)


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "ranking.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in RECORDS), encoding="utf-8")
    return file


def test_recall_counts_where_the_right_text_is(model, data):
    examples = list(ExampleFile(data, ranking_example))
    assert recalls(model, examples, 1) == {"mean": [0.5, 1.0], "reranked": [1.0, 1.0]}
    assert recalls(model, examples[1:], 1) == {"mean": [1.0, 1.0], "reranked": [1.0, 1.0]}


def test_the_command_keeps_what_is_finished(model, data, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    output = tmp_path / "reranking.jsonl"
    options = ["--questions", "2", "--threads", "1", "--data", str(data), "--output", str(output)]
    options += ["--model", str(tmp_path / "model"), "--name", "embeddings"]
    assert main([*options, "--rates", "1"]) == 0
    assert main([*options, "--rates", "1", "2"]) == 0
    first, second = read_runs(output)
    assert first.names == {"memory": "embeddings", "rate": 1}
    assert first.found == {"mean": [0.5, 1.0], "reranked": [1.0, 1.0]}
    assert second.names["rate"] == 2
    capsys.readouterr()
    assert main(["--table", "--output", str(output)]) == 0
    assert "| embeddings | 1 | 2 | 0.500, 1.000 | 1.000, 1.000 |" in capsys.readouterr().out
    assert main([*options, "--rates", "3"]) == 1
    assert "error: " in capsys.readouterr().err


def test_bad_options(capsys):
    for given, said in (
        (["--model", "there"], "--model and --name go together"),
        (["--questions", "0"], "--questions must be at least 1, got 0"),
    ):
        with pytest.raises(SystemExit):
            main(given)
        assert said in capsys.readouterr().err
