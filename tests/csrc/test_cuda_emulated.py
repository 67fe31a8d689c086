"""The CUDA kernels against float64, run thread by thread on the CPU.

With a sanitizer, which sees every access beyond what a kernel was given:
    CLARA_EMULATOR_CXXFLAGS="-fsanitize=address,undefined" ASAN_OPTIONS=detect_leaks=0 \
    LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" pytest ...
"""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # emulated_cuda

from emulated_cuda import ORDERS, Emulated, Matrix, build, check, cosines

if shutil.which("g++") is None:
    pytest.skip("needs g++", allow_module_level=True)

QUERY_TYPES = ("float32", "float16", "bfloat16")
CORPUS_TYPES = (*QUERY_TYPES, "int8")


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    options = os.environ.get("CLARA_EMULATOR_CXXFLAGS", "").split()
    return Emulated(build(tmp_path_factory.mktemp("emulated_cuda"), *options))


@pytest.fixture
def cuda(library):
    library.configure()
    return library


def random_rows(seed, count, columns, kind="float32", **layout):
    values = np.random.default_rng(seed).standard_normal((count, columns))
    return Matrix(
        np.clip(np.round(values * 40), -127, 127) if kind == "int8" else values, kind, **layout
    )


def bound_of(queries, corpus):
    """The most that a score may differ from float64."""
    if corpus.kind == "int8":
        # Each column of a query is off by at most half of max |q| / 32,639.
        return 2.0**-16 * max(1.0, corpus.rows.columns**0.5) * 0.6 + 1e-6
    return 2e-6


def compare(cuda, queries, corpus, k, mask=None):
    allowed = np.ones((len(queries), len(corpus)), bool) if mask is None else mask.astype(bool)
    found = cuda.topk(queries, corpus, k, mask)
    check(
        found,
        cosines(queries, corpus),
        np.broadcast_to(allowed, (len(queries), len(corpus))),
        bound_of(queries, corpus),
    )
    return found


@pytest.mark.parametrize("corpus_type", CORPUS_TYPES)
@pytest.mark.parametrize("query_type", QUERY_TYPES)
@pytest.mark.parametrize("count", [1, 9])
def test_all_types(cuda, query_type, corpus_type, count):
    compare(cuda, random_rows(1, count, 100, query_type), random_rows(2, 203, 100, corpus_type), 10)


@pytest.mark.parametrize("corpus_type", CORPUS_TYPES)
@pytest.mark.parametrize("columns", [1, 17, 576, 1031])
@pytest.mark.parametrize("count", [3, 70])
def test_widths(cuda, corpus_type, columns, count):
    queries = random_rows(3, count, columns)
    compare(cuda, queries, random_rows(4, 131, columns, corpus_type), 10)


@pytest.mark.parametrize("corpus_type", CORPUS_TYPES)
@pytest.mark.parametrize("k", [1, 300, 2048])
@pytest.mark.parametrize("count", [5, 12])
def test_numbers_of_results(cuda, corpus_type, k, count):
    queries = random_rows(5, count, 33)
    compare(cuda, queries, random_rows(6, 1200 if k == 300 else 417, 33, corpus_type), k)


@pytest.mark.parametrize("count", [1, 9])
def test_more_rows_than_results_of_the_longest_list(cuda, count):
    compare(cuda, random_rows(7, count, 16), random_rows(8, 5000, 16, "bfloat16"), 2048)


@pytest.mark.parametrize("corpus_type", CORPUS_TYPES)
@pytest.mark.parametrize("count", [1, 8])
def test_long_rows_go_through_shared_memory_in_chunks(cuda, corpus_type, count):
    columns = 11_001 if count == 1 else 5_003
    compare(cuda, random_rows(9, count, columns), random_rows(10, 71, columns, corpus_type), 5)


