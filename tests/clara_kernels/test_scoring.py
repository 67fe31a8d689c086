"""`cosine_topk` against NumPy in float64: the compiled kernel and the PyTorch reference alike."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_kernels import build_info, cosine_topk
from clara_kernels.scoring.reference import cosine_topk_reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

implementations = pytest.mark.parametrize("topk", [cosine_topk, cosine_topk_reference])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def numpy_cosines(queries: torch.Tensor, corpus: torch.Tensor) -> np.ndarray:
    """[B, N], float64, without a matrix product."""
    q = queries.double().cpu().numpy()[:, None]
    c = corpus.double().cpu().numpy()[None]
    norms = np.sqrt((q**2).sum(-1)) * np.sqrt((c**2).sum(-1))
    return np.divide((q * c).sum(-1), norms, out=np.zeros_like(norms), where=norms != 0)


def numpy_topk(cosines: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = cosines.astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), order


def assert_matches(
    found: tuple[torch.Tensor, torch.Tensor], queries: torch.Tensor, corpus: torch.Tensor, k: int
) -> None:
    scores, rows = found
    cosines = numpy_cosines(queries, corpus)
    expected_scores, _ = numpy_topk(cosines, k)
    assert scores.dtype == torch.float32
    assert rows.dtype == torch.int64
    # One float32 rounding of a float64 sum: at most an ulp from NumPy's own rounding of its own.
    np.testing.assert_allclose(scores.cpu().numpy(), expected_scores, rtol=2**-23, atol=1e-14)
    at_rows = np.take_along_axis(cosines, rows.cpu().numpy(), 1)
    np.testing.assert_allclose(scores.cpu().numpy(), at_rows, rtol=2**-23, atol=1e-14)
    for row in rows.tolist():
        assert len(set(row)) == len(row)


@implementations
@dtypes
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("b", "n", "d", "k"),
    [(1, 1, 1, 1), (3, 7, 1, 7), (2, 1000, 17, 5), (5, 333, 127, 40), (1, 4099, 64, 10)],
)
def test_matches_numpy(topk, dtype, device, b, n, d, k):
    queries = torch.randn(b, d, device=device).to(dtype)
    corpus = (torch.randn(n, d, device=device) * torch.rand(n, 1, device=device) * 9).to(dtype)
    assert_matches(topk(queries, corpus, k), queries, corpus, k)


@implementations
def test_queries_and_corpus_may_differ_in_dtype(topk):
    queries, corpus = torch.randn(3, 40), torch.randn(50, 40).half()
    assert_matches(topk(queries, corpus, 9), queries, corpus, 9)


@settings(deadline=None, max_examples=60)
@given(
    b=st.integers(0, 5),
    n=st.integers(0, 60),
    d=st.integers(0, 35),
    k=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_any_shape_matches_numpy(b, n, d, k, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(b, d, generator=generator).to(dtype)
    corpus = torch.randn(n, d, generator=generator).to(dtype)
    for topk in (cosine_topk, cosine_topk_reference):
        found = topk(queries, corpus, k)
        assert found[0].shape == found[1].shape == (b, min(k, n))
        assert_matches(found, queries, corpus, k)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), dtype=st.sampled_from(DTYPES), k=st.integers(1, 90))
def test_ties_go_to_the_lowest_row(seed, dtype, k):
    """Small integers: every sum is exact, so that order and scores have one right answer."""
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randint(-2, 3, (4, 3), generator=generator).to(dtype)
    corpus = torch.randint(-1, 2, (80, 3), generator=generator).to(dtype)
    scores, rows = numpy_topk(numpy_cosines(queries, corpus), k)
    for topk in (cosine_topk, cosine_topk_reference):
        found = topk(queries, corpus, k)
        assert found[1].tolist() == rows.tolist()
        assert found[0].tolist() == scores.tolist()


@implementations
@dtypes
def test_equal_rows_are_ordered_by_row(topk, dtype):
    distinct = torch.randn(3, 129).to(dtype)
    corpus = distinct.repeat(40, 1)  # row i equals row i % 3
    scores, rows = topk(distinct[1:2], corpus, 60)
    assert rows[0, :40].tolist() == list(range(1, 120, 3))
    assert scores[0, :40].tolist() == [1.0] * 40
    second = int(rows[0, 40])
    assert rows[0, 40:].tolist() == list(range(second, 120, 3))[:20]


def test_reference_keeps_ties_in_order_across_chunks(monkeypatch):
    monkeypatch.setattr("clara_kernels.scoring.reference._CHUNK_ELEMENTS", 64)
    corpus = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).repeat(100, 1)
    queries = torch.tensor([[2.0, 2.0], [3.0, 0.0]])
    _, rows = cosine_topk_reference(queries, corpus, 110)
    assert rows[0].tolist() == [*range(1, 200, 2), *range(0, 20, 2)]
    assert rows[1].tolist() == [*range(0, 200, 2), *range(1, 20, 2)]


@implementations
@dtypes
def test_zero_vectors_score_zero(topk, dtype):
    corpus = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]).to(dtype)
    scores, rows = topk(torch.tensor([[1.0, 0.0], [0.0, 0.0]]).to(dtype), corpus, 4)
    assert scores.tolist() == [[1.0, 0.0, 0.0, -1.0], [0.0] * 4]
    assert rows.tolist() == [[2, 1, 3, 0], [0, 1, 2, 3]]


@implementations
def test_fewer_rows_than_k(topk):
    queries, corpus = torch.randn(2, 5), torch.randn(3, 5)
    scores, rows = topk(queries, corpus, 100)
    assert [sorted(row) for row in rows.tolist()] == [[0, 1, 2]] * 2
    assert_matches((scores, rows), queries, corpus, 3)


@implementations
@pytest.mark.parametrize(("b", "n"), [(0, 4), (3, 0), (0, 0)])
def test_nothing_to_search(topk, b, n):
    scores, rows = topk(torch.randn(b, 6), torch.randn(n, 6), 2)
    assert scores.shape == rows.shape == (b, min(2, n))


@implementations
@dtypes
def test_strided_rows_and_columns(topk, dtype):
    wide = torch.randn(50, 60).to(dtype)
    tall = torch.randn(20, 50).to(dtype)
    queries = torch.randn(6, 40).to(dtype)[::2, 10:30]
    for corpus in (wide[::3, 5:25], tall.T, wide[:1, :20].expand(9, 20), wide[:, ::3]):
        assert not corpus.is_contiguous()
        found = topk(queries, corpus, 4)
        expected = topk(queries.contiguous(), corpus.contiguous(), 4)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        assert_matches(found, queries, corpus, 4)


@implementations
@dtypes
def test_rows_that_are_not_numbers_come_last(topk, dtype):
    corpus = torch.randn(200, 30).to(dtype)
    corpus[7, 3] = math.nan
    corpus[19, 29] = math.inf
    corpus[150] = -math.inf
    queries = torch.randn(2, 30).to(dtype)
    scores, rows = topk(queries, corpus, 200)
    assert rows[:, -3:].tolist() == [[7, 19, 150]] * 2
    assert scores[:, -3:].isnan().all()
    sound = torch.ones(200, dtype=torch.bool)
    sound[[7, 19, 150]] = False
    assert_matches((scores[:, :197], _squeezed(rows[:, :197], sound)), queries, corpus[sound], 197)


def _squeezed(rows: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Rows of a corpus as rows of its `kept` part."""
    return (kept.cumsum(0) - 1)[rows]


