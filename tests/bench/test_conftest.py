"""What the suites of `pytest bench` get from their conftest."""

import subprocess
from pathlib import Path

import pytest

from clara.reports.results import read_results

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
# Their full sizes take seconds; test_ceilings.py and test_recording.py are about them.
SMALL_CEILINGS = """
import bench.ceilings
bench.ceilings._COPY_BYTES["cpu"], bench.ceilings._MATRIX["cpu"] = 1 << 16, (64, torch.float32)
"""


@pytest.mark.slow
def test_a_missed_promise_fails_only_where_sizes_are_judged(pytester, warm):
    """With the benchmarks' own conftest."""

    def run(*arguments):
        options = [f"--basetemp={pytester.path / 'temporary'}", "-o", f"pythonpath={ROOT}"]
        command = [warm().python, "-m", "pytest", *options, *arguments]
        done = subprocess.run(command, cwd=pytester.path, capture_output=True, text=True)
        lines = done.stdout.splitlines(), done.stderr.splitlines()
        return pytest.RunResult(done.returncode, *lines, duration=0)

    pytester.makeconftest((ROOT / "bench" / "conftest.py").read_text() + SMALL_CEILINGS)
    pytester.makepyfile(
        test_one="""
        def test_kept(promise): promise("kept", 2.0, at_least=1.0)
        def test_missed(promise): promise("missed", 0.5, at_least=1.0)
        def test_rate(rate, recorder):
            recorder.seconds("one", "case", {"ours": [0.1]}, {"rate": rate})
        """
    )
    judged = run("--size", "small", "--results", "r.json")
    judged.assert_outcomes(passed=4, failed=1)
    judged.stdout.fnmatch_lines(["*kept: 2 (promised 1)", "*missed: 0.5 (promised 1), MISSED"])
    results = read_results(pytester.path / "r.json")
    assert [each.outcome for each in results.promises] == ["kept", "missed"]
    assert [each.parameters["rate"] for each in results.measurements] == [4, 16, 128]
    assert results.environment["size"] == "small"
    assert "--size small" in results.environment["command"]
    quiet = run("--size", "smoke", "-m", "one")
    quiet.assert_outcomes(passed=5)
