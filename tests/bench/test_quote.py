import subprocess
import sys
from pathlib import Path

import pytest

from bench import quote
from bench.runs import RunFile
from clara.reports.results import Measurement, Promise, Results

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "bench" / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
FILE = "bench/results/some-cpu/cpu.json"
ENVIRONMENT = {
    "device": "Some | CPU",
    "threads": 2,
    "torch": "2.10.0",
    "clara": "0.1.0",
    "date": "2026-11-26",
    "commit": "0123456789ab",
    "command": "pytest bench -m question --size small",
}


def measurement(suite, case, name, samples, unit="s", amounts=None, **parameters):
    return Measurement(suite, case, name, parameters, unit, samples, amounts or {})


def rows():
    for k, slower in ((5, 1), (20, 3)):  # what is quoted, and a sweep
        at = {"rate": 16, "k": k, "documents": 1000}
        first, whole = "time to first token", "whole answer"
        for name, time in (("memory", 0.1), ("memory, generator merged", 0.08), ("text", 0.5)):
            samples = [slower * time * share for share in (1.0, 1.1, 0.9)]
            yield measurement("question", first, name, samples, **at)
            yield measurement("question", whole, name, [time + 1.0], **at)
    amounts = {"documents": 32, "tokens": 3072}
    at = {"rate": 16, "k": 5, "documents": 1000, "backbone": "Other"}
    yield measurement("question", "time to first token", "memory", [2.0], **at)
    for name, time in (("ours", 4.0), ("reference way", 12.0)):
        yield measurement("compress", "throughput", name, [time], amounts=amounts, rate=16)
        yield measurement("compress", "peak memory", name, [time * 2**20], "bytes", rate=16)
        yield measurement("training", "pretraining step", name, [time, 2 * time], rate=16)
    yield measurement("compress", "throughput", "ours", [2.0], amounts=amounts, rate=128)
    for operator in quote.OPERATORS:
        for rate, names in ((4, ("ours", "eager", "peer")), (16, ("ours", "peer"))):
            for name, time in zip(names, (2e-3, 4e-3, 1e-3)):
                case = f"{operator}, forward"
                yield measurement("operators", case, name, [time, 3 * time, time], rate=rate)
    at = {"documents": 1000, "queries": 1, "dtype": "int8"}
    yield measurement("scoring", "search", "ours", [1e-3], **at)
    yield measurement("scoring", "search", "torch", [3e-3], **at)
    for name, time in (("decoder, float32", 0.02), ("generate, float32", 0.1)):
        yield measurement("decode", "further tokens", name, [time], rate=16, questions=1)
    for name, time in (("float32, layers of transformers", 0.5), ("bfloat16", 0.2)):
        yield measurement(
            "dtype",
            "training step",
            name,
            [time],
            amounts={"documents": 4, "positions": 50},
            rate=16,
        )
    yield measurement("dtype", "encode a question", "bfloat16", [0.1], rate=16)
    parts = {"matrix products": 0.25, "attention": 0.0}
    yield measurement("breakdown", "compress", "float32", [0.5], amounts=parts, rate=16)
    view = {"ranking": "means", "documents": 5000}
    size = {"documents": 5000, "bytes": 3 * 2**20}
    yield measurement("index", "open", "ours", [0.5], rate=16, documents=1000)
    yield measurement("index", "build a view", "ours", [2.0], amounts=size, **view)
    yield measurement("index", "search of a view", "ours", [0.02, 0.03, 0.04], **view)
    yield measurement("index", "growth", "ours", [2**20], "bytes", **view)


@pytest.fixture
def root(tmp_path):
    results = Results(dict(ENVIRONMENT), {}, list(rows()))
    results.promises.append(Promise("first token", 5.0, at_least=4.0))
    results.write(tmp_path / FILE)
    return tmp_path


@pytest.fixture
def page(root):
    def write(*tables, file=FILE, ending="\n"):
        lines = ["# Page", ""]
        for table in tables:
            lines += [
                f"<!-- figures: {file} {table} -->",
                "<!-- end of figures -->",
                "",
                "Text.",
                "",
            ]
        path = root / "README.md"
        path.write_bytes(ending.join(lines).encode())
        return path

    return write


@pytest.fixture
def refused(root, capsys):
    """The one line that it prints when it refuses a page, which stays as it was."""

    def run(path, *options):
        before = path.read_bytes() if path.exists() else None
        assert quote.main([*options, str(path)], root) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert before == (path.read_bytes() if path.exists() else None)
        return line.removeprefix("error: ").replace(f"{root}/", "")

    return run


