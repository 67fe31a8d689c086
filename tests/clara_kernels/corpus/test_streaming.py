"""`streamed_topk` gives the bits of one `cosine_topk` call, in pieces."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_kernels import Corpus, cosine_topk, streamed_topk
from clara_kernels.corpus import streaming

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def random_rows(count, width, dtype, seed=0):
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return (rows * 40).clamp(-127, 127).to(dtype) if dtype == torch.int8 else rows.to(dtype)


def assert_same(found, expected):
    for one, other in zip(found, expected):
        assert one.dtype == other.dtype
        assert one.device == other.device
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@settings(deadline=None, max_examples=80)
@given(
    count=st.integers(0, 90),
    batch=st.integers(0, 5),
    width=st.integers(1, 40),
    k=st.integers(1, 100),
    rows=st.integers(1, 30),
    dtype=st.sampled_from(DTYPES),
    share=st.none() | st.sampled_from([0.0, 0.2, 0.9, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_any_chunk_gives_the_same_bits(count, batch, width, k, rows, dtype, share, seed):
    corpus = Corpus(random_rows(count, width, dtype, seed))
    queries = random_rows(batch, width, torch.float32, seed + 1)
    mask = None if share is None else torch.rand(count) < share
    chunk = rows * (width * dtype.itemsize + 4)
    found = streamed_topk(queries, corpus, k, mask=mask, chunk_bytes=chunk)
    assert_same(found, cosine_topk(queries, corpus, k, mask=mask))


def test_against_numpy():
    corpus, queries = Corpus(random_rows(700, 48, torch.float32)), torch.randn(3, 48)
    scores, rows = streamed_topk(queries, corpus, 20, chunk_bytes=5000)
    q, c = queries.double().numpy(), corpus.rows.double().numpy()
    cosines = q @ c.T / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(c, axis=1)
    np.testing.assert_allclose(scores, -np.sort(-cosines, axis=1)[:, :20], atol=2e-5)
    np.testing.assert_allclose(scores, np.take_along_axis(cosines, rows.numpy(), 1), atol=2e-5)


def test_ties_and_nan_over_chunks():
    rows = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]).repeat(30, 1)
    queries = torch.tensor([[1.0, 1.0], [torch.nan, 1.0], [0.0, 0.0]])
    corpus = Corpus(rows)
    found = streamed_topk(queries, corpus, 40, chunk_bytes=12 * 7)
    assert_same(found, cosine_topk(queries, corpus, 40))
    assert found[1][1].tolist() == found[1][2].tolist() == list(range(40))


@pytest.mark.parametrize("chunk", [1, 1 << 40])
def test_chunks_of_a_row_and_of_all(chunk):
    codes = random_rows(20, 9, torch.int8)
    scales = torch.rand(20)
    scales[3] = 0
    corpus, queries = Corpus(codes, scales=scales, ids=range(20)), torch.randn(2, 9)
    found = streamed_topk(queries, corpus, 20, chunk_bytes=chunk)
    assert_same(found, cosine_topk(queries, corpus, 20))


def test_a_mapped_file_and_strided_rows(tmp_path):
    rows = random_rows(64, 10, torch.bfloat16)
    (tmp_path / "rows.bin").write_bytes(rows.view(torch.uint8).numpy().tobytes())
    corpus = Corpus.from_file(tmp_path / "rows.bin", torch.bfloat16, 10)
    queries = torch.randn(2, 10)
    for part, own in ((corpus, rows), (corpus[5:60:3], rows[5:60:3])):
        found = streamed_topk(queries, part, 7, chunk_bytes=100)
        assert_same(found, cosine_topk(queries, own, 7))


CORPUS, QUERY = Corpus(torch.ones(4, 3)), torch.ones(2, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"corpus": torch.ones(4, 3)}, TypeError, "corpus must be a Corpus, got Tensor"),
        ({"corpus": CORPUS.to("meta")}, ValueError, "corpus must be on the CPU, got meta"),
        ({"queries": [1.0]}, TypeError, "queries must be a torch.Tensor, got list"),
        (
            {"queries": QUERY.to("meta")},
            ValueError,
            "queries must be on the CPU or a GPU, got meta",
        ),
        (
            {"queries": torch.ones(2, 4)},
            ValueError,
            "corpus must have shape [N, 4], as queries have, got [0, 3]",
        ),
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        (
            {"corpus": Corpus(torch.ones(2049, 3)), "k": 2049},
            ValueError,
            "k must be at most 2048, got 2049",
        ),
        ({"chunk_bytes": 0}, ValueError, "chunk_bytes must be at least 1, got 0"),
        ({"chunk_bytes": 1e6}, TypeError, "chunk_bytes must be an int, got float"),
        ({"mask": torch.ones(4)}, TypeError, "mask must be bool, got torch.float32"),
        (
            {"mask": torch.ones(3, dtype=torch.bool)},
            ValueError,
            "mask must have shape [4], got [3]",
        ),
    ],
)
def test_bad_arguments(arguments, error, message):
    arguments = {"queries": QUERY, "corpus": CORPUS, "k": 1} | arguments
    with pytest.raises(error) as caught:
        streamed_topk(**arguments)
    assert str(caught.value) == message


class FakeStream:
    """Does what it is given at once, and notes in which order it was given what."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_event(self, event):
        self.log.append((self.name, "waits for", event.recorded))

    def wait_stream(self, other):
        self.log.append((self.name, "waits for", other.name))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


