"""What first stages keep of a corpus, against NumPy and Python: pooled, projected, in FAISS."""

import math

import numpy as np
import pytest
import torch

import clara_kernels.two_stage.first_stage
from clara_kernels import Corpus, Faiss, MeanPooled, RandomProjection, cosine_topk, quantize_memory

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def random_rows(count, width, dtype=torch.float32, seed=0):
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return (rows * 40).clamp(-127, 127).to(dtype) if dtype == torch.int8 else rows.to(dtype)


def cosines(queries, rows):
    q, c = queries.double().numpy(), rows.double().numpy()
    norms = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(c, axis=1)
    return np.divide(q @ c.T, norms, out=np.zeros(norms.shape), where=norms != 0)


@dtypes
@pytest.mark.parametrize("kept", DTYPES, ids=str)
def test_mean_pooling(dtype, kept, monkeypatch):
    monkeypatch.setattr(clara_kernels.two_stage.first_stage, "CHUNK_ELEMENTS", 5 * 24)
    rows, queries = random_rows(33, 24, dtype), torch.randn(2, 24)
    first = MeanPooled(Corpus(rows), 4, kept)
    assert first.codes.dtype == kept
    assert (len(first), first.codes.width, first.width) == (33, 6, 24)
    pooled = rows.double().view(33, 4, 6).mean(1)
    agreement = np.diagonal(cosines(pooled, first.codes.rows))
    assert agreement.min() > {torch.int8: 0.9995, torch.bfloat16: 0.99999}.get(kept, 0.9999999)
    scores = cosines(queries.view(2, 4, 6).mean(1), first.codes.rows)
    found = first.candidates(queries, 40)
    assert (found[:, 33:] == -1).all()
    assert found[:, :33].sort().values.tolist() == [list(range(33))] * 2
    ordered = np.take_along_axis(scores, found[:, :33].numpy(), 1)
    assert (np.diff(ordered, axis=1) < 1e-4).all()


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e25, 3e38])
def test_rows_near_the_ends_of_float32(scale):
    rows = torch.rand(6, 16).add(0.1) * scale
    ordinary = Corpus(rows.double().div(scale).float())
    for make in (lambda c: MeanPooled(c, 2), lambda c: RandomProjection(c, 8, 1)):
        found, expected = make(Corpus(rows)).codes.rows, make(ordinary).codes.rows
        assert (found.int() - expected.int()).abs().max() <= (1 if scale > 1e-40 else 40)
    first = Faiss("Flat", Corpus(rows))
    norms = np.linalg.norm(first.index.reconstruct_n(0, 6), axis=1)
    np.testing.assert_allclose(norms, 1, rtol=1e-6)


def test_rows_with_scale_zero_are_zero_rows():
    codes, scales = quantize_memory(torch.randn(10, 8))
    scales[[2, 7]] = 0
    corpus = Corpus(codes, scales=scales)
    for first in (MeanPooled(corpus, 2), RandomProjection(corpus, 4, 0)):
        assert first.codes.rows.any(1).tolist() == (scales != 0).tolist()
    stored = Faiss("Flat", corpus).index.reconstruct_n(0, 10)
    assert stored.any(1).tolist() == (scales != 0).tolist()


@pytest.mark.parametrize(("wide", "width"), [(4096, 256), (1000, 77), (50, 50)])
def test_projection_keeps_cosines(wide, width):
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(60, wide, generator=generator)
    rows[:, :3] *= 8  # a few coordinates larger than others, as hidden states have them
    errors = []
    for seed in range(12):
        first = RandomProjection(Corpus(rows), width, seed, torch.float32)
        errors.append(cosines(first.codes.rows, first.codes.rows) - cosines(rows, rows))
    errors = np.stack(errors)[:, ~np.eye(60, dtype=bool)]
    assert abs(errors.mean()) < 0.02
    assert 0.5 / math.sqrt(width) < errors.std() < 1.3 / math.sqrt(width)


def test_projection_is_one_linear_map_of_rows_and_queries():
    first = RandomProjection(Corpus(torch.randn(5, 30)), 7, 11)
    matrix = first.reduce(torch.eye(30))  # [D, width]
    assert matrix.abs().sum(1).max() <= 4
    assert set(matrix.unique().tolist()) <= set(range(-4, 5))
    vectors = torch.randint(-9, 10, (4, 30)).float()
    assert first.reduce(vectors).equal(vectors @ matrix)
    # Four times each coordinate goes to one sum, ⌈30/7⌉ of them at most to each.
    assert (matrix.abs() > 0).sum(0).max() <= 4 * 5


def test_projection_follows_from_the_seed():
    corpus = Corpus(random_rows(5, 30))
    make = [RandomProjection(corpus, 7, seed) for seed in (1, 1, 2, 2**64 - 1)]
    matrices = [each.reduce(torch.eye(30)) for each in make]
    assert matrices[0].equal(matrices[1])
    assert not matrices[0].equal(matrices[2])
    assert not matrices[2].equal(matrices[3])
    assert make[0].codes.rows.equal(make[1].codes.rows)