def test_codes_do_not_overflow(cuda):
    """Every product is the largest there is, in more columns than an int32 holds."""
    columns = 140_000
    for count in (2, 9):
        queries = Matrix(np.ones((count, columns)), "float32")
        corpus = Matrix(np.repeat([[127], [-128]], columns, axis=1), "int8")
        scores, rows = cuda.topk(queries, corpus, 2)
        np.testing.assert_allclose(scores, [[1, -1]] * count, atol=1e-6)
        np.testing.assert_array_equal(rows, [[0, 1]] * count)


@pytest.mark.parametrize("corpus_type", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("query_type", "columns"),
    [("float32", 4096), ("float16", 4096), ("bfloat16", 8192), ("float32", 32_768)],
)
def test_long_rows_that_are_nearly_the_query(cuda, query_type, corpus_type, columns):
    """Tensor cores cut off what does not fit beside a sum: nothing evens that out where all
    products are positive."""
    queries = random_rows(71, 9, columns, query_type)
    near = np.concatenate([queries.values + 1e-3 * random_rows(72, 9, columns).values] * 2)
    corpus = Matrix(near, corpus_type)
    scores, rows = cuda.topk(queries, corpus, 18)
    exact = np.take_along_axis(cosines(queries, corpus), rows, 1)
    assert np.abs(exact[:, 0]).min() > 0.99
    assert np.abs(scores - exact).max() <= (columns / 512 + 528) * 2.0**-24


@pytest.mark.parametrize("corpus_type", CORPUS_TYPES)
@pytest.mark.parametrize("count", [2, 9])
def test_layout_changes_no_bit(cuda, corpus_type, count):
    queries = random_rows(11, count, 100)
    expected = compare(cuda, queries, random_rows(12, 150, 100, corpus_type), 20)
    for stride, shift in ((112, 0), (101, 0), (100, 1), (103, 3)):
        corpus = random_rows(12, 150, 100, corpus_type, stride=stride, shift=shift)
        shifted = random_rows(11, count, 100, stride=stride, shift=shift)
        for result, wanted in zip(cuda.topk(shifted, corpus, 20), expected):
            np.testing.assert_array_equal(result, wanted)


@pytest.mark.parametrize("corpus_type", CORPUS_TYPES)
@pytest.mark.parametrize("count", [3, 11])
def test_equal_rows_have_equal_scores_wherever_they_lie(cuda, corpus_type, count):
    distinct = random_rows(13, 7, 200, corpus_type).values
    order = np.random.default_rng(14).integers(0, 7, 611)
    corpus = Matrix(distinct[order], corpus_type)
    queries = random_rows(15, count, 200)
    scores, rows = compare(cuda, queries, corpus, 400)
    for query_scores, query_rows in zip(scores, rows):
        assert len(set(query_scores)) <= 7
        for kind in range(7):
            assert len(set(query_scores[order[query_rows] == kind])) <= 1
    # The best kind's rows come first, all of them in order.
    best = order[rows[0, 0]]
    same = np.flatnonzero(order == best)
    np.testing.assert_array_equal(rows[0, : len(same)], same)


@pytest.mark.parametrize("corpus_type", CORPUS_TYPES)
@pytest.mark.parametrize("count", [2, 9])
def test_masked_rows_are_never_found(cuda, corpus_type, count):
    queries, corpus = random_rows(16, count, 64), random_rows(17, 300, 64, corpus_type)
    mask = (np.random.default_rng(18).random(300) < 0.3).astype(np.uint8)
    scores, rows = compare(cuda, queries, corpus, 40, mask)
    full = compare(cuda, queries, corpus, 300)
    for i in range(count):  # the same bits as without the mask
        by_row = dict(zip(full[1][i], full[0][i]))
        np.testing.assert_array_equal(scores[i], [by_row[row] for row in rows[i]])
    mask[:] = 0
    mask[[5, 200]] = 1
    scores, rows = compare(cuda, queries, corpus, 6, mask)
    assert (np.sort(rows[:, :2]) == [5, 200]).all()
    mask[:] = 0
    scores, rows = compare(cuda, queries, corpus, 6, mask)
    assert (rows == -1).all()


