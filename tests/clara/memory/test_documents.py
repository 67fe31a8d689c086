"""Rows of compressed documents: choosing, joining, counting."""

from __future__ import annotations

import pytest
import torch

from clara.memory.documents import CompressedDocuments

FIELDS = ("ids", "document_ids", "token_counts", "texts", "titles")


def documents(count: int = 5, fingerprint: str = "f", first: int = 0) -> CompressedDocuments:
    rows = range(first, first + count)
    return CompressedDocuments(
        memory=torch.arange(6.0 * first, 6.0 * (first + count)).view(count, 2, 3),
        ids=[f"d{i}#0" for i in rows],
        document_ids=[f"d{i}" for i in rows],
        token_counts=[10 + i for i in rows],
        texts=[f"text {i}" for i in rows],
        titles=[None if i % 2 else f"title {i}" for i in rows],
        fingerprint=fingerprint,
    )


def assert_rows(found: CompressedDocuments, whole: CompressedDocuments, rows: list[int]) -> None:
    assert len(found) == len(rows)
    assert found.memory.shape[1:] == whole.memory.shape[1:]
    assert torch.equal(
        found.memory, torch.stack([whole.memory[i] for i in rows]) if rows else found.memory
    )
    for name in FIELDS:
        assert getattr(found, name) == [getattr(whole, name)[i] for i in rows], name
    assert found.fingerprint == whole.fingerprint


@pytest.mark.parametrize(
    ("chosen", "rows"),
    [
        (0, [0]),
        (-1, [4]),
        (slice(1, 4), [1, 2, 3]),
        (slice(None, None, -2), [4, 2, 0]),
        (slice(3, 3), []),
        (slice(3, 99), [3, 4]),
        ([2, 0, 2, -1], [2, 0, 2, 4]),
        ((1,), [1]),
        ([], []),
        (range(4), [0, 1, 2, 3]),
        (torch.tensor([3, 1]), [3, 1]),
    ],
)
def test_rows_are_chosen_in_the_order_asked(chosen, rows):
    whole = documents()
    assert_rows(whole[chosen], whole, rows)


@pytest.mark.parametrize("row", [5, -6, [0, 5], [-6]])
def test_rows_that_are_not_there(row):
    with pytest.raises(IndexError):
        documents()[row]


@pytest.mark.parametrize("mask", [True, [True, False, True, False, False]])
def test_a_mask_is_not_taken_for_positions(mask):
    with pytest.raises(TypeError, match="rows must be positions of rows, not a mask"):
        documents()[mask]


def test_iterating_gives_single_rows():
    whole = documents()
    each = list(whole)
    assert [one.ids for one in each] == [[i] for i in whole.ids]
    assert_rows(CompressedDocuments.concatenate(each), whole, [0, 1, 2, 3, 4])


def test_joining_keeps_the_order():
    parts = [documents(2), documents(0, first=2), documents(3, first=2)]
    assert_rows(CompressedDocuments.concatenate(iter(parts)), documents(5), [0, 1, 2, 3, 4])


def test_joining_nothing_or_two_models_is_refused():
    with pytest.raises(ValueError, match="parts is empty: nothing to concatenate"):
        CompressedDocuments.concatenate([])
    with pytest.raises(ValueError, match="parts come from 2 different models"):
        CompressedDocuments.concatenate([documents(), documents(fingerprint="g")])


@pytest.mark.parametrize("name", FIELDS)
def test_lists_of_another_length_are_refused(name):
    whole = documents()
    fields = {n: getattr(whole, n) for n in (*FIELDS, "memory", "fingerprint")}
    with pytest.raises(ValueError, match=f"{name} has 4 entries for 5 memories"):
        CompressedDocuments(**{**fields, name: fields[name][:4]})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ids", 1.0, r"ids\[3\] must be a string, got 1.0"),
        ("document_ids", None, r"document_ids\[3\] must be a string, got None"),
        ("token_counts", True, r"token_counts\[3\] must be a whole number, got True"),
        ("token_counts", 1.5, r"token_counts\[3\] must be a whole number, got 1.5"),
        ("texts", b"a", r"texts\[3\] must be a string, got b'a'"),
        ("titles", float("nan"), r"titles\[3\] must be a string or None, got nan"),
    ],
)
def test_entries_of_another_type_are_refused(name, value, message):
    whole = documents()
    fields = {n: list(getattr(whole, n)) for n in FIELDS}
    fields[name][3] = value
    with pytest.raises(TypeError, match=message):
        CompressedDocuments(whole.memory, **fields, fingerprint="f")


def test_memory_of_other_dimensions_is_refused():
    whole = documents()
    fields = {n: getattr(whole, n) for n in (*FIELDS, "fingerprint")}
    with pytest.raises(ValueError, match=r"memory must be \[N, m, H\], got shape \[5, 6\]"):
        CompressedDocuments(memory=whole.memory.flatten(1), **fields)


def test_effective_compression_counts_what_was_read():
    assert documents(3).effective_compression == (10 + 11 + 12) / (3 * 2)
    assert documents(0).effective_compression == 0.0
