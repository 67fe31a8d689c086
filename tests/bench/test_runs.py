"""The file of finished trainings."""

import json

import pytest

from bench.runs import RunFile, RunsError, common_environment, read_runs


def test_a_call_goes_on_with_what_the_last_one_finished(tmp_path):
    path = tmp_path / "results" / "runs.jsonl"
    first = RunFile(path, "forms", {"steps": 200}, {"commit": "a", "threads": 2})
    assert not first.holds({"form": "spans", "seed": 0})
    first.add({"form": "spans", "seed": 0}, {"loss": 1.5})
    second = RunFile(path, "forms", {"steps": 200}, {"commit": "b", "threads": 2})
    assert second.holds({"form": "spans", "seed": 0})
    assert not second.holds({"form": "spans", "seed": 1})
    second.add({"form": "spans", "seed": 1}, {"loss": 1.25})
    assert len(path.read_text().splitlines()) == 2
    runs = read_runs(path)
    assert [run.found["loss"] for run in runs] == [1.5, 1.25]
    assert common_environment(runs) == {"commit": "a, b", "threads": 2}


def test_other_trainings_are_refused(tmp_path):
    path = tmp_path / "runs.jsonl"
    RunFile(path, "forms", {"steps": 200}, {}).add({"seed": 0}, {})
    with pytest.raises(RunsError, match="holds runs with steps 200, not 3; choose another file"):
        RunFile(path, "forms", {"steps": 3}, {})
    with pytest.raises(RunsError, match="holds runs of forms, not of learning"):
        RunFile(path, "learning", {"steps": 200}, {})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "1: is not JSON"),
        ("[]", "1: is not a finished run: 'format' is not 'clara-runs/1'"),
        (json.dumps({"format": "clara-runs/1"}), "1: must have the fields comparison, names,"),
    ],
)
def test_lines_of_something_else(tmp_path, line, reason):
    path = tmp_path / "runs.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(RunsError, match=reason):
        read_runs(path)
    with pytest.raises(RunsError, match="No such file"):
        read_runs(tmp_path / "none.jsonl")