SOURCE = (
    r"Some \| CPU, 2 threads; torch 2.10.0, clara 0.1.0; 2026-11-26, commit 0123456789ab; "
    "`pytest bench -m question --size small`"
)
EXPECTED = {
    "answers": [
        "| 16x | text | 500 ms (470 ms to 530 ms) |  | 1.50 s |  |",
        "| 16x | memory | 100 ms (94.0 ms to 106 ms) | 5.00 (5.00 to 5.00) | 1.10 s | 1.36 |",
        "| 16x | memory, generator merged | 80.0 ms (75.2 ms to 84.8 ms) | 6.25 (6.25 to 6.25) "
        "| 1.08 s | 1.39 |",
        "| 16x, backbone = Other | memory | 2.00 s |  |  |  |",
    ],
    "compress": ["| 16x | 8 | 768 | 3.00 |", "| 128x | 16 | 1,536 |  |"],
    "memory": [
        "| compression | peak memory | 16x | ours | 4.00 MiB | 0.33 |",
        "| compression | peak memory | 16x | reference way | 12.0 MiB |  |",
        "| the index on disk | growth | ranking = means, 5,000 documents | ours | 1.00 MiB |  |",
    ],
    "training": [
        "| pretraining step | 16x | 6.00 s (4.80 s to 7.20 s) | 18.0 s (14.4 s to 21.6 s) "
        "| 3.00 (3.00 to 3.00) |"
    ],
    "promises": ["| first token | at least 4 | 5 | kept |"],
    "decode": [
        "| 1 | decoder, float32 | 20.0 ms | 5.00 |",
        "| 1 | generate, float32 | 100 ms |  |",
    ],
    "dtype": [
        "| training step | float32, layers of transformers | 500 ms | 100 positions |  |",
        "| training step | bfloat16 | 200 ms | 250 positions | 2.50 |",
        "| encode a question | bfloat16 | 100 ms |  |  |",
    ],
    "breakdown": ["| compress | float32 | 500 ms | 250 ms |  |"],
    "views": [
        "| build a view | 5,000 means | 2.00 s | 3.00 MiB |",
        "| search of a view | 5,000 means | 30.0 ms (24.0 ms to 36.0 ms) |  |",
        "| growth | 5,000 means | 1.00 MiB |  |",
    ],
    "scoring": ["| search | 1,000 documents, 1 query, int8 | 1.00 ms | 3.00 ms (3.00) |"],
}
EXPECTED |= {
    operator: [
        "| forward | 4x | 2.00 ms | 4.00 ms (2.00) | 1.00 ms (0.50) |",
        "| forward | 16x | 2.00 ms |  | 4.00 ms (2.00) |",
    ]
    for operator in quote.OPERATORS
}


@pytest.mark.parametrize("table", quote.TABLES)
def test_a_table(page, root, table):
    path = page(table)
    assert quote.main([str(path)], root) == 0
    lines = path.read_text().splitlines()
    begin, end = lines.index(f"<!-- figures: {FILE} {table} -->"), lines.index(quote._END)
    assert lines[begin + 4 : end - 3] == EXPECTED[table]
    assert lines[end - 3 : end] == ["", SOURCE, ""]


def runs(root):
    """Trainings of two comparisons: the same form with two seeds, and another with one."""
    forms = RunFile(root / RUNS["forms"], "forms", {}, ENVIRONMENT)
    learning = RunFile(root / RUNS["learning"], "learning", {}, ENVIRONMENT)
    for form, seed, shift in (("spans", 0, 0.0), ("spans", 1, 0.5), ("learned", 0, 1.0)):
        losses = [
            {"step": step, "right": right + shift, "other": 3.0 + shift, "none": 4.0 + shift}
            for step, right in ((100, 2.0), (200, 1.0))
        ]
        forms.add({"form": form, "rate": 8, "seed": seed}, {"losses": losses})
        names = {"form": form, "vectors": 3, "ablation": "none", "seed": seed}
        steps = None if shift == 1 else int(80 + 40 * shift)
        learning.add(names, {"steps": steps, "curve": [{"step": 20, "memory": 0.6 - shift / 10}]})
    shares = {"mean": [0.25, 0.5], "reranked": [0.375, 0.625]}
    ranked = RunFile(root / RUNS["reranking"], "reranking", {"questions": 8}, ENVIRONMENT)
    for rate in (4, 8):
        ranked.add({"memory": "span means", "rate": rate}, shares)


RUNS = {name: f"bench/results/some-cpu/{name}.jsonl" for name in quote.RUN_TABLES}
OF_RUNS = {
    "forms": [
        "| 8 | learnt rows, final states | 1 | 3.00 / 4.00 | 2.00 / 4.00 | 5.00 |",
        "| 8 | W · final state + span mean | 2 | 2.25 / 3.25 | 1.25 (1.00 to 1.50) / 3.25 | 4.25 |",
    ],
    "learning": [
        "| 3 | learnt rows, final states |  | not reached |  | 0.50 |",
        "| 3 | W · final state + span mean |  | 80; 100 | 90 | 0.60; 0.55 |",
    ],
    "reranking": [
        "| span means | 4 | 8 | 0.250, 0.500 | 0.375, 0.625 |",
        "| span means | 8 | 8 | 0.250, 0.500 | 0.375, 0.625 |",
    ],
}


