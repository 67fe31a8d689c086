"""Indexes of formats 1 and 2, in folders that earlier code wrote: tests/data/indexes.

Each has five documents `d0` to `d4`, H is 4, and the value `at` of vector `n` of document `row` is
`0.5 * at + row - 4 * n`. "flattened" has three vectors of each in float32, "spans" has 1, 3, 2, 2
and 1 in bfloat16.
"""

import shutil
from pathlib import Path

import lance
import pytest
import torch

from clara.index import DuplicateIdError, MemoryIndex
from clara.index.maintenance import upgrade
from clara.memory.documents import CompressedDocuments

FOLDERS = Path(__file__).resolve().parents[2] / "data" / "indexes"
FORMATS = [1, 2]
KINDS = ["flattened", "spans"]
DTYPES = {"flattened": torch.float32, "spans": torch.bfloat16}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=FORMATS)
def folder(request, kind, tmp_path):
    """A copy of one of the folders."""
    return shutil.copytree(FOLDERS / f"format_{request.param}_{kind}", tmp_path / "index")


def documents(kind, first=0, last=5, fingerprint="f" * 64):
    """What the folders hold, and more."""
    counts, tokens = [3] * 5, [3, 12, 7, 8, 1]
    if kind == "spans":
        counts = [1, 3, 2, 2, 1]
    rows = range(first, last)
    memory = torch.zeros(len(rows), 3, 4)
    for place, row in enumerate(rows):
        for n in range(counts[row % 5]):
            memory[place, n] = torch.arange(4) * 0.5 + row - 4 * n
    places = [row if row < 3 else row - 3 for row in rows]  # in the two additions
    ids = [f"d{row}#0" if place % 3 == 1 else f"d{row}" for row, place in zip(rows, places)]
    return CompressedDocuments(
        memory=memory.to(DTYPES[kind]),
        ids=ids,
        document_ids=[name.split("#")[0] for name in ids],
        token_counts=[tokens[row % 5] for row in rows],
        texts=[f"text of {name}: ü\0\n" for name in ids],
        titles=[[None, "", f"title of {name}"][place % 3] for place, name in zip(places, ids)],
        fingerprint=fingerprint,
        counts=[counts[row % 5] for row in rows],
    )


def check(index, kind, expected, assert_same):
    """An index holds the documents, and finds each by its own memory."""
    assert_same(CompressedDocuments.concatenate(index), expected)
    assert_same(index.get(["d4#0", "d0"]), expected[[4, 0]])
    assert [row.text for row in index.texts(["d2", "d1#0"])] == [
        expected.texts[2],
        expected.texts[1],
    ]
    rule = "mean" if kind == "spans" else "flattened"
    vectors = expected.padded.vectors(rule).double()
    cosines = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
    best = cosines.sort(1, descending=True)
    for row, hits in enumerate(index.search(expected.padded.queries(rule), 2)):
        assert [hit.row for hit in hits] == best.indices[row, :2].tolist()
        got = torch.tensor([hit.score for hit in hits], dtype=torch.float64)
        torch.testing.assert_close(got, best.values[row, :2], atol=1e-5, rtol=0)
        for hit in hits:
            assert torch.equal(hit.memory, expected.memory[hit.row, : expected.counts[hit.row]])


def test_they_are_read_and_added_to_as_before(folder, kind, assert_same):
    index = MemoryIndex.open(folder)
    number = index.info()["format_version"]
    assert number in (1, 2)
    assert index.info()["expected_bytes_per_document"] is None
    assert index.info()["vectors"] == (9 if kind == "spans" else 15)
    assert index.storage == ("bfloat16" if kind == "spans" else "float32")
    check(index, kind, documents(kind), assert_same)
    index.add(documents(kind, 5, 7))
    with pytest.raises(DuplicateIdError):
        index.add(documents(kind, 6, 8))
    reader = MemoryIndex.open(folder)
    assert reader.info()["format_version"] == number
    check(reader, kind, documents(kind, 0, 7), assert_same)


def test_they_are_upgraded(folder, kind, assert_same):
    handle = MemoryIndex.open(folder)
    assert len(handle) == 5
    new = "a" * 64
    assert upgrade(folder, fingerprint=new).changed
    for index in (handle, MemoryIndex.open(folder)):
        assert index.info()["format_version"] == 3
        if kind == "spans":  # whose means are in bfloat16 now
            assert index.info()["vectors"] == 9
            expected = documents(kind, fingerprint=new)
            assert_same(CompressedDocuments.concatenate(index), expected)
        else:
            check(index, kind, documents(kind, fingerprint=new), assert_same)
    handle.add(documents(kind, 5, 7, fingerprint=new))
    assert MemoryIndex.open(folder).ids() == documents(kind, 0, 7).ids


def test_padding_is_gone_after_an_upgrade(tmp_path):
    folder = shutil.copytree(FOLDERS / "format_2_spans", tmp_path / "index")
    before = lance.dataset(folder).to_table(["memory"]).column("memory").to_pylist()
    upgrade(folder)
    after = lance.dataset(folder).to_table(["memory", "vectors"])
    assert {len(values) for values in before} == {12}
    assert after.column("vectors").to_pylist() == [1, 3, 2, 2, 1]
    assert [len(value) for value in after.column("memory").to_pylist()] == [8, 24, 16, 16, 8]
