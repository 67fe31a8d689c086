"""`CodedCorpus` finds what `cosine_topk` finds, bit for bit, and says truly what it has proven."""

import numpy as np
import pytest
import torch

from clara_kernels import Corpus, cosine_topk
from clara_kernels.corpus import CodedCorpus, center_of, encode_rows, screening
from clara_kernels.cosine_topk.arrays import tensor_over

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
COUNT, WIDTH = 9_001, 67


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def coded(rows, **given):
    center = center_of(rows[::7])
    return CodedCorpus(Corpus(rows), encode_rows(rows, center), center, **given)


def assert_same(found, expected):
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[0].view(torch.int32), expected[0].view(torch.int32))


def plain():
    return drawn(COUNT, WIDTH)


def one_way():
    return drawn(COUNT, WIDTH) + 3


def clusters():
    """Near-duplicates, far closer to each other than codes can tell."""
    middles = drawn(30, WIDTH, seed=1)
    return middles.repeat(301, 1)[:COUNT] + 1e-4 * drawn(COUNT, WIDTH)


def equal():
    return drawn(3, WIDTH).repeat(3_001, 1)[:COUNT]


def with_zeros():
    rows = drawn(COUNT, WIDTH) - 2
    rows[::3] = 0
    return rows


def one_dimension():
    """One value outweighs all others, differently in each row."""
    rows = drawn(COUNT, WIDTH)
    rows[:, 5] = 1_000 + drawn(COUNT)
    return rows


def all_norms():
    return drawn(COUNT, WIDTH) * torch.logspace(-37, 36, COUNT)[:, None]


def all_zeros():
    return torch.zeros(COUNT, WIDTH)


def sparse():
    """Rows of one value: codes of what is left beside a center are coarse."""
    rows = torch.zeros(COUNT, WIDTH)
    rows[torch.arange(COUNT), torch.arange(COUNT) % WIDTH] = drawn(COUNT)
    return rows


KINDS = [plain, one_way, clusters, equal, with_zeros, one_dimension, all_norms, all_zeros, sparse]


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("of_rows", [False, True])
def test_is_exact(make, of_rows):
    rows = make()
    queries = rows[torch.arange(16) * 503] if of_rows else drawn(16, WIDTH, seed=3)
    corpus = coded(rows)
    for count, k in ((1, 1), (1, 10), (16, 10), (2, 700), (1, 2048)):
        expected = cosine_topk(queries[:count], corpus.exact, k)
        assert_same(corpus.search(queries[:count], k), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4_097, 1), (5_000, 64), (6_007, 129)])
def test_is_exact_in_any_dtype(dtype, shape):
    rows, queries = drawn(*shape).to(dtype), drawn(3, shape[1], seed=2)
    corpus = coded(rows)
    assert_same(corpus.search(queries, 7), cosine_topk(queries, corpus.exact, 7))


@pytest.mark.parametrize("kept", [0.0, 0.0005, 0.01, 0.5, 1.0])
def test_a_mask_is_exact_too(kept):
    rows, queries = one_way(), drawn(4, WIDTH, seed=4)
    mask = torch.rand(COUNT, generator=torch.Generator().manual_seed(5)) < kept
    corpus = coded(rows)
    assert_same(
        corpus.search(queries, 12, mask=mask), cosine_topk(queries, corpus.exact, 12, mask=mask)
    )


def test_listed_rows_alone():
    rows, queries = plain(), drawn(2, WIDTH, seed=4)
    scores, found = coded(rows).among(queries, 2, torch.tensor([7, 5, 300]))
    expected = cosine_topk(queries, rows[[5, 7, 300]], 2)
    assert torch.equal(scores, expected[0])
    assert torch.equal(found, torch.tensor([5, 7, 300])[expected[1]])


def test_few_rows_are_read_where_codes_tell():
    read = []
    rows = drawn(20_000, 256)
    corpus = coded(rows, before_reading=read.append)
    queries = drawn(4, 256, seed=6)
    assert_same(corpus.search(queries, 10), cosine_topk(queries, rows, 10))
    assert all(each is not None for each in read)
    assert len(torch.cat(read).unique()) < screening._COARSE + 4 * 300


def test_a_center_makes_the_bound_smaller():
    """Rows and queries that point much the same way, as memory does."""
    rows, queries = drawn(20_000, 256) + 1, drawn(4, 256, seed=6) + 1
    read: list = []
    corpus = coded(rows, before_reading=read.append)
    corpus.search(queries, 10)
    assert None not in read
    nothing = torch.zeros(256)
    without = CodedCorpus(Corpus(rows), encode_rows(rows, nothing), nothing)
    assert float(corpus._coded.errors.mean()) < 0.8 * float(without._coded.errors.mean())


def test_the_error_of_codes_is_what_is_stated():
    for make in KINDS:
        rows = make()[:500]
        center = center_of(rows)
        found = encode_rows(rows, center)
        wide = rows.double()
        wide = wide / wide.abs().amax(1, keepdim=True).clamp(min=1e-300)
        units = wide / wide.norm(dim=1, keepdim=True).clamp(min=1e-300)
        scales = 2 * found.factors.double()[:, None]
        rest = units - center.double() - scales * found.codes.double()
        assert (rest.norm(dim=1) <= found.errors.double()).all(), make.__name__
        assert (
            (rest @ center.double()).abs() <= found.along * center.double().norm() + 1e-12
        ).all()
        assert ((scales * found.codes.double()).norm(dim=1) <= found.reach).all()


