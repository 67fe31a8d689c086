"""What the suites of `pytest bench` get from their conftest."""

from pathlib import Path

import pytest

from clara.reports.results import read_results

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_missed_promise_fails_only_where_sizes_are_judged(pytester, monkeypatch):
    """With the benchmarks' own conftest."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest((ROOT / "bench" / "conftest.py").read_text())
    pytester.makepyfile(
        test_one="""
        def test_kept(promise): promise("kept", 2.0, at_least=1.0)
        def test_missed(promise): promise("missed", 0.5, at_least=1.0)
        def test_rate(rate, recorder):
            recorder.seconds("one", "case", {"ours": [0.1]}, {"rate": rate})
        """
    )
    run = pytester.runpytest_subprocess("--size", "small", "--results", "r.json")
    run.assert_outcomes(passed=4, failed=1)
    run.stdout.fnmatch_lines(["*kept: 2 (promised 1)", "*missed: 0.5 (promised 1), MISSED"])
    results = read_results(pytester.path / "r.json")
    assert [each.outcome for each in results.promises] == ["kept", "missed"]
    assert [each.parameters["rate"] for each in results.measurements] == [4, 16, 128]
    assert results.environment["size"] == "small"
    assert "--size small" in results.environment["command"]
    quiet = pytester.runpytest_subprocess("--size", "smoke", "-m", "one")
    quiet.assert_outcomes(passed=5)
