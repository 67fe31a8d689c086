"""Format 3: rows with their own numbers of memory vectors, as floats and as codes."""

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import get_args

import lance
import pyarrow as pa
import pytest
import torch

from clara.config import StorageName
from clara.index import MemoryIndex, MemoryIndexError
from clara.index.header import Header
from clara.index.heads import decode_heads
from clara.index.layout import decode, decode_ranked, decode_texts, encode
from clara.index.snapshot import Snapshot
from clara.index.storage import STORAGES
from clara.memory.documents import CompressedDocuments
from clara_kernels import dequantize_memory, quantize_memory
from tests.clara.index.rows import append_rows

FLOATS = ["float32", "float16", "bfloat16"]
CODES = ["int8", "int4"]
SPANS = {"memory_form": "spans", "compression_rate": 4, "ranking": "mean"}
COUNTS = [3, 1, 2, 5, 1]


def ragged(hidden_size=96, counts=COUNTS, seed=0, dtype=torch.float32, first=0):
    """Documents of memory form "spans" with as many memory tokens as stated, the first wide."""
    generator = torch.Generator().manual_seed(seed)
    memory = torch.zeros(len(counts), max(counts), hidden_size)
    for row, count in enumerate(counts):
        memory[row, :count] = torch.randn(count, hidden_size, generator=generator)
    memory[0, 0] *= 100
    ids = [f"d{first + row}" for row in range(len(counts))]
    return CompressedDocuments(
        memory=memory.to(dtype),
        ids=ids,
        document_ids=ids,
        token_counts=[4 * count - 1 for count in counts],
        texts=[f"text of {name}" for name in ids],
        titles=[None] * len(counts),
        fingerprint="f" * 64,
        counts=list(counts),
    )


def spans_header(storage, hidden_size=96, dtype=torch.float32):
    return Header("f" * 64, 5, hidden_size, dtype, SPANS, identity="1d", storage=storage)


def as_stored(memory, storage, dtype):
    """What memory becomes, by the operators themselves."""
    if storage in FLOATS:
        return memory.to(STORAGES[storage].dtype)
    codes, scales = quantize_memory(memory, bits=int(storage[3:]))
    return dequantize_memory(codes, scales, width=memory.shape[-1], dtype=dtype)


def test_the_names_are_those_of_the_settings():
    assert tuple(STORAGES) == get_args(StorageName)


