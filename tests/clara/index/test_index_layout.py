import hashlib
import struct
from dataclasses import replace

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch

from clara.index import MemoryIndex, MemoryIndexError
from clara.index.header import Header
from clara.index.layout import encode
from clara.memory.documents import CompressedDocuments

OLDER = Header("f" * 64, 1, 2, torch.float32, {"rate": 16})
HEADER = replace(OLDER, identity="1d")


def row(**fields):
    """One document to store."""
    fields = {
        "memory": torch.ones(1, 1, 2),
        "ids": ["a"],
        "document_ids": ["a"],
        "token_counts": [5],
        "texts": ["t"],
        "titles": [None],
    } | fields
    return CompressedDocuments(**fields, fingerprint="f" * 64)


def digest(**fields):
    return encode(OLDER, row(**fields)).column("row_digest")[0].as_py()


def prefixed(value):
    return struct.pack("<q", len(value)) + value


def test_digests_are_what_the_layout_says():
    document = row(titles=["T"], document_ids=["d\u00fc"])
    older, batch = encode(OLDER, document), encode(HEADER, document)
    sequence = struct.pack("<q", batch.column("sequence")[0].as_py())
    body = hashlib.blake2b(
        prefixed(b"t") + prefixed(struct.pack("<2f", 1, 1)), digest_size=16, person=b"clara.body"
    ).digest()
    head = b"".join(map(prefixed, [b"a", "d\u00fc".encode(), b"T", struct.pack("<q", 5), body]))
    for stored, fields in ((older, head), (batch, head + prefixed(sequence))):
        assert stored.column("body_digest")[0].as_py() == body
        assert (
            stored.column("row_digest")[0].as_py()
            == hashlib.blake2b(fields, digest_size=16, person=b"clara.row").digest()
        )


def test_a_sequence_says_which_rows_were_added_together_and_in_which_order():
    documents = row(
        memory=torch.ones(3, 1, 2),
        ids=list("abc"),
        document_ids=list("abc"),
        token_counts=[1, 2, 3],
        texts=list("abc"),
        titles=[None] * 3,
    )
    one, two = (encode(HEADER, documents).column("sequence").to_pylist() for _ in range(2))
    for sequence in (one, two):
        assert [number & 0xFFFFFFFF for number in sequence] == [0, 1, 2]
        assert len({number >> 32 for number in sequence}) == 1
        assert min(sequence) >= 0
    assert one[0] >> 32 != two[0] >> 32
    assert "sequence" not in encode(OLDER, documents).schema.names


def test_every_field_and_boundary_changes_the_digest():
    variants = [
        {},
        {"ids": ["b"]},
        {"ids": ["ab"], "document_ids": ["c"]},
        {"ids": ["a"], "document_ids": ["bc"]},
        {"ids": [""], "document_ids": ["abc"]},
        {"titles": [""]},
        {"titles": ["t"], "texts": [""]},
        {"titles": [None], "texts": [""]},
        {"texts": ["tt"]},
        {"texts": ["t\0"]},
        {"token_counts": [6]},
        {"token_counts": [5 + 256]},
        {"memory": -torch.ones(1, 1, 2)},
        {"memory": torch.tensor([[[1.0, 1 + 2**-23]]])},
        {"memory": torch.tensor([[[0.0, 1.0]]])},
        {"memory": torch.tensor([[[-0.0, 1.0]]])},
    ]
    assert len({digest(**variant) for variant in variants}) == len(variants)


def test_columns_are_readable_without_this_library(tmp_path):
    index = MemoryIndex.create(
        tmp_path / "index", fingerprint="f" * 64, memory_tokens=1, hidden_size=2
    )
    index.add(row(memory=torch.tensor([[[0.5, -2.0]]]), titles=["T"]))
    table = lance.dataset(index.path).to_table(["id", "document_id", "title", "text", "tokens"])
    assert table.to_pylist() == [
        {"id": "a", "document_id": "a", "title": "T", "text": "t", "tokens": 5}
    ]
    memory = lance.dataset(index.path).to_table(["memory"]).column("memory")
    assert memory.type == pa.list_(pa.float32(), 2)
    assert memory.to_pylist() == [[0.5, -2.0]]


def test_bfloat16_is_stored_as_its_bits():
    header = Header("f" * 64, 1, 2, torch.bfloat16, {})
    memory = encode(header, row(memory=torch.tensor([[[1.0, -2.0]]]))).column("memory")
    assert memory.type == pa.list_(pa.uint16(), 2)
    assert memory.to_pylist() == [[0x3F80, 0xC000]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_header_is_read_back(dtype):
    header = Header("abc", 3, 5, dtype, {"a": [1, None, {"b": "\u00fc"}]})
    for each in (header, replace(header, identity="of its own")):
        assert Header.from_schema(each.schema, "path") == each
        assert each.is_like(header)
    assert (header.format_version, each.format_version) == (1, 2)
    assert not each.is_like(replace(header, hidden_size=6))


def test_a_header_takes_integers_of_numpy_and_names_of_dtypes():
    header = Header("abc", np.int64(3), np.int32(5), "bfloat16", {})
    assert header == Header("abc", 3, 5, torch.bfloat16, {})
    assert Header.from_schema(header.schema, "path") == header


def with_header(old, new, key=b"clara.memory_index"):
    metadata = dict(HEADER.schema.metadata)
    assert old in metadata[key]
    metadata[key] = metadata[key].replace(old, new)
    return HEADER.schema.with_metadata(metadata)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (HEADER.schema.remove_metadata(), "a Lance dataset, but not an index of clara"),
        (with_header(b'"format_version": 2', b'"format_version": 3'), "version 3 is newer .*: upg"),
        (with_header(b'"format_version": 2', b'"format_version": 1'), "header .* is damaged"),
        (with_header(b'"format_version": 2', b'"format_version": "x"'), "header .* is damaged"),
        (with_header(b'"identity": "1d"', b'"identity": "1e"'), "header .* is damaged"),
        (with_header(b'"identity": "1d"', b'"identity": 1'), "header .* is damaged"),
        (with_header(b"ffff", b"fffe"), "header .* is damaged"),
        (with_header(b'"rate": 16', b'"rate": 17'), "header .* is damaged"),
        (with_header(b'"hidden_size"', b'"hidden_sizf"'), "header .* is damaged"),
        (with_header(b"float32", b"float33"), "header .* is damaged"),
        (with_header(b"{", b"["), "header .* is damaged"),
        (with_header(b"rate", b"\x00"), "header .* is damaged"),
        (HEADER.schema.remove(0), "columns do not fit"),
        (HEADER.schema.set(0, HEADER.schema.field(0).remove_metadata()), "columns do not fit"),
        (OLDER.schema.append(pa.field("sequence", pa.int64())), "columns do not fit"),
        (HEADER.schema.append(pa.field("more", pa.int8())), "columns do not fit"),
    ],
)
def test_a_header_that_does_not_hold_is_refused(tmp_path, schema, reason):
    lance.write_dataset(schema.empty_table(), tmp_path / "index")
    with pytest.raises(MemoryIndexError, match=reason) as caught:
        MemoryIndex.open(tmp_path / "index")
    assert str(caught.value).startswith(f"{tmp_path / 'index'}: ")
    assert "\n" not in str(caught.value)
