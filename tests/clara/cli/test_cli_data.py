"""`clara data factbook`, run on thirteen countries of the installed package."""

import json
import os
from pathlib import Path

import pytest

from clara.data.examples import (
    ExampleFile,
    answer_example,
    document_questions,
    pretraining_example,
    ranking_example,
)

THIRTEEN = str(Path(__file__).parents[2] / "thirteen_countries")


@pytest.fixture(scope="module")
def few_countries():
    paths = os.pathsep.join([THIRTEEN, os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths}


def test_what_is_written_can_be_read(process, few_countries, tmp_path):
    folder = tmp_path / "new" / "factbook"
    done = process("data", "factbook", "--output", str(folder), "--json", env=few_countries)
    assert (done.returncode, done.stderr) == (0, "")
    printed = json.loads(done.stdout)
    assert printed["folder"] == str(folder)
    for name, count in printed["records"].items():
        # So few countries lack none of the fields that most of them have.
        if name != "docs.jsonl" and not name.startswith(("questions.", "unanswerable.")):
            parse = {
                "instruct": answer_example,
                "ranking": ranking_example,
                "two-chunks": ranking_example,
                "paraphrases": pretraining_example,
            }.get(name.split(".")[0], document_questions)
            examples = list(ExampleFile(folder / name, parse))
            assert len(examples) == count > 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(printed["records"])

    before = (folder / "documents.train.jsonl").read_bytes()
    shorter = ["--max-tokens", "48"]
    done = process("data", "factbook", "--output", str(folder), *shorter, env=few_countries)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(folder / n) for n in printed["records"]]
    assert (folder / "documents.train.jsonl").read_bytes() != before


def test_mistakes(refused, tmp_path, thirteen_countries):
    line = refused("data", "factbook", "--output", str(tmp_path / "new"), "--max-tokens", "5")
    assert "max_tokens = 5 leaves no room for text beside the heading" in line
    assert not (tmp_path / "new").exists()
    refused("data", "factbook", "--output", str(tmp_path), "--max-tokens", "0", code=2)


def test_records_are_shown(clara, write_corpus, tmp_path):
    file = write_corpus(count=40)
    printed = clara("data", "show", file, "--number", "2").stdout
    first, *others = printed.splitlines()
    assert first == f"{file}: document: 40"
    assert sum(line.startswith("line ") for line in others) == 2
    assert clara("data", "show", file, "--number", "2").stdout == printed
    assert clara("data", "show", file, "--number", "2", "--seed", "5").stdout != printed

    shown = json.loads(clara("data", "show", file, "--number", "1", "--json").stdout)
    assert shown["counts"] == {"document": 40}
    (sample,) = shown["records"]
    assert sample["record"]["id"] == f"d{sample['line'] - 1}"


def test_a_record_takes_one_screen_and_steers_no_terminal(clara, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    documents = [f"Text {i}: \x1b[31mred\x07\n" + "long word " * 500 for i in range(20)]
    record = {
        "question": "Which?\u202e",
        "docs": documents,
        "pos_index": [17],
        "answer": "this one",
        "\x1b[2J": "x",
    }
    file = tmp_path / "ranking.jsonl"
    file.write_text(json.dumps(record) + "\n")
    printed = clara("data", "show", str(file), "--number", "1").stdout
    head, blank, title, *lines = printed.splitlines()
    assert head.endswith("question with ranked documents: 1")
    assert (blank, title) == ("", "line 1, question with ranked documents")
    assert len(lines) <= 22
    assert max(map(len, lines)) <= 80
    assert not set(printed) & set("\x1b\x07\u202e")
    assert "this one" in printed
    assert "document 17 *" in printed  # what holds the answer is not left out
    assert "more" in lines[-1]


def test_definitions_are_written(clara, refused, tmp_path):
    wordnet = tmp_path / "wordnet"
    wordnet.mkdir()
    for part in ("noun", "verb", "adj", "adv"):
        lines = "".join(
            f"{i:08} 04 n 01 {part}{i} 0 000 | the meaning of {part} number {i}  \n"
            for i in range(60)
        )
        (wordnet / f"data.{part}").write_text(lines)
    folder = tmp_path / "new"
    words = ["data", "definitions", "--output", str(folder), "--wordnet", str(wordnet)]
    counts = json.loads(clara(*words, "--no-prose", "--json").stdout)["records"]
    assert (
        len(list(ExampleFile(folder / "documents.train.jsonl", document_questions)))
        == (counts["documents.train.jsonl"])
    )
    line = refused("data", "definitions", "--output", str(folder), "--wordnet", str(tmp_path))
    assert "WordNet is in Debian's package wordnet-base" in line
    refused(*words, "--no-prose", "--prose", str(tmp_path), code=2)


def test_show_refuses_what_it_does_not_know(refused, tmp_path):
    file = tmp_path / "other.jsonl"
    file.write_text('{"a": 1}\n')
    assert "other.jsonl:1: no record of a known kind" in refused("data", "show", str(file))
    refused("data", "show", str(file), "--number", "0", code=2)
