"""How fast a training step is, and how much memory it needs, beside the reference's way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bench.peak import peak_memory
from bench.training_steps import (
    CompressionSteps,
    EndToEndSteps,
    Steps,
    answer_examples,
    model_to_train,
    prepare_step,
    pretraining_examples,
    ranking_examples,
)
from bench.turns import Turns
from bench.work import Work
from clara import Clara

COMPARED_RATE = 16
TOP_K = 5
QUESTIONS = {"small": (4, 20), "smoke": (1, 6)}  # and candidates of each
INSTRUCTIONS = {"small": (1, 5), "smoke": (1, 2)}  # and documents of each
DOCUMENTS = {"small": 8, "smoke": 1}
OTHER_DOCUMENTS = {"small": 2, "smoke": 1}  # at the other rates
ROUNDS = {"small": 2, "smoke": 1}
TINY_ROUNDS = {"small": 2, "smoke": 1}

# What is promised on CPU, beside the reference's way.
END_TO_END_FASTER = 12.0
PRETRAINING_FASTER = 1.8
MEMORY_SHARE = 0.6
SAME = 1e-4


@pytest.fixture(scope="module", autouse=True)
def on_cpu(device):
    if device.type != "cpu":
        pytest.skip("the comparison is of CPU")


@pytest.fixture(scope="module")
def chosen(size) -> str:
    return "smoke" if size.name == "smoke" else "small"


@pytest.fixture
def measured(benchmark, recorder, summary, environment) -> Callable[..., float]:
    """Times both ways in turns; returns how many times as long the reference's takes."""

    def measure(case: str, steps: Steps, rounds: int, amounts: dict[str, int], **where) -> float:
        with torch.no_grad():
            ours, theirs = steps.our_loss().item(), steps.their_loss().item()
        assert ours == pytest.approx(theirs, rel=SAME), "the two ways compute different losses"
        steps.ours()  # seconds, of which the first call takes longer; theirs take a minute
        work, model, reference = Work(steps.model), steps.model, steps.reference
        calls = {
            "ours": work.counted("ours", steps.ours, model.backbone),
            "reference way": work.counted("reference way", steps.theirs, reference.backbone),
        }
        turns = Turns(calls).benchmark(benchmark, "ours", rounds)
        counted = {name: work.amounts(name) for name in calls}
        recorder.turns("training", case, turns, where, amounts, counted)
        benchmark.extra_info.update(environment, seconds=turns.seconds, **where)
        ratio = turns.ratio("reference way", "ours")
        details = ", ".join(f"{name} {value}" for name, value in where.items())
        summary.append(
            f"{case}, {details}: {turns.median('ours'):.3f} s against "
            f"{turns.median('reference way'):.3f} s, {ratio:.2f} times as fast"
        )
        return ratio

    return measure


def test_memory(backbone, threads, size, recorder, summary, promise):
    """Peak of a pretraining step, each way in a process of its own."""
    if not size.judged:
        pytest.skip("two more loaded models for figures that nobody reads")
    settings = (backbone, COMPARED_RATE, threads, DOCUMENTS["small"])
    peaks = {
        name: peak_memory(prepare_step, *settings, ours)
        for name, ours in (("ours", True), ("reference way", False))
    }
    recorder.memory("training", "peak memory of a pretraining step", peaks, rate=COMPARED_RATE)
    sizes = " against ".join(f"{peak / 2**20:.0f}" for peak in peaks.values())
    summary.append(f"pretraining step, peak beyond the weights: {sizes} MiB")
    what = "peak memory of a pretraining step at 16x, divided by that of the reference way"
    promise(what, peaks["ours"] / peaks["reference way"], at_most=MEMORY_SHARE)


def end_to_end(model: Clara, chosen: str) -> EndToEndSteps:
    questions, candidates = QUESTIONS[chosen]
    return EndToEndSteps(model, ranking_examples(model, questions, candidates), TOP_K)


def test_end_to_end_step(backbone, chosen, measured, promise, rate):
    if chosen != "smoke" and rate != COMPARED_RATE:
        pytest.skip("the reference's step takes a minute: at 16x only")
    questions, candidates = QUESTIONS[chosen]
    steps = end_to_end(model_to_train(backbone, rate), chosen)
    ratio = measured(
        "end-to-end step",
        steps,
        ROUNDS[chosen],
        {"examples": questions},
        rate=rate,
        candidates=candidates,
    )
    if rate == COMPARED_RATE:
        step = f"end-to-end step at {rate}x, {candidates} candidates"
        what = f"{step}: times as fast as the reference way"
        promise(what, ratio, at_least=END_TO_END_FASTER)


def test_end_to_end_step_of_a_tiny_backbone(tiny, chosen, measured, rate):
    questions, candidates = QUESTIONS[chosen]
    steps = end_to_end(model_to_train(tiny, rate), chosen)
    rounds = TINY_ROUNDS[chosen]
    amounts = {"examples": questions}
    where = {"rate": rate, "candidates": candidates}
    measured("end-to-end step, 3 layers of 128", steps, rounds, amounts, **where)


def test_pretraining_step(backbone, chosen, measured, promise, rate):
    model = model_to_train(backbone, rate)
    count = DOCUMENTS[chosen] if rate == COMPARED_RATE else OTHER_DOCUMENTS[chosen]
    steps = CompressionSteps(model, pretraining_examples(model, count))
    amounts = {"examples": count}
    where = {"rate": rate, "documents": count}
    ratio = measured("pretraining step", steps, ROUNDS[chosen], amounts, **where)
    if rate == COMPARED_RATE:
        what = f"pretraining step at {rate}x: times as fast as the reference way"
        promise(what, ratio, at_least=PRETRAINING_FASTER)


def test_instruction_step(backbone, chosen, measured, rate):
    """Questions over several documents each."""
    if chosen != "smoke" and rate != COMPARED_RATE:
        pytest.skip("much as a pretraining step: at 16x only")
    model, (questions, documents) = model_to_train(backbone, rate), INSTRUCTIONS[chosen]
    steps = CompressionSteps(model, answer_examples(model, questions, documents))
    measured("instruction step", steps, ROUNDS[chosen], {"examples": questions}, rate=rate)