def test_all_rows_are_read_at_once_after_searches_in_vain():
    read = []
    corpus = coded(equal(), before_reading=read.append)
    queries = equal()[:1]
    for _ in range(6):
        corpus.search(queries, 10)
    found = "".join("a" if each is None else "s" for each in read)
    assert found.replace("ss", "s") == "saasaaasa"  # some read in vain, then all: once, twice


def test_some_odd_rows_do_not_make_all_rows_be_read():
    """Codes of what points elsewhere than all others are coarse."""
    read: list = []
    rows = drawn(20_000, 256) + 1
    rows[:1_000:2] = 0
    rows[torch.arange(0, 1_000, 2), torch.arange(500) % 256] = 1
    corpus, queries = coded(rows, before_reading=read.append), drawn(2, 256, seed=6) + 1
    for _ in range(3):
        assert_same(corpus.search(queries, 10), cosine_topk(queries, rows, 10))
    assert None not in read


def test_the_first_batch_reads_few_rows_and_later_ones_all():
    """For so many queries, codes save nothing but reading."""
    read: list = []
    rows, queries = drawn(20_000, 256), drawn(8, 256, seed=6)
    corpus = coded(rows, before_reading=read.append)
    expected = cosine_topk(queries, rows, 10)
    assert_same(corpus.search(queries, 10), expected)
    assert None not in read
    read.clear()
    assert_same(corpus.search(queries, 10), expected)
    assert read == [None]
    read.clear()
    assert_same(corpus.search(queries[:7], 10), [each[:7] for each in expected])
    assert None not in read


def test_a_batch_is_screened_a_part_at_a_time(monkeypatch):
    """Up to the first part without a proof; then all rows are scored for what is left."""
    monkeypatch.setattr(screening, "_TOGETHER", 3)
    asked = []
    rows = drawn(20_000, 64)
    rows[:6_000] = rows[0] + 1e-5 * drawn(6_000, 64, seed=7)
    queries = drawn(11, 64, seed=6)
    corpus = coded(rows)
    screened = corpus._screened

    def counted(some, *given):
        asked.append(len(some))
        return screened(some, *given)

    monkeypatch.setattr(corpus, "_screened", counted)
    assert_same(corpus.search(queries, 10), cosine_topk(queries, corpus.exact, 10))
    assert asked == [3, 3, 3, 2]
    near = torch.cat([queries[:4], rows[:1], queries[4:]])
    corpus._had_many = False
    asked.clear()
    assert_same(corpus.search(near, 10), cosine_topk(near, corpus.exact, 10))
    assert asked == [3, 3]
    likely = corpus.search(queries, 10, approximate=True)
    alone = [corpus.search(each[None], 10, approximate=True) for each in queries]
    assert_same(likely, [torch.cat(each) for each in zip(*alone)])


def test_without_a_proof_scores_are_right_all_the_same():
    rows, queries = plain(), drawn(5, WIDTH, seed=8)
    corpus = coded(rows)
    scores, found = corpus.search(queries, 10, approximate=True)
    best = cosine_topk(queries, rows, 10)
    assert float((found == best[1]).float().mean()) > 0.95
    every = cosine_topk(queries, rows[:, :], 2048)
    for query in range(5):
        known = dict(zip(every[1][query].tolist(), every[0][query].tolist()))
        assert [known[row] for row in found[query].tolist()] == scores[query].tolist()


def test_without_a_compiled_module_all_rows_are_scored(monkeypatch):
    monkeypatch.setattr(screening, "native", None)
    rows, queries = plain(), drawn(2, WIDTH, seed=9)
    read = []
    corpus = coded(rows, before_reading=read.append)
    assert_same(corpus.search(queries, 3), cosine_topk(queries, rows, 3))
    assert read == [None]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((torch.zeros(1, 3), 1), r"queries must have shape \[B, 67\]"),
        ((torch.zeros(1, WIDTH), 0), "k must be at least 1"),
        ((torch.zeros(1, WIDTH), 2049), "k must be at most 2048"),
    ],
)
def test_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        coded(plain()).search(*given)


def test_norms_that_are_known_are_not_computed_again():
    rows = plain()[:100]
    norms = Corpus(rows).inverse_norms
    known = Corpus.with_norms(rows, norms)
    assert known.rows.data_ptr() == rows.data_ptr()
    assert known.inverse_norms.data_ptr() == norms.data_ptr()
    assert_same(cosine_topk(rows[:2], known, 3), cosine_topk(rows[:2], rows, 3))
    with pytest.raises(ValueError, match=r"inverse_norms must have shape \[100\]"):
        Corpus.with_norms(rows, norms[:-1])


def test_bytes_of_a_mapped_file_as_values():
    data = np.arange(24, dtype=np.uint8)
    data.flags.writeable = False
    found = tensor_over(data[4:], torch.int32)
    assert found.tolist() == np.arange(4, 24, dtype=np.uint8).view("<i4").tolist()
    assert found.data_ptr() == data.ctypes.data + 4
    assert tensor_over(data[:0], torch.float32).shape == (0,)