@pytest.mark.parametrize("corpus_type", QUERY_TYPES)
@pytest.mark.parametrize("count", [4, 12])
def test_special_values(cuda, corpus_type, count):
    columns, large = 40, 3e38 if corpus_type != "float16" else 6e4
    tiny = 1e-44 if corpus_type == "float32" else 1e-40 if corpus_type == "bfloat16" else 6e-8
    rows = np.random.default_rng(19).standard_normal((90, columns))
    rows[3] = 0
    rows[4] = -0.0
    rows[10, 7] = np.nan
    rows[11, 1] = np.inf
    rows[20] = np.sign(rows[20]) * large
    rows[21] = np.sign(rows[21]) * tiny
    rows[22] = 0
    rows[22, 5] = tiny
    rows[70] = np.sign(rows[70]) * large
    corpus = Matrix(rows, corpus_type)
    asked = np.random.default_rng(20).standard_normal((count, columns))
    asked[1] = 0
    asked[2, 3] = np.nan
    asked[3] *= 1e-40
    asked[0] *= 1e37
    queries = Matrix(asked, "float32")
    norms = cuda.inverse_norms(corpus)
    assert (norms[3:5] == 0).all()
    assert np.isnan(norms[10:12]).all()
    if corpus_type != "float16":
        assert (norms[20:23] == -1).all()
    scores, found = compare(cuda, queries, corpus, 90)
    assert (scores[1][:88] == 0).all()
    assert not np.signbit(scores[1][:88]).any()
    np.testing.assert_array_equal(found[1][:88], [i for i in range(90) if i not in (10, 11)])
    assert np.isnan(scores[2]).all()
    np.testing.assert_array_equal(found[2], np.arange(90))
    np.testing.assert_array_equal(
        found[:, 88:], [[10, 11]] * 2 + [[88, 89]] + [[10, 11]] * (count - 3)
    )
    mask = np.zeros(90, np.uint8)
    mask[[3, 10, 20, 50]] = 1
    scores, found = compare(cuda, queries, corpus, 6, mask)
    assert (found[0, 3], found[0, 4]) == (10, -1)


@pytest.mark.parametrize("count", [4, 30])
def test_scores_are_cut_at_one(cuda, count):
    """Rounding leaves some beyond 1: they are ties, whichever rows a block sees first."""
    rows = random_rows(37, count, 50).values
    queries = Matrix(rows, "float32")
    for order in ORDERS:
        cuda.configure(order, 3, 5)
        for sign in (1, -1):
            for row in range(0, count, 4):
                corpus = Matrix(np.repeat(sign * rows[row : row + 1], 700, axis=0), "float32")
                scores, found = cuda.topk(queries, corpus, 3)
                np.testing.assert_allclose(scores[row], sign, atol=1e-6)
                assert (np.abs(scores) <= 1).all()
                assert (found == [0, 1, 2]).all()


@pytest.mark.parametrize("corpus_type", CORPUS_TYPES)
@pytest.mark.parametrize("count", [2, 9])
def test_rows_without_a_norm_score_zero(cuda, corpus_type, count):
    """As int8 rows do whose scale is 0, whatever their codes; and 0 is never negative."""
    queries, corpus = random_rows(38, count, 30), random_rows(39, 80, 30, corpus_type)
    scores, rows = cuda.topk(queries, corpus, 80, norms=np.zeros(80, np.float32))
    assert (scores == 0).all()
    assert not np.signbit(scores).any()
    assert (rows == np.arange(80)).all()


@pytest.mark.parametrize("kind", CORPUS_TYPES)
@pytest.mark.parametrize("columns", [1, 17, 577, 3001])
def test_inverse_norms(cuda, kind, columns):
    rows = random_rows(21, 37, columns, kind, stride=columns + 1)
    exact = np.sqrt((rows.values**2).sum(1))
    expected = np.where(exact == 0, 0, 1 / np.where(exact == 0, 1, exact))
    np.testing.assert_allclose(cuda.inverse_norms(rows), expected, rtol=3 * 2.0**-24)


