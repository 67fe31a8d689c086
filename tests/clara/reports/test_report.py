import base64
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from clara.reports.plots import draw_all
from clara.reports.report import NO_PICTURES, write_report
from clara.reports.results import (
    Measurement,
    Promise,
    Results,
    ResultsError,
    read_results,
)

HOSTILE = "<script>alert(1)</script>\" onload='x' \x1b[31m\u202e|$\\frac{$ {{ 7*7 }} \ud800 _"
PICTURES = [
    "answers.png",
    "stages.png",
    "sweeps.png",
    "throughput.png",
    "memory.png",
    "search.png",
    "growth.png",
    "roofline.png",
]
COMMITTED = Path(__file__).parents[3] / "bench/results/AMD-EPYC/cpu.json"
DRAWN = {*PICTURES} - {"sweeps.png"}


class Page(HTMLParser):
    """What a page holds: its tags, cells, headings, paragraphs, links and pictures."""

    WITHOUT_END = ("img", "meta")
    TEXTS = ("td", "th", "h1", "h2", "h3", "p", "figcaption", "summary", "a")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.ids = [], [], [], []
        self.texts = []  # of all tags in `TEXTS`, in their order: tag and text
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.WITHOUT_END:
            self.open.append(tag)
        if tag in self.TEXTS:
            self.texts.append((tag, ""))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in self.TEXTS:
            tag, text = self.texts[-1]
            self.texts[-1] = tag, text + data

    def all(self, *tags):
        return [text for tag, text in self.texts if tag in tags]

    @property
    def cells(self):
        return self.all("td", "th")

    @property
    def images(self):
        """The bytes of every picture; each is in the page itself."""
        found = [value for tag, name, value in self.attributes if (tag, name) == ("img", "src")]
        assert all(source.startswith("data:image/png;base64,") for source in found)
        return [base64.b64decode(source.partition(",")[2], validate=True) for source in found]

    def check_links(self):
        """Nothing is fetched, nothing runs, and every link leads to a place in the page."""
        assert len(set(self.ids)) == len(self.ids)
        for tag, name, value in self.attributes:
            assert not name.startswith("on")
            assert name not in ("srcset", "data", "action", "poster", "background")
            if name == "src":
                assert tag == "img"
            if name == "href":
                assert tag == "a"
                assert value.startswith("#")
                assert value[1:] in self.ids


