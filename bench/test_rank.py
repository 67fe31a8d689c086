"""How fast questions are ranked against all documents: queries a second."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from baselines.search import torch_topk
from peak import available_memory
from scoring.data import furthest_apart, stored
from torch.nn.functional import normalize
from turns import Turns

from clara_kernels import Corpus, cosine_topk

LIMIT, HIDDEN = 256, 576  # tokens of a document; SmolLM2-135M's width
DOCUMENTS = {
    "smoke": (20, 1_000),
    "small": (20, 1_000, 100_000),
    "full": (20, 1_000, 100_000, 1_000_000),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
STORED = {"smoke": ("float32",), "small": ("float32", "int8"), "full": tuple(DTYPES)}
K = 5
QUERIES = 16
ROUNDS = {"smoke": 1, "small": 6, "full": 10}
SHARE = 0.4  # of the memory there is
SAME = 1e-6  # cosines that may be ordered either way


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "count" in metafunc.fixturenames:
        size = metafunc.config.getoption("size")
        counts = DOCUMENTS[size]
        metafunc.parametrize("count", counts, ids=[f"{count} documents" for count in counts])
        metafunc.parametrize("dtype", STORED[size])


@pytest.mark.usefixtures("compiled_search")
def test_search(benchmark, size, device, environment, recorder, summary, rate, count, dtype):
    width = LIMIT // rate * HIDDEN
    where = {"rate": rate, "documents": count, "dtype": dtype}
    needed = count * width * DTYPES[dtype].itemsize
    room = SHARE * available_memory(device)
    if needed > room:
        reason = f"{needed / 2**30:.1f} GiB of memory tokens, {room / 2**30:.1f} to spare here"
        recorder.withhold("rank", "search", "ours", reason, **where)
        summary.append(f"{rate:4}x {count:>9,} documents, {dtype}: withheld, {reason}")
        return
    rows = stored(count, width, DTYPES[dtype], device)
    corpus = Corpus(rows)
    generator = torch.Generator(device).manual_seed(1)
    queries = torch.randn(QUERIES, width, generator=generator, device=device)
    k = min(K, count)
    calls = {"ours": partial(cosine_topk, queries, corpus, k)}
    if dtype == "float32":  # the only one in which PyTorch finds the same rows
        peer = normalize(rows, dim=1)
        unit = normalize(queries, dim=1)
        found, theirs = calls["ours"]()[1], torch_topk(unit, peer, k)[1]
        apart = furthest_apart(found, theirs, queries, rows)
        assert apart <= SAME, f"cosines of rows found instead of others differ by {apart}"
        calls["torch"] = partial(torch_topk, unit, peer, k)
    turns = Turns(calls, device, shortest=2e-3).warm()
    turns.benchmark(benchmark, "ours", ROUNDS[size.name])
    amounts = {"queries": QUERIES, "bytes": needed, "flops": 2 * QUERIES * count * width}
    recorder.turns("rank", "search", turns, where, amounts)
    benchmark.extra_info.update(environment, seconds=turns.seconds, **where)
    line = (
        f"{rate:4}x {count:>9,} documents, {dtype}: {QUERIES / turns.median('ours'):,.0f} queries/s"
    )
    if "torch" in calls:
        line += f", {turns.ratio('torch', 'ours'):.2f} times torch"
    summary.append(line)