def philox(counter, key):
    """Philox4x32-10 of Python integers."""
    words, (low, high), most = list(counter), key, 2**32 - 1
    for _ in range(10):
        a, b = words[0] * 0xD2511F53, words[2] * 0xCD9E8D57
        words = [(b >> 32) ^ words[1] ^ low, b & most, (a >> 32) ^ words[3] ^ high, a & most]
        low, high = (low + 0x9E3779B9) & most, (high + 0xBB67AE85) & most
    return words


@pytest.mark.parametrize(("wide", "width", "seed"), [(30, 7, 1), (8, 8, 2**40 + 3), (9, 1, 0)])
def test_projection_as_defined(wide, width, seed):
    matrix = torch.zeros(wide, width)
    places = -(-wide // width) * width
    for deal in range(4):
        words = [philox((d, deal, 0, 1), (seed % 2**32, seed >> 32)) for d in range(places)]
        order = sorted(range(places), key=lambda d: (words[d][0] << 31) | (words[d][1] >> 1))
        for place, coordinate in enumerate(order):
            if coordinate < wide:
                matrix[coordinate, place % width] += 1 - 2 * (words[place][2] & 1)
    first = RandomProjection(Corpus(torch.randn(2, wide)), width, seed)
    assert first.reduce(torch.eye(wide)).equal(matrix)


def test_nothing_as_large_as_the_corpus_is_held(monkeypatch):
    monkeypatch.setattr(clara_kernels.two_stage.first_stage, "CHUNK_ELEMENTS", 1000)
    corpus, sizes = Corpus(random_rows(300, 50)), []
    first = MeanPooled(corpus, 5)
    reduce = MeanPooled.reduce
    monkeypatch.setattr(
        MeanPooled, "reduce", lambda self, x: sizes.append(x.numel()) or reduce(self, x)
    )
    assert MeanPooled(corpus, 5).codes.rows.equal(first.codes.rows)
    assert sum(sizes) == 300 * 50
    assert max(sizes) <= 1000
    assert first.codes.nbytes < 0.1 * corpus.nbytes


def test_faiss_takes_descriptions_and_indexes():
    faiss = pytest.importorskip("faiss")
    corpus, queries = Corpus(random_rows(50, 8)), torch.randn(3, 8).half()
    expected = cosine_topk(queries, corpus, 10)[1]
    filled = faiss.IndexFlatIP(8)
    filled.add((corpus.rows / corpus.rows.norm(dim=1, keepdim=True)).numpy())
    for index in ("Flat", faiss.IndexFlatIP(8), filled):
        first = Faiss(index, corpus)
        assert len(first) == 50
        assert first.width == 8
        assert first.candidates(queries, 10).equal(expected)
    found = first.candidates(queries, 60)
    assert (found[:, 50:] == -1).all()
    assert first.candidates(queries[:0], 4).shape == (0, 4)


def test_faiss_uses_the_threads_of_torch(monkeypatch):
    faiss = pytest.importorskip("faiss")
    corpus = Corpus(random_rows(50, 8))
    first, before, used = Faiss("Flat", corpus), faiss.omp_get_max_threads(), []
    search = first.index.search

    class Index:
        ntotal, d = 50, 8

        def search(self, *arguments):
            used.append(faiss.omp_get_max_threads())
            return search(*arguments)

    monkeypatch.setattr(first, "index", Index())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    first.candidates(torch.randn(1, 8), 2)
    assert used == [3]
    assert faiss.omp_get_max_threads() == before


def test_faiss_is_asked_for_when_it_is_missing(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(clara_kernels.two_stage.faiss_stage, "import_module", missing)
    with pytest.raises(ModuleNotFoundError) as caught:
        Faiss("Flat", Corpus(torch.ones(2, 3)))
    assert str(caught.value) == "a Faiss stage needs faiss: pip install faiss-cpu"


def test_bad_faiss_indexes():
    faiss = pytest.importorskip("faiss")
    for index, message in (
        ("Nonsense", "^index must be known to FAISS, got 'Nonsense': "),
        ("IVF4096,Flat", "^index cannot be trained on 50 rows: "),
        (faiss.IndexFlatL2(8), "^index must be by inner product, got metric 1$"),
        (faiss.IndexFlatIP(9), "^index must have the corpus' width, 8, got 9$"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            Faiss(index, Corpus(random_rows(50, 8)))
        assert "\n" not in str(caught.value)
    other = faiss.IndexFlatIP(8)
    other.add(np.ones((3, 8), dtype=np.float32))
    message = "^index must hold no vectors or the corpus' 50, got 3$"
    with pytest.raises(ValueError, match=message):
        Faiss(other, Corpus(random_rows(50, 8)))