@pytest.mark.parametrize("hidden_size", [1, 7, 96])  # an odd H leaves half a byte over
@pytest.mark.parametrize("storage", [*FLOATS, *CODES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_documents_come_back_as_they_were_stored(make_index, storage, hidden_size, dtype):
    index = make_index((5, hidden_size), dtype, storage, **SPANS)
    parts = [ragged(hidden_size), ragged(hidden_size, [2, 4], 1, first=5)]
    for part in parts:
        index.add(part)
    expected = CompressedDocuments.concatenate(parts)
    dtype = dtype if storage in CODES else STORAGES[storage].dtype
    for reader in (index, MemoryIndex.open(index.path)):
        assert (reader.dtype, reader.storage) == (dtype, storage)
        found = CompressedDocuments.concatenate(reader)
        assert (found.ids, found.counts) == (expected.ids, expected.counts)
        assert found.memory.dtype == dtype
        for row, count in enumerate(expected.counts):
            vectors = as_stored(expected.memory[row, :count], storage, dtype)
            assert torch.equal(found.memory[row, :count], vectors)
            assert not found.memory[row, count:].any()
        some = reader.get(["d6", "d1", "d6"])
        assert some.counts == [4, 1, 4]
        assert torch.equal(some.memory[0], as_stored(expected.memory[6, :4], storage, dtype))
        assert torch.equal(some.memory[1, :1], found.memory[1, :1])


@pytest.mark.parametrize(("bits", "bound"), [(8, 1 / 127), (4, 1 / 7)])
def test_a_large_vector_costs_its_neighbours_nothing(make_index, bits, bound):
    """Every vector has its own scales, every 64 values in 4 bits."""
    index = make_index((5, 96), storage=f"int{bits}", **SPANS)
    documents = ragged()  # the first vector is 100 times larger
    index.add(documents)
    found = CompressedDocuments.concatenate(index).memory
    error = (found - documents.memory).abs().amax(-1)
    assert (error <= documents.memory.abs().amax(-1) * bound * 0.51).all()


def test_what_is_on_disk_has_no_padding(make_index):
    index = make_index((5, 96), storage="int4", **SPANS)
    index.add(ragged())
    table = lance.dataset(index.path).to_table()
    assert [len(value) for value in table.column("memory").to_pylist()] == [48 * n for n in COUNTS]
    assert [len(value) for value in table.column("scales").to_pylist()] == [8 * n for n in COUNTS]
    assert [len(value) for value in table.column("mean").to_pylist()] == [192] * 5
    assert table.column("vectors").to_pylist() == COUNTS
    assert table.column("text_bytes").to_pylist() == [10] * 5


@pytest.mark.parametrize("storage", [*FLOATS, *CODES])
def test_means_are_of_what_was_given(make_index, storage):
    index = make_index((5, 96), storage=storage, **SPANS)
    documents = ragged()
    index.add(documents)
    means = documents.padded.vectors("mean").to(STORAGES[storage].mean_dtype)
    rows = index._current().corpus.rows
    assert rows.dtype == means.dtype
    torch.testing.assert_close(rows, means)
    queries = documents.padded.vectors("mean")[:, None]
    hits = index.search(queries, 3)
    assert [found[0].id for found in hits] == documents.ids
    scores = torch.nn.functional.cosine_similarity(queries, means.float()[None], dim=-1)
    best = scores.sort(1, descending=True)
    for row, found in enumerate(hits):
        assert [hit.row for hit in found] == best.indices[row, :3].tolist()
        got = torch.tensor([hit.score for hit in found])
        torch.testing.assert_close(got, best.values[row, :3], atol=1e-5, rtol=0)
        assert found[0].memory.shape == (COUNTS[row], 96)


def test_storages_with_means_in_16_bits_rank_alike(tmp_path):
    documents, queries = ragged(), ragged(seed=3).padded.vectors("mean")[:, None]
    rankings = []
    for storage in ("bfloat16", "int8", "int4"):
        index = MemoryIndex.create(
            tmp_path / storage,
            fingerprint="f" * 64,
            memory_tokens=5,
            hidden_size=96,
            storage=storage,
            settings=SPANS,
        )
        index.add(documents)
        found = index.search(queries, 5)
        rankings.append([[(hit.row, hit.score) for hit in hits] for hits in found])
    assert rankings[0] == rankings[1] == rankings[2]


@pytest.mark.parametrize("storage", CODES)
@pytest.mark.parametrize("m", [1, 2])
def test_all_memory_tokens_are_searched_as_they_are_stored(make_index, make_documents, storage, m):
    index = make_index((m, 96), storage=storage)
    documents = make_documents([f"d{n}" for n in range(9)], (m, 96))
    index.add(documents[:4])
    index.add(documents[4:])
    corpus = index._current().corpus
    stored = as_stored(documents.memory, storage, torch.float32).flatten(1)
    if storage == "int8" and m == 1:
        codes, scales = quantize_memory(documents.memory)
        assert torch.equal(corpus.rows, codes[:, 0])
        assert torch.equal(corpus.scales, scales[:, 0])
    else:
        assert torch.equal(corpus.rows, stored)
    queries = documents.memory[[7, 2]] + 0.1
    scores = torch.nn.functional.cosine_similarity(queries.flatten(1)[:, None], stored, dim=-1)
    best = scores.sort(1, descending=True)
    for found, values, rows in zip(index.search(queries, 4), best.values, best.indices.tolist()):
        assert [hit.row for hit in found] == rows[:4]
        got = torch.tensor([hit.score for hit in found])
        torch.testing.assert_close(got, values[:4], atol=1e-4, rtol=0)


def test_codes_of_a_vector_of_zeros(make_index, make_documents):
    index = make_index((1, 8), storage="int8")
    memory = torch.ones(2, 1, 8)
    memory[0] = 0
    index.add(make_documents("ab", memory=memory))
    assert [(hit.id, hit.score) for hit in index.search(torch.ones(1, 8), 2)[0]] == [
        ("b", pytest.approx(1)),
        ("a", 0.0),
    ]
    assert not index.get(["a"]).memory.any()


def test_rows_of_another_number_of_vectors_cannot_be_ranked_by_all_of_them(
    make_index, make_documents
):
    """The number of values differs; ranking by the mean takes any."""
    index = make_index((2, 96), memory_form="spans", compression_rate=4, ranking="flattened")
    index.add(ragged(counts=[2, 2]))
    with pytest.raises(MemoryIndexError, match=r"'d2' has 1 memory tokens; .* needs 2") as caught:
        index.add(ragged(counts=[1], first=2))
    assert "\n" not in str(caught.value)
    assert index.ids() == ["d0", "d1"]
    other = Header("f" * 64, 1, 96, torch.float32, {}, identity="1d", storage="float32")
    batch = encode(other, ragged(counts=[1], first=2))
    snapshot = Snapshot.latest(index.path)
    append_rows(snapshot, pa.record_batch(batch.columns, schema=snapshot.header.schema))
    assert index.get(["d2"]).counts == [1]
    with pytest.raises(MemoryIndexError, match="index: document 'd2' has 1 memory tokens; an ind"):
        index.search(torch.ones(2, 96), 1)


# What is refused


@pytest.mark.parametrize("storage", ["int2", "float64", "", "INT8", 8, ["int8"]])
def test_an_unknown_storage_is_named(tmp_path, storage):
    fields = {"fingerprint": "f", "memory_tokens": 2, "hidden_size": 8, "storage": storage}
    with pytest.raises(ValueError, match="storage must be one of float32, float16, bfloat16, int8"):
        MemoryIndex.create(tmp_path / "index", **fields)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("storage", [*FLOATS, *CODES])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_memory_that_is_not_finite_is_refused(make_index, storage, value):
    index = make_index((5, 96), storage=storage, **SPANS)
    documents = ragged()
    documents.memory[3, 4, 95] = value
    with pytest.raises(MemoryIndexError, match="'d3': memory holds values that are not finite"):
        index.add(documents)
    documents.memory[3, 4, 95] = 0
    documents.memory[1, 3] = torch.nan  # behind its own memory: that is not stored
    index.add(documents)
    assert len(index) == 5


@pytest.mark.parametrize("storage", ["float32", "bfloat16", *CODES])
def test_a_mean_that_is_not_finite_is_refused(make_index, storage):
    """The sum of finite vectors may overflow. Stored, it would end every search of the index."""
    index = make_index((5, 96), storage=storage, **SPANS)
    documents = ragged()
    documents.memory[3, :, 95] = 2e38
    kind = "float32" if storage == "float32" else "bfloat16"
    with pytest.raises(MemoryIndexError, match=f"'d3': the mean .* not finite in {kind}") as caught:
        index.add(documents)
    assert "\n" not in str(caught.value)
    documents.memory[3, :, 95] = 2e37
    index.add(documents)
    assert len(index.search(torch.ones(1, 96), 5)[0]) == 5


def test_one_long_document_does_not_make_batches_large(make_index):
    """A batch is padded to its longest row, so batches of many short rows may not hold it."""
    index = make_index((4096, 96), **SPANS)
    counts = [1] * 199 + [4096]
    documents = ragged(counts=[1] * 200)
    documents = CompressedDocuments(
        memory=documents.memory.expand(200, 4096, 96),
        counts=counts,
        ids=documents.ids,
        document_ids=documents.ids,
        token_counts=[4 * count - 1 for count in counts],
        texts=documents.texts,
        titles=documents.titles,
        fingerprint=documents.fingerprint,
    )
    index.add(documents)
    batches = list(index)
    assert sum(map(len, batches)) == 200
    assert max(batch.memory.nbytes for batch in batches) <= 1 << 26
    assert [count for batch in batches for count in batch.counts] == counts


def changed(batch, column, row):
    """The rows with another value in one of them."""
    values = batch.column(column).to_pylist()
    value = values[row]
    if value is None:
        values[row] = 7
    elif isinstance(value, bytes):
        values[row] = bytes([value[0] ^ 1]) + value[1:]
    elif isinstance(value, str):
        values[row] = chr(ord(value[0]) + 1) + value[1:]
    else:
        values[row] = value + 1
    at = batch.schema.get_field_index(column)
    return batch.set_column(at, batch.schema.field(at), pa.array(values, batch.schema.types[at]))


@pytest.mark.parametrize("storage", ["bfloat16", "int8", "int4"])
def test_every_column_is_covered_by_a_checksum(storage):
    header = spans_header(storage)
    documents = ragged()
    documents.titles[2] = "T"
    batch = encode(header, documents)
    rows = range(5)
    beside = {"text", "memory", "scales", "mean"}
    for column in set(batch.schema.names):
        damaged = changed(batch, column, 2)
        reads = {
            "heads": lambda: decode_heads(header, damaged, rows, "path"),  # noqa: B023
            "texts": lambda: decode_texts(header, damaged, rows, "path"),  # noqa: B023
            "all": lambda: decode(header, damaged, rows, "path"),  # noqa: B023
            "ranked": lambda: decode_ranked(header, damaged, rows, "path"),  # noqa: B023
        }
        if column in beside:
            noticed = {"text": ["texts", "all"], "mean": ["ranked"]}.get(column, ["all"])
        else:
            noticed = list(reads)
        for name, read in reads.items():
            if name in noticed:
                with pytest.raises(MemoryIndexError, match=r"\(row 2\) is damaged"):
                    read()
            else:
                read()


def test_memory_of_another_length_is_damage():
    """Offsets that a flipped byte moved; the checksum of the row next to it does not fit either."""
    header = spans_header("int8")
    batch = encode(header, ragged())
    for column, cut in (("memory", 1), ("memory", 96), ("scales", 4), ("scales", 1)):
        values = batch.column(column).to_pylist()
        values[1] = values[1][:-cut]
        at = batch.schema.get_field_index(column)
        shorter = batch.set_column(at, batch.schema.field(at), pa.array(values, pa.large_binary()))
        with pytest.raises(MemoryIndexError, match=r"'d1' \(row 1\) is damaged"):
            decode(header, shorter, range(5), "path")


@pytest.mark.parametrize("part", ["memory", "scales", "mean"])
def test_a_flipped_byte_in_a_file_names_the_document(make_index, part):
    index = make_index((5, 96), storage="int8", **SPANS)
    documents = ragged()
    index.add(documents)
    value = lance.dataset(index.path).to_table([part]).column(part).to_pylist()[3]
    (file,) = Path(index.path, "data").iterdir()
    data = bytearray(file.read_bytes())
    assert data.count(value) == 1
    data[data.find(value) + len(value) // 2] ^= 0x10
    file.write_bytes(data)
    reader = MemoryIndex.open(index.path)
    assert [text.text for text in reader.texts(["d3"])] == ["text of d3"]
    queries = documents.padded.vectors("mean")[:, None]
    with pytest.raises(MemoryIndexError, match=r"'d3' \(row 3\) is damaged"):
        reader.search(queries, 1)
    if part == "mean":
        assert reader.get(["d3"]).counts == [5]
        return
    with pytest.raises(MemoryIndexError, match=r"'d3' \(row 3\) is damaged"):
        reader.get(["d3"])
    assert reader.search(queries[:1], 1)[0][0].id == "d0"  # means are whole


def test_a_header_without_an_identity_is_refused(tmp_path):
    header = Header("f" * 64, 5, 96, torch.float32, SPANS, storage="int8")
    lance.write_dataset(header.schema.empty_table(), tmp_path / "index")
    with pytest.raises(MemoryIndexError, match="header of the index is damaged"):
        MemoryIndex.open(tmp_path / "index")


def test_names_of_storages_in_a_header_are_checked(tmp_path):
    header = spans_header("int8")
    metadata = dict(header.schema.metadata)
    key = b"clara.memory_index"
    metadata[key] = metadata[key].replace(b'"int8"', b'"int9"')
    lance.write_dataset(header.schema.with_metadata(metadata).empty_table(), tmp_path / "index")
    with pytest.raises(MemoryIndexError, match="header of the index is damaged"):
        MemoryIndex.open(tmp_path / "index")


# Does everything to a folder of its own first, so that all modules are loaded when it becomes
# another user, who may not read them.
NOBODY = """
import os, sys
import torch
from clara.index import MemoryIndex, MemoryIndexError
from clara.index.maintenance import upgrade
from clara.memory.documents import CompressedDocuments

documents = CompressedDocuments(
    torch.ones(1, 1, 96), ["x"], ["x"], [1], ["x"], [None], "f" * 64
)

def use(path):
    index = MemoryIndex.open(path)
    hits = index.search(torch.ones(1, 1, 96), 1)
    print(index.ids(), index.get(["d3"]).counts, len(hits))
    for call in (
        lambda: index.add(documents),
        lambda: upgrade(path, fingerprint="e" * 64),
        lambda: MemoryIndex.create(path + "/new", fingerprint="f", memory_tokens=1, hidden_size=1),
    ):
        try:
            call()
        except MemoryIndexError as error:
            print(error)

use(sys.argv[2])
print("another user")
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
use(sys.argv[1])
"""


@pytest.mark.slow
def test_a_read_only_folder_is_read_and_not_written(make_index, warm, tmp_path):
    index = make_index((5, 96), storage="bfloat16", **SPANS)
    index.add(ragged())
    shutil.copytree(index.path, tmp_path / "copy")
    before = lance.dataset(index.path).version
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
    for path in (tmp_path / "index", *(tmp_path / "index").rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    command = [warm().python, "-c", NOBODY, index.path, str(tmp_path / "copy")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    first, *refused = lines[lines.index("another user") + 1 :]
    assert first == "['d0', 'd1', 'd2', 'd3', 'd4'] [5] 1"
    assert len(refused) == 3
    for line in refused:
        assert line.startswith(index.path)
        assert "ermission denied" in line
    assert lance.dataset(index.path).version == before
