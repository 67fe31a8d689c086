"""`docs/results_page.py`: a page and reports from the runs that are kept in docs/results."""

import importlib.util
import re
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("results_page", ROOT / "docs" / "results_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def docs(run, tmp_path):
    folder = tmp_path / "docs"
    shutil.copytree(run, folder / "results" / "factbook")
    (folder / "results" / "older").mkdir()  # a report without its run
    (folder / "results" / "older" / "report.md").write_text("# old\n")
    return folder


def test_the_page_is_made_of_the_runs(script, docs, capsys):
    folder = docs / "results" / "factbook"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    for name in ("left-over.png", "left-over.csv", "note.txt"):
        (folder / name).touch()
    assert script.main(["--check"], docs) == 1
    assert "run docs/results_page.py" in capsys.readouterr().err
    assert script.main([], docs) == 0
    assert script.main(["--check"], docs) == 0
    text = (docs / "results.md").read_text()
    assert re.findall(r"^#+ .*", text, re.MULTILINE) == [
        "# Results",
        "## factbook",
        "### What to choose when",
        "### Entries",
        "### Rankers",
        "### Exact match by answer type",
    ]
    for place in re.findall(r"\]\((.*?)\)", text):
        assert (docs / place).is_file(), place
    pictures = set(re.findall(r"\((results/factbook/.*\.png)\)", text))
    names = "accuracy-by-rate", "prompt-tokens", "latency", "bytes", "recall", "errors"
    assert pictures == {f"results/factbook/{name}.png" for name in names}
    assert "tuned text with BM25 answers" in text
    assert "## older" not in text
    assert not (folder / "report.html").exists()
    # What the run no longer gives is gone; what is no part of a report stays.
    assert [file.name for file in folder.glob("left-over.*")] == []
    assert (folder / "note.txt").is_file()
    assert all((folder / name).read_bytes() == content for name, content in before.items())
    # A figure that is changed by hand is found.
    (docs / "results.md").write_text(text.replace(" % ", " percent ", 1))
    assert script.main(["--check"], docs) == 1


def test_pictures_are_not_lost_where_none_can_be_drawn(script, docs, capsys, monkeypatch):
    picture = docs / "results" / "factbook" / "recall.png"
    picture.touch()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert script.main([], docs) == 1
    assert "matplotlib" in capsys.readouterr().err
    assert picture.is_file()


def test_bad_runs_are_named(script, docs, capsys):
    file = docs / "results" / "factbook" / "answers.jsonl"
    file.write_text(file.read_text()[:-20])
    assert script.main([], docs) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {file}:")
    shutil.rmtree(docs / "results" / "factbook")
    assert script.main([], docs) == 1
    assert "no folder in it holds a run of clara evaluate (run.json)" in capsys.readouterr().err
    assert not (docs / "results.md").exists()


def test_the_committed_page_is_what_its_runs_give(script, capsys):
    kept = list((ROOT / "docs" / "results").glob("*/run.json"))
    assert (ROOT / "docs" / "results.md").is_file() is bool(kept)
    if kept:
        assert script.main(["--check"]) == 0, capsys.readouterr().err
