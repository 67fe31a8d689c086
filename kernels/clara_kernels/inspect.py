"""`python -m clara_kernels.inspect`: compile the Triton kernels without a GPU and check the code.

For every build of every kernel (see `builds.py`) and every architecture: registers per thread,
bytes spilled, shared memory against the device's limit, and whether matrix products run on tensor
cores. Needs triton, which carries the assembler; nothing is launched.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from .builds import OPTIONS, Build

_LEAST = 80  # the first architecture with tensor cores for bfloat16
_MATRIX_INSTRUCTIONS = ("mma.sync", "wgmma.mma_async", "tcgen05.mma")


def _shared_limits() -> dict[int, int]:
    """Bytes of shared memory that one block may have, by architecture, from architectures.txt."""
    text = Path(__file__).with_name("architectures.txt").read_text()
    rows = (line.split() for line in text.splitlines() if not line.startswith("#"))
    limits = {int(number): int(kibibytes) * 1024 for number, kibibytes in rows}
    return {number: limit for number, limit in limits.items() if number >= _LEAST}


SHARED_LIMITS = _shared_limits()


@dataclass(frozen=True)
class Report:
    """What the assembler reports about one build.

    Attributes:
        registers: per thread.
        spilled: bytes per thread of registers kept in memory.
        shared: bytes per block.
        instruction: the matrix instruction found, or "".
    """

    architecture: int
    kernel: str
    note: str
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    registers: int
    spilled: int
    shared: int
    instruction: str
    problem: str


def operators() -> list[str]:
    """Folders of this package that hold kernels."""
    here = Path(__file__).parent
    names = [module.name for module in pkgutil.iter_modules([str(here)]) if module.ispkg]
    return [name for name in names if (here / name / "triton.py").exists()]


def builds(architecture: int, names: list[str], every: bool) -> Iterator[tuple[str, int, Build]]:
    """Operator, number and build; only the first of each kernel unless `every`.

    Of one kernel's builds the first has to be the usual one.
    """
    for operator in names:
        seen: set[str] = set()
        module = importlib.import_module(f".{operator}.triton", __package__)
        for number, build in enumerate(module.builds(architecture)):
            if every or build.name not in seen:
                seen.add(build.name)
                yield operator, number, build


def compile_build(architecture: int, build: Build) -> Report:
    """Compile one build for one architecture, such as 90 for sm_90."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = build.kernel.arg_names
    aligned = [["tt.divisibility", 16]]
    source = ASTSource(
        build.kernel,
        {name: build.types.get(name, "constexpr") for name in names},
        {(names.index(name),): value for name, value in build.constants.items()},
        {(names.index(name),): aligned for name, kind in build.types.items() if kind[0] == "*"},
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", architecture, 32),
        options={
            "num_warps": build.num_warps,
            "num_stages": build.num_stages,
            "maxnreg": build.registers,
            **OPTIONS,
        },
    )
    registers, spilled = _resources(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    instruction = next((name for name in _MATRIX_INSTRUCTIONS if name in ptx), "")
    shared = compiled.metadata.shared
    problems = []
    if spilled:
        problems.append(f"spills {spilled} bytes")
    if shared > SHARED_LIMITS[architecture]:
        problems.append(f"{shared} bytes of shared memory exceed {SHARED_LIMITS[architecture]}")
    if build.tensor_cores and not instruction:
        problems.append("no tensor-core instruction")
    return Report(
        architecture,
        build.name,
        build.note,
        build.constants,
        build.num_warps,
        build.num_stages,
        registers,
        spilled,
        shared,
        instruction,
        "; ".join(problems),
    )


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers per thread, and stack bytes: Triton's kernels have a stack only to spill to."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resource usage: {text!r}")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def _compile_numbered(task: tuple[int, str, int]) -> Report:
    """One task of a worker process, which finds the build again by its number."""
    architecture, operator, number = task
    module = importlib.import_module(f".{operator}.triton", __package__)
    for current, build in enumerate(module.builds(architecture)):
        if current == number:
            try:
                return compile_build(architecture, build)
            except Exception as error:
                where = f"{build.name} ({build.note}) for sm_{architecture}"
                raise RuntimeError(f"{where} does not compile: {error}") from None
    raise LookupError(f"{operator} has no build {number}")


def inspect(architectures: list[int], names: list[str], every: bool, jobs: int) -> list[Report]:
    """Compile and report, in a stable order."""
    tasks = [
        (architecture, operator, number)
        for architecture in architectures
        for operator, number, _ in builds(architecture, names, every)
    ]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return list(pool.map(_compile_numbered, tasks))


_TITLES = [
    "arch",
    "kernel",
    "build",
    "constants",
    "warps",
    "stages",
    "registers",
    "spilled",
    "shared",
]
_TITLES += ["tensor cores"]


def _row(report: Report) -> list[str]:
    constants = " ".join(f"{name}={value}" for name, value in report.constants.items())
    numbers = [report.num_warps, report.num_stages, report.registers, report.spilled, report.shared]
    return [
        f"sm_{report.architecture}",
        report.kernel,
        report.note,
        constants,
        *map(str, numbers),
        report.instruction,
    ]


def markdown(reports: list[Report]) -> str:
    """The reports as a Markdown table."""
    rows = [_TITLES, ["---"] * len(_TITLES), *map(_row, reports)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _print(reports: list[Report], form: str) -> None:
    if form == "json":
        print(json.dumps([asdict(report) for report in reports], indent=1))
    elif form == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows([_TITLES, *map(_row, reports)])
    else:
        print(markdown(reports))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m clara_kernels.inspect", description=__doc__)
    parser.add_argument("--all", action="store_true", help="every build, not one of each kernel")
    parser.add_argument(
        "--architecture",
        type=int,
        action="append",
        choices=SHARED_LIMITS,
        help="such as 90; may be repeated (default: all)",
    )
    parser.add_argument("--operator", action="append", choices=operators(), help="may be repeated")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 8))
    parser.add_argument("--format", choices=("markdown", "csv", "json"), default="markdown")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET"):
        parser.error("TRITON_INTERPRET is set: the interpreter compiles nothing")
    try:
        reports = inspect(
            options.architecture or list(SHARED_LIMITS),
            options.operator or operators(),
            options.all,
            options.jobs,
        )
    except (ImportError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _print(reports, options.format)
    bad = [report for report in reports if report.problem]
    for report in bad:
        where = f"sm_{report.architecture} {report.kernel} ({report.note})"
        print(f"error: {where}: {report.problem}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
