"""How fast exact search is on a CPU, beside the machine's limits, PyTorch and FAISS."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench.baselines.search import FaissSearch, faiss, torch_topk
from bench.peak import peak_memory
from bench.printing import aligned
from bench.scoring.data import (
    SAME,
    furthest_apart,
    gaussian,
    groups,
    recall,
    tolerance,
    word_documents,
)
from bench.scoring.memory import prepare_ours, prepare_torch
from bench.turns import Turns, median_ratio
from clara.backbone.processor import bfloat16_instructions
from clara.reports.results import Promise
from clara_kernels import Corpus, build_info, cosine_topk, quantize_memory

K = 10
BATCHES = (1, 16, 64, 256)
SHAPES = {"small": [(200_000, 576), (20_000, 8192)], "smoke": [(2_000, 576), (300, 8192)]}
MATRIX = {"small": 4096, "smoke": 256}
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}

# What is promised. Of float32, beside limit and peers; of the others, beside our float32, and of
# bfloat16 from 16 queries on, beside PyTorch in bfloat16.
OF_LIMIT = 1.35
FASTER = {(576, 16): 3.0, (576, 64): 2.5}  # than the better peer; elsewhere no slower
HALF_FASTER = {1: 1.7, 64: 0.95}
BFLOAT16_FASTER_THAN_TORCH = dict.fromkeys((16, 64, 256), 1.0)
INT8_FASTER = {1: 2.5, 16: 1.2}
INT8_FASTER_VNNI = {1: 2.5, 16: 2.0}
INT8_FASTER_THAN_FAISS = {16: 4.0}
RECALL = 0.99
EXTRA_MEMORY = 0.01
OF_LINEAR = 1.25  # time of all rows by that of a quarter of them, by 4
OF_THREADS = 0.8  # of how much faster a matrix product becomes

KINDS = {
    gaussian: "Gaussian rows",
    groups: "groups of about ten",
    word_documents: "means of random words' vectors",
}

HEAD = ("rows", "B", "ours", "limit", "ours/limit", "torch", "FAISS", "best peer/ours")


@dataclass
class Data:
    """Everything that is searched at one shape; `calls` are of queries."""

    rows: Tensor
    queries: Tensor
    ours: dict[str, Corpus]
    peers: dict[str, Callable[[Tensor], Any]] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        count, width = self.rows.shape
        return count, width

    @property
    def name(self) -> str:
        return f"N = {self.shape[0]:,}, D = {self.shape[1]:,}"


@pytest.fixture(scope="session", autouse=True)
def on_cpu(device):
    if device.type != "cpu":
        pytest.skip("the comparison is of CPU; for GPUs there is python -m bench.operators")


@pytest.fixture(scope="session")
def machine(size) -> Callable[[], Tensor]:
    """A square product in float32; its seconds give the matrix rate."""
    width = MATRIX["smoke" if size.name == "smoke" else "small"]
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(width, width, generator=generator) for _ in "ab")
    return partial(torch.mm, left, right, out=torch.empty(width, width))


@pytest.fixture(scope="module")
def said(summary, threads, environment) -> list[str]:
    """The summary, which begins with what is compared."""
    info = build_info()
    version = getattr(faiss(threads), "__version__", "not installed")
    summary.append(
        f"k = {K}, {threads} threads of {environment['device']}, {info['simd'] or 'not compiled'}; "
        f"torch {torch.__version__}, FAISS {version}"
    )
    return summary


@pytest.fixture(scope="module")
def table(data, said) -> Iterator[list[Sequence[str]]]:
    """Rows that are printed when all of them are measured, whether or not a promise was kept."""
    rows: list[Sequence[str]] = [HEAD]
    yield rows
    said += [f"{data.name}, milliseconds", *aligned(rows)]


@pytest.fixture(scope="module", params=[0, 1], ids=["short rows", "long rows"])
def data(request, size, threads) -> Data:
    count, width = SHAPES["smoke" if size.name == "smoke" else "small"][request.param]
    rows, queries = gaussian(count, width)
    halves = {name: rows.to(dtype) for name, dtype in HALVES.items()}
    found = Data(rows, queries, {"float32": Corpus(rows)})
    found.ours |= {name: Corpus(half) for name, half in halves.items()}
    found.ours["int8"] = Corpus(quantize_memory(rows)[0])
    found.peers["float32, torch"] = lambda q: torch_topk(q, rows, K)
    for name, half in halves.items():
        found.peers[f"{name}, torch"] = lambda q, half=half: torch_topk(q.to(half.dtype), half, K)
    if faiss(threads) is not None:
        found.peers["float32, FAISS"] = partial(FaissSearch(rows), k=K)
        found.peers["int8, FAISS"] = partial(FaissSearch(rows, bits=8), k=K)
    check_same(found)
    return found


def readers(rows: Tensor, query: Tensor) -> dict[str, Callable[[], Any]]:
    """Ways to read all rows once; the best of them tells the bandwidth."""
    flat = rows.view(-1)
    return {
        "sum": flat.sum,
        "largest integer": flat.view(torch.int32).amax,
        "dot product": lambda: torch.dot(flat, flat),
        "matrix by vector": lambda: torch.mv(rows, query),
    }


def check_same(data: Data) -> None:
    """Before anything is timed. Peers that round scores are held to what rounding leaves."""
    for name, corpus in data.ours.items():
        wide = normalize(corpus.rows.float(), dim=1)
        exact = torch_topk(data.queries, wide, K)[1]
        found = cosine_topk(data.queries, corpus, K)[1]
        same = tolerance(data.queries, corpus.rows.dtype)
        apart = furthest_apart(found, exact, data.queries, wide)
        assert apart <= same, f"{name}: cosines of rows found instead of others differ by {apart}"
        for side in ("torch", "FAISS"):
            peer = data.peers.get(f"{name}, {side}")
            if peer is None:
                continue
            theirs = peer(data.queries)[1]
            if name == "float32":
                assert furthest_apart(found, theirs, data.queries, wide) <= SAME
            else:
                assert recall(theirs, exact) >= 0.5, f"{name}, {side}"


@pytest.mark.parametrize("batch", BATCHES)
def test_search(benchmark, data, machine, size, table, said, judge, recorder, environment, batch):
    queries = data.queries[:batch]
    reads = readers(data.rows, queries[0])
    calls = {"matrix product": machine, **reads}
    calls |= {name: partial(cosine_topk, queries, corpus, K) for name, corpus in data.ours.items()}
    calls |= {name: partial(peer, queries) for name, peer in data.peers.items()}
    turns = Turns(calls).warm().benchmark(benchmark, "float32", size.rounds if batch < 256 else 3)
    record(recorder, turns, data, batch)
    limits = Limits(turns, data, reads, machine, batch)
    found: list[Promise] = []
    for name in data.ours:
        table.append(cells(turns, limits.of(name), name, batch))
        found += promises(turns, limits.of(name), name, data, batch)
    said.append(f"{data.name}, B = {batch}: {limits.reader} {limits.rates}")
    benchmark.extra_info.update(environment, seconds=turns.seconds, shape=data.shape)
    judge(*found)


def record(recorder, turns: Turns, data: Data, batch: int) -> None:
    """A case for each dtype: ours, then its peers."""
    count, width = data.shape
    for dtype, corpus in data.ours.items():
        names = {"ours": dtype, "torch": f"{dtype}, torch", "FAISS": f"{dtype}, FAISS"}
        seconds = {who: turns.seconds[name] for who, name in names.items() if name in turns}
        where = {"documents": count, "columns": width, "queries": batch, "dtype": dtype}
        moved = corpus.rows.nbytes
        amounts = {"queries": batch, "bytes": moved, "flops": 2 * batch * count * width}
        recorder.seconds("scoring", "search", seconds, where, amounts)


class Limits:
    """The least time a case can take, round by round: to read its bytes, or to multiply."""

    def __init__(
        self, turns: Turns, data: Data, reads: dict[str, Any], machine: Any, batch: int
    ) -> None:
        count, width = data.shape
        self.reader = turns.fastest(reads)
        self.read, self.product = turns.seconds[self.reader], turns.seconds["matrix product"]
        self.item = {name: corpus.rows.element_size() for name, corpus in data.ours.items()}
        square = 2 * machine.args[0].shape[0] ** 3
        self.share = 2 * batch * count * width / square
        bandwidth = data.rows.nbytes / turns.median(self.reader)
        rate = square / turns.median("matrix product")
        self.rates = f"{bandwidth / 1e9:.1f} GB/s, product {rate / 1e9:.0f} GFLOP/s"

    def of(self, name: str) -> list[float]:
        # The rate is one of float32: products of int8 may be faster, and count nothing.
        share = 0 if name == "int8" else self.share
        part = self.item[name] / 4
        return [max(r * part, p * share) for r, p in zip(self.read, self.product, strict=True)]


def computes_bfloat16() -> bool:
    """Whether the processor has dot products of bfloat16; without them PyTorch converts rows."""
    return bool(bfloat16_instructions())


def best_peer(turns: Turns, name: str) -> str | None:
    return turns.fastest(f"{name}, {side}" for side in ("torch", "FAISS"))


def cells(turns: Turns, limit: list[float], name: str, batch: int) -> list[str]:
    def milliseconds(each: str) -> str:
        if each in turns:
            return f"{turns.median(each) * 1e3:.1f}"
        missing = faiss() is None and name in ("float32", "int8") and each.endswith("FAISS")
        return "not installed" if missing else "-"

    peer = best_peer(turns, name)
    return [
        name,
        str(batch),
        milliseconds(name),
        f"{sorted(limit)[len(limit) // 2] * 1e3:.1f}",
        f"{median_ratio(turns.seconds[name], limit):.2f}",
        *(milliseconds(f"{name}, {side}") for side in ("torch", "FAISS")),
        f"{turns.ratio(peer, name):.2f}" if peer else "-",
    ]


def promises(
    turns: Turns, limit: list[float], name: str, data: Data, batch: int
) -> Iterator[Promise]:
    where = f"{data.name}, B = {batch}, {name}"

    def times(other: str, what: str, at_least: float) -> Promise:
        possible = median_ratio(turns.seconds[other], limit)
        ratio = turns.ratio(other, name)
        what = f"{where}: times as fast as {what}"
        return Promise.judged(what, ratio, at_least, possible=possible)

    if name == "float32":
        share = median_ratio(turns.seconds[name], limit)
        yield Promise.judged(f"{where}: time divided by the limit", share, at_most=OF_LIMIT)
        peer, least = best_peer(turns, name), FASTER.get((data.shape[1], batch), 1.0)
        yield times(peer, f"the better peer ({peer.partition(', ')[2]})", least)
        return
    vnni = build_info()["simd"] in ("avx512vnni", "avx512bf16", "amx")
    of_int8 = INT8_FASTER_VNNI if vnni else INT8_FASTER
    least = (of_int8 if name == "int8" else HALF_FASTER).get(batch)
    if least is not None:
        yield times("float32", "our float32", least)
    least = BFLOAT16_FASTER_THAN_TORCH.get(batch)
    if name == "bfloat16" and least is not None and computes_bfloat16():
        yield times("bfloat16, torch", "PyTorch in bfloat16", least)
    least = INT8_FASTER_THAN_FAISS.get(batch)
    if name == "int8" and least is not None and "int8, FAISS" in turns:
        yield times("int8, FAISS", "FAISS SQ8", least)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_recall_of_int8(data, said, promise, kind):
    """What is missed is due to the rounding of rows, which exact arithmetic over the codes has,
    too."""
    rows, queries = (data.rows, data.queries) if kind is gaussian else kind(*data.shape, seed=1)
    exact = torch_topk(queries, rows, K)[1]
    codes = quantize_memory(rows)[0]
    found = recall(cosine_topk(queries, Corpus(codes), K)[1], exact)
    of_codes = recall(torch_topk(queries, normalize(codes.float(), dim=1), K)[1], exact)
    where = f"{data.name}, {KINDS[kind]}"
    if faiss() is not None:
        theirs = recall(FaissSearch(rows, bits=8)(queries, K)[1], exact)
        said.append(f"{where}: recall@{K} of FAISS SQ8 is {theirs:.4f}")
    what = f"{where}: recall@{K} of int8 against float32"
    limit = "8 bits for a value allow"
    promise(what, found, at_least=RECALL, possible=of_codes, limit=limit)


def test_memory(data, said, promise, threads):
    (count, width), size = data.shape, data.rows.nbytes
    shares = (corpus.nbytes / corpus.rows.nbytes - 1 for corpus in data.ours.values())
    norms = data.ours["float32"].nbytes - size
    ours, theirs = (
        peak_memory(way, count, width, K, threads) for way in (prepare_ours, prepare_torch)
    )
    packed = data.queries.nbytes
    said.append(
        f"{data.name}: norms take at most {max(shares):.2%} of the rows' memory; a search with "
        f"{len(data.queries)} queries takes {ours / 2**20:.1f} MiB beyond float32 rows and norms, "
        f"{packed / 2**20:.1f} of them for a copy of the queries, that of torch "
        f"{theirs / 2**20:.0f} MiB"
    )
    extra = (norms + ours - packed) / size
    what = f"{data.name}: memory beyond float32 rows and a copy of the queries, divided by the rows"
    promise(what, extra, at_most=EXTRA_MEMORY)


@pytest.mark.parametrize("batch", [1, 64])
def test_time_grows_with_rows(data, size, said, promise, batch):
    count = data.shape[0]
    parts = {f"{share}": data.ours["float32"][: count // share] for share in (4, 2, 1)}
    calls = {share: partial(cosine_topk, data.queries[:batch], c, K) for share, c in parts.items()}
    turns = Turns(calls).run(size.rounds)
    times = ", ".join(f"{turns.median(each) * 1e3:.1f}" for each in calls)
    said.append(f"{data.name}, B = {batch}: {times} ms for N/4, N/2, N rows")
    if batch > 1:  # a quarter may lie in a cache that all rows do not, which reading shows
        what = f"{data.name}, B = {batch}: time of all rows divided by 4 times that of a quarter"
        promise(what, turns.ratio("1", "4") / 4, at_most=OF_LINEAR)


def test_time_falls_with_threads(data, machine, size, said, judge, threads):
    counts = [1, *range(threads, len(os.sched_getaffinity(0)) + 1, threads)]
    queries = data.queries[:64]

    def with_threads(count: int, call: Callable[[], Any]) -> None:
        torch.set_num_threads(count)
        try:
            call()
        finally:
            torch.set_num_threads(threads)

    search = partial(cosine_topk, queries, data.ours["float32"], K)
    calls = {f"search {n}": partial(with_threads, n, search) for n in counts}
    calls |= {f"product {n}": partial(with_threads, n, machine) for n in counts}
    turns = Turns(calls).warm().run(size.rounds)
    found = []
    for count in counts[1:]:
        faster = turns.ratio("search 1", f"search {count}")
        product = turns.ratio("product 1", f"product {count}")
        where = f"{data.name}, B = {len(queries)}, {count} threads"
        said.append(f"{where}: {faster:.2f} times as fast as one, the matrix product {product:.2f}")
        what = f"{where}: speedup divided by that of a matrix product"
        found.append(Promise.judged(what, faster / product, at_least=OF_THREADS))
    judge(*found)
