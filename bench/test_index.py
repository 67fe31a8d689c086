"""How fast an index is built, opened with checksums verified, and searched.

Files are read through the page cache, where they are after building.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from bench.turns import Turns
from clara import CompressedDocuments

MemoryIndex = pytest.importorskip("clara.index", exc_type=ImportError).MemoryIndex

LIMIT, HIDDEN = 256, 576
DOCUMENTS = {"smoke": 200, "small": 2_000, "full": 10_000}
IN_ONE = 1_000  # documents of an `add`
K, QUERIES = 5, 16
ROUNDS = {"smoke": 1, "small": 3, "full": 6}


def documents(count: int, memory_tokens: int) -> CompressedDocuments:
    """Random memory; the texts are as long as passages are."""
    generator = torch.Generator().manual_seed(0)
    names = [f"document {row}" for row in range(count)]
    return CompressedDocuments(
        memory=torch.randn(count, memory_tokens, HIDDEN, generator=generator),
        ids=names,
        document_ids=names,
        token_counts=[96] * count,
        texts=[f"{name}: {'the river runs north of the town. ' * 12}" for name in names],
        titles=[None] * count,
        fingerprint="0" * 64,
    )


def test_index(benchmark, size, environment, recorder, summary, rate, tmp_path):
    m, count = LIMIT // rate, DOCUMENTS[size.name]
    part, times = documents(min(IN_ONE, count), m), max(1, count // IN_ONE)
    queries = torch.randn(QUERIES, m, HIDDEN, generator=torch.Generator().manual_seed(1))

    def build(path: Path = tmp_path / "again") -> Path:
        shutil.rmtree(path, ignore_errors=True)  # milliseconds, beside seconds
        index = MemoryIndex.create(path, fingerprint="0" * 64, memory_tokens=m, hidden_size=HIDDEN)
        for number in range(times):
            index.add(renamed(part, number))
        return path

    built = build(tmp_path / "index")
    opened = MemoryIndex.open(built)
    scores = normalize(queries.flatten(1)) @ normalize(part.memory.flatten(1)).T
    best = scores.repeat(1, times).topk(K).values
    found = opened.search(queries, K)
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-5)
    close(torch.tensor([[hit.score for hit in hits] for hits in found]), best)
    memory = torch.stack([torch.stack([hit.memory for hit in hits]) for hits in found])
    close(cosine_similarity(queries.flatten(1)[:, None], memory.flatten(2), dim=2), best)
    calls = {
        "build": build,
        "open": lambda: MemoryIndex.open(built).search(queries[:1], K),
        "search": partial(opened.search, queries, K),
    }
    turns = Turns(calls, shortest=2e-3).warm().benchmark(benchmark, "search", ROUNDS[size.name])
    where = {"rate": rate, "documents": count}
    amounts = {
        "build": {"documents": count, "bytes": count * m * HIDDEN * 4},
        "open": {"documents": count, "bytes": count * m * HIDDEN * 4},
        "search": {"queries": QUERIES, "bytes": count * m * HIDDEN * 4},
    }
    for case, seconds in turns.seconds.items():
        recorder.seconds("index", case, {"ours": seconds}, where, amounts[case])
    shutil.rmtree(tmp_path)
    benchmark.extra_info.update(environment, seconds=turns.seconds, **where)
    summary.append(
        f"{rate:4}x {count:,} documents: built at {count / turns.median('build'):,.0f} a second, "
        f"opened and searched first in {turns.median('open'):.3f} s, then "
        f"{QUERIES / turns.median('search'):,.0f} queries/s"
    )


def renamed(part: CompressedDocuments, number: int) -> CompressedDocuments:
    names = [f"{name} of {number}" for name in part.ids]
    return CompressedDocuments(**{**vars(part), "ids": names, "document_ids": names})
