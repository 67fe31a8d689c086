"""Bytes of an index by the formula of `clara.index.sizing`, and on disk."""

import re
from datetime import timedelta
from pathlib import Path

import lance
import pytest
import torch

from clara.index import MemoryIndex
from clara.index.sizing import DETAILS_BYTES, MEAN_BYTES, ROW_BYTES, SCALES_BYTES, index_bytes
from clara.index.storage import STORAGES
from clara.memory.documents import CompressedDocuments

PAGE = Path(__file__).resolve().parents[3] / "docs" / "sizing.md"


def documents(first, count, most, hidden_size, ragged):
    """Documents with texts that a compressor would make much of."""
    rows = range(first, first + count)
    counts = [1 + row % most for row in rows] if ragged else [most] * count
    names = [f"country/section/{row}" for row in rows]
    return CompressedDocuments(
        memory=torch.randn(count, most, hidden_size),
        ids=names,
        document_ids=names,
        token_counts=[4 * each for each in counts],
        texts=[f"Text {row} of a country. " * (5 + row % 30) for row in rows],
        titles=[f"Country {row}" if row % 2 else None for row in rows],
        fingerprint="f" * 64,
        counts=counts,
    )


@pytest.mark.parametrize("storage", [*STORAGES])
@pytest.mark.parametrize(("most", "hidden_size", "ragged"), [(1, 64, False), (9, 65, True)])
def test_an_index_takes_what_the_formula_says(tmp_path, storage, most, hidden_size, ragged):
    """After files were joined and old versions removed."""
    spans = {"memory_form": "spans", "compression_rate": 4, "ranking": "mean"}
    index = MemoryIndex.create(
        tmp_path / "index",
        fingerprint="f" * 64,
        memory_tokens=most,
        hidden_size=hidden_size,
        storage=storage,
        settings=spans if ragged else {},
    )
    for first in range(0, 1200, 400):
        index.add(documents(first, 400, most, hidden_size, ragged))
    before = index.info()
    dataset = lance.dataset(index.path)
    dataset.optimize.compact_files()
    lance.dataset(index.path).cleanup_old_versions(timedelta(0), delete_unverified=True)
    found = index.info()
    assert found["bytes_per_document"] < before["bytes_per_document"]
    assert found["expected_bytes_per_document"] == before["expected_bytes_per_document"]
    assert found["bytes_per_document"] == found["bytes"] / 1200
    share = found["bytes_per_document"] / found["expected_bytes_per_document"]
    assert share == pytest.approx(1, abs=0.03)
    last = documents(800, 400, most, hidden_size, ragged)
    assert index.get([last.ids[-1]]).texts == last.texts[-1:]
    assert index.ids()[800:] == last.ids


def test_chunks_count_for_their_document(make_index, make_documents):
    index = make_index((2, 8))
    index.add(make_documents(["a#0", "a#1", "a#2", "b"]))
    info = index.info()
    assert (info["count"], info["documents"], info["vectors"]) == (4, 2, 8)
    strings = 3 * 3 + 1 + 4 + len("title of a#2") + 3 * 17 + 15
    assert info["expected_bytes_per_document"] == (4 * 110 + 8 * 32 + strings) / 2


def test_the_page_states_the_formula():
    text = PAGE.read_text(encoding="utf-8")
    for line in (
        f"rows · ({ROW_BYTES} + S + M + D)",
        f"| {ROW_BYTES} | of a row",
        f"| S | {SCALES_BYTES} with storage `int8`",
        f"| M | {MEAN_BYTES} + the mean",
        f"| D | {DETAILS_BYTES} in an index with",
    ):
        assert line in text


def test_the_table_of_the_page_is_what_the_formula_gives():
    text = PAGE.read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if re.match(r"\| \d+ \| \d", line)
    ]
    names = list(STORAGES)
    assert len(rows) == 9
    for m, hidden_size, *cells in rows:
        assert len(cells) == len(names)
        for name, cell in zip(names, cells):
            expected = index_bytes(
                STORAGES[name],
                int(hidden_size.replace(",", "")),
                rows=1,
                vectors=int(m),
                string_bytes=1000,
                with_means=True,
            )
            assert int(cell.replace(",", "")) == expected
