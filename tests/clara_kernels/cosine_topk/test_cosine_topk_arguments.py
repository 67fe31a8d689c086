"""Arguments that the operators of exact search refuse, and their registration."""

from __future__ import annotations

import pytest
import torch
from search_oracle import (
    corpus_of,
    dtypes,
)

from clara_kernels import build_info, cosine_rerank, cosine_topk
from clara_kernels.cosine_topk import compiled


def test_needs_no_gradient():
    queries = torch.randn(2, 4, requires_grad=True)
    scores, rows = cosine_topk(queries, torch.randn(5, 4, requires_grad=True), 2)
    assert not scores.requires_grad
    assert not rows.requires_grad


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"queries": [[1.0]]}, TypeError, r"queries must be a torch\.Tensor, got list"),
        ({"corpus": None}, TypeError, r"corpus must be a torch\.Tensor, got NoneType"),
        (
            {"queries": torch.ones(2, 4, dtype=torch.float64)},
            TypeError,
            r"queries must be float32, float16 or bfloat16, got torch\.float64",
        ),
        (
            {"corpus": torch.ones(3, 4, dtype=torch.uint8)},
            TypeError,
            r"corpus must be float32, float16, bfloat16 or int8, got torch\.uint8",
        ),
        ({"queries": torch.ones(4)}, ValueError, r"queries must have shape \[B, D\], got \[4\]"),
        ({"corpus": torch.ones(3, 4, 1)}, ValueError, r"corpus must have shape \[N, 4\]"),
        ({"corpus": torch.ones(3, 5)}, ValueError, r"corpus must have shape \[N, 4\].*\[3, 5\]"),
        ({"corpus": torch.ones(3, 4, device="meta")}, ValueError, "corpus must be on the device"),
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"k": -3}, ValueError, "k must be at least 1, got -3"),
        (
            {"k": 2049, "corpus": torch.ones(2049, 4)},
            ValueError,
            "k must be at most 2048, got 2049",
        ),
        ({"k": 2.0}, TypeError, "k must be an int, got float"),
        ({"k": True}, TypeError, "k must be an int, got bool"),
        ({"mask": [True] * 3}, TypeError, r"mask must be a torch\.Tensor, got list"),
        ({"mask": torch.ones(3)}, TypeError, r"mask must be bool, got torch\.float32"),
        (
            {"mask": torch.ones(2, dtype=torch.bool)},
            ValueError,
            r"mask must have shape \[3\], got \[2\]",
        ),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"queries": torch.ones(2, 4), "corpus": torch.ones(3, 4), "k": 2} | change
    with pytest.raises(error, match=message):
        cosine_topk(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rows": [0, 1, 2]}, TypeError, r"rows must be a torch\.Tensor, got list"),
        ({"rows": torch.zeros(3)}, TypeError, r"rows must be int64, got torch\.float32"),
        (
            {"rows": torch.zeros(3, 1).long()},
            ValueError,
            r"rows must have shape \[C\], got \[3, 1\]",
        ),
        (
            {"offsets": torch.tensor([0, 2, 3])},
            TypeError,
            r"offsets must be int32, got torch\.int64",
        ),
        ({"offsets": torch.tensor([0, 3]).int()}, ValueError, r"offsets must have shape \[3\]"),
        ({"offsets": torch.tensor([0, 2, 4]).int()}, ValueError, "offsets must end at 3, the rows"),
        ({"offsets": torch.tensor([0, 5, 3]).int()}, ValueError, "offsets must not decrease"),
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"k": 2049}, ValueError, "k must be at most 2048, got 2049"),
    ],
)
def test_bad_arguments_of_rerank_are_named(change, error, message):
    arguments = {"queries": torch.ones(2, 4), "corpus": torch.ones(3, 4), "k": 2}
    arguments |= {"offsets": torch.tensor([0, 2, 3]).int(), "rows": torch.arange(3)} | change
    with pytest.raises(error, match=message):
        cosine_rerank(**arguments)


@dtypes
def test_operators_are_registered_soundly(dtype):
    queries, corpus = torch.randn(3, 8), corpus_of(11, 8, dtype)
    norms, mask = torch.ops.clara.inverse_norms(corpus), torch.rand(11) < 0.5
    torch.library.opcheck(torch.ops.clara.inverse_norms, (corpus,))
    for k in (1, 20):
        torch.library.opcheck(torch.ops.clara.cosine_topk, (queries, corpus, None, None, k))
        torch.library.opcheck(torch.ops.clara.cosine_topk, (queries, corpus, norms, mask, k))
        offsets = torch.tensor([0, 4, 4, 11], dtype=torch.int32)
        for rows in (None, torch.arange(11)):
            arguments = (queries, corpus, norms, rows, offsets, k)
            torch.library.opcheck(torch.ops.clara.cosine_rerank, arguments)


