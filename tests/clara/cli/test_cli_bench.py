import json

import pytest

from clara.reports.results import FORMAT, Measurement, Promise, Results


@pytest.fixture
def results(tmp_path):
    """A small file of results whose one measurement takes that long."""

    def write(name, seconds, **environment):
        rows = [
            Measurement(
                *("compress", "throughput", implementation, {"rate": 16}),
                samples=[share * seconds for share in (0.99, 1.0, 1.01)],
                quantities={"documents": 8},
            )
            for implementation in ("ours", "reference way")
        ]
        environment = {"device": "cpu", **environment}
        promises = [Promise("throughput", 2.0, at_least=1.5)]
        Results(environment, {}, rows, promises).write(tmp_path / name)
        return str(tmp_path / name)

    return write


def test_a_report(clara, results, tmp_path):
    result = clara("bench", "report", results("a.json", 1.0), "-o", str(tmp_path / "out"))
    assert result.stdout == f"{tmp_path / 'out' / 'report.html'}\n"
    assert (tmp_path / "out" / "throughput.png").read_bytes().startswith(b"\x89PNG")


def test_a_comparison(clara, results, tmp_path):
    files = results("a.json", 1.0), results("b.json", 2.0, device="gpu \x1b[31m", size="full")
    result = clara("bench", "report", *files, "--output", str(tmp_path / "out"))
    page, note, counts = result.stdout.splitlines()
    assert page == str(tmp_path / "out" / "report.html")
    assert note == (
        "The runs differ in more than the code: device was cpu, is gpu \ufffd[31m; "
        "size was not said, is full."
    )
    assert counts == f"compared with {files[0]}: 2 slower, 0 faster, 0 same"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"format": "other"}', "is not a results file: 'format' is not 'clara-benchmark/1'"),
        (
            json.dumps({"format": FORMAT, "environment": {}, "ceilings": {}, "measurements": []}),
            "'promises' must be a list",
        ),
        (
            json.dumps(
                {
                    "format": FORMAT,
                    "environment": {},
                    "ceilings": {},
                    "promises": [],
                    "measurements": [{"suite\x1b[2J": "x"}],
                }
            ),
            "measurements[0]: has an unknown field 'suite\\x1b[2J'",
        ),
    ],
)
def test_bad_files(refused, tmp_path, content, reason):
    file = tmp_path / "bad.json"
    file.write_text(content)
    line = refused("bench", "report", str(file), "-o", str(tmp_path / "out"))
    assert line == f"error: {file}: {reason}"
    assert not (tmp_path / "out").exists()


def test_bad_arguments(refused, results, tmp_path):
    good, out = results("a.json", 1.0), str(tmp_path / "out")
    missing = str(tmp_path / "none.json")
    assert refused("bench", "report", missing, "-o", out).endswith("No such file or directory")
    assert "Is a directory" in refused("bench", "report", str(tmp_path), "-o", out)
    assert refused("bench", "report", good, good, good, "-o", out).endswith("got 3")
    assert refused("bench", "report", good, "-o", good) == f"error: {good}: is not a folder"
    below = f"{good}/report"
    assert "Not a directory" in refused("bench", "report", good, "-o", below)
    assert not (tmp_path / "out").exists()


def test_nothing_to_report_is_bad_usage(process):
    done = process("bench", "report")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: Missing argument")
