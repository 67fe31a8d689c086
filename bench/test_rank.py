"""How fast questions are ranked against all documents: queries a second."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.nn.functional import normalize

from bench.baselines.search import FaissSearch, faiss, torch_topk
from bench.device import available_memory
from bench.scoring.data import SAME, exact_topk, furthest_apart, stored, tolerance
from bench.turns import Turns
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
ROUNDS = {"smoke": 1, "small": 4, "full": 10}
SHARE = 0.4  # of the memory there is


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "count" in metafunc.fixturenames:
        size = metafunc.config.getoption("size")
        counts = DOCUMENTS[size]
        metafunc.parametrize("count", counts, ids=[f"{count} documents" for count in counts])
        metafunc.parametrize("dtype", STORED[size])


def with_faiss(queries, rows, k, found, recorder, where, device) -> dict[str, Callable[[], object]]:
    """FAISS' flat index of rows of norm 1, where it is installed, has room and finds the same."""
    reason = ""
    if device.type != "cpu":
        reason = "faiss-cpu searches on a CPU"
    elif faiss(torch.get_num_threads()) is None:
        reason = "faiss is not installed"
    elif rows.nbytes > available_memory(device) / 2:
        reason = f"a copy of {rows.nbytes / 2**30:.1f} GiB of memory tokens does not fit here"
    if not reason:
        search = partial(FaissSearch(rows), queries, k)
        apart = furthest_apart(found, search()[1], queries, rows)
        if apart <= SAME:
            return {"FAISS": search}
        reason = f"cosines of rows found instead of others differ by {apart:.1e}"
    recorder.withhold("rank", "search", "FAISS", reason, **where)
    return {}


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
    found, exact = calls["ours"]()[1], exact_topk(queries, rows, k)
    apart = furthest_apart(found, exact, queries, rows)
    same = tolerance(queries, rows.dtype)
    assert apart <= same, f"cosines of rows found instead of others differ by {apart}"
    if dtype == "float32":  # the only one in which PyTorch and FAISS find the same rows
        peer = normalize(rows, dim=1)
        calls["torch"] = partial(torch_topk, normalize(queries, dim=1), peer, k)
        apart = furthest_apart(found, calls["torch"]()[1], queries, rows)
        assert apart <= SAME, f"cosines of rows that torch found differ by {apart}"
        calls |= with_faiss(queries, peer, k, found, recorder, where, device)
    turns = Turns(calls, device, shortest=2e-3).warm()
    turns.benchmark(benchmark, "ours", ROUNDS[size.name])
    amounts = {"queries": QUERIES, "bytes": needed, "flops": 2 * QUERIES * count * width}
    recorder.turns("rank", "search", turns, where, amounts)
    benchmark.extra_info.update(environment, seconds=turns.seconds, **where)
    line = (
        f"{rate:4}x {count:>9,} documents, {dtype}: {QUERIES / turns.median('ours'):,.0f} queries/s"
    )
    for name in list(calls)[1:]:
        line += f", {turns.ratio(name, 'ours'):.2f} times {name}"
    summary.append(line)