def test_compiles_without_a_graph_break_for_many_k():
    compiled = torch.compile(cosine_topk, fullgraph=True, backend="eager")
    queries, corpus = torch.randn(3, 8), torch.randn(30, 8)
    for k in range(1, 14):
        found, expected = compiled(queries, corpus, k), cosine_topk(queries, corpus, k)
        assert torch.equal(found[1], expected[1])


def test_meta_tensors_have_the_right_shape_and_no_data():
    queries, corpus = torch.empty(3, 8, device="meta"), torch.empty(5, 8, device="meta")
    scores, rows = cosine_topk(queries, corpus, 9)
    assert scores.shape == rows.shape == (3, 5)
    assert scores.is_meta
    offsets = torch.empty(4, dtype=torch.int32, device="meta")
    assert cosine_rerank(queries, corpus, 9, offsets=offsets)[1].shape == (3, 9)


@pytest.mark.skipif(not build_info()["compiled"], reason="needs the compiled module")
def test_operators_refuse_what_they_could_not_read():
    queries, corpus = torch.ones(2, 4), torch.ones(3, 4)
    search, norms = torch.ops.clara.cosine_topk, torch.ones(3)
    offsets = torch.tensor([0, 1, 3], dtype=torch.int32)
    for wrong in (norms[:2], norms.double(), norms[None]):
        with pytest.raises(ValueError, match=r"inverse_norms must be torch.float32 \[3\] on cpu"):
            search(queries, corpus, wrong, None, 1)
        with pytest.raises(ValueError, match="inverse_norms must be"):
            torch.ops.clara.cosine_rerank(queries, corpus, wrong, None, offsets, 1)
    with pytest.raises(ValueError, match=r"mask must be torch.bool \[3\] on cpu"):
        search(queries, corpus, norms, norms, 1)
    listed = torch.arange(2)
    for rows, wrong, message in (
        (listed, offsets, "offsets must end at 2, the rows of rows, got 3"),
        (None, torch.tensor([0, 4, 3], dtype=torch.int32), "must not decrease"),
        (None, offsets[1:], "offsets must"),
        (listed.int(), torch.tensor([0, 1, 2], dtype=torch.int32), "rows must be int64"),
    ):
        with pytest.raises(ValueError, match=message):
            torch.ops.clara.cosine_rerank(queries, corpus, None, rows, wrong, 1)


if build_info()["compiled"]:
    from clara_kernels import _C

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"type": "float64"}, "type must be 'float32', .* or 'int8', got 'float64'"),
            ({"count": -1}, "count must not be negative, got -1"),
            ({"columns": -2}, "columns must not be negative, got -2"),
            ({"stride": -4}, "stride must not be negative, got -4"),
            ({"address": 0}, "address must not be null for 2 rows"),
        ],
    )
    def test_compiled_rows_check_their_arguments(change, message):
        rows = torch.ones(2, 4)
        arguments = {"address": rows.data_ptr(), "type": "float32", "count": 2}
        arguments |= {"columns": 4, "stride": 4}
        _C.Rows(**arguments)
        with pytest.raises(ValueError, match=message):
            _C.Rows(**arguments | change)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"k": 0}, "k must be at least 1, got 0"),
            ({"threads": 0}, "threads must be at least 1, got 0"),
            ({"scores": 0}, "scores must not be a null address"),
            ({"indices": 0}, "indices must not be a null address"),
            ({"columns": 3}, "corpus must have the queries' 4 columns, got 3"),
            ({"type": "int8"}, "queries must not be int8"),
        ],
    )
    def test_compiled_search_checks_its_arguments(change, message):
        rows = torch.ones(2, 4)
        scores, indices = torch.empty(2, 1), torch.empty(2, 1, dtype=torch.int64)
        kind, columns = change.pop("type", "float32"), change.pop("columns", 4)
        shared = {"k": 1, "threads": 1, "scores": scores.data_ptr(), "inverse_norms": 0}
        shared |= {"indices": indices.data_ptr()} | change
        queries = _C.Rows(rows.data_ptr(), kind, 2, 4, 4)
        corpus = _C.Rows(rows.data_ptr(), "float32", 2, columns, 4)
        with pytest.raises(ValueError, match=message):
            _C.cosine_topk(queries, corpus, mask=0, **shared)
        offsets = torch.zeros(3, dtype=torch.int32)
        with pytest.raises(ValueError, match=message):
            _C.cosine_rerank(queries, corpus, listed=0, offsets=offsets.data_ptr(), **shared)

    def test_every_operator_has_a_compiled_implementation():
        for name in ("inverse_norms", "cosine_topk", "cosine_rerank"):
            assert compiled.cpu_implementation(name) is not None
