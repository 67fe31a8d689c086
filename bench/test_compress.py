"""How fast documents become memory tokens, and what that is beside the reference's way."""

from __future__ import annotations

import statistics
from functools import partial

import pytest
import torch

from bench.baselines.reference_way import ReferenceWay
from bench.end_to_end.ways import MEMORY_TOLERANCES, distance
from bench.peak import peak_memory
from bench.turns import Turns
from bench.workload import documents, layer_weights, prepare_ours, prepare_reference

COMPARED_RATE = 16
ROUNDS = {"smoke": 1, "small": 3, "full": 10}
MEMORY_DOCUMENTS = 24  # more than a batch of either

# What is promised of compression on CPU, beside the reference's way.
FASTER = 3.2
MEMORY_SHARE = 1 / 4
SAME = 1e-4  # of any memory vector in float32; of their mean in bfloat16, see end_to_end.py


def test_throughput(
    benchmark, models, backbone, size, device, environment, recorder, summary, promise, rate
):
    model = models(rate)
    reference = ReferenceWay(model)
    texts = documents(size.documents, model.tokenizer.tokenizer)
    compressed = model.compress(texts)
    theirs = reference.compress(texts)
    difference, same = distance(compressed.memory, theirs), MEMORY_TOLERANCES[model.dtype]
    if model.dtype == torch.float32:
        apart = (compressed.memory - theirs).norm(dim=-1) / theirs.norm(dim=-1)
        difference, same = apart.max().item(), SAME
    if not difference <= same:
        reason = f"memory vectors differ by {difference:.1e}, more than {same:.0e}"
        recorder.withhold("compress", "throughput", "ours", reason, rate=rate)
        pytest.fail(reason)

    calls = {
        "ours": partial(model.compress, texts),
        "reference way": partial(reference.compress, texts),
    }
    turns = Turns(calls, device).benchmark(benchmark, "ours", ROUNDS[size.name])
    amounts = {
        "documents": len(texts),
        "tokens": sum(compressed.token_counts),
        "memory_tokens": len(texts) * model.config.memory_tokens,
    }
    positions = amounts["tokens"] + len(texts) * (3 + model.config.memory_tokens)
    amounts["flops"] = 2 * layer_weights(model) * positions  # attention and LoRA not counted
    recorder.turns("compress", "throughput", turns, {"rate": rate}, amounts)
    benchmark.extra_info.update(
        environment,
        **amounts,
        nominal_compression=rate,
        effective_compression=compressed.effective_compression,
        seconds=turns.seconds,
        largest_relative_difference=difference,
    )
    if not summary:
        where = environment["device"]
        where = where if device.type == "cuda" else f"{environment['threads']} threads of {where}"
        summary.append(
            f"{backbone.name}, {str(model.dtype).removeprefix('torch.')}, on {where}; {len(texts)} "
            f"documents of {statistics.fmean(compressed.token_counts):.1f} tokens on average"
        )
    rates = [amounts["documents"] / turns.median(name) for name in calls]
    ratio = turns.ratio("reference way", "ours")
    summary.append(
        f"{rate:4}x (effective {compressed.effective_compression:5.1f}x): {rates[0]:.1f} "
        f"documents/s, {amounts['tokens'] / turns.median('ours'):.0f} tokens/s, {ratio:.2f} times "
        f"the reference's way; memory vectors differ by at most {difference:.1e}"
    )
    if rate == COMPARED_RATE and device.type == "cpu":
        what = f"compression at {rate}x: times as fast as the reference way"
        promise(what, ratio, at_least=FASTER)


def test_memory(backbone, size, device, threads, recorder, summary, promise):
    """Peak of compressing, each way in a process of its own."""
    if device.type != "cpu":
        pytest.skip("resident memory is of CPU")
    if not size.judged:
        pytest.skip("two more loaded models for figures that nobody reads")
    settings = (backbone, COMPARED_RATE, threads, MEMORY_DOCUMENTS)
    ways = {"ours": prepare_ours, "reference way": prepare_reference}
    peaks = {name: peak_memory(way, *settings) for name, way in ways.items()}
    recorder.memory("compress", "peak memory", peaks, rate=COMPARED_RATE)
    sizes = " against ".join(f"{peak / 2**20:.0f}" for peak in peaks.values())
    summary.append(f"{COMPARED_RATE:4}x peak beyond the weights: {sizes} MiB")
    what = f"peak memory of compression at {COMPARED_RATE}x, divided by that of the reference way"
    promise(what, peaks["ours"] / peaks["reference way"], at_most=MEMORY_SHARE)
