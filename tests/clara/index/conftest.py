import zlib

import pytest
import torch

from clara.index import MemoryIndex, build, locks, ranking
from clara.index.build import write_empty
from clara.index.header import Header
from clara.index.layout import encode
from clara.index.snapshot import Snapshot
from clara.memory.documents import CompressedDocuments
from tests.clara.index.made_views import FEW, SHAPE, memory
from tests.clara.index.rows import append_rows

FINGERPRINT = "f" * 64


@pytest.fixture
def make_documents():
    """Compressed documents with texts and memory of their own, the same for the same arguments."""

    def make(ids, shape=(2, 8), dtype=torch.float32, fingerprint=FINGERPRINT, memory=None):
        ids = list(ids)
        if memory is None:
            memory = torch.empty(len(ids), *shape)
            for row, name in enumerate(ids):
                seed = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                memory[row].normal_(generator=seed)
        return CompressedDocuments(
            memory=memory.to(dtype),
            ids=ids,
            document_ids=[name.split("#")[0] for name in ids],
            token_counts=[10 + row for row in range(len(ids))],
            texts=[f"text of {name}: \u00fc\0\n" for name in ids],
            titles=[[None, "", f"title of {name}"][row % 3] for row, name in enumerate(ids)],
            fingerprint=fingerprint,
        )

    return make


@pytest.fixture
def make_index(tmp_path):
    """An empty index in `tmp_path / "index"`."""

    def make(
        shape=(2, 8), dtype=torch.float32, storage=None, columns=None, name="index", **settings
    ):
        return MemoryIndex.create(
            tmp_path / name,
            fingerprint=FINGERPRINT,
            memory_tokens=shape[0],
            hidden_size=shape[1],
            dtype=dtype,
            storage=storage,
            columns=columns,
            settings=settings,
        )

    return make


@pytest.fixture
def make_older(tmp_path):
    """An empty index of format 1, as version 0.1.0 made them, in `tmp_path / "older"`."""

    def make(name="older", shape=(2, 8), dtype=torch.float32, fingerprint=FINGERPRINT, **settings):
        header = Header(fingerprint, *shape, dtype, settings)
        write_empty(header, str(tmp_path / name))
        return MemoryIndex.open(tmp_path / name)

    return make


@pytest.fixture
def make_second(tmp_path):
    """An empty index of format 2 in `tmp_path / "second"`."""

    def make(name="second", shape=(2, 8), dtype=torch.float32, fingerprint=FINGERPRINT, **settings):
        header = Header(fingerprint, *shape, dtype, settings, identity=f"identity of {name}")
        write_empty(header, str(tmp_path / name))
        return MemoryIndex.open(tmp_path / name)

    return make


@pytest.fixture
def store_again():
    """Append documents whatever their ids, as writers without a lock did in format 1."""

    def store(index, documents):
        snapshot = Snapshot.latest(index.path)
        append_rows(snapshot, encode(snapshot.header, documents))

    return store


@pytest.fixture
def assert_same():
    """Two CompressedDocuments are equal, memory to the bit."""

    def check(left, right):
        for name in ("ids", "document_ids", "token_counts", "texts", "titles", "fingerprint"):
            assert getattr(left, name) == getattr(right, name), name
        assert left.memory.dtype == right.memory.dtype
        assert left.memory.shape == right.memory.shape
        assert torch.equal(left.memory.view(torch.uint8), right.memory.view(torch.uint8))

    return check


@pytest.fixture
def filled(make_index, make_documents):
    """An index of many documents, in three commits."""

    def fill(count=FEW, shape=SHAPE, **given):
        index = make_index(shape, **given)
        ids = [f"d{number}" for number in range(count)]
        values = memory(count, shape)
        for part in (slice(0, count // 2), slice(count // 2, count - 7), slice(count - 7, None)):
            index.add(make_documents(ids[part], shape, memory=values[part]))
        return index

    return fill


@pytest.fixture
def no_ram(monkeypatch):
    """Vectors are not read into RAM."""
    monkeypatch.setattr(ranking, "nearest", None)


@pytest.fixture(params=["appended", "compared by Lance"])
def before_insertion(request, monkeypatch, blind_locks):
    """Has something done once, just before rows are inserted in each of the two ways."""

    def arrange(happen):
        compared = request.param == "compared by Lance"
        name = "_execute" if compared else "_committed"
        plain = getattr(build, name)

        def late(*arguments):
            monkeypatch.undo()  # the next try is as always
            happen()
            return plain(*arguments)

        monkeypatch.setattr(build, name, late)
        if compared:
            monkeypatch.setattr(locks.WriterLock, "_locked", lambda *_: None)

    return arrange
