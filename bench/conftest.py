"""Options, environment, results and summary of the benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.environment import environment as environment_of
from bench.environment import shown_command
from bench.recording import Recorder
from bench.workload import load_model, write_tiny
from clara import Clara
from clara.backbone.loading import convert_gguf
from clara.data.factbook import FactbookError, smollm2_file
from clara.reports.results import Promise
from clara_kernels import build_info

HERE = Path(__file__).resolve().parent
THREADS = 2
LINES = pytest.StashKey[dict[str, list[str]]]()


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        documents: in a case of compression.
        rounds: of a case.
        rates: of compression.
        judged: whether promises are.
    """

    name: str
    documents: int
    rounds: int
    rates: tuple[int, ...] = (4, 16, 128)
    judged: bool = False


SIZES = {
    size.name: size
    for size in (
        Size("smoke", documents=4, rounds=1),
        Size("small", documents=16, rounds=6, judged=True),
        Size("full", documents=256, rounds=10, rates=(4, 16, 32, 64, 128)),
    )
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("clara")
    group.addoption(
        "--size", choices=SIZES, default="small", help="how much to measure (default: %(default)s)"
    )
    group.addoption(
        "--view-scale",
        type=float,
        default=1.0,
        help="documents behind a view, as a part of those that are promised (default: %(default)s)",
    )
    group.addoption("--device", help="where to compute (default: a GPU if there is one)")
    group.addoption(
        "--results", type=Path, metavar="FILE", help="JSON file for `clara bench report`"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LINES] = {}
    for path in HERE.glob("test_*.py"):
        config.addinivalue_line("markers", f"{_suite(path)}: benchmarks in {path.name}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`-m compress` chooses test_compress.py."""
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(_suite(item.path))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "rate" in metafunc.fixturenames:
        rates = _size(metafunc.config).rates
        metafunc.parametrize("rate", rates, ids=[f"{rate}x" for rate in rates], scope="module")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for suite, lines in config.stash[LINES].items():
        terminalreporter.section(suite)
        for line in lines:
            terminalreporter.write_line(line)
    if any(config.stash[LINES].values()) and not _size(config).judged:
        terminalreporter.write_line("Promises are not judged at this size.")


@pytest.fixture(scope="session", autouse=True)
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield THREADS
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def size(pytestconfig: pytest.Config) -> Size:
    return _size(pytestconfig)


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    chosen = pytestconfig.getoption("device")
    return torch.device(chosen or ("cuda" if torch.cuda.is_available() else "cpu"))


@pytest.fixture(scope="module")
def summary(pytestconfig: pytest.Config, request: pytest.FixtureRequest) -> list[str]:
    """Lines to print when all is done, whether or not a benchmark failed."""
    return pytestconfig.stash[LINES].setdefault(_suite(request.path), [])


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M, converted once."""
    try:
        return convert_gguf(smollm2_file())
    except FactbookError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tiny(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers of 128 dimensions with SmolLM2's tokenizer."""
    folder = tmp_path_factory.mktemp("backbones") / "three-layers-of-128"
    write_tiny(folder, smollm2)
    return folder


@pytest.fixture(scope="session")
def backbone(size: Size, request: pytest.FixtureRequest) -> Path:
    """SmolLM2-135M; at size smoke, which is there to see that all works, a tiny one."""
    name = "tiny" if size.name == "smoke" else "smollm2"
    chosen: Path = request.getfixturevalue(name)
    return chosen


@pytest.fixture(scope="session")
def models(backbone: Path, device: torch.device) -> Callable[[int], Clara]:
    """Models by compression rate, each loaded once."""
    return cache(partial(load_model, backbone, device=device))


@pytest.fixture(scope="session")
def recorder(
    pytestconfig: pytest.Config,
    environment: dict[str, Any],
    device: torch.device,
    size: Size,
    threads: int,
) -> Recorder:
    """Where measurements go; the file is written after each."""
    command = shown_command(["pytest", *pytestconfig.invocation_params.args])
    details = {**environment, "size": size.name, "command": command}
    recorder = Recorder(pytestconfig.getoption("results"), details)
    recorder.measure_ceilings(device)
    return recorder


@pytest.fixture(scope="session")
def compiled_search(device: torch.device) -> None:
    """Without it the reference would be measured under our name."""
    info = build_info()
    if info["cuda" if device.type == "cuda" else "simd"] is None:
        pytest.skip(f"clara_kernels was built without its search for {device.type}")


@pytest.fixture
def judge(
    recorder: Recorder, size: Size, device: torch.device, summary: list[str]
) -> Callable[..., None]:
    """Keep promises, and fail the benchmark if one is missed: `judge(*promises)`.

    At sizes that are not judged nothing happens, nor on GPUs, of which other things are promised.
    """

    def check(*promises: Promise) -> None:
        if not size.judged or device.type != "cpu":
            return
        for each in promises:
            recorder.promise(each)
            summary.append(str(each))
        missed = [str(each) for each in promises if each.missed]
        assert not missed, "\n".join(missed)

    return check


@pytest.fixture
def promise(judge: Callable[..., None]) -> Callable[..., None]:
    """Compare one figure with what is promised of it: `promise(what, figure, at_least=…)`."""
    return lambda what, measured, **bounds: judge(Promise.judged(what, measured, **bounds))


@pytest.fixture(scope="session")
def environment(device: torch.device, threads: int) -> dict[str, Any]:
    """What a result depends on besides the code measured."""
    assert torch.get_num_threads() == threads
    return environment_of(device)


def _size(config: pytest.Config) -> Size:
    return SIZES[config.getoption("size")]


def _suite(path: Path) -> str:
    return path.stem.removeprefix("test_")
