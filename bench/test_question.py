"""How long an answer takes from compressed documents, and from their text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

from bench.peak import peak_memory
from bench.questions import Found, Ways, prepare_answer
from bench.turns import Turns
from bench.ways import LINGUA, MEMORY, MERGED, ONLINE, REFERENCE, TEXT
from clara.reports.results import Promise

pytest.importorskip("lance")

TOP_K = 5
CORPUS = {"smoke": 40, "small": 1000, "full": 1000}
LENGTH = {"smoke": 48, "small": 256, "full": 256}
NEW_TOKENS = {"smoke": 3, "small": 32, "full": 32}
ROUNDS = {"smoke": 1, "small": 4, "full": 10}
WHOLE_ROUNDS = {"smoke": 1, "small": 2, "full": 6}
SWEEP_ROUNDS = {"smoke": 1, "small": 2, "full": 4}

SWEPT_RATE = 16
SWEPT_TOP_K = {"smoke": (1,), "small": (1, 10), "full": (1, 2, 10, 20)}
SWEPT_CORPUS = {"smoke": (25,), "small": (100, 10_000), "full": (100, 10_000, 100_000)}

FIRST, WHOLE = "time to first token", "whole answer"

# What is promised on CPU: times as fast as text, and memory as a share of what text needs.
FASTER = {
    (FIRST, 16, MEMORY): 4.0,
    (FIRST, 128, MEMORY): 6.0,
    (WHOLE, 16, MEMORY): 1.4,
    (FIRST, 16, MERGED): 5.5,
    (FIRST, 128, MERGED): 9.0,
    (WHOLE, 16, MERGED): 1.9,
}
MEMORY_SHARE = 0.3


@pytest.fixture(scope="module")
def ways(models, rate) -> Ways:
    return Ways(models(rate))


@pytest.fixture(scope="module")
def found(ways, size) -> Found:
    return Found.of(ways.model, corpus=CORPUS[size.name], top_k=TOP_K, length=LENGTH[size.name])


@pytest.fixture(scope="module")
def unfit(ways, found, size, recorder, rate) -> dict[str, str]:
    """Ways whose answer is wrong, which get no figure. All others are warm after this."""
    # The reference's way takes as long at every rate.
    slow = () if rate == SWEPT_RATE else (REFERENCE,)
    wrong = ways.differences(found, NEW_TOKENS[size.name], but=slow)
    for name, reason in {**wrong, **ways.missing}.items():
        for case in (FIRST, WHOLE):
            recorder.withhold("question", case, name, reason, rate=rate, **where(found))
    return wrong


def where(found: Found) -> dict[str, int]:
    return {"k": found.top_k, "documents": found.corpus}


@pytest.mark.parametrize("case", [FIRST, WHOLE])
def test_answer(
    benchmark, ways, found, unfit, size, device, environment, recorder, summary, judge, rate, case
):
    tokens = 1 if case == FIRST else NEW_TOKENS[size.name]
    long = [ONLINE, *([REFERENCE] if rate == SWEPT_RATE else [])]  # after the first token as memory
    calls = ways.calls(found, tokens)
    names = [
        name
        for name in (MEMORY, MERGED, TEXT, LINGUA, *(long if case == FIRST else []))
        if name in calls and name not in unfit
    ]
    calls = {name: calls[name] for name in names}
    ways.laps.clear()
    rounds = (ROUNDS if case == FIRST else WHOLE_ROUNDS)[size.name]
    turns = Turns(calls, device).benchmark(benchmark, MEMORY, rounds)
    prompts = ways.prompt_tokens(found)
    recorder.turns(
        "question",
        case,
        turns,
        {"rate": rate, **where(found)},
        amounts={"new_tokens": tokens},
        of_each={n: {"prompt_tokens": prompts[n], **ways.work.amounts(n)} for n in names},
    )
    benchmark.extra_info.update(environment, seconds=turns.seconds, rate=rate)
    record_stages(recorder, ways, turns, {"rate": rate, **where(found)}, tokens)
    parts = [f"{rate:4}x {case:20}"]
    parts += [f"{name} {turns.median(name):.3f} s" for name in names]
    if TEXT in names:
        parts += [f"{name}: {turns.ratio(TEXT, name):.2f} times" for name in names if name != TEXT]
    summary.append("; ".join(parts))
    promised = []
    for name in (MEMORY, MERGED):
        least = FASTER.get((case, rate, name))
        if least is not None and size.judged:
            assert {name, TEXT} <= set(names), f"no figure: {unfit}"
            what = f"{case} at {rate}x from {name}: times as fast as from text"
            promised.append(Promise.judged(what, turns.ratio(TEXT, name), at_least=least))
    judge(*promised)


def record_stages(recorder, ways: Ways, turns: Turns, place: dict[str, int], tokens: int) -> None:
    """Where the time goes: the stages that answers report, and what whole answers take longer."""

    def record(name: str, stage: str, seconds: Sequence[float]) -> None:
        recorder.seconds("question", "stage", {name: seconds}, {**place, "stage": stage})

    if tokens == 1:
        for name in (MEMORY, MERGED, ONLINE):
            rank = "rank" if name != ONLINE else "compress"
            laps = ways.laps[name, 1]
            for stage, key in (("query", "query"), (rank, "rank"), ("first token", "generate")):
                if laps:
                    record(name, stage, [lap[key] / 1e3 for lap in laps])
        if TEXT in turns:
            record(TEXT, "first token", turns.seconds[TEXT])
        return
    for name in turns.calls:
        first = recorder.results.find("question", FIRST, name, **place)
        if first is not None and turns.median(name) > first.median:
            record(name, "further tokens", [turns.median(name) - first.median])


def sweep(
    ways: Ways, settings: Iterable[tuple[int, int]], names: Sequence[str], size, device, recorder
) -> dict[tuple[int, int], Turns]:
    measured = {}
    for top_k, corpus in settings:
        found = Found.of(ways.model, corpus=corpus, top_k=top_k, length=LENGTH[size.name])
        place = {"rate": SWEPT_RATE, **where(found)}
        calls = ways.calls(found, 1)
        wrong = ways.differences(found, 2, but=set(calls) - {*names})
        for name, reason in wrong.items():
            recorder.withhold("question", FIRST, name, reason, **place)
        kept = {name: calls[name] for name in names if name in calls and name not in wrong}
        turns = Turns(kept, device).run(SWEEP_ROUNDS[size.name])
        amounts = {name: ways.work.amounts(name) for name in kept}
        recorder.turns("question", FIRST, turns, place, of_each=amounts)
        measured[top_k, corpus] = turns
    return measured


@pytest.fixture
def at_the_swept_rate(rate) -> None:
    if rate != SWEPT_RATE:
        pytest.skip(f"at {SWEPT_RATE}x only")


@pytest.mark.usefixtures("at_the_swept_rate")
def test_more_and_fewer_documents(ways, unfit, size, device, recorder, summary):
    names = [name for name in (MEMORY, MERGED, ONLINE, TEXT) if name not in unfit]
    settings = [(k, max(CORPUS["smoke"], CORPUS[size.name])) for k in SWEPT_TOP_K[size.name]]
    for (top_k, _), turns in sweep(ways, settings, names, size, device, recorder).items():
        times = "; ".join(f"{name} {turns.median(name):.3f} s" for name in turns.calls)
        summary.append(f"{SWEPT_RATE:4}x {FIRST}, k = {top_k}: {times}")


@pytest.mark.usefixtures("at_the_swept_rate")
def test_larger_and_smaller_corpora(ways, unfit, size, device, recorder, summary):
    names = [name for name in (MEMORY, MERGED) if name not in unfit]
    settings = [(TOP_K, corpus) for corpus in SWEPT_CORPUS[size.name]]
    for (_, corpus), turns in sweep(ways, settings, names, size, device, recorder).items():
        times = "; ".join(f"{name} {turns.median(name):.3f} s" for name in turns.calls)
        summary.append(f"{SWEPT_RATE:4}x {FIRST}, {corpus:,} documents: {times}")


@pytest.mark.usefixtures("at_the_swept_rate")
def test_memory(backbone, device, size, threads, recorder, summary, promise):
    """Peak of a whole answer, each way in a process of its own."""
    if device.type != "cpu":
        pytest.skip("resident memory is of CPU")
    if not size.judged:
        pytest.skip("three more loaded models for figures that nobody reads")
    place = {"rate": SWEPT_RATE, "k": TOP_K, "documents": 1000}
    peaks = {
        name: peak_memory(prepare_answer, backbone, SWEPT_RATE, threads, name, True)
        for name in (MEMORY, TEXT)
    }
    recorder.memory("question", "peak memory", peaks, **place)
    first = {MEMORY: peak_memory(prepare_answer, backbone, SWEPT_RATE, threads, MEMORY, False)}
    recorder.memory("question", "peak memory, reading the index included", first, **place)
    sizes = "; ".join(f"{name} {peak / 2**20:.0f} MiB" for name, peak in peaks.items())
    summary.append(f"{SWEPT_RATE:4}x peak of an answer beyond the weights: {sizes}")
    share = peaks[MEMORY] / peaks[TEXT]
    what = (
        f"peak memory of an answer at {SWEPT_RATE}x beyond the weights, divided by that from text"
    )
    promise(what, share, at_most=MEMORY_SHARE)