class FakeEvent:
    def __init__(self, log):
        self.log, self.recorded = log, None

    def record(self, stream):
        self.recorded = (
            stream.name,
            sum(line[:2] == (stream.name, "records") for line in self.log),
        )
        self.log.append((stream.name, "records", self.recorded))

    def synchronize(self):
        self.log.append(("host", "waits for", self.recorded))


@pytest.fixture
def fake_cuda(monkeypatch):
    """A GPU of plain CPU memory in the eyes of the streaming module; gives the log of its use."""
    log = []
    current = FakeStream("search", log)
    cuda = SimpleNamespace(
        Event=lambda: FakeEvent(log),
        Stream=lambda: FakeStream("copy", log),
        current_stream=lambda: current,
        stream=lambda stream: stream,
    )

    class FakeTorch:
        def __getattr__(self, name):
            return cuda if name == "cuda" else getattr(torch, name)

        @staticmethod
        def empty(*shape, pin_memory=False, **others):
            made = torch.empty(*shape, **others)
            return made.fill_(torch.nan if made.is_floating_point() else 99)

    monkeypatch.setattr(streaming, "torch", FakeTorch())
    return log


def through_buffers(queries, corpus, k, mask, size):
    best = cosine_topk(queries, corpus[:0], k)
    return streaming._through_buffers(queries, corpus, k, mask, size, best)


@dtypes
@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("share", [None, 0.0, 0.3, 1.0])
def test_the_way_through_buffers(fake_cuda, dtype, size, share):
    corpus, queries = Corpus(random_rows(60, 12, dtype)), torch.randn(3, 12)
    mask = None if share is None else torch.rand(60) < share
    scores, rows = through_buffers(queries, corpus, 15, mask, min(size, 60))
    expected = cosine_topk(queries, corpus, 15, mask=mask)
    width = scores.shape[1]
    assert_same((scores, rows), (expected[0][:, :width], expected[1][:, :width]))
    assert (expected[1][:, width:] == -1).all()


def test_only_allowed_rows_pass_through_buffers(fake_cuda):
    mask = torch.zeros(60, dtype=torch.bool)
    mask[[3, 20, 40, 41]] = True
    through_buffers(torch.randn(1, 4), Corpus(torch.randn(60, 4)), 2, mask, 3)
    assert sum(line[:2] == ("copy", "records") for line in fake_cuda) == 2


def test_copies_and_searches_wait_for_each_other(fake_cuda):
    through_buffers(torch.randn(1, 4), Corpus(torch.randn(50, 4)), 2, None, 10)
    assert fake_cuda[0] == ("copy", "waits for", "search")
    for chunk in range(5):
        copied, searched = ("copy", chunk), ("search", chunk)
        at = fake_cuda.index(("copy", "records", copied))
        assert fake_cuda.index(("search", "waits for", copied)) > at
        assert fake_cuda.index(("search", "records", searched)) > at
        if chunk >= 2:  # its buffers were used two chunks before
            before = fake_cuda[:at]
            assert ("host", "waits for", ("copy", chunk - 2)) in before
            assert ("copy", "waits for", ("search", chunk - 2)) in before


@pytest.mark.gpu
@dtypes
@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("share", [None, 0.2])
def test_on_the_gpu(dtype, pinned, share):
    corpus = Corpus(random_rows(20_011, 96, dtype))
    mask = None if share is None else torch.rand(len(corpus)) < share
    queries = torch.randn(9, 96, device="cuda")
    there = None if mask is None else mask.cuda()
    expected = cosine_topk(queries, corpus.to("cuda"), 50, mask=there)
    source = corpus.pin_memory() if pinned else corpus
    for _ in range(20):
        assert_same(streamed_topk(queries, source, 50, mask=mask, chunk_bytes=100_000), expected)
    assert_same(source.search(queries, 50, mask=mask), expected)


@pytest.mark.gpu
def test_on_a_stream_of_the_caller():
    corpus, queries = Corpus(torch.randn(30_000, 128)), torch.randn(4, 128, device="cuda")
    expected = cosine_topk(queries, corpus.to("cuda"), 10)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = streamed_topk(queries, corpus, 10, chunk_bytes=1 << 20)
    torch.cuda.current_stream().wait_stream(stream)
    assert_same(found, expected)


@pytest.mark.gpu
def test_two_chunks_are_held_on_the_gpu():
    corpus, queries = Corpus(torch.randn(100_000, 256)), torch.randn(4, 256, device="cuda")
    chunk = 4 << 20
    streamed_topk(queries, corpus[:10], 10)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    streamed_topk(queries, corpus, 10, chunk_bytes=chunk)
    workspace = 64 << 20
    assert torch.cuda.max_memory_allocated() - before < 2 * chunk * 1.05 + workspace
