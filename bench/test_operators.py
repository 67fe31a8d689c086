"""How fast the operators of clara_kernels are beside PyTorch, torch.compile and their peers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bench.operators import AT_RATE
from bench.operators.case import Case, Setting, Unavailable
from bench.operators.checking import Wrong
from bench.operators.sparsemax import without_memory
from bench.operators.suite import by_fixture, cases, find, for_seconds, line
from bench.operators.suite import measure as measure_case

COMPILED = ("torch.compile", "FlexAttention")
SMOKE_COMPILES = "memory_alignment_loss, forward"
NOT_COMPILED = "compiled at larger sizes only"

_ANY = Setting(torch.device("cpu"), tiny=True)
NAMES = [(module, case.full_name) for module in AT_RATE for case in cases(module, _ANY, 16)]


@pytest.fixture(scope="module")
def setting(device, size) -> Setting:
    tiny = size.name == "smoke"
    return Setting(device, tiny=tiny, small=not tiny and device.type == "cpu")


@pytest.fixture
def measure(request, setting, size, environment, recorder, summary) -> Callable[..., None]:
    """Check a case, time it, record it, and fail if our answer is wrong."""

    def run(case: Case, **parameters: int) -> None:
        name = case.full_name
        settings = {**case.details, **parameters}
        where = ", ".join([name, *(f"{what} {value}" for what, value in settings.items())])
        skipped = COMPILED if setting.tiny and name != SMOKE_COMPILES else ()
        withheld = {each: NOT_COMPILED for each in skipped if each in case.baselines}
        timer, benchmark = for_seconds(setting), None
        if setting.device.type == "cpu":
            benchmark = request.getfixturevalue("benchmark")
            timer = by_fixture(benchmark, size.rounds)
        try:
            timed = measure_case(case, setting, timer, recorder, withheld, **parameters)
        except Unavailable as missing:
            pytest.skip(str(missing))
        except Wrong as wrong:
            pytest.fail(f"{where}: {wrong}")
        if benchmark is not None:
            benchmark.extra_info.update(environment, seconds=timed.seconds, parameters=settings)
        summary.append(f"{where}: {line(case, timed, recorder.results.ceilings)}")

    return run


@pytest.mark.parametrize(("module", "name"), NAMES, ids=[name for _, name in NAMES])
def test_operator(measure, setting, rate, module, name):
    measure(find(module, name, setting, rate), rate=rate)


SPARSEMAX = [
    f"{case.name}, {'short' if i < 2 else 'long'} rows"
    for i, case in enumerate(without_memory(_ANY))
]


@pytest.mark.parametrize("number", range(len(SPARSEMAX)), ids=SPARSEMAX)
def test_sparsemax(measure, setting, number):
    case = list(without_memory(setting))[number]
    measure(case)
