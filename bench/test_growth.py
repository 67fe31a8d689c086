"""How cost grows: with documents, their length, candidates and queries.

Each test measures one quantity at several sizes, all sizes in turns. The report gives the exponent
between each two neighbouring sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.baselines.reference_way import ReferenceWay
from bench.baselines.text_rag import TextRag
from bench.device import available_memory
from bench.end_to_end.ways import MEMORY_TOLERANCES, distance
from bench.questions import QUESTION, full_documents
from bench.scoring.data import exact_topk, furthest_apart, stored, tolerance
from bench.turns import Turns
from bench.workload import load_model
from clara_kernels import Corpus, cosine_topk, rank_and_select
from clara_kernels.dispatch import cpu_tensors_use

LIMIT, HIDDEN = 256, 576
RATE = 16
K = 5
CHECKED = 64  # tokens of documents that are compressed or read another way, too

INDEXED = {"smoke": (10, 1_000), "small": (10, 100, 1_000, 10_000, 100_000, 1_000_000)}
# The longest is what leaves room for its memory tokens in 8,192 positions.
LENGTHS = {"smoke": (64, 128), "small": (64, 256, 1024, 4096, 7680)}
TEXTS = {"smoke": (5 * 32, 5 * 64), "small": (5 * 64, 5 * 256, 5 * 1024)}
CANDIDATES = {"smoke": (5, 20), "small": (5, 20, 100, 1000)}
QUERIES = {"smoke": (1, 16), "small": (1, 4, 16, 64, 256)}
ROUNDS = {"smoke": 1, "small": 4, "full": 6}
LONG_ROUNDS = {"smoke": 1, "small": 2, "full": 4}


@pytest.fixture
def grow(benchmark, size, device, environment, recorder, summary) -> Callable[..., None]:
    """Time calls by size in turns and record them."""

    def measure(
        case: str,
        of: str,
        calls: Mapping[int, Callable[[], Any]],
        *,
        long: bool = False,
    ) -> None:
        named = {str(number): call for number, call in calls.items()}
        # Long calls are warm already, by a short one on the same weights.
        turns = Turns(named, device) if long else Turns(named, device, shortest=2e-3).warm()
        rounds = (LONG_ROUNDS if long else ROUNDS)[size.name]
        turns.benchmark(benchmark, next(iter(named)), rounds)
        for number in calls:
            seconds = {"ours": turns.seconds[str(number)]}
            recorder.seconds("growth", case, seconds, {"size": number, "of": of})
        benchmark.extra_info.update(environment, seconds=turns.seconds)
        times = ", ".join(f"{n:,}: {turns.median(str(n)):.4g} s" for n in calls)
        summary.append(f"{case} by {of}: {times}")

    return measure


def sizes(table: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, ...]:
    return table.get(name, table["small"])


def check_search(call: Callable[[], Any], queries: Tensor, rows: Tensor) -> None:
    found, exact = call()[1], exact_topk(queries, rows, K)
    assert furthest_apart(found, exact, queries, rows) <= tolerance(queries, rows.dtype)


@pytest.mark.usefixtures("compiled_search")
def test_documents_in_the_index(grow, size, device, recorder):
    """Search of int8 rows at 128x: 1,152 bytes a document."""
    width = LIMIT // 128 * HIDDEN
    case, of = "search, int8 at 128x", "documents in the index"
    counts, room = sizes(INDEXED, size.name), available_memory(device) // (2 * width)
    for count in (each for each in counts if each > room):
        reason = f"{count * width / 2**30:.1f} GiB of memory tokens do not fit here"
        recorder.withhold("growth", case, "ours", reason, size=count, of=of)
    counts = tuple(each for each in counts if each <= room)
    rows = stored(counts[-1], width, torch.int8, device)
    query = torch.randn(1, width, generator=torch.Generator().manual_seed(1)).to(device)
    corpus = Corpus(rows)
    calls = {n: partial(cosine_topk, query, corpus[:n], K) for n in counts}
    check_search(calls[counts[-1]], query, rows)
    grow(case, of, calls)


@pytest.mark.usefixtures("compiled_search")
def test_queries_at_once(grow, size, device):
    width = LIMIT // 128 * HIDDEN
    documents = 10_000 if size.name == "smoke" else 100_000
    rows = stored(documents, width, torch.int8, device)
    counts = sizes(QUERIES, size.name)
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(counts[-1], width, generator=generator).to(device)
    corpus = Corpus(rows)
    calls = {n: partial(cosine_topk, queries[:n], corpus, K) for n in counts}
    check_search(calls[counts[-1]], queries, rows)
    grow(f"search of {documents:,}, int8 at 128x", "queries at once", calls)


def test_length_of_a_document(grow, backbone, size, device):
    """One document each, its memory at 16x of its length."""
    lengths = sizes(LENGTHS, size.name)
    calls = {}
    for length in lengths:
        # A model for each: the number of memory tokens belongs to it.
        model = load_model(backbone, RATE, device, document_length=length)
        model.compress(["The river runs north."])  # its weights become resident
        (text,) = full_documents(1, model.tokenizer.tokenizer, length)
        calls[length] = partial(model.compress, [text])
        if length <= CHECKED:
            theirs = ReferenceWay(model).compress([text])
            assert distance(calls[length]().memory, theirs) <= MEMORY_TOLERANCES[model.dtype]
    grow(f"compress at {RATE}x", "tokens of a document", calls, long=True)


def test_length_of_a_text_prompt(grow, backbone, size, device):
    """What memory saves: the first token from five documents' text."""
    model = load_model(backbone, RATE, device)
    text = TextRag(model)
    text.answer(QUESTION, ["The river runs north."], 1)
    calls = {}
    for length in sizes(TEXTS, size.name):
        texts = full_documents(5, model.tokenizer.tokenizer, length // 5)
        calls[length] = partial(text.answer, QUESTION, texts, 1)
        if length <= 5 * CHECKED:
            (bare,) = model.answer_from_text([QUESTION], [texts], max_new_tokens=1)
            assert calls[length]().strip() == bare.strip()
    grow("first token from text", "tokens of five documents", calls, long=True)


def test_candidates_of_a_question(grow, size, device):
    """Ranking and selecting, four questions at 16x."""
    counts, m = sizes(CANDIDATES, size.name), LIMIT // RATE
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(4, m, HIDDEN, generator=generator).to(device)
    memory = torch.randn(4, counts[-1], m, HIDDEN, generator=generator).to(device)
    calls = {}
    for count in counts:
        documents = memory[:, :count].contiguous()
        calls[count] = partial(rank_and_select, query, documents, K, temperature=0.02)
        found = [each.cpu() for each in calls[count]()]
        with cpu_tensors_use("reference"):
            expected = rank_and_select(query.cpu(), documents.cpu(), K, temperature=0.02)
        torch.testing.assert_close(found, [*expected], rtol=1e-4, atol=1e-5)
    grow("rank and select", "candidates of each of 4 questions", calls)
