"""`clara data factbook`, run on thirteen countries of the installed package."""

import json
import os
from pathlib import Path

import pytest

from clara.data.examples import ExampleFile, answer_example, document_questions, ranking_example

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
        if name != "docs.jsonl":
            parse = {"instruct": answer_example, "ranking": ranking_example}.get(
                name.split(".")[0], document_questions
            )
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
