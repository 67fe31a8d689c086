"""How fast the operators of clara_kernels are beside PyTorch, torch.compile and their peers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
import torch

from bench.measure import own_stream
from bench.operators import AT_RATE
from bench.operators.case import Case, Setting, Unavailable
from bench.operators.sparsemax import without_memory
from bench.operators.suite import amounts, cases, check, find, line, on_cpu, on_gpu

SUITE = "operators"
COMPILED = ("torch.compile", "FlexAttention")
SMOKE_COMPILES = "memory_alignment_loss, forward"
NOT_COMPILED = "compiled at larger sizes only"

_ANY = Setting(torch.device("cpu"), tiny=True)
NAMES = [(module, case.full_name) for module in AT_RATE for case in cases(module, _ANY, 16)]


@pytest.fixture(scope="module")
def setting(device, size) -> Setting:
    tiny = size.name == "smoke"
    return Setting(device, tiny=tiny, small=not tiny and device.type == "cpu")


@pytest.fixture(scope="module", autouse=True)
def _little_garbage() -> Iterator[None]:
    """Each round collects garbage; what was loaded before is none."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def measure(request, setting, size, environment, recorder, summary) -> Callable[..., None]:
    """Check a case, time it, record it, and fail if our answer is wrong."""

    def run(case: Case, **parameters: int) -> None:
        name = case.full_name
        where = ", ".join([name, *(f"{what} {value}" for what, value in parameters.items())])
        skipped = COMPILED if setting.tiny and name != SMOKE_COMPILES else ()
        withheld = {each: NOT_COMPILED for each in skipped if each in case.baselines}
        torch.cuda.empty_cache()  # of the case before, where there is a GPU
        with own_stream(setting.device):
            try:
                checked = check(case, setting, withheld)
            except Unavailable as missing:
                recorder.withhold(SUITE, name, "ours", str(missing), **parameters)
                pytest.skip(str(missing))
            if not checked.apart <= case.tolerance:
                wrong = f"its answer differs from the reference by {checked.apart:.1e} of the norm"
                recorder.withhold(SUITE, name, "ours", wrong, **parameters)
                pytest.fail(f"{where}: {wrong}")
            if setting.device.type == "cuda":
                found = on_gpu(checked, setting)
            else:
                benchmark = request.getfixturevalue("benchmark")
                found = on_cpu(checked, benchmark, size.rounds)
                benchmark.extra_info.update(environment, seconds=found, parameters=parameters)
        recorder.seconds(SUITE, name, found, parameters, amounts(case))
        for each, reason in checked.withheld.items():
            recorder.withhold(SUITE, name, each, reason, **parameters)
        ceilings = recorder.results.ceilings
        summary.append(f"{where}: {line(case, found, checked.withheld, ceilings)}")

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
    measure(case, **case.details)
