"""Options, environment and summary of the benchmarks."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import clara
from clara.backbone import convert_gguf
from clara.data.factbook import FactbookError, smollm2_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # baselines, timing, workload

THREADS = 2
LINES = pytest.StashKey[list[str]]()


@dataclass(frozen=True)
class Size:
    """How much is measured: documents in a case, rounds of it, rounds of a comparison."""

    documents: int
    rounds: int
    compared_rounds: int


SIZES = {
    "smoke": Size(documents=8, rounds=1, compared_rounds=2),
    "small": Size(documents=32, rounds=5, compared_rounds=9),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("clara")
    group.addoption(
        "--size", choices=SIZES, default="small", help="how much to measure (default: %(default)s)"
    )
    group.addoption("--device", help="where to compute (default: a GPU if there is one)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LINES] = []


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.stash[LINES]:
        terminalreporter.section("compression")
        for line in config.stash[LINES]:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session", autouse=True)
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield THREADS
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def size(pytestconfig: pytest.Config) -> Size:
    return SIZES[pytestconfig.getoption("size")]


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    chosen = pytestconfig.getoption("device")
    return torch.device(chosen or ("cuda" if torch.cuda.is_available() else "cpu"))


@pytest.fixture(scope="session")
def summary(pytestconfig: pytest.Config) -> list[str]:
    """Lines to print when all is done, whether or not a benchmark failed."""
    return pytestconfig.stash[LINES]


@pytest.fixture(scope="session")
def backbone() -> Path:
    """SmolLM2-135M, converted once."""
    try:
        return convert_gguf(smollm2_file())
    except FactbookError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def environment(device: torch.device, threads: int) -> dict[str, Any]:
    """What a result depends on besides the code measured."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "clara": clara.__version__,
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
