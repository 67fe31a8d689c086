"""`Corpus`: what it holds and shares, and its search against NumPy in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_kernels import Corpus, cosine_rerank, cosine_topk, quantize_memory, streamed_topk

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def random_rows(count, width, dtype=torch.float32, seed=None):
    generator = torch.Generator() if seed is None else torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width, generator=generator)
    return (rows * 40).clamp(-127, 127).to(dtype) if dtype == torch.int8 else rows.to(dtype)


def oracle(queries, rows, k, allowed=None):
    """Cosines `[B, N]` and the k best of the allowed rows, float64."""
    q, c = queries.double().numpy(), rows.double().numpy()
    norms = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(c, axis=1)
    cosines = np.divide(q @ c.T, norms, out=np.zeros(norms.shape), where=norms != 0)
    kept = cosines if allowed is None else np.where(allowed, cosines, -np.inf)
    return cosines, -np.sort(-kept, axis=1)[:, :k]


def assert_found(found, queries, rows, k, allowed=None):
    scores, indices = found
    cosines, expected = oracle(queries, rows, k, allowed)
    tolerance = 1e-4 if rows.dtype == torch.int8 else 2e-5
    assert scores.dtype == torch.float32
    assert indices.dtype == torch.int64
    np.testing.assert_allclose(scores.numpy(), expected, atol=tolerance)
    assert ((indices < 0) == (scores == -torch.inf)).all()
    at = np.take_along_axis(cosines, indices.clamp(min=0).numpy(), 1)
    at[indices.numpy() < 0] = -np.inf
    np.testing.assert_allclose(scores.numpy(), at, atol=tolerance)
    for row in indices.tolist():
        real = [index for index in row if index >= 0]
        assert len(set(real)) == len(real)
        assert allowed is None or all(allowed[index] for index in real)


@dtypes
def test_tensors_are_not_copied(dtype):
    rows = random_rows(7, 5, dtype)
    corpus = Corpus(rows)
    assert corpus.rows.data_ptr() == rows.data_ptr()
    norms = np.linalg.norm(rows.double().numpy(), axis=1)
    np.testing.assert_allclose(corpus.inverse_norms.numpy(), 1 / norms, rtol=1e-6)
    assert (len(corpus), corpus.width, corpus.dtype) == (7, 5, dtype)
    assert corpus.device == torch.device("cpu")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["float32", "float16", "int8"])
@pytest.mark.parametrize("writeable", [True, False])
def test_arrays_are_not_copied(name, writeable):
    array = random_rows(9, 6, getattr(torch, name)).numpy().copy()
    expected = torch.from_numpy(array.copy())
    array.flags.writeable = writeable
    corpus = Corpus(array)
    address = array.ctypes.data
    del array
    assert corpus.rows.data_ptr() == address
    assert corpus.rows.equal(expected)


def test_a_part_of_an_array_keeps_its_strides():
    array = np.random.default_rng(0).standard_normal((20, 12)).astype(np.float32)
    array.flags.writeable = False
    part = array[3::2, 2:9]
    corpus = Corpus(part)
    assert corpus.rows.data_ptr() == part.ctypes.data
    assert corpus.rows.tolist() == part.tolist()
    queries = torch.randn(2, 7)
    assert_found(corpus.search(queries, 4), queries, torch.tensor(part), 4)


def test_rows_need_no_gradient():
    assert not Corpus(torch.randn(2, 3, requires_grad=True)).rows.requires_grad


@dtypes
def test_search_is_cosine_topk(dtype):
    rows = random_rows(301, 33, dtype)
    queries = torch.randn(4, 33)
    corpus = Corpus(rows)
    scores, found = corpus.search(queries, 10)
    expected = cosine_topk(queries, rows, 10)
    assert scores.equal(expected[0])
    assert found.equal(expected[1])
    assert_found((scores, found), queries, rows, 10)
    for other in cosine_topk(queries, corpus, 10), (scores, found):
        assert other[1].equal(found)


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(0, 40),
    bounds=st.tuples(*[st.none() | st.integers(-45, 45)] * 2),
    step=st.none() | st.integers(1, 5),
    kind=st.sampled_from(["none", "int", "str"]),
    seed=st.integers(0, 2**31),
)
def test_slices_are_views_of_the_same_rows(count, bounds, step, kind, seed):
    rows = random_rows(count, 8, torch.int8, seed)
    scales = torch.rand(count)
    ids = {"none": None, "int": range(100, 100 + count), "str": [f"d{i}" for i in range(count)]}
    corpus = Corpus(rows, scales=scales, ids=ids[kind])
    part = slice(*bounds, step)
    taken = corpus[part]
    numbers = list(range(count))[part]
    assert len(taken) == len(numbers)
    assert taken.rows.equal(rows[numbers])
    assert taken.inverse_norms.equal(corpus.inverse_norms[numbers])
    assert taken.scales.equal(scales[numbers])
    if numbers:
        assert taken.rows.data_ptr() == rows[numbers[0] :].data_ptr()
        assert taken.inverse_norms.data_ptr() == corpus.inverse_norms[numbers[0] :].data_ptr()
    if kind == "int":
        assert taken.ids.tolist() == [100 + number for number in numbers]
    elif kind == "str" and count:
        assert taken.ids == tuple(f"d{number}" for number in numbers)
    queries = torch.randn(3, 8, generator=torch.Generator().manual_seed(seed))
    found = taken.search(queries, 5)[1]
    assert_found(cosine_topk(queries, taken, 5), queries, rows[numbers], 5)
    expected = cosine_topk(queries, taken, 5)[1].tolist()
    named = {"none": lambda row: row, "int": lambda row: 100 + numbers[row]}
    name = named.get(kind, lambda row: f"d{numbers[row]}")
    found = found if isinstance(found, list) else found.tolist()
    assert found == [[name(row) for row in rows] for rows in expected]


def test_slices_compute_nothing(monkeypatch):
    corpus = Corpus(torch.randn(50, 4))
    monkeypatch.setattr(torch.ops.clara, "inverse_norms", None)
    assert len(corpus[3:20:3][1:]) == 5


@pytest.mark.parametrize("key", [3, True, [1, 2], torch.ones(5, dtype=torch.bool), "a"])
def test_only_slices_are_taken(key):
    with pytest.raises(TypeError, match=f"^a Corpus takes slices, got {type(key).__name__}$"):
        Corpus(torch.randn(5, 2))[key]


def test_a_slice_goes_forward():
    with pytest.raises(ValueError, match=r"^the step of a slice must be at least 1, got -1$"):
        Corpus(torch.randn(5, 2))[::-1]


def test_it_does_not_change():
    corpus = Corpus(torch.randn(5, 2), ids=["a", "b", "c", "d", "e"])
    for name in ("rows", "inverse_norms", "scales", "ids", "width", "anything"):
        with pytest.raises(AttributeError):
            setattr(corpus, name, None)


def test_one_bad_row_is_named():
    rows = torch.randn(40, 9)
    rows[31, 2], rows[17, 8] = torch.nan, -torch.inf
    with pytest.raises(ValueError, match=r"^rows must be finite, got NaN or infinity in row 17$"):
        Corpus(rows)
    with pytest.raises(ValueError, match=r"infinity in row 17 \(id 'd17'\)$"):
        Corpus(rows, ids=[f"d{row}" for row in range(40)])
    with pytest.raises(ValueError, match=r"infinity in row 17 \(id 170\)$"):
        Corpus(rows.half(), ids=np.arange(40) * 10)


def test_scales_of_int8_rows():
    codes, scales = quantize_memory(torch.randn(60, 16))
    plain, scaled = Corpus(codes), Corpus(codes, scales=scales.numpy())
    queries = torch.randn(3, 16)
    assert scaled.search(queries, 60)[0].equal(plain.search(queries, 60)[0])
    scales[[4, 9]] = 0
    scores, rows = Corpus(codes, scales=scales).search(queries, 60)
    for score, row in zip(scores, rows):
        assert score[(row == 4) | (row == 9)].tolist() == [0, 0]
    values = codes * scales[:, None]
    assert_found((scores, rows), queries, values.double().to(torch.float32), 60)


@pytest.mark.parametrize(
    ("value", "text"), [(-0.5, "-0.5"), (torch.nan, "nan"), (torch.inf, "inf")]
)
def test_bad_scales(value, text):
    scales = torch.ones(6)
    scales[[3, 5]] = value
    message = f"^scales must be finite and not negative, got {text} for row 3$"
    with pytest.raises(ValueError, match=message):
        Corpus(random_rows(6, 4, torch.int8), scales=scales)


INT8 = torch.ones(3, 2, dtype=torch.int8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1.0]], {}), TypeError, "rows must be a torch.Tensor or a NumPy array, got list"),
        (
            (torch.ones(2, 2).double(), {}),
            TypeError,
            "rows must be float32, float16, bfloat16 or int8, got torch.float64",
        ),
        (
            (np.ones((2, 2)), {}),
            TypeError,
            "rows must be float32, float16, bfloat16 or int8, got float64",
        ),
        (
            (np.ones((2, 2), dtype=">f4"), {}),
            TypeError,
            "rows must be float32, float16, bfloat16 or int8, got >f4",
        ),
        ((torch.ones(3), {}), ValueError, "rows must have shape [N, D], got [3]"),
        (
            (torch.ones(2, 3).T, {}),
            ValueError,
            "rows must have adjacent columns, got strides [1, 3]: copy them first",
        ),
        (
            (np.ones((3, 2), dtype=np.float32)[::-1], {}),
            ValueError,
            "rows must be aligned and whole values apart, got byte strides [-8, 4]: "
            "copy them first",
        ),
        (
            (torch.ones(3, 2), {"scales": torch.ones(3)}),
            ValueError,
            "scales must be None for torch.float32 rows: they are for int8",
        ),
        (
            (INT8, {"scales": [1.0]}),
            TypeError,
            "scales must be a torch.Tensor or a NumPy array, got list",
        ),
        (
            (INT8, {"scales": torch.ones(3).half()}),
            TypeError,
            "scales must be float32, got torch.float16",
        ),
        ((INT8, {"scales": torch.ones(2)}), ValueError, "scales must have shape [3], got [2]"),
        ((INT8, {"ids": [1, 2]}), ValueError, "ids must be as many as rows, 3, got 2"),
        (
            (INT8, {"ids": [1, 2, 1]}),
            ValueError,
            "ids must be unique, got 1 for rows 0 and 2",
        ),
        (
            (INT8, {"ids": ["b", "a", "a"]}),
            ValueError,
            "ids must be unique, got 'a' for rows 1 and 2",
        ),
        (
            (INT8, {"ids": ["b", 1, "a"]}),
            TypeError,
            "ids must be all str, got int for row 1",
        ),
        (
            (INT8, {"ids": [1, "b", 2]}),
            TypeError,
            "ids must be all int, got str at place 1",
        ),
        (
            (INT8, {"ids": [1, True, 2]}),
            TypeError,
            "ids must be all int, got bool at place 1",
        ),
        (
            (INT8, {"ids": [1, 2, 1 << 63]}),
            ValueError,
            f"ids must fit int64, got {1 << 63} at place 2",
        ),
        (
            (INT8, {"ids": [1, -1, 2]}),
            ValueError,
            "ids must not be -1, which stands for no row, got it for row 1",
        ),
        (
            (INT8, {"ids": "abc"}),
            TypeError,
            "ids must be a sequence of int or str, an array or a tensor, got str",
        ),
        ((INT8, {"ids": torch.ones(3)}), TypeError, "ids must be int64 or str, got torch.float32"),
        ((INT8, {"ids": np.ones(3)}), TypeError, "ids must be int64 or str, got float64"),
        (
            (INT8, {"ids": torch.ones(3, 1).long()}),
            ValueError,
            "ids must have shape [N], got [3, 1]",
        ),
    ],
)
def test_bad_arguments(arguments, error, message):
    rows, others = arguments
    with pytest.raises(error) as caught:
        Corpus(rows, **others)
    assert str(caught.value) == message


def test_bytes_held():
    rows = random_rows(10, 8, torch.int8)
    assert Corpus(rows).nbytes == 80 + 40
    assert Corpus(rows, scales=torch.ones(10)).nbytes == 80 + 40 + 40
    assert Corpus(rows, ids=range(10)).nbytes == 80 + 40 + 80
    named = Corpus(rows, ids=[f"document {row}" for row in range(10)])
    assert named.nbytes > 80 + 40 + 10 * len("document 0")
    wide = Corpus(torch.randn(100, 576))
    assert wide.nbytes - wide.rows.nbytes < 0.01 * wide.rows.nbytes


def test_repr():
    corpus = Corpus(torch.zeros(2000, 1152, dtype=torch.float16), ids=range(2000))
    assert repr(corpus) == "Corpus(2,000 × 1,152 float16 on cpu, 4.6 MB, with ids)"
    assert repr(corpus[:1][:0]) == "Corpus(0 × 1,152 float16 on cpu, 0.0 MB, with ids)"


def test_to_the_device_it_is_on():
    corpus = Corpus(torch.randn(3, 2))
    assert corpus.to("cpu") is corpus


def test_to_another_device():
    codes, scales = quantize_memory(torch.randn(3, 2))
    there = Corpus(codes, scales=scales, ids=range(3)).to("meta")
    held = there.rows, there.inverse_norms, there.scales, there.ids
    assert [each.device.type for each in held] == ["meta"] * 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what happens without a GPU")
def test_pinned_memory_needs_a_gpu():
    with pytest.raises(RuntimeError, match=r"^pin_memory needs an NVIDIA GPU, and there is none$"):
        Corpus(torch.randn(3, 2)).pin_memory()


def test_only_a_corpus_on_the_cpu_is_pinned():
    with pytest.raises(
        ValueError, match=r"^pin_memory needs a corpus on the CPU, got one on meta$"
    ):
        Corpus(torch.randn(3, 2)).to("meta").pin_memory()


@pytest.mark.gpu
def test_on_the_gpu():
    rows, queries = torch.randn(500, 64), torch.randn(3, 64, device="cuda")
    corpus = Corpus(rows, ids=torch.arange(500) + 1000)
    there = corpus.to("cuda")
    assert there.to("cuda") is there
    assert there.ids.device.type == "cuda"
    scores, ids = there.search(queries, 7, ids=range(1000, 1400))
    expected = cosine_topk(queries, rows[:400].cuda(), 7)
    assert scores.equal(expected[0])
    assert ids.equal(expected[1] + 1000)
    pinned = corpus.pin_memory()
    assert pinned.pin_memory() is pinned
    assert pinned.rows.is_pinned()
    assert pinned.search(queries, 7)[0].equal(there.search(queries, 7)[0])
    few = corpus.search(queries, 7, ids=[1003, 1001])
    assert few[0].equal(there.search(queries, 7, ids=[1001, 1003])[0])
    assert few[1].device.type == "cuda"


@pytest.mark.parametrize("search", [Corpus.search, streamed_topk])
def test_torch_compile_keeps_the_bound_of_k(search):
    def first(queries):
        arguments = (corpus, queries) if search is Corpus.search else (queries, corpus)
        return search(*arguments, 3000)

    corpus = Corpus(torch.randn(5000, 8))
    compiled = torch.compile(first, backend="eager")
    with pytest.raises(ValueError, match="k must be at most 2048, got 3000"):
        compiled(torch.randn(2, 8))


def test_torch_compile_takes_a_corpus():
    corpus, queries = Corpus(torch.randn(30, 8)), torch.randn(2, 8)
    compiled = torch.compile(lambda q: cosine_topk(q, corpus, 3), backend="eager", fullgraph=True)
    assert compiled(queries)[1].equal(cosine_topk(queries, corpus, 3)[1])


def test_rerank_takes_a_corpus():
    corpus, queries = Corpus(torch.randn(30, 8)), torch.randn(1, 8)
    offsets = torch.tensor([0, 30], dtype=torch.int32)
    found = cosine_rerank(queries, corpus, 4, offsets=offsets)
    assert found[1].equal(corpus.search(queries, 4)[1])
