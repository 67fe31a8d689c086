"""The files of a report: one page that needs no other, harmless whatever was asked and answered."""

from __future__ import annotations

import base64
import csv
import json
import re
import sys
from html.parser import HTMLParser

import pytest

from clara.data.values import DataError
from clara.evaluation.report import pictures
from clara.evaluation.report.writing import UNTRAINED, write_report
from clara.evaluation.summary import NOT_FROM_MEMORY
from clara.reports.report import NO_PICTURES

TABLES = ["answer_types.csv", "break_even.csv", "entries.csv", "errors.csv", "pairs.csv",
          "rankers.csv"]  # fmt: skip
PICTURES = [
    *("accuracy-by-rate.png", "bytes.png", "errors.png", "latency.png"),
    *("prompt-tokens.png", "recall.png"),
]
PAGES = ["report.html", "report.md"]
LONG = "W" * 5000
HOSTILE = [
    "<script>alert(1)</script>",
    "\" onload='x' <img src=http://example.com/x>",
    "\x1b[31m\x00\x07 \u202e reversed \u2066 \u2028 line",
    "{{ 7*7 }} {% raw %}",
    "| a | b\n# heading\n[link](http://example.com) `x` $\\frac{$ _x_",
    LONG,
    "=HYPERLINK(1)",
    "\ud800",
]


class Page(HTMLParser):
    """Tags, attributes and texts of a page."""

    WITHOUT_END = ("img", "meta", "source")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.WITHOUT_END:
            self.open.append(tag)
            self.texts.append((tag, ""))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            tag, text = self.texts[-1]
            self.texts[-1] = tag, text + data

    def all(self, *tags):
        return [text.strip() for tag, text in self.texts if tag in tags]

    def check_that_it_needs_nothing(self):
        assert self.open == []
        assert not {"script", "link", "iframe", "object", "base", "form"} & {*self.tags}
        ids = {value for _, name, value in self.attributes if name == "id"}
        for tag, name, value in self.attributes:
            assert not name.startswith("on")
            if name in ("src", "srcset"):
                assert tag in ("img", "source")
                assert value.startswith("data:image/png;base64,")
            if name == "href":
                assert value[0] == "#"
                assert value[1:] in ids


