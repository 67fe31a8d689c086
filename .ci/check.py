"""`make check`: lint what changed and run the tests that are closest to it, in less than a minute.

What changed is told by git: against the branch point from BASE (main where that is left out), and
what is not committed yet. The tests are those changed themselves, those named after a changed
module, and those that import one, in this order. Those that take long are left to `make test`, and
so is what the minute has no time for.
"""

from __future__ import annotations

import argparse
import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
SECONDS = 60
PATIENCE = 5  # seconds that tests have to stop in
# Where the tests of a folder are; longer names first.
TESTS = {
    "kernels/clara_kernels": "tests/clara_kernels",
    "bench": "tests/bench",
    "clara": "tests/clara",
}
# Tests of files that are no Python modules.
OTHERS = {
    "csrc/": ["tests/csrc/test_cuda_compiles.py", "tests/clara_kernels"],
    "docs/": ["tests/test_pages.py", "tests/test_architecture.py"],
    "README.md": ["tests/test_pages.py"],
    "mkdocs.yml": ["tests/test_pages.py"],
    "recipes/": ["tests/clara/training/test_settings.py"],
    ".github/": ["tests/test_project_files.py"],
    ".ci/": ["tests/test_project_files.py", "tests/test_check.py"],
    "Makefile": ["tests/test_project_files.py"],
    "CONTRIBUTING.md": ["tests/test_project_files.py"],
    "pyproject.toml": ["tests/test_contract.py"],
}


def git(root: Path, *arguments: str) -> list[str]:
    result = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"error: git {' '.join(arguments)}: {result.stderr.strip()}")
    return result.stdout.splitlines()


def changed_files(root: Path, base: str) -> list[str]:
    """Files that are there and are not as they were where this branch left `base`.

    On `base` itself with nothing changed, those of the last commit.
    """
    (start,) = git(root, "merge-base", base, "HEAD")
    for since in (start, "HEAD~1"):
        changed = git(root, "diff", "--name-only", since, "--")
        changed += git(root, "ls-files", "--others", "--exclude-standard")
        found = sorted({name for name in changed if (root / name).is_file()})
        if found or len(git(root, "rev-list", "--max-count=2", "HEAD")) < 2:
            break
    return found


def module_of(file: str) -> str:
    """The name by which `file` is imported."""
    path = PurePosixPath(file).with_suffix("")
    parts = path.parts[:-1] if path.name == "__init__" else path.parts
    return ".".join(parts[1:] if parts[0] == "kernels" else parts)


def imported(root: Path, file: str) -> set[str]:
    """Modules that `file` imports, wherever in it; `from a import b` is both a and a.b.

    A folder of tests may be on `sys.path`, so that a test names a helper beside it without the
    folder. Those names are given with the folder too.
    """
    folder = PurePosixPath(file).parent.parts
    found: set[str] = set()
    for node in ast.walk(ast.parse((root / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) - node.level + 1] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            found.add(module)
            found.update(f"{module}.{alias.name}" for alias in node.names)
    if folder[:1] != ("tests",):
        return found
    ends = range(2, len(folder) + 1)
    return found | {".".join([*folder[:end], name]) for name in found for end in ends}


def folder_of_tests(file: str) -> str | None:
    """The folder that mirrors the one of `file`, or the nearest above it."""
    for source, tests in TESTS.items():
        if file.startswith(source + "/"):
            return str(PurePosixPath(tests, PurePosixPath(file).relative_to(source).parent))
    return None


def tests_of(root: Path, changed: Sequence[str]) -> list[str]:
    """Test files to run for changed files, the closest first."""
    every = sorted(p.relative_to(root).as_posix() for p in root.glob("tests/**/test_*.py"))
    themselves = [file for file in changed if file in every]
    named, importing, other = [], [], []
    imports = {file: imported(root, file) for file in every}
    for file in changed:
        stem, folder = PurePosixPath(file).stem, folder_of_tests(file)
        if folder and file.endswith(".py"):
            near = f"{folder}/"
            named += [
                test
                for test in every
                if test.startswith(near) and PurePosixPath(test).stem[5:].startswith(stem)
            ]
        if stem == "conftest":  # which pytest imports for every test below it
            near = f"{PurePosixPath(file).parent}/"
            importing += [test for test in every if test.startswith(near)]
        elif file.endswith(".py"):
            module = module_of(file)
            importing += [test for test in every if module in imports[test]]
        for start, tests in OTHERS.items():
            if file.startswith(start):
                other += [t for t in every if any(t == f or t.startswith(f + "/") for f in tests)]
    return list(dict.fromkeys([*themselves, *named, *importing, *other]))


def lint(changed: Iterable[str]) -> bool:
    """Whether the changed files and the types and imports of all pass."""
    python = [file for file in changed if file.endswith(".py")]
    cpp = [file for file in changed if Path(file).suffix in (".cpp", ".hpp", ".cu", ".cuh", ".h")]
    commands = []
    if python:
        commands += [["ruff", "check", "--force-exclude", *python]]
        commands += [["ruff", "format", "--check", "--force-exclude", *python]]
        commands += [["mypy"], ["lint-imports", "--no-logo", "--no-cache"]]
    if cpp:
        commands += [["clang-format", "--dry-run", "-Werror", *cpp]]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "kernels")}
    passed = True
    for name, *arguments in commands:
        print("+", name, *arguments[:3], *(["…"] if arguments[3:] else []), flush=True)
        command = [str(BIN / name), *arguments]
        passed &= subprocess.run(command, cwd=ROOT, env=environment).returncode == 0
    return passed


def run_tests(tests: Sequence[str], seconds: float) -> bool:
    """Run until the first failure, or until the time is over, which is none."""
    command = [str(BIN / "pytest"), "-q", "-m", "not slow and not gpu", "--maxfail", "1"]
    command += ["--numprocesses", "2", "--dist", "worksteal", *tests]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        return process.wait(max(seconds, 1)) in (0, 5)  # 5: none was left to run
    except subprocess.TimeoutExpired:
        status = stop(process)
        print("The minute is over; `make test` runs the tests that are left.")
        return status != 1
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> int:
    """End a process as Ctrl-C does, and with all that it started if it takes long to."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("base", nargs="?", default="main", help="branch to compare with")
    base = parser.parse_args().base
    end = time.monotonic() + SECONDS - PATIENCE
    changed = changed_files(ROOT, base)
    tests = tests_of(ROOT, changed)
    print(f"{len(changed)} changed files, {len(tests)} test files", flush=True)
    if not lint(changed):
        return 1
    return 0 if not tests or run_tests(tests, end - time.monotonic()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
