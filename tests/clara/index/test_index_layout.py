import hashlib
import secrets
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
SECOND = replace(OLDER, identity="1d")
HEADER = replace(SECOND, storage="float32")
MEANS = replace(HEADER, settings={"ranking": "mean"}, storage="int8")


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


def digest(header, **fields):
    return encode(header, row(**fields)).column("row_digest")[0].as_py()


def prefixed(value):
    return struct.pack("<q", -1) if value is None else struct.pack("<q", len(value)) + value


def hashed(label, *fields):
    return hashlib.blake2b(b"".join(map(prefixed, fields)), digest_size=16, person=label).digest()


def int64(value):
    return struct.pack("<q", value)


def test_digests_are_what_the_layout_says():
    document = row(titles=["T"], document_ids=["d\u00fc"])
    names = b"a", "d\u00fc".encode(), b"T"
    memory = struct.pack("<2f", 1, 1)
    body = hashed(b"clara.body", b"t", memory)
    for header in (OLDER, SECOND):
        stored = encode(header, document)
        ordered = "sequence" in stored.schema.names
        order = [int64(stored.column("sequence")[0].as_py())] if ordered else []
        assert stored.column("body_digest")[0].as_py() == body
        assert stored.column("row_digest")[0].as_py() == hashed(
            b"clara.row", *names, int64(5), body, *order
        )
    for header in (HEADER, MEANS):
        stored = encode(header, document)
        found = {name: stored.column(name)[0].as_py() for name in stored.schema.names}
        digests = [
            hashed(b"clara.row.text", b"t"),
            hashed(b"clara.memory", memory, None)
            if header is HEADER
            else hashed(b"clara.memory", bytes([127] * 2), np.float32([1 / 127]).tobytes()),
            hashed(b"clara.mean", bytes.fromhex("803f803f")) if header is MEANS else None,
        ]
        columns = ("text_digest", "memory_digest", "mean_digest")
        assert [found.get(name) for name in columns] == digests
        assert found["row_digest"] == hashed(
            b"clara.row.3",
            *(*names, int64(5), int64(1), int64(1)),
            *digests,
            int64(found["sequence"]),
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


@pytest.mark.parametrize("header", [OLDER, HEADER, MEANS])
def test_every_field_and_boundary_changes_the_digest(monkeypatch, header):
    monkeypatch.setattr(secrets, "randbits", lambda count: 1)
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
        {"memory": torch.tensor([[[0.0, 1.0]]])},
        {"memory": torch.tensor([[[1.0, 1 + 2**-23]]])},
        {"memory": torch.tensor([[[-0.0, 1.0]]])},
    ]
    if header is MEANS:  # in which the last two are equal to others
        variants[-2:] = [{"memory": torch.tensor([[[1.0, 1.5]]])}]
    assert len({digest(header, **variant) for variant in variants}) == len(variants)


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
    assert memory.type == pa.large_binary()
    assert memory.to_pylist() == [np.float32([0.5, -2.0]).tobytes()]


def test_lists_of_values_in_earlier_formats():
    memory = encode(SECOND, row(memory=torch.tensor([[[0.5, -2.0]]]))).column("memory")
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
    second = replace(header, identity="of its own")
    newest = replace(second, storage=header.dtype_name)
    for each in (header, second, newest):
        assert Header.from_schema(each.schema, "path") == each
        assert each.is_like(header)
        assert not each.is_like(replace(header, hidden_size=6))
    assert [each.format_version for each in (header, second, newest)] == [1, 2, 3]
    quantized = replace(second, storage="int8")
    assert Header.from_schema(quantized.schema, "path") == quantized
    assert not quantized.is_like(newest)


def test_a_header_takes_integers_of_numpy_and_names_of_dtypes():
    header = Header("abc", np.int64(3), np.int32(5), "bfloat16", {})
    assert header == Header("abc", 3, 5, torch.bfloat16, {})
    assert Header.from_schema(header.schema, "path") == header


def with_header(old, new, key=b"clara.memory_index", header=SECOND):
    metadata = dict(header.schema.metadata)
    assert old in metadata[key]
    metadata[key] = metadata[key].replace(old, new)
    return header.schema.with_metadata(metadata)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (HEADER.schema.remove_metadata(), "a Lance dataset, but not an index of clara"),
        (with_header(b'"format_version": 2', b'"format_version": 4'), "version 4 is newer .*: upg"),
        (with_header(b'"format_version": 2', b'"format_version": 3'), "header .* is damaged"),
        (with_header(b'"storage": "float32"', b'"storage": "int8"', header=HEADER), "is damaged"),
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
        (SECOND.schema.remove(0), "columns do not fit"),
        (MEANS.schema.with_metadata(HEADER.schema.metadata), "columns do not fit"),
        (SECOND.schema.set(0, SECOND.schema.field(0).remove_metadata()), "columns do not fit"),
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_means_are_those_of_each_row_alone(dtype):
    """To the bit, whatever is stored with it."""
    torch.manual_seed(0)
    counts = [5, 1, 9, 5, 17, 3, 17, 2]
    header = Header("f" * 64, 17, 7, torch.float32, {"ranking": "mean"}, storage="float32")
    memory = torch.randn(len(counts), 17, 7).to(dtype)
    for row, count in enumerate(counts):
        memory[row, count:] = 0
    names = [f"d{number}" for number in range(len(counts))]
    documents = CompressedDocuments(
        memory, names, names, [5] * 8, names, [None] * 8, "f" * 64, counts=counts
    )
    stored = encode(header, documents).column("mean").to_pylist()
    for row, count in enumerate(counts):
        expected = memory[row, :count].mean(0, dtype=torch.float32)
        assert stored[row] == expected.numpy().tobytes()


def test_rows_keep_what_was_given():
    """Whoever gave the memory may use its place again."""
    given = row(memory=torch.ones(1, 1, 2))
    stored = encode(HEADER, given)
    given.memory.zero_()
    assert stored.column("memory")[0].as_py() == struct.pack("<2f", 1, 1)