@pytest.mark.parametrize("corpus_type", CORPUS_TYPES)
def test_rerank(cuda, corpus_type):
    queries, corpus = random_rows(22, 5, 90), random_rows(23, 250, 90, corpus_type)
    random = np.random.default_rng(24)
    lists = [random.permutation(250)[:n] for n in (120, 0, 1, 37, 250)]
    lists[3] = np.concatenate([lists[3], [-1, 250, 2**40]])
    offsets = np.cumsum([0, *map(len, lists)])
    found = cuda.rerank(queries, corpus, np.concatenate(lists), offsets, 50)
    allowed = np.zeros((5, 250), bool)
    for i, rows in enumerate(lists):
        allowed[i, rows[(rows >= 0) & (rows < 250)]] = True
    check(found, cosines(queries, corpus), allowed, bound_of(queries, corpus))
    scores, rows = cuda.topk(queries, corpus, 50)  # of all rows: the same bits
    np.testing.assert_array_equal(found[0][4], scores[4])
    np.testing.assert_array_equal(found[1][4], rows[4])

    found = cuda.rerank(queries, corpus, None, [0, 100, 100, 101, 180, 400], 30)
    bounds = [(0, 100), (100, 100), (100, 101), (101, 180), (180, 250)]
    allowed = np.array([[a <= i < b for i in range(250)] for a, b in bounds])
    check(found, cosines(queries, corpus), allowed, bound_of(queries, corpus))


def test_rerank_keeps_many_and_repeated_candidates(cuda):
    queries, corpus = random_rows(25, 2, 20), random_rows(26, 60, 20, "float16")
    scores, rows = cuda.rerank(queries, corpus, [7, 7, 9, 7, 3], [0, 4, 5], 2048)
    assert sorted(rows[0, :4]) == [7, 7, 7, 9]
    assert rows[1, 0] == 3
    assert (rows[0, 4:] == -1).all()
    scores, rows = cuda.rerank(queries, Matrix(np.zeros((0, 20)), "float16"), [0, 1], [0, 1, 2], 3)
    assert (rows == -1).all()
    assert (scores == -np.inf).all()


@pytest.mark.parametrize("corpus_type", CORPUS_TYPES)
@pytest.mark.parametrize("count", [3, 66])
def test_order_of_threads_changes_no_bit(cuda, corpus_type, count):
    """Nor does the number of multiprocessors, which share the rows."""
    queries, corpus = random_rows(27, count, 150), random_rows(28, 700, 150, corpus_type)
    expected = compare(cuda, queries, corpus, 12)
    for order, seed, units in [*zip(ORDERS, (0, 0, 1), (1, 4, 2)), ("random", 2, 40)]:
        cuda.configure(order, seed, units)
        for result, wanted in zip(cuda.topk(queries, corpus, 12), expected):
            np.testing.assert_array_equal(result, wanted)


@pytest.mark.parametrize("order", ORDERS)
def test_rerank_in_all_orders_of_threads(cuda, order):
    queries, corpus = random_rows(29, 3, 50), random_rows(30, 400, 50, "int8")
    expected = cuda.rerank(queries, corpus, None, [0, 300, 310, 400], 9)
    cuda.configure(order, 5)
    for result, wanted in zip(cuda.rerank(queries, corpus, None, [0, 300, 310, 400], 9), expected):
        np.testing.assert_array_equal(result, wanted)


@pytest.mark.parametrize("corpus_type", CORPUS_TYPES)
def test_without_tensor_cores(cuda, corpus_type):
    cuda.configure(capability=75)
    queries, corpus = random_rows(31, 70, 60), random_rows(32, 200, 60, corpus_type)
    scores, rows = compare(cuda, queries, corpus, 10)
    if corpus_type != "float32":
        few = random_rows(31, 70, 60)
        few.rows.count = 8
        for result, wanted in zip(cuda.topk(few, corpus, 10), (scores, rows)):
            np.testing.assert_array_equal(result, wanted[:8])


