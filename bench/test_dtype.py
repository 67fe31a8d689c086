"""How much faster bfloat16 is than float32 on a CPU: documents, questions, first tokens, steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.dtype_steps import DtypeSteps, PlainPass
from bench.end_to_end.ways import MEMORY_TOLERANCES, distance
from bench.questions import QUESTION, full_documents
from bench.turns import Turns
from bench.ways import by_layers_of_transformers, exactly, merged
from bench.workload import documents, load_model
from clara import Clara
from clara.reports.results import Promise

RATE, TOP_K = 16, 5
BEFORE, HIGH, LOW = "float32, layers of transformers", "float32", "bfloat16"
PLAIN = "plain bfloat16 pass"
COMPRESSED = {"small": 16, "smoke": 2}
LENGTH = {"small": 256, "smoke": 48}
TRAINED = {"small": 4, "smoke": 1}  # documents of a step
ROUNDS = {"small": 6, "smoke": 1}
STEP_ROUNDS = {"small": 4, "smoke": 1}
SHORTEST = {"small": 0.3, "smoke": 0.0}  # seconds: shorter calls are repeated

# What is promised of processors with dot products of bfloat16: times as fast as float32.
DOCUMENTS_FASTER = 2.2
QUESTION_FASTER = 1.8
FIRST_TOKEN_FASTER = 2.0
STEP_FASTER = 2.0
OF_PLAIN = 0.8  # of the positions per second of a plain pass, by a training step

SAME = 1e-4  # of memory and losses in float32
LOSS_IN_BFLOAT16 = 0.02


@pytest.fixture(scope="module", autouse=True)
def on_cpu(device):
    if device.type != "cpu":
        pytest.skip("the comparison is of CPU")


@pytest.fixture(scope="module")
def chosen(size) -> str:
    return "smoke" if size.name == "smoke" else "small"


@pytest.fixture(scope="module")
def low(backbone: Path) -> Clara:
    """The model in bfloat16, as `dtype="auto"` loads it where the processor has it fast."""
    return load_model(backbone, RATE, dtype="bfloat16")


@pytest.fixture
def timed(benchmark, environment, recorder, summary, chosen) -> Callable[..., Turns]:
    """Times calls in turns and keeps what they took: `timed(case, calls, rounds, **amounts)`."""

    def time(case: str, calls: Mapping[str, Callable[[], Any]], rounds: int, **amounts) -> Turns:
        turns = Turns(calls, shortest=SHORTEST[chosen]).warm().benchmark(benchmark, LOW, rounds)
        recorder.turns("dtype", case, turns, {"rate": RATE}, amounts)
        benchmark.extra_info.update(environment, seconds=turns.seconds, rate=RATE)
        for name in calls:
            summary.append(
                f"{case}, {name}: {1e3 * turns.median(name):.1f} ms, "
                f"{turns.ratio(BEFORE, name):.2f} times as fast as {BEFORE}"
            )
        return turns

    return time


def faster(case: str, turns: Turns, at_least: float) -> Promise:
    what = f"{case} at {RATE}x, {LOW}: times as fast as {BEFORE}"
    return Promise.judged(what, turns.ratio(BEFORE, LOW), at_least=at_least)


def in_three_ways(call: Callable[[Clara], Any], high: Clara, low: Clara) -> dict[str, Any]:
    """A call on a model in float32, before and after layers were fused, and in bfloat16."""

    def before() -> Any:
        with by_layers_of_transformers():
            return call(high)

    return {BEFORE: before, HIGH: partial(call, high), LOW: partial(call, low)}


def check_memory(calls: Mapping[str, Callable[[], torch.Tensor]]) -> None:
    """Before anything is timed: what the three ways make is the same, but for rounding."""
    made = {name: call() for name, call in calls.items()}
    assert distance(made[HIGH], made[BEFORE]) <= SAME
    assert distance(made[LOW], made[HIGH]) <= MEMORY_TOLERANCES[torch.bfloat16]


def test_documents(models, low, chosen, timed, judge):
    """Documents of the published lengths."""
    model = models(RATE)
    texts = documents(COMPRESSED[chosen], model.tokenizer.tokenizer)
    calls = in_three_ways(lambda of: of.compress(texts).memory, model, low)
    check_memory(calls)
    case = "compress documents"
    turns = timed(case, calls, ROUNDS[chosen], documents=len(texts))
    judge(faster(case, turns, DOCUMENTS_FASTER))


def test_question(models, low, chosen, timed, judge):
    calls = in_three_ways(lambda of: of.encode_queries([QUESTION]), models(RATE), low)
    check_memory(calls)
    case = "encode a question"
    turns = timed(case, calls, ROUNDS[chosen], questions=1)
    judge(faster(case, turns, QUESTION_FASTER))


def test_first_token(models, low, chosen, timed, judge):
    """From the memory of documents, by a generator that is merged into a copy of the backbone."""
    model = models(RATE)
    texts = full_documents(TOP_K, model.tokenizer.tokenizer, LENGTH[chosen])
    twins = merged(model), merged(low)
    memory = {twin: twin.compress(texts, overflow="truncate").memory[None] for twin in twins}

    def first(of: Clara) -> list[str]:
        return of.generate([QUESTION], memory[of], generation_config=exactly(1))

    calls = in_three_ways(first, *twins)
    assert calls[BEFORE]() == calls[HIGH]()
    case = "first token, generator merged"
    turns = timed(case, calls, ROUNDS[chosen], tokens=1)
    judge(faster(case, turns, FIRST_TOKEN_FASTER))


def test_training_step(backbone, chosen, timed, judge):
    """A step of pretraining, and beside it a plain pass over sequences of the same lengths."""
    count = TRAINED[chosen]
    high, low = (DtypeSteps(backbone, RATE, count, dtype) for dtype in ("float32", "bfloat16"))

    def before() -> float:
        with by_layers_of_transformers():
            return high()

    with torch.no_grad():
        losses = {HIGH: high.loss().item(), LOW: low.loss().item()}
        with by_layers_of_transformers():
            losses[BEFORE] = high.loss().item()
    assert losses[HIGH] == pytest.approx(losses[BEFORE], rel=SAME)
    assert losses[LOW] == pytest.approx(losses[HIGH], rel=LOSS_IN_BFLOAT16)
    plain = PlainPass(backbone, low.lengths, "bfloat16")
    calls = {BEFORE: before, HIGH: high, LOW: low, PLAIN: plain}
    positions = sum(low.lengths)
    case = "training step"
    turns = timed(case, calls, STEP_ROUNDS[chosen], positions=positions, documents=count)
    share = f"{case} at {RATE}x, {LOW}: positions per second, divided by those of a {PLAIN}"
    judge(
        faster(case, turns, STEP_FASTER),
        Promise.judged(share, turns.ratio(PLAIN, LOW), at_least=OF_PLAIN),
    )