@pytest.fixture(scope="module")
def files(make, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    make(0).write(folder / "before.json")
    make(1, {("question", "memory"): 1.4, ("rank", "torch"): 0.7}).write(folder / "after.json")
    return folder / "before.json", folder / "after.json"


@pytest.fixture(scope="module")
def comparison(files, tmp_path_factory):
    """Folder of a report that compares two runs, and what it returns."""
    folder = tmp_path_factory.mktemp("report") / "new" / "report"
    return folder, write_report(files, folder)


def test_what_is_made(comparison):
    folder, _ = comparison
    tables = ["results.csv", "comparison.csv", "promises.csv", "growth.csv"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["report.html", "report.md", *tables, *PICTURES]
    )
    for name in PICTURES:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_the_page(comparison):
    folder, _ = comparison
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    page.check_links()
    assert page.images == [(folder / name).read_bytes() for name in PICTURES]
    for cell in ("Example CPU @ 2.50GHz", "not reachable here", "faiss is not installed"):
        assert cell in page.cells
    titles = page.all("h2")
    assert titles == [
        "Contents",
        "Compared with the earlier run",
        "Promises",
        "Answers to questions",
        "Generation from memory and from text",
        "Compression of documents",
        "Training steps",
        "Peak memory",
        "Search",
        "How cost grows with size",
        "Operators",
        "Environment",
    ]
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", markdown, re.MULTILINE) == titles[1:]
    assert re.findall(r"^### (.*)$", markdown, re.MULTILINE) == page.all("h3")
    assert re.findall(r"^!\[.*\]\((.*)\)$", markdown, re.MULTILINE) == PICTURES


def test_the_page_of_committed_results(tmp_path):
    """One file, as somebody reads it: what was found, contents, figures, and then the machine."""
    write_report([COMMITTED], tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    page.check_links()
    assert [page.texts[0], page.texts[1][0]] == [("h1", "CLaRa benchmarks"), "p"]
    sentences = page.all("p")[0]
    assert sentences.startswith("Measured on AMD EPYC with 2 threads, 2026-11-26, commit ")
    assert "answers to questions, generation, compression, training steps" in sentences
    results = read_results(COMMITTED)
    own, other = (
        results.find("question", "time to first token", name, rate=16, k=5, documents=1000)
        for name in ("memory", "text")
    )
    assert (
        f"At 16x compression, the first token of an answer takes {own.median * 1e3:.0f} ms from "
        f"memory tokens and {other.median:.2f} s from the documents' text"
    ) in sentences
    kept = sum(promise.outcome == "kept" for promise in results.promises)
    assert f"{kept} of 12 promises are kept" in sentences

    contents, *titles = page.all("h2")
    assert contents == "Contents"
    assert page.all("a") == titles
    assert titles[-1] == "Environment"
    assert text.index(results.environment["torch"]) > text.rindex("<img")
    assert len(page.images) == len(PICTURES)
    assert all(picture.startswith(b"\x89PNG") for picture in page.images)
    riddles = {"at", "what", "by the first", "of the limit", "of the last two", "farthest point"}
    assert not riddles & {*page.all("th")}


def test_regressions_are_marked(comparison):
    folder, report = comparison
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert text.count('<tr class="bad">') == report.count("slower") + 1  # a missed promise
    assert text.count('<tr class="good">') == report.count("faster") + 2
    assert report.count("slower") > 0
    assert report.count("faster") == 27
    assert report.notes == []
    rows = (folder / "comparison.csv").read_text().splitlines()[1:]
    assert sum(row.endswith(",slower") for row in rows) == report.count("slower")
    assert len(rows) == len(report.changes)


def test_other_conditions_are_said_first(make, tmp_path):
    before, after = make(), make()
    after.environment |= {"device": "Other GPU", "size": "small"}
    after.ceilings["bandwidth"] = 2e12
    for name, results in (("before", before), ("after", after)):
        del results.measurements[10:]
        results.write(tmp_path / f"{name}.json")
    report = write_report([tmp_path / "before.json", tmp_path / "after.json"], tmp_path / "out")
    (note,) = report.notes
    assert note == (
        "The runs differ in more than the code: device was Example CPU @ 2.50GHz, is Other GPU; "
        "size was full, is small; measured bandwidth was 19 GB/s, is 2,000 GB/s."
    )
    text = (tmp_path / "out" / "report.html").read_text()
    assert text.index(note) < text.index("<h2>")
    assert "measurements are slower or larger" in " ".join(report.lead)
    after_title = text.index("<h2>Compared with the earlier run</h2>")
    assert 0 < text.index(note, after_title) - after_title < 80


def test_nothing_in_a_file_gets_out_of_its_cell(tmp_path):
    results = Results(
        {"device": HOSTILE, HOSTILE: [HOSTILE]},
        {HOSTILE: 1.0, "bandwidth": 1e10, "matrix_rate": 1e11},
        [
            Measurement(
                *(suite, case, HOSTILE, {"rate": 4, HOSTILE: HOSTILE, **more}, "s", [1.0, 2.0]),
                quantities={HOSTILE: 1.0, "documents": 1, "bytes": 1.0, "flops": 2.0},
            )
            for suite, case, more in (
                ("compress", "throughput", {}),
                ("question", "time to first token", {}),
                ("question", "stage", {"stage": HOSTILE}),
                ("rank", "search", {"documents": 5}),
                ("growth", HOSTILE, {"size": 5, "of": HOSTILE}),
                ("growth", HOSTILE, {"size": 50, "of": HOSTILE}),
                ("operators", HOSTILE, {}),
                (HOSTILE, HOSTILE, {}),
            )
        ]
        + [
            Measurement(HOSTILE, HOSTILE, "x", unit="bytes", samples=[5.0]),
            Measurement(HOSTILE, HOSTILE, "_", {"rate": HOSTILE}, withheld=HOSTILE),
        ],
        [Promise(HOSTILE, 1.0)],
    )
    file = tmp_path / "results.json"
    results.write(file)
    write_report([file, file], tmp_path / "out")
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    known = "html head meta title style body nav ul li a section h1 h2 h3 p div figure img"
    known += " figcaption details summary table thead tbody tr th td"
    assert set(page.tags) <= {*known.split()}
    assert {name for _, name, _ in page.attributes} <= {
        *("lang", "charset", "name", "content", "http-equiv", "class", "id", "href", "src", "alt"),
        "aria-label",
    }
    page.check_links()
    assert all(re.fullmatch("[a-z0-9-]+", name) for name in page.ids)
    assert len(page.images) == 7
    assert any("{{ 7*7 }}" in cell for cell in page.cells)
    for name in ("report.html", "report.md", "results.csv", "comparison.csv", "growth.csv"):
        for line in (tmp_path / "out" / name).read_text(encoding="utf-8").split("\n"):
            assert line.isprintable()
    assert "<script" not in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("values", [[0.0], [1e-30, 1e30, 1.0]])
def test_extreme_numbers_can_be_drawn(make, tmp_path, values):
    results = make()
    kept = {}
    for place, each in enumerate(results.measurements):
        each.samples[:] = [values[place % len(values)]] * len(each.samples)
        case = each.case.partition(" ")[0]
        kept.setdefault((each.suite, case, each.implementation), []).append(each)
    results.measurements[:] = [each for group in kept.values() for each in group[:2]]
    results.write(tmp_path / "results.json")
    write_report([tmp_path / "results.json"], tmp_path / "out")
    drawn = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert drawn == ({"memory.png", "stages.png"} if values == [0.0] else DRAWN)


def test_many_measurements_stay_one_picture(tmp_path):
    names = [f"way {number}" for number in range(60)]
    rows = [Measurement("x", "peak", name, unit="bytes", samples=[1.0]) for name in names]
    rows += [
        Measurement(*("question", "stage", name, {"rate": 4, "stage": stage}), samples=[1.0])
        for name in names
        for stage in ("query", "further tokens")
    ]
    drawn = draw_all(Results({}, {}, rows), tmp_path)
    assert [name for name, _ in drawn] == ["stages.png", "memory.png"]
    for name, _ in drawn:
        header = (tmp_path / name).read_bytes()[16:24]
        assert int.from_bytes(header[4:], "big") < 2500


def test_without_measurements(tmp_path):
    Results({}).write(tmp_path / "results.json")
    report = write_report([tmp_path / "results.json"], tmp_path / "out")
    assert report.lead == ["This file holds no measurements."]
    assert "This file holds no measurements." in (tmp_path / "out" / "report.html").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.html",
        "report.md",
        "results.csv",
    ]


def test_suites_that_nobody_knows_have_sections_of_their_own(tmp_path):
    names = ["", "a b", "a-b", "Promises", "<i>"]
    rows = [Measurement(name, "c", "ours", samples=[1.0]) for name in names]
    promises = [Promise("x", 1.0, at_least=1.0)]
    Results({}, {}, rows, promises).write(tmp_path / "results.json")
    report = write_report([tmp_path / "results.json"], tmp_path / "out")
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    page.check_links()
    assert page.all("h2") == ["Contents", "Promises", *names]
    assert page.ids == ["promises", "section", "a-b", "a-b-2", "promises-2", "i"]
    assert report.lead[0] == "Measured: , <i>, Promises, a b and a-b."


def test_long_tables_are_folded(tmp_path):
    def page_of(count):
        rows = [Measurement("x", f"case {n}", "ours", samples=[1.0]) for n in range(count)]
        Results({}, {}, rows).write(tmp_path / "results.json")
        write_report([tmp_path / "results.json"], tmp_path / "out")
        return Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))

    assert page_of(30).all("summary") == []
    assert page_of(31).all("summary") == ["Show all 31 rows"]


def test_without_matplotlib(files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    report = write_report(files[:1], tmp_path)
    assert report.notes == [NO_PICTURES]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No pictures: drawing needs the package matplotlib" in text
    assert Page(text).images == []
    assert "Answers to questions" in Page(text).all("h2")
    assert not list(tmp_path.glob("*.png"))


def test_nothing_is_half_written(tmp_path, monkeypatch):
    Results({}, {}, [Measurement("s", "c", "i", samples=[1.0])]).write(tmp_path / "results.json")
    output = tmp_path / "out"
    output.mkdir()
    (output / "report.html").write_text("earlier")
    monkeypatch.setattr("clara.reports.report.csv_text", lambda rows: "\ud800")
    with pytest.raises(UnicodeEncodeError):
        write_report([tmp_path / "results.json"], output)
    assert [path.name for path in output.iterdir()] == ["report.html"]
    assert (output / "report.html").read_text() == "earlier"


def test_what_a_report_is_of(files, tmp_path):
    for count in (0, 3):
        with pytest.raises(ResultsError, match=f"takes one or two results files, got {count}"):
            write_report(files[:1] * count, tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(ResultsError, match="file: is not a folder"):
        write_report(files[:1], tmp_path / "file")
    assert not (tmp_path / "out").exists()
