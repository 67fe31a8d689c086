"""Tables of probes in a report."""

import csv
import sys
from dataclasses import replace

import pytest

from clara.evaluation.report.probes import probe_rows, probe_tables
from clara.evaluation.report.reading import read_run
from clara.evaluation.report.writing import write_report
from clara.evaluation.summary import NOT_FROM_MEMORY


@pytest.fixture(scope="module")
def folder(make_run, tmp_path_factory):
    label = "probe/needle/64/50/"
    return make_run(tmp_path_factory.mktemp("probed") / "run", count=8, label=label, small=True)


def test_a_table_for_each_score(folder):
    run = read_run(folder)
    exact, covered = probe_tables(run)
    entries = [entry.name for entry in run.entries]
    assert exact.title == "Probes: exact match"
    assert set(exact.head) == {"condition", "n", *entries}
    remarks, (name, count, *shares) = exact.rows
    assert remarks[0] == "remark"
    marked = dict(zip(exact.head, remarks, strict=True))
    assert marked["clara-shuffled@4+bm25"] == "control"
    assert marked["text+bm25"] == ""
    assert (name, count) == ("needle/64/50", "8")
    for entry, share in zip(exact.head[2:], shares, strict=True):
        assert float(share) == pytest.approx(100 * run.by_name[entry].exact_match.mean, abs=0.05)
    assert covered.title == "Probes: answer contains it"
    assert covered.rows[0] == remarks
    assert set(covered.rows[1][2:]) == {"100.0"}


def test_an_entry_whose_answers_do_not_come_from_memory_is_marked(folder):
    run = read_run(folder)
    weak = [replace(e, reads_memory=False) if e.system == "clara" else e for e in run.entries]
    run = replace(run, entries=weak)
    for table in probe_tables(run):
        marked = dict(zip(table.head, table.rows[0], strict=True))
        assert [name for name in marked if NOT_FROM_MEMORY in marked[name]] == ["clara@4+bm25"]
    _, *rows = probe_rows(run)
    assert {row[0] for row in rows if NOT_FROM_MEMORY in str(row[-1])} == {"clara@4+bm25"}


def test_the_same_figures_as_csv(folder):
    head, *rows = probe_rows(read_run(folder))
    assert head == [
        "entry",
        "condition",
        "questions",
        "exact_match",
        "cover_substring",
        "refused",
        "remark",
    ]
    assert {row[1] for row in rows} == {"needle/64/50"}
    assert {row[2] for row in rows} == {8}
    assert {row[5] for row in rows} == {0.0}


def test_they_are_in_the_report(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # pictures are tested elsewhere
    report = write_report([folder], tmp_path)
    assert "probes.csv" in report.files
    assert "| needle/64/50 | 8 |" in (tmp_path / "report.md").read_text()
    assert "Probes: exact match" in (tmp_path / "report.html").read_text()
    rows = list(csv.reader((tmp_path / "probes.csv").read_text().splitlines()))
    assert rows[1][1] == "needle/64/50"


def test_a_run_without_probes_has_none(make_run, tmp_path):
    folder = make_run(tmp_path / "run", count=4, small=True)
    assert probe_tables(read_run(folder)) == []
    assert len(probe_rows(read_run(folder))) == 1