@implementations
def test_query_that_is_not_a_number_orders_by_row(topk):
    queries = torch.tensor([[math.nan, 1.0], [1.0, 0.0]])
    scores, rows = topk(queries, torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), 2)
    assert rows.tolist() == [[0, 1], [1, 2]]
    assert scores[0].isnan().all()
    assert scores[1, 0] == 1


@implementations
@pytest.mark.parametrize("scale", [1e-44, 1e-30, 3e38])
def test_extreme_magnitudes_neither_vanish_nor_overflow(topk, scale):
    queries = torch.tensor([[1.0, 1.0]]) * scale
    corpus = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, -1.0]]) * scale
    scores, rows = topk(queries, corpus, 3)
    assert rows.tolist() == [[1, 0, 2]]
    torch.testing.assert_close(scores, torch.tensor([[1.0, 0.5**0.5, -(0.5**0.5)]]))


def test_every_float16_and_bfloat16_is_read_exactly():
    """All 65,536 bit patterns as one-element rows: the score is the sign, 0 or NaN."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)[:, None]
    for dtype in (torch.float16, torch.bfloat16):
        corpus = bits.view(dtype)
        for beside in (1.0, 2.0**-14):  # a second column compares magnitudes, not only signs
            pairs = torch.cat([corpus, torch.full_like(corpus, beside)], dim=1)
            queries = torch.tensor([[1.0, 0.0], [3.0, 5.0]])
            found = cosine_topk(queries, pairs, len(pairs))
            expected = cosine_topk_reference(queries, pairs, len(pairs))
            assert torch.equal(found[1], expected[1])
            torch.testing.assert_close(*(x[0] for x in (found, expected)), equal_nan=True)


@dtypes
def test_compiled_kernel_equals_the_reference(dtype):
    queries, corpus = torch.randn(9, 257).to(dtype), torch.randn(3001, 257).to(dtype)
    found, expected = cosine_topk(queries, corpus, 25), cosine_topk_reference(queries, corpus, 25)
    torch.testing.assert_close(found[0], expected[0], rtol=2**-23, atol=0)
    assert (found[1] == expected[1]).float().mean() > 0.99  # all but scores an ulp apart


def test_threads_change_nothing():
    queries, corpus = torch.randn(3, 300), torch.randn(2003, 300)
    corpus[1::2] = corpus[::2][: len(corpus[1::2])]  # ties within and between the threads' parts
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 4, 7):
            torch.set_num_threads(count)
            results.append(cosine_topk(queries, corpus, 50))
    finally:
        torch.set_num_threads(threads)
    for scores, rows in results[1:]:
        assert torch.equal(scores, results[0][0])
        assert torch.equal(rows, results[0][1])


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
            "queries must be float32, float16 or bfloat16, got torch.float64",
        ),
        (
            {"corpus": torch.ones(3, 4, dtype=torch.int8)},
            TypeError,
            "corpus must be float32, float16 or bfloat16, got torch.int8",
        ),
        ({"queries": torch.ones(4)}, ValueError, r"queries must have shape \[B, D\], got \[4\]"),
        ({"corpus": torch.ones(3, 4, 1)}, ValueError, r"corpus must have shape \[N, D\], got"),
        ({"corpus": torch.ones(3, 5)}, ValueError, r"corpus must have shape \[N, 4\].*\[3, 5\]"),
        ({"corpus": torch.ones(3, 4, device="meta")}, ValueError, "corpus must be on the device"),
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"k": -3}, ValueError, "k must be at least 1, got -3"),
        ({"k": 2.0}, TypeError, "k must be an int, got float"),
        ({"k": True}, TypeError, "k must be an int, got bool"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"queries": torch.ones(2, 4), "corpus": torch.ones(3, 4), "k": 2} | change
    with pytest.raises(error, match=message):
        cosine_topk(**arguments)


@dtypes
def test_operator_is_registered_soundly(dtype):
    queries, corpus = torch.randn(3, 8).to(dtype), torch.randn(11, 8).to(dtype)
    for k in (1, 20):
        torch.library.opcheck(torch.ops.clara.cosine_topk, (queries, corpus, k))


def test_compiles_without_a_graph_break_for_many_k():
    compiled = torch.compile(cosine_topk, fullgraph=True, backend="eager")
    queries, corpus = torch.randn(3, 8), torch.randn(30, 8)
    for k in range(1, 14):
        found, expected = compiled(queries, corpus, k), cosine_topk(queries, corpus, k)
        assert torch.equal(found[1], expected[1])


def test_meta_tensors_have_the_right_shape_and_no_data():
    scores, rows = cosine_topk(torch.empty(3, 8, device="meta"), torch.empty(5, 8).to("meta"), 9)
    assert scores.shape == rows.shape == (3, 5)
    assert scores.is_meta


if build_info()["compiled"]:
    from clara_kernels import _C

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"type": "float64"}, "type must be 'float32', 'float16' or 'bfloat16', got 'float64'"),
            ({"count": -1}, "count must not be negative, got -1"),
            ({"columns": -2}, "columns must not be negative, got -2"),
            ({"stride": -4}, "stride must not be negative, got -4"),
            ({"address": 0}, "address must not be null for 2 rows"),
        ],
    )
    def test_compiled_rows_check_their_arguments(change, message):
        rows = torch.ones(2, 4)
        arguments = {
            "address": rows.data_ptr(),
            "type": "float32",
            "count": 2,
            "columns": 4,
            "stride": 4,
        }
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
        ],
    )
    def test_compiled_search_checks_its_arguments(change, message):
        rows = torch.ones(2, 4)
        scores, indices = torch.empty(2, 1), torch.empty(2, 1, dtype=torch.int64)
        columns = change.pop("columns", 4)
        arguments = {"k": 1, "threads": 1, "scores": scores.data_ptr()}
        arguments |= {"indices": indices.data_ptr()} | change
        with pytest.raises(ValueError, match=message):
            _C.cosine_topk(
                _C.Rows(rows.data_ptr(), "float32", 2, 4, 4),
                _C.Rows(rows.data_ptr(), "float32", 2, columns, 4),
                **arguments,
            )
