"""How fast documents become memory tokens, and what that is beside the reference's way."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from baselines.reference_way import ReferenceWay
from timing import compare, peak_memory
from workload import documents, load_model, prepare_ours, prepare_reference

from clara import Clara, CompressedDocuments

RATES = (4, 16, 128)
COMPARED_RATE = 16
COMPARED_DOCUMENTS = 16  # two batches of the reference: rounds are short, so nothing drifts
MEMORY_DOCUMENTS = 24  # more than a batch of either

# What is promised of compression on CPU, beside the reference's way.
FASTER = 3.2
MEMORY_SHARE = 1 / 4
SAME = 1e-4


@pytest.fixture(scope="module")
def load(backbone, device) -> Callable[[int], Clara]:
    models: dict[int, Clara] = {}

    def cached(rate: int) -> Clara:
        if rate not in models:
            models[rate] = load_model(backbone, rate, device)
        return models[rate]

    return cached


@pytest.fixture(scope="module")
def texts(load, size, device, threads, environment, summary) -> Sequence[str]:
    model = load(COMPARED_RATE)
    texts = documents(size.documents, model.tokenizer.tokenizer)
    counts = [len(each.ids) for each in model.tokenizer.encode_texts(texts)]
    where = f"{threads} threads of {environment['device']}" if device.type == "cpu" else device
    summary.append(
        f"SmolLM2-135M, {str(model.dtype).removeprefix('torch.')}, on {where}; "
        f"{len(texts)} documents of {statistics.fmean(counts):.1f} tokens on average, "
        f"limit {model.config.document_length}"
    )
    return texts


def compress(model: Clara, texts: Sequence[str]) -> CompressedDocuments:
    compressed = model.compress(texts)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return compressed


@pytest.mark.parametrize("rate", RATES)
def test_throughput(benchmark, load, texts, size, environment, summary, rate):
    model = load(rate)
    compress(model, texts[:4])
    compressed = benchmark.pedantic(compress, args=(model, texts), rounds=size.rounds)
    benchmark.extra_info.update(environment)
    benchmark.extra_info.update(
        documents=len(compressed),
        nominal_compression=rate,
        effective_compression=compressed.effective_compression,
    )
    if benchmark.stats is None:  # --benchmark-disable
        return
    seconds = benchmark.stats.stats.median
    rows, tokens = len(compressed) / seconds, sum(compressed.token_counts) / seconds
    benchmark.extra_info.update(documents_per_second=rows, tokens_per_second=tokens)
    summary.append(
        f"{rate:4}x (effective {compressed.effective_compression:5.1f}x): "
        f"{rows:6.1f} documents/s, {tokens:6.0f} tokens/s"
    )


def test_faster_than_the_reference_way(benchmark, load, size, device, environment, summary):
    if device.type != "cpu":
        pytest.skip("the comparison is of CPU")
    model = load(COMPARED_RATE)
    reference = ReferenceWay(model)
    texts = documents(COMPARED_DOCUMENTS, model.tokenizer.tokenizer)
    for way in (model, reference):
        way.compress(texts[:1])
    times = compare(
        benchmark,
        ours=partial(model.compress, texts),
        theirs=partial(reference.compress, texts),
        rounds=size.compared_rounds,
    )
    ours, theirs = times.our_result.memory, times.their_result
    difference = ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max().item()
    benchmark.extra_info.update(environment)
    benchmark.extra_info.update(
        documents=len(texts),
        nominal_compression=COMPARED_RATE,
        effective_compression=times.our_result.effective_compression,
        reference_seconds=times.theirs,
        faster=times.ratio,
        largest_relative_difference=difference,
    )
    rates = [len(texts) / statistics.median(each) for each in (times.ours, times.theirs)]
    pairs = ", ".join(f"{ratio:.2f}" for ratio in sorted(times.ratios))
    summary.append(
        f"{COMPARED_RATE:4}x beside the reference's way: {rates[0]:.1f} against {rates[1]:.1f} "
        f"documents/s, {times.ratio:.2f} times (rounds: {pairs}; promised {FASTER})"
    )
    summary.append(f"      memory vectors differ by at most {difference:.1e} (promised {SAME:.0e})")
    assert difference <= SAME, f"memory differs by {difference:.1e}, more than {SAME:.0e}"
    assert times.ratio >= FASTER, f"{times.ratio:.2f} times as fast, promised {FASTER}"


def test_needs_less_memory_than_the_reference_way(backbone, size, device, threads, summary):
    if device.type != "cpu":
        pytest.skip("the comparison is of CPU")
    settings = (backbone, COMPARED_RATE, threads, min(size.documents, MEMORY_DOCUMENTS))
    ours, theirs = (peak_memory(way, *settings) for way in (prepare_ours, prepare_reference))
    share = ours / theirs
    summary.append(
        f"      peak beyond the weights: {ours / 2**20:.0f} against {theirs / 2**20:.0f} MiB, "
        f"{share:.3f} of it (promised at most {MEMORY_SHARE})"
    )
    assert share <= MEMORY_SHARE, f"{share:.3f} of the reference's, promised {MEMORY_SHARE}"
