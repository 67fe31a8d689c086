"""`ShardedCorpus` against one corpus."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_kernels import Corpus, ShardedCorpus, cosine_topk


def same(found, expected):
    assert found[0].equal(expected[0])
    if isinstance(expected[1], list):
        assert found[1] == expected[1]
    else:
        assert found[1].equal(expected[1])


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 25), min_size=1, max_size=5),
    batch=st.integers(0, 4),
    k=st.integers(1, 60),
    kind=st.sampled_from(["none", "int", "str"]),
    masked=st.booleans(),
    filtered=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_shards_are_one_corpus(sizes, batch, k, kind, masked, filtered, seed):
    generator = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    # Small integers: many scores tie, also between shards.
    rows = torch.randint(-1, 2, (count, 4), generator=generator).float()
    queries = torch.randint(-1, 2, (batch, 4), generator=generator).float()
    ids = {"none": None, "int": torch.randperm(count), "str": [f"d{row}" for row in range(count)]}
    whole = Corpus(rows, ids=ids[kind])
    bounds = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    sharded = ShardedCorpus([whole[a:b] for a, b in zip(bounds, bounds[1:])])
    arguments = {}
    if masked:
        arguments["mask"] = torch.rand(count, generator=generator) < 0.5
    if filtered and kind != "none":
        wanted = torch.rand(count, generator=generator) < 0.3
        arguments["ids"] = [ids[kind][row] for row in wanted.nonzero()[:, 0].tolist()]
    same(sharded.search(queries, k, **arguments), whole.search(queries, k, **arguments))
    assert len(sharded) == count
    assert sharded.first_rows == tuple(bounds[:-1])


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 9])
def test_split_is_even_and_copies_nothing(parts):
    rows = torch.randn(7, 3)
    sharded = ShardedCorpus.split(Corpus(rows, ids=range(7)), ["cpu"] * parts)
    sizes = [len(shard) for shard in sharded.shards]
    assert sum(sizes) == 7
    assert max(sizes) - min(sizes) <= 1
    for first, shard in zip(sharded.first_rows, sharded.shards):
        assert not len(shard) or shard.rows.data_ptr() == rows[first].data_ptr()
    queries = torch.randn(2, 3)
    same(sharded.search(queries, 5), Corpus(rows).search(queries, 5))
    assert sharded.ids.tolist() == list(range(7))


def test_what_it_tells():
    a, b = Corpus(torch.ones(2, 3), ids=["a", "b"]), Corpus(torch.ones(1, 3), ids=["c"])
    sharded = ShardedCorpus([a, b])
    assert repr(sharded) == "ShardedCorpus(3 × 3 float32: 2 on cpu, 1 on cpu)"
    assert sharded.ids == ("a", "b", "c")
    assert (sharded.width, sharded.dtype) == (3, torch.float32)
    assert sharded.devices == (torch.device("cpu"),) * 2
    assert sharded.nbytes == a.nbytes + b.nbytes
    assert sharded.search(torch.ones(1, 3), 2)[1] == [["a", "b"]]


PLAIN = Corpus(torch.ones(2, 3))


@pytest.mark.parametrize(
    ("shards", "error", "message"),
    [
        ([], ValueError, "shards must hold at least one Corpus, got none"),
        ([PLAIN, torch.ones(2, 3)], TypeError, "shards[1] must be a Corpus, got Tensor"),
        (
            [PLAIN, Corpus(torch.ones(2, 4))],
            ValueError,
            "shards[1] must have the width of shards[0], 3, got 4",
        ),
        (
            [PLAIN, Corpus(torch.ones(2, 3).half())],
            ValueError,
            "shards[1] must have the dtype of shards[0], torch.float32, got torch.float16",
        ),
        (
            [PLAIN, Corpus(torch.ones(2, 3), ids=[1, 2])],
            ValueError,
            "shards must all have int ids, all have str ids or all have none",
        ),
        (
            [Corpus(torch.ones(2, 3), ids=[7, 8]), Corpus(torch.ones(2, 3), ids=[1, 7])],
            ValueError,
            "ids must be unique, got 7 for rows 0 and 3",
        ),
    ],
)
def test_bad_shards(shards, error, message):
    with pytest.raises(error) as caught:
        ShardedCorpus(shards)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"queries": torch.ones(2)}, ValueError, "queries must have shape [B, D], got [2]"),
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"mask": [True]}, TypeError, "mask must be a torch.Tensor, got list"),
        ({"mask": torch.ones(4)}, TypeError, "mask must be bool, got torch.float32"),
        (
            {"mask": torch.ones(2, dtype=torch.bool)},
            ValueError,
            "mask must have shape [4], got [2]",
        ),
        (
            {"ids": [1]},
            ValueError,
            "ids must be None for a corpus without ids; a mask takes row numbers",
        ),
    ],
)
def test_bad_searches(arguments, error, message):
    arguments = {"queries": torch.ones(1, 3), "k": 1} | arguments
    with pytest.raises(error) as caught:
        ShardedCorpus([PLAIN, PLAIN]).search(**arguments)
    assert str(caught.value) == message


def test_more_rows_than_can_be_found():
    sharded = ShardedCorpus.split(Corpus(torch.ones(2049, 1)), ["cpu"] * 2)
    with pytest.raises(ValueError, match=r"^k must be at most 2048, got 2049$"):
        sharded.search(torch.ones(1, 1), 2049)
    few = ShardedCorpus([PLAIN, PLAIN])
    assert few.search(torch.ones(1, 3), 5000)[1].tolist() == [[0, 1, 2, 3]]


def test_split_needs_devices():
    with pytest.raises(ValueError, match=r"^devices must hold at least one device, got none$"):
        ShardedCorpus.split(PLAIN, [])


@pytest.mark.gpu
@pytest.mark.parametrize("queries_on", ["cpu", "cuda"])
def test_on_gpus(queries_on):
    corpus = Corpus(torch.randn(5003, 64), ids=torch.arange(5003) + 9)
    queries = torch.randn(5, 64, device=queries_on)
    count = torch.cuda.device_count()
    on_gpus = ShardedCorpus.split(corpus, [f"cuda:{place % count}" for place in range(3)])
    scores, ids = on_gpus.search(queries, 20)
    expected = cosine_topk(queries.cuda(), corpus.to("cuda"), 20)
    assert scores.device == ids.device == queries.device
    assert scores.equal(expected[0].to(queries.device))
    assert ids.equal(expected[1].to(queries.device) + 9)
    mixed = ShardedCorpus.split(corpus, ["cpu", "cuda"])
    torch.testing.assert_close(mixed.search(queries, 20)[0], scores, rtol=0, atol=2e-5)
    mask = torch.rand(5003) < 0.1
    here = on_gpus.search(queries, 20, mask=mask)
    assert here[0].equal(on_gpus.search(queries, 20, mask=mask.cuda())[0])
