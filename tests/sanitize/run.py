"""Build the program of tests/sanitize with and without sanitizers; run it on every instruction set.

    python tests/sanitize/run.py                    # none, thread, then address,undefined
    python tests/sanitize/run.py address,undefined --simd avx2 --build /tmp/build

CXX names the compiler, as CMake has it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SANITIZERS = ("none", "thread", "address,undefined")
OPTIONS = {
    "ASAN_OPTIONS": "detect_stack_use_after_return=1:strict_init_order=1",
    "TSAN_OPTIONS": "halt_on_error=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
# What runtimes say that cannot live with how this kernel lays out memory at random.
BAD_LAYOUT = ("unexpected memory mapping", "Shadow memory range interleaves")


def program(name: str) -> str:
    """Path of `name` from this interpreter's environment, else from PATH."""
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if path is None:
        raise SystemExit(f"error: {name} is needed to build the program: pip install {name}")
    return path


def build(sanitizers: str, folder: Path) -> Path:
    cmake = program("cmake")
    configure = [cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={program('ninja')}", f"-DCLARA_SANITIZE={sanitizers}"]
    # A sanitizer has options of its own; asserts of the library stay on.
    configure += ["-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O2 -D_GLIBCXX_ASSERTIONS"]
    for command in (configure, [cmake, "--build", str(folder), "--parallel", "2"]):
        if subprocess.run(command).returncode:
            raise SystemExit(f"error: no program with -fsanitize={sanitizers}; see above")
    return folder / "search"


def run(simd: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a program, again without a random layout of memory if its sanitizer asks for that."""

    def once(*command: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | OPTIONS | {"CLARA_SIMD": simd}
        return subprocess.run(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )

    result = once(*command)
    if result.returncode and any(words in result.stdout for words in BAD_LAYOUT):
        result = once(program("setarch"), "-R", *command)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Searches under sanitizers.")
    parser.add_argument("sanitizers", nargs="*", default=SANITIZERS, help="as -fsanitize= has them")
    parser.add_argument("--simd", action="append", help="instruction sets; default: all there are")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "sanitize")
    arguments = parser.parse_args()
    for sanitizers in arguments.sanitizers:
        search = str(build(sanitizers, arguments.build / sanitizers.replace(",", "-")))
        available = run("", search, "--list").stdout.split()
        sets = arguments.simd or available
        with ThreadPoolExecutor(2) as pool:
            results = pool.map(run, sets, [search] * len(sets))
            for simd, result in zip(sets, results):
                print(f"-fsanitize={sanitizers}, {simd}:\n{result.stdout}", flush=True)
                if result.returncode:
                    raise SystemExit(f"error: {search} exited with {result.returncode} on {simd}")


if __name__ == "__main__":
    main()
