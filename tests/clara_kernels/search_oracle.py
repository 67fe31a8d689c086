"""What a search has to find, by NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clara_kernels import build_info

QUERY_DTYPES = [torch.float32, torch.float16, torch.bfloat16]
DTYPES = [*QUERY_DTYPES, torch.int8]
SIMD = build_info()["simd_available"]

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def corpus_of(n, d, dtype, generator=None):
    if dtype == torch.int8:
        return torch.randint(-128, 128, (n, d), dtype=dtype, generator=generator)
    spread = torch.rand(n, 1, generator=generator) * 9 + 0.01
    return (torch.randn(n, d, generator=generator) * spread).to(dtype)


def numpy_cosines(queries, corpus):
    """[B, N], float64, without a matrix product."""
    q, c = queries.double().numpy()[:, None], corpus.double().numpy()[None]
    norms = np.sqrt((q**2).sum(-1)) * np.sqrt((c**2).sum(-1))
    return np.divide((q * c).sum(-1), norms, out=np.zeros_like(norms), where=norms != 0)


def bound(queries, corpus):
    """What the docstring of `cosine_topk` promises, for each query `[B, 1]`."""
    d = queries.shape[1]
    promised = (d / 512 + 528) * 2.0**-24
    if corpus.dtype != torch.int8:
        return promised
    q = queries.double().numpy()
    norms = np.sqrt((q**2).sum(-1, keepdims=True))
    largest = np.abs(q).max(-1, keepdims=True, initial=0)
    return promised + 1.01 * np.sqrt(d) * largest / (65278 * np.where(norms == 0, 1, norms))


def assert_matches(found, queries, corpus, k, mask=None):
    """Scores near those of the rows found, none missed that scores higher, in order."""
    scores, rows = (each.numpy() for each in found)
    cosines = numpy_cosines(queries, corpus)
    width = min(k, len(corpus))
    assert scores.shape == rows.shape == (len(queries), width)
    assert scores.dtype == np.float32
    assert rows.dtype == np.int64
    allowed = np.ones(len(corpus), bool) if mask is None else mask.numpy()
    count = min(width, int(allowed.sum()))
    assert (rows[:, count:] == -1).all()
    assert (scores[:, count:] == -np.inf).all()
    scores, rows = scores[:, :count], rows[:, :count]
    if not count or not len(queries):
        return
    near = bound(queries, corpus)
    assert allowed[rows].all()
    assert (np.abs(scores - np.take_along_axis(cosines, rows, 1)) <= near).all()
    best = -np.sort(-cosines[:, allowed], axis=1)[:, :count]
    assert (np.abs(scores - best) <= near).all()
    assert (np.abs(scores) <= 1).all()
    for query, row in zip(scores.tolist(), rows.tolist()):
        keys = [(-score, index) for score, index in zip(query, row)]
        assert keys == sorted(set(keys))
        assert len(set(row)) == len(row)