@pytest.mark.parametrize("table", RUNS)
def test_a_table_of_trainings(page, root, table, refused):
    runs(root)
    path = page(table, file=RUNS[table])
    assert quote.main([str(path)], root) == 0
    lines = path.read_text().splitlines()
    begin, end = lines.index(f"<!-- figures: {RUNS[table]} {table} -->"), lines.index(quote._END)
    assert lines[begin + 4 : end - 3] == OF_RUNS[table]
    assert lines[end - 3 : end] == ["", SOURCE, ""]
    (root / RUNS[table]).write_text("")
    assert "holds nothing for the table" in refused(path)


def test_a_round_trip(page, root, refused):
    path = page(*quote.TABLES)
    assert "differs from" in refused(path, "--check")
    assert quote.main([str(path)], root) == 0
    written = path.read_text()
    assert quote.main(["--check", str(path)], root) == 0
    assert quote.main([str(path)], root) == 0
    assert path.read_text() == written
    assert written.count("\nText.\n") == len(quote.TABLES)


def test_a_changed_digit_is_found_and_put_right(page, root, refused):
    path = page("compress", "answers", "promises")
    quote.main([str(path)], root)
    written = path.read_text()
    path.write_text(written.replace("1.36", "1.63"))
    number = written.splitlines().index(f"<!-- figures: {FILE} answers -->") + 1
    assert refused(path, "--check") == f"README.md:{number}: differs from {FILE} answers"
    assert quote.main([str(path)], root) == 0
    assert path.read_text() == written


def test_the_file_changes(page, root, refused):
    path = page("promises")
    quote.main([str(path)], root)
    Results(dict(ENVIRONMENT), {}, [], [Promise("first token", 4.9)]).write(root / FILE)
    assert refused(path, "--check").startswith("README.md:3: differs")


def test_line_endings_stay(page, root):
    path = page("answers", ending="\r\n")
    assert quote.main([str(path)], root) == 0
    assert path.read_bytes().count(b"\n") == path.read_bytes().count(b"\r\n") > 8
    assert quote.main(["--check", str(path)], root) == 0


def test_blocks_in_code_are_left_alone(root):
    path = root / "README.md"
    text = f"````\n```\n<!-- figures: none {FILE} -->\n````\n~~~ md\n{quote._END}\n~~~\n"
    path.write_text(text)
    assert quote.main([str(path)], root) == 0
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("file", "table", "reason"),
    [
        (
            FILE,
            "speed",
            f"no table 'speed'; there are {', '.join(quote.TABLES | quote.RUN_TABLES)}",
        ),
        (
            "bench/results/none.json",
            "answers",
            "bench/results/none.json: No such file or directory",
        ),
        ("other.json", "answers", "other.json: figures come from a file in bench/results"),
        (
            "bench/results/../../x.json",
            "answers",
            "bench/results/../../x.json: figures come from a file in bench/results",
        ),
    ],
)
def test_what_cannot_be_quoted(page, refused, file, table, reason):
    assert refused(page(table, file=file)) == f"README.md:3: {reason}"


def test_results_that_say_too_little(page, root, refused):
    path = page("answers")
    Results(dict(ENVIRONMENT)).write(root / FILE)
    assert refused(path) == f"README.md:3: {FILE}: holds nothing for the table 'answers'"
    Results({**ENVIRONMENT, "commit": None}, {}, list(rows())).write(root / FILE)
    assert refused(path) == f"README.md:3: {FILE}: its environment does not say 'commit'"
    (root / FILE).write_text("{")
    assert refused(path) == f"README.md:3: {FILE}: is not JSON"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"\n<!-- figures: {FILE} answers -->\n", "2: the block has no '<!-- end of figures -->'"),
        (
            f"<!-- figures: {FILE} answers -->\n<!-- figures: {FILE} memory -->\n{quote._END}\n",
            "1: the block has no '<!-- end of figures -->'",
        ),
        (f"{quote._END}\n", "1: no block ends here"),
        ("<!-- figures: answers -->\n", "1: must be '<!-- figures: FILE TABLE -->'"),
    ],
)
def test_damaged_blocks(root, refused, text, reason):
    path = root / "README.md"
    path.write_text(text)
    assert refused(path) == f"README.md:{reason}"


def test_a_page_that_is_no_text(root, refused):
    path = root / "image.md"
    path.write_bytes(b"\x89PNG\xff")
    assert refused(path) == "image.md: is not UTF-8"


def test_one_bad_page_leaves_all_alone(page, root, capsys):
    good = page("answers")
    before = good.read_text()
    assert quote.main([str(good), str(root / "bad.md")], root) == 1
    assert good.read_text() == before
    assert capsys.readouterr().err == f"error: {root / 'bad.md'}: No such file or directory\n"


def test_the_pages_of_this_repository_agree_with_their_files():
    command = [sys.executable, "-m", "bench.quote", "--check"]
    pages = [str(path.relative_to(ROOT)) for path in PAGES]
    done = subprocess.run([*command, *pages], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