def test_large_tiles_and_several_of_them(cuda):
    """Enough rows for the tiles of 128, on one multiprocessor that takes several in turn."""
    cuda.configure(multiprocessors=1)
    for corpus_type in ("bfloat16", "float16"):
        compare(cuda, random_rows(33, 130, 72), random_rows(34, 1100, 72, corpus_type), 10)


@pytest.mark.parametrize("corpus_type", CORPUS_TYPES)
@pytest.mark.parametrize("order", ORDERS)
def test_blocks_know_of_what_others_found(cuda, corpus_type, order):
    """More blocks than results, so that they publish their best; with several tiles and ties."""
    values = random_rows(40, 60, 40, corpus_type).values[np.arange(2600) * 7 % 60]
    queries = random_rows(41, 9, 40)
    cuda.configure(order, 6, 11)
    compare(cuda, queries, Matrix(values, corpus_type), 4)


def test_workspace_is_small(cuda):
    """Sizes only, no rows; but for one tile of very long queries in pieces."""
    cuda.configure(multiprocessors=132)
    for corpus_type in CORPUS_TYPES:
        for columns in (576, 8192, 32_768):
            for count in (1, 8, 9, 256, 4096):
                for k in (1, 10, 64, 65, 2048):
                    queries, corpus = (
                        Matrix(np.zeros((0, 1)), "float32"),
                        Matrix(np.zeros((0, 1)), corpus_type),
                    )
                    queries.rows.count, queries.rows.columns, queries.rows.stride = (
                        count,
                        columns,
                        columns,
                    )
                    corpus.rows.count, corpus.rows.columns, corpus.rows.stride = (
                        10**6,
                        columns,
                        columns,
                    )
                    queries.rows.data = corpus.rows.data = 4096
                    size = cuda.topk_workspace(queries, corpus, k)
                    assert size < 64 << 20 or (columns == 32_768 and count > 8), (
                        corpus_type,
                        columns,
                        count,
                        k,
                    )


def test_nothing_to_do(cuda):
    for count, rows in ((0, 5), (5, 0)):
        queries, corpus = random_rows(35, count, 4), random_rows(36, rows, 4)
        scores, indices = cuda.topk(queries, corpus, 3)
        assert scores.shape == indices.shape == (count, min(3, rows))


@pytest.mark.parametrize("count", [2, 9])
def test_no_columns(cuda, count):
    queries, corpus = Matrix(np.zeros((count, 0)), "float32"), Matrix(np.zeros((40, 0)), "float32")
    scores, indices = cuda.topk(queries, corpus, 3)
    assert (scores == 0).all()
    assert (indices == [0, 1, 2]).all()


@pytest.mark.parametrize(
    ("queries", "corpus", "k", "message"),
    [
        (
            random_rows(0, 1, 4),
            random_rows(0, 3, 5),
            1,
            r"queries must be as wide as the corpus \(5\), got 4",
        ),
        (
            random_rows(0, 1, 4, "int8"),
            random_rows(0, 3, 4),
            1,
            "queries must be float32, float16 or bfloat16",
        ),
        (random_rows(0, 1, 4), random_rows(0, 3, 4), 0, "k must be 1 to 2048, got 0"),
        (random_rows(0, 1, 4), random_rows(0, 3, 4), 2049, "k must be 1 to 2048, got 2049"),
    ],
)
def test_wrong_arguments(cuda, queries, corpus, k, message):
    with pytest.raises(RuntimeError, match=message):
        cuda.topk(queries, corpus, k)


def test_errors_of_the_device(cuda):
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        cuda.inverse_norms(random_rows(0, 1, 4), device=3)


@pytest.mark.parametrize("order", ORDERS)
def test_the_emulator_sees_what_is_wrong(cuda, order):
    cuda.configure(order)
    with pytest.raises(RuntimeError, match="40 of 64 at a barrier, 24 have ended"):
        cuda.broken(0)
    with pytest.raises(RuntimeError, match="7 lanes at __shfl_sync, 7 lanes at __shfl_sync"):
        cuda.broken(1)
    with pytest.raises(RuntimeError, match="ends with copies under way"):
        cuda.broken(2)
