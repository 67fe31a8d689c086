"""Files that cannot be written whole, as on a full disk."""

import os
import re
import resource
import shutil
import subprocess
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from clara.index import MemoryIndex, MemoryIndexError, locks
from clara.index.joining import require_whole
from clara.index.maintenance import upgrade
from clara.index.snapshot import Snapshot

PROGRAM = """
import resource, signal, sys
from clara.index import MemoryIndex, MemoryIndexError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
index = MemoryIndex.open(sys.argv[1])
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), hard))
try:
    index.compact()
except MemoryIndexError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_file_that_is_cut_off_is_not_committed(make_index, make_documents, warm):
    """In a process of its own, as limits are of a process."""
    index = make_index()
    for number in range(4):
        index.add(make_documents([f"{number}-{row}" for row in range(20)]))
    before, names = index.ids(), sorted(os.listdir(os.path.join(index.path, "data")))
    sizes = [os.path.getsize(os.path.join(index.path, "data", name)) for name in names]
    for limit in (max(sizes), 2 * max(sizes)):  # bytes: all that is joined takes more
        result = subprocess.run(
            [warm().python, "-c", PROGRAM, index.path, str(limit)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout.count("\n") == 1, result.stderr
        assert result.stdout.startswith(f"{index.path}: ")
        again = MemoryIndex.open(index.path)
        assert again.ids() == before
        assert [row for batch in again for row in batch.ids] == before
        assert list(again.verify()) == []
        assert sorted(os.listdir(os.path.join(index.path, "data"))) == names
    assert index.compact().written == 1
    assert MemoryIndex.open(index.path).ids() == before


def test_the_file_is_named(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.lance").write_bytes(b"12345")
    file = SimpleNamespace(path="a.lance", file_size_bytes=5)
    require_whole(str(tmp_path), [SimpleNamespace(files=[file])])
    file.file_size_bytes = 9
    with pytest.raises(
        MemoryIndexError, match=r"data/a\.lance: only 5 of 9 bytes could be written"
    ):
        require_whole(str(tmp_path), [SimpleNamespace(files=[file])])


def version_of(index):
    return Snapshot.latest(index.path).version


@contextmanager
def a_byte_short(path):
    """Files can be as large as the largest one of an index but for one byte."""
    data = os.path.join(path, "data")
    largest = max(os.path.getsize(os.path.join(data, name)) for name in os.listdir(data))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


CUT = r"data/\S+\.lance: only \d+ of \d+ bytes could be written; is the disk full\?"


@pytest.mark.parametrize("method", ["add", "upsert"])
def test_appended_rows_that_were_cut_off_are_not_committed(
    make_index, make_documents, assert_same, method
):
    """At the end of a file Lance takes no notice of a full disk."""
    index = make_index()
    first, second = (make_documents([f"{n}{row}" for row in range(300)]) for n in "ab")
    index.add(first)
    files, version = sorted(os.listdir(os.path.join(index.path, "data"))), version_of(index)
    with a_byte_short(index.path), pytest.raises(MemoryIndexError, match=CUT) as caught:
        getattr(index, method)(second)
    assert str(caught.value).startswith(f"{index.path}: data/")
    assert sorted(os.listdir(os.path.join(index.path, "data"))) == files
    for each in (index, MemoryIndex.open(index.path)):
        assert (version_of(each), each.ids()) == (version, first.ids)
    getattr(index, method)(second)
    assert_same(MemoryIndex.open(index.path).get(second.ids), second)


@pytest.mark.parametrize("method", ["add", "upsert"])
def test_compared_rows_that_were_cut_off_are_reported(
    make_index, make_documents, assert_same, monkeypatch, method
):
    """The version is there; the one before it is named, and can be restored."""
    monkeypatch.setattr(locks.WriterLock, "_locked", lambda *_: None)
    index = make_index()
    first, second = (make_documents([f"{n}{row}" for row in range(300)]) for n in "ab")
    index.add(first)
    version = version_of(index)
    given = second if method == "add" else first
    remedy = f"run 'clara index restore {index.path} {version}'$"
    with a_byte_short(index.path), pytest.raises(MemoryIndexError, match=CUT) as caught:
        getattr(index, method)(given)
    assert re.search(remedy, str(caught.value))
    index.restore(version)
    assert_same(MemoryIndex.open(index.path).get(first.ids), first)
    getattr(index, method)(given)
    assert_same(MemoryIndex.open(index.path).get(given.ids), given)


def test_rows_of_format_1_that_were_cut_off_are_not_committed(make_older, make_documents):
    index = make_older()
    first, second = (make_documents([f"{n}{row}" for row in range(300)]) for n in "ab")
    index.add(first)
    with a_byte_short(index.path), pytest.raises(MemoryIndexError, match=CUT):
        index.add(second)
    assert MemoryIndex.open(index.path).ids() == first.ids
    index.add(second)
    assert MemoryIndex.open(index.path).get(second.ids).ids == second.ids


def test_an_upgrade_that_was_cut_off_is_not_committed(make_older, make_documents, tmp_path):
    index = make_older()
    documents = make_documents([f"a{row}" for row in range(300)])
    index.add(documents)
    data = os.path.join(index.path, "data")
    files, copy = sorted(os.listdir(data)), str(tmp_path / "copy")
    shutil.copytree(index.path, copy)
    upgrade(copy)
    with a_byte_short(copy), pytest.raises(MemoryIndexError, match=CUT):
        upgrade(index.path)
    assert sorted(os.listdir(data)) == files
    assert upgrade(index.path).changed
    assert MemoryIndex.open(index.path).get(documents.ids).ids == documents.ids
