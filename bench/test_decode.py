"""How fast further tokens are, by our decoder and by transformers' `generate`."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch

from bench.questions import full_documents
from bench.turns import Turns
from bench.ways import by_generate, exactly, merged
from bench.workload import load_model
from clara import Clara
from clara.reports.results import Promise

RATE, LENGTH, NEW_TOKENS, ROUNDS = 16, 256, 32, 5
OURS, LOW, INT8 = "decoder, float32", "decoder, bfloat16", "decoder, int8"
GENERATE, GENERATE_MERGED = "generate, float32", "generate, float32, generator merged"
READ = "reading its weights once at the speed of a large copy"

# What is promised on CPUs: times as fast as `generate`, by the number of questions.
FASTER = {1: 3.0, 16: 2.0}
READS = 2.0  # times as long as reading the weights, for one question
FASTER_IN_8_BITS = 1.2  # times as fast as in bfloat16, for one question


@pytest.fixture(scope="module")
def low(backbone: Path, device: torch.device) -> Clara:
    """The model in bfloat16, as `dtype="auto"` loads it where the processor has it fast."""
    return load_model(backbone, RATE, device, dtype="bfloat16")


@pytest.fixture(scope="module")
def int8(backbone: Path, device: torch.device) -> Clara:
    """The model in bfloat16 with the weights of its linear layers in 8 bits."""
    return load_model(backbone, RATE, device, dtype="bfloat16", quantization="int8")


def weight_bytes(model: Clara) -> int:
    """What a step has to read: the backbone without adapters."""
    weights = dict(model.backbone.named_parameters())
    return sum(weight.nbytes for name, weight in weights.items() if "lora_" not in name)


@pytest.mark.parametrize("questions", FASTER)
def test_further_tokens(
    benchmark, models, low, int8, size, device, environment, recorder, summary, judge, questions
):
    """What a longer answer takes more, per token: the time of the first token is not in it."""
    small = size.name == "smoke"
    model, count = models(RATE), 2 if small else NEW_TOKENS
    texts = full_documents(1, model.tokenizer.tokenizer, 48 if small else LENGTH)
    loaded = (model, low, int8)
    memory = {each: each.compress(texts, overflow="truncate").memory for each in loaded}
    asked = [f"Where does river number {row} flow?" for row in range(questions)]

    def answer(of: Clara, new_tokens: int, *, ours: bool = True) -> list[str]:
        given = [memory[of]] * questions
        settings = {"generation_config": exactly(new_tokens), "batch_size": questions}
        with nullcontext() if ours else by_generate():
            return of.generate(asked, given, **settings)

    twin = merged(model)
    memory[twin] = memory[model]
    ways = {
        OURS: partial(answer, model),
        LOW: partial(answer, low),
        INT8: partial(answer, int8),
        GENERATE: partial(answer, model, ours=False),
        GENERATE_MERGED: partial(answer, twin, ours=False),
    }
    answers = {name: way(count + 1) for name, way in ways.items() if name not in (LOW, INT8)}
    assert len({tuple(each) for each in answers.values()}) == 1
    calls = {f"{name} {n}": partial(ways[name], n) for name in ways for n in (1, count + 1)}
    turns = Turns(calls, device).warm()
    turns.benchmark(benchmark, f"{OURS} {count + 1}", 1 if small else ROUNDS)
    seconds = {
        name: [
            max((b - a) / count, 1e-9)
            for a, b in zip(turns.seconds[f"{name} 1"], turns.seconds[f"{name} {count + 1}"])
        ]
        for name in ways
    }
    parameters = {"questions": questions, "rate": RATE}
    benchmark.extra_info.update(environment, seconds=seconds, **parameters)
    recorder.seconds("decode", "further tokens", seconds, parameters, {"tokens": questions})
    compared = Turns(dict.fromkeys(seconds, list))
    compared.seconds = seconds
    for name in seconds:
        summary.append(
            f"{questions:3} at once, {name}: {1e3 * compared.median(name):.1f} ms a step, "
            f"{compared.ratio(GENERATE, name):.2f} times as fast as {GENERATE}"
        )
    what = f"further tokens, {questions} at once, {LOW}"
    promises = [
        Promise.judged(
            f"{what}: times as fast as {GENERATE}",
            compared.ratio(GENERATE, LOW),
            at_least=FASTER[questions],
        )
    ]
    if questions == 1:
        reading = weight_bytes(low) / recorder.results.ceilings["bandwidth"]
        longer = compared.median(LOW) / reading
        promises.append(Promise.judged(f"{what}: times as long as {READ}", longer, at_most=READS))
        what = f"further tokens, {questions} at once, {INT8}: times as fast as {LOW}"
        faster = compared.ratio(LOW, INT8)
        promises.append(Promise.judged(what, faster, at_least=FASTER_IN_8_BITS))
    judge(*promises)