@pytest.fixture(scope="module")
def report(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "new" / "report"
    return folder, write_report([run], folder)


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures take seconds."""
    monkeypatch.setattr(pictures, "PICTURES", ())


def test_what_is_made(report):
    folder, made = report
    names = sorted(path.name for path in folder.iterdir())
    assert names == made.files == sorted([*TABLES, *PICTURES, *PAGES])
    for name in PICTURES:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_the_page(report, run):
    folder, made = report
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    page.check_that_it_needs_nothing()
    assert "default-src 'none'" in text
    assert page.all("h1") == ["CLaRa evaluation"]
    assert page.all("p")[0] == made.lead[0]
    assert made.lead[0].startswith("On 100 questions with 20 candidates each, ")
    assert page.all("h2") == [
        "Contents",
        "Answers",
        "Cost",
        "Pairs",
        "Ranking",
        "Errors",
        "Settings and environment",
    ]
    light = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    dark = [value for tag, name, value in page.attributes if (tag, name) == ("source", "srcset")]
    assert len(light) == len(dark) == len(PICTURES)
    assert not {*light} & {*dark}
    shown = {base64.b64decode(source.partition(",")[2]) for source in light}
    assert shown == {(folder / name).read_bytes() for name in PICTURES}
    assert "prefers-color-scheme: dark" in text
    assert "Example CPU @ 2.50GHz" in page.all("td")
    assert any(NOT_FROM_MEMORY in cell for cell in page.all("td"))


def test_markdown_says_the_same(report):
    folder, made = report
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert re.findall(r"^## (.*)$", markdown, re.MULTILINE) == page.all("h2")[1:]
    assert re.findall(r"^### (.*)$", markdown, re.MULTILINE) == page.all("h3")
    assert {*re.findall(r"^!\[.*\]\((.*)\)$", markdown, re.MULTILINE)} == {*PICTURES}
    assert made.lead[0].split(" answers ")[0] in markdown


def test_the_same_runs_give_the_same_files(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "PICTURES", pictures.PICTURES[:2])
    for name in ("one", "two"):
        write_report([small_run], tmp_path / name)
    files = sorted((tmp_path / "one").iterdir())
    assert "accuracy-by-rate.png" in [path.name for path in files]
    for path in files:
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes(), path.name


def test_without_matplotlib_all_but_pictures_is_made(small_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    made = write_report([small_run], tmp_path)
    assert made.notes == [NO_PICTURES]
    assert not [name for name in made.files if name.endswith(".png")]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert NO_PICTURES in text
    assert "No picture of" not in text
    assert "<img" not in text


def test_what_cannot_be_drawn_is_said(changed, tmp_path):
    def change(summary):
        for entry in summary["entries"]:
            entry.update(rate=None, system=entry["system"].partition("@")[0], timings_ms={})
            entry.update(bytes_per_document=None, prompt_tokens=None)
        summary["rankers"] = []

    made = write_report([changed("summary.json", change)], tmp_path / "out")
    assert [name for name in made.files if name.endswith(".png")] == ["errors.png"]
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for missing in ("compression rate", "the prompt’s length", "time", "bytes"):
        assert f"No picture of exact match by {missing}" in text
    assert "No picture of recall" in text
    assert "No picture of errors" not in text


def test_hostile_texts_are_harmless(changed, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "PICTURES", pictures.PICTURES[:2])
    bad = "=<script>x</script>\u202e$_{\x1b[2J " + "y" * 300

    def change_lines(lines):
        for row, line in enumerate(lines):
            number = int(line["question"][1:])
            text = HOSTILE[number % len(HOSTILE)]
            line.update(text=text, golds=[text, f"{text} too"], answer=text * (1 + row % 3))
            line["entry"] = bad if line["entry"] == "closed-book" else line["entry"]

    def change_summary(summary):
        for entry in summary["entries"]:
            if entry["entry"] == "closed-book":
                entry.update(entry=bad, system=bad)
        for pair in summary["pairs"]:
            pair.update({side: bad for side in "ab" if pair[side] == "closed-book"})

    def change_run(record):
        record["environment"]["device"] = HOSTILE[0]
        record["settings"][HOSTILE[1]] = {"x": HOSTILE[0]}

    folder = changed("answers.jsonl", change_lines)
    changed("summary.json", change_summary)
    changed("run.json", change_run)
    write_report([folder], tmp_path / "out")
    texts = [
        (tmp_path / "out" / name).read_text(encoding="utf-8")
        for name in [*PAGES, *TABLES]
        if (tmp_path / "out" / name).exists()
    ]
    page = Page(texts[0])
    page.check_that_it_needs_nothing()
    assert any("<script>alert(1)</script>" in cell for cell in page.all("td"))
    for text in texts:
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u2028\u202e\u2066\ud800]", text)
    assert "<script" not in texts[1]
    assert "\n# heading" not in texts[1]
    assert max(map(len, page.all("td"))) < 1200
    with (tmp_path / "out" / "errors.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert any("WWWW" in cell for cell in cells)
    assert not any(cell.startswith("=") for cell in cells)


def test_side_by_side(make_run, small_run, tmp_path, undrawn):
    other = make_run(tmp_path / "other", count=10, label="x", small=True)
    with pytest.raises(DataError, match="--side-by-side"):
        write_report([small_run, other], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    made = write_report([small_run, other], tmp_path / "out", side_by_side=True)
    assert [sentence.partition(":")[0] for sentence in made.lead] == ["small", "other"]
    assert {"small-entries.csv", "other-entries.csv"} <= {*made.files}
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    page.check_that_it_needs_nothing()
    assert {"small: Answers", "other: Answers"} <= {*page.all("h2")}


def test_notes_come_before_figures(small_run, changed, tmp_path, undrawn):
    other = changed("run.json", lambda value: value["settings"].update(top_k=3))
    made = write_report([small_run, other], tmp_path / "out")
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert page.all("p")[1] == made.notes[0]
    assert "top_k was 5, is 3" in made.notes[0]


def test_untrained_adapters_are_said_first(changed, tmp_path, undrawn):
    folder = changed("summary.json", lambda value: value["entries"][1].update(trained=False))
    made = write_report([folder], tmp_path / "out")
    assert made.notes == [UNTRAINED]
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert page.all("p")[1] == UNTRAINED
    assert "untrained adapters" in page.all("td")


def test_rankers_alone(changed, tmp_path, undrawn):
    folder = changed("run.json", lambda value: value["settings"].update(entries=[]))
    changed("summary.json", lambda v: v.update(entries=[], pairs=[], break_even=[]))
    (folder / "answers.jsonl").unlink()
    made = write_report([folder], tmp_path / "out")
    (told,) = made.lead
    assert told.startswith("On 40 questions with 20 candidates each, bm25 ranks best, with ")
    assert made.files == ["rankers.csv", "report.html", "report.md"]
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    page.check_that_it_needs_nothing()


def test_what_cannot_be_written(small_run, tmp_path):
    with pytest.raises(DataError, match="at least one folder"):
        write_report([], tmp_path)
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(DataError, match="is not a folder"):
        write_report([small_run], file)
    assert file.read_text() == "kept"


def test_a_run_of_one_entry_and_one_question(changed, tmp_path, undrawn):
    def only(lines):
        lines[:] = [
            line for line in lines
            if line.get("entry", "text+bm25") == "text+bm25" and line["question"] == "q0"
        ]  # fmt: skip

    def one(summary):
        summary.update(questions=1, pairs=[], entries=summary["entries"][:1])
        summary["entries"][0].update(questions=1, by_type={}, scores={"exact_match": 0.0})

    folder = changed("answers.jsonl", only)
    changed("rankings.jsonl", only)
    changed("summary.json", one)
    made = write_report([folder], tmp_path / "out")
    assert made.lead[0].startswith("On 1 question with 20 candidates each, text with BM25 answers ")
    assert json.loads((folder / "summary.json").read_text())["questions"] == 1
