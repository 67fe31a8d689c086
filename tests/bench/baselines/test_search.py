"""What exact search is compared with finds what ours finds."""

import pytest
import torch
from torch.nn.functional import normalize

from bench.baselines.search import FaissSearch, faiss, torch_int8_topk, torch_topk
from bench.scoring.data import furthest_apart, gaussian, recall
from clara_kernels import Corpus, cosine_topk, quantize_memory


def test_torch_finds_what_ours_finds():
    rows, queries = gaussian(700, 40)
    scores, found = torch_topk(queries, rows, 5)
    ours = cosine_topk(queries, rows, 5)
    torch.testing.assert_close(scores, ours[0])
    assert furthest_apart(found, ours[1], queries, rows) <= 1e-6


def test_torch_finds_what_ours_finds_in_int8():
    rows, queries = gaussian(704, 40)
    codes, query_codes = quantize_memory(rows)[0], quantize_memory(queries)[0]
    found = torch_int8_topk(query_codes, codes, Corpus(codes).inverse_norms, 5)[1]
    wide, queries = codes.float(), query_codes.float()
    exact = (normalize(queries) @ normalize(wide).T).topk(5).indices
    assert furthest_apart(found, exact, queries, wide) <= 1e-6


@pytest.mark.skipif(faiss() is None, reason="needs faiss")
def test_faiss_finds_what_ours_finds():
    rows, queries = gaussian(700, 40)
    ours = cosine_topk(queries, rows, 5)[1]
    assert furthest_apart(FaissSearch(rows)(queries, 5)[1], ours, queries, rows) <= 1e-6
    assert recall(FaissSearch(rows, bits=8)(queries, 5)[1], ours) > 0.9
