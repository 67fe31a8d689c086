"""Every kernel compiled ahead of time for every architecture, without a GPU."""

import csv
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from clara_kernels import inspect
from clara_kernels.builds import Build

ARCHITECTURES = tuple(inspect.SHARED_LIMITS)
ROOT = Path(__file__).resolve().parents[2]


def run_inspect(*arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "clara_kernels.inspect", "--jobs", "2", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def reports():
    done = run_inspect("--format", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_every_kernel_compiles_on_every_architecture(reports):
    kernels = {
        build.name
        for operator in inspect.operators()
        for build in import_module(f"clara_kernels.{operator}.triton").builds(90)
    }
    compiled = {(report["kernel"], report["architecture"]) for report in reports}
    assert compiled == {(name, number) for name in kernels for number in ARCHITECTURES}


def test_the_committed_table_is_of_these_builds():
    """`make aot` has to be run again when a launcher picks something else."""
    with (ROOT / "docs" / "kernels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["spilled"] for row in rows} == {"0"}
    listed = {
        (row["arch"], row["kernel"], row["build"], row["constants"], row["warps"], row["stages"])
        for row in rows
    }
    current = {
        (
            f"sm_{architecture}",
            build.name,
            build.note,
            " ".join(f"{name}={value}" for name, value in build.constants.items()),
            str(build.num_warps),
            str(build.num_stages),
        )
        for architecture in ARCHITECTURES
        for operator in inspect.operators()
        for build in import_module(f"clara_kernels.{operator}.triton").builds(architecture)
    }
    assert len(listed) == len(rows)
    assert listed == current


@pytest.mark.slow
def test_nothing_spills_and_shared_memory_suffices(reports):
    for report in reports:
        assert report["spilled"] == 0, report
        assert report["shared"] <= inspect.SHARED_LIMITS[report["architecture"]], report
        assert 0 < report["registers"] <= 255


@pytest.mark.slow
def test_matrix_products_run_on_tensor_cores(reports):
    found = {
        (report["kernel"], report["architecture"]): report["instruction"]
        for report in reports
        if report["kernel"].startswith("memory_attention.")
    }
    for name in ("forward", "key_gradients", "query_gradients"):
        assert found[f"memory_attention.{name}", 80] == "mma.sync"
        assert found[f"memory_attention.{name}", 90] == "wgmma.mma_async"
        assert found[f"memory_attention.{name}", 100] == "tcgen05.mma"
        assert found[f"memory_attention.{name}", 120] == "mma.sync"


def test_a_spill_ends_with_1_and_says_where(monkeypatch, capsys):
    spilling = inspect.Report(
        90, "sparsemax.forward", "bf16", {"BLOCK": 128}, 1, 1, 255, 16, 0, "", "spills 16 bytes"
    )
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(inspect, "inspect", lambda *_: [spilling])
    assert inspect.main([]) == 1
    printed = capsys.readouterr()
    assert (
        "| sm_90 | sparsemax.forward | bf16 | BLOCK=128 | 1 | 1 | 255 | 16 | 0 |  |" in printed.out
    )
    assert printed.err == "error: sm_90 sparsemax.forward (bf16): spills 16 bytes\n"


@pytest.mark.slow
def test_a_real_spill_is_seen():
    """A row of 32,768 columns on four warps does not fit their registers."""
    code = """
from dataclasses import replace
from importlib import import_module
from clara_kernels.inspect import compile_build
module = import_module("clara_kernels.sparsemax.triton")
build = next(module.builds(90))
report = compile_build(90, replace(build, constants={"UNIT": 16, "BLOCK": 32768}, num_warps=4))
print(report.spilled, report.problem, sep="|")
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    spilled, problem = done.stdout.strip().split("|")
    assert int(spilled) > 0
    assert problem == f"spills {spilled} bytes"


@pytest.mark.slow
def test_the_interpreter_compiles_nothing():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "clara_kernels.inspect"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "TRITON_INTERPRET is set" in done.stderr


def test_names():
    first = next(import_module("clara_kernels.memory_attention.triton").builds(90))
    assert isinstance(first, Build)
    assert first.name == "memory_attention.forward"
