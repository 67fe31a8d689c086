"""`clara search --ids` and `clara ask --ids`: only documents whose ids are listed."""

import json

import pytest

from clara.cli.errors import CommandError
from clara.cli.id_lists import read_ids

QUESTION = "How many rivers has country 3?"


@pytest.fixture
def found(clara, model, index):
    """Ids and scores that a search of the index of six documents finds, best first."""

    def search(*more, command="search"):
        asked = (command, "--model", model, "--index", index, "--top-k", "9", "--json")
        documents = json.loads(clara(*asked, *more, QUESTION).stdout)["documents"]
        return {each["id"]: each["score"] for each in documents}

    return search


def test_lists_and_files(tmp_path):
    file = tmp_path / "ids.txt"
    file.write_bytes(b"\xef\xbb\xbfwith, a comma\r\n\n @odd\nb\nlast")
    assert read_ids(None) is None
    assert read_ids(["a, b,,a", f"@{file}"]) == ["a", "b", "with, a comma", " @odd", "last"]
    assert read_ids(["handbook/hours.txt"]) == ["handbook/hours.txt"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (" , ", "--ids ' , ' holds no id; give ID,… or @FILE"),
        ("", "--ids '' holds no id"),
        ("@", "must name a file"),
        ("@.", "must name a file"),
        ("@none.txt", "--ids @none.txt: No such file"),
        ("@bad.txt", "bad.txt:2: not valid UTF-8: byte 0xff at 1"),
    ],
)
def test_what_lists_no_ids(tmp_path, monkeypatch, value, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.txt").write_bytes(b"fine\nx\xff\n")
    with pytest.raises(CommandError) as caught:
        read_ids([value])
    assert message in str(caught.value)


def test_a_search_among_ids_is_exact(found, tmp_path):
    every = found()
    chosen = [name for name in every if name in ("d1", "d3", "d4")]
    (tmp_path / "ids").write_text("d4\nd3\n")
    few = found("--ids", f"@{tmp_path}/ids", "--ids", "d1,d3")
    assert few == pytest.approx({name: every[name] for name in chosen})
    assert list(few) == chosen
    kept = found("--ids", "d1,d3", "--filter", "title = 'Country 3'")
    assert kept == pytest.approx({"d3": every["d3"]})
    asked = found("--ids", "d5", "--max-new-tokens", "1", command="ask")
    assert list(asked) == ["d5"]


def test_ids_that_are_not_there(refused, model, index):
    options = ("--model", model, "--index", index, QUESTION)
    assert "no document has the id 'none'" in refused("search", *options, "--ids", "d1,none")
    line = refused("search", *options, "--ids", "d1", "--filter", "title = 'Country 3'")
    assert "left no document to search" in line
    assert "--ids ',' holds no id" in refused("ask", *options, "--ids", ",", code=2)
