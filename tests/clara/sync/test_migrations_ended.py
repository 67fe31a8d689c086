"""Migrations that are killed or fail, and what is left of them."""

import errno
import fcntl
import os
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from clara.data import DataError, Document
from clara.index import MemoryIndex, MemoryIndexError, gate
from clara.index import migration as folders
from clara.sync import migrating
from clara.sync.migrating import Migration
from tests.clara.sync.migrations import (
    OTHER,
    arguments,
    built_of,
    half_done,
    put,
    same,
    small,
    text_of,
    texts,
)
from tests.clara.sync.stubs import FINGERPRINT, Stub

MIGRATOR = """
import os, signal, sys
from clara.sync import migrating
from tests.clara.sync.stubs import Stub
from tests.clara.sync.migrations import OTHER, arguments

class Dying(Stub):
    def __call__(self, documents, *, on_progress):
        if self.calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(documents, on_progress=on_progress)

migrating.BATCH = 4
migrating.Migration(sys.argv[1], arguments(), Dying(OTHER)).run()
"""


@pytest.fixture
def killed(checking_system, index):
    """Migrate in a process that kills itself with -9 before a call of its compressor."""

    def run(calls):
        command = [checking_system.executable, "-c", MIGRATOR, index.path, str(calls)]
        environment = checking_system.environment
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr

    return run


def test_killed_twice_and_gone_on_with(index, killed, stub, tmp_path, monkeypatch):
    monkeypatch.setattr(migrating, "BATCH", 4)
    before = texts(index)
    killed(2)
    assert texts(index) == before
    put(index, stub, [0], 3)
    killed(1)
    writer = MemoryIndex.open(index.path)
    assert writer.fingerprint == FINGERPRINT
    put(writer, stub, [4], 4)
    model = Stub(OTHER)
    done = Migration(index.path, arguments(), model).run()
    # Eight documents by the first and four by the second, and one of each was replaced.
    assert (done.resumed, done.built.added, len(model.seen)) == (10, 8, 8)
    migrated = MemoryIndex.open(index.path)
    earlier = MemoryIndex.open(index.path, version=done.version)
    assert texts(migrated) == texts(earlier)
    same(migrated, built_of(earlier, tmp_path / "built", Stub(OTHER), arguments()))


@pytest.mark.parametrize(
    ("function", "compressed"),
    [("MemoryIndex.upsert", 18), ("Journal.end", 18), ("switch", 0), ("remove_folder", 0)],
)
def test_ended_at_a_step_and_gone_on_with(index, monkeypatch, function, compressed):
    before = texts(index)

    def ended(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(f"clara.sync.migrating.{function}", ended)
        with pytest.raises(KeyboardInterrupt):
            Migration(index.path, arguments(), Stub(OTHER)).run()
        assert texts(MemoryIndex.open(index.path)) == before
    done = Migration(index.path, arguments(), Stub(OTHER)).run()
    assert done.built.added == compressed
    assert done.changed == (function != "remove_folder")  # that came after the commit
    assert texts(MemoryIndex.open(index.path)) == before
    assert not os.path.exists(os.path.join(index.path, gate.FOLDER))


def test_a_damaged_text_is_named_and_nothing_lost(index, other, tmp_path):
    stub, wanted = other
    text = text_of(8).encode()[:40]
    (file,) = [each for each in Path(index.path, "data").iterdir() if text in each.read_bytes()]
    content = file.read_bytes()
    file.write_bytes(content.replace(text, b"d" + text[1:]))
    with pytest.raises(MemoryIndexError, match=r"document 'd8#0' \(row \d+\) is damaged"):
        Migration(index.path, wanted, stub).run()
    assert MemoryIndex.open(index.path).fingerprint == FINGERPRINT
    put(MemoryIndex.open(index.path), Stub(), [8], 2)
    assert Migration(index.path, wanted, stub).run().changed
    assert dict(each[:2] for each in texts(MemoryIndex.open(index.path)))["d8"] == text_of(8, 2)


def test_a_document_that_the_model_refuses(index, stub, other, monkeypatch):
    monkeypatch.setattr(migrating, "BATCH", 4)
    index.upsert(stub([Document("x", "unreada")], on_progress=print))
    model, wanted = other
    monkeypatch.setattr(
        Stub,
        "__call__",
        lambda self, documents, *, on_progress, real=Stub.__call__: real(
            self,
            [Document(d.id, d.text.replace("unreada", "unreadable"), d.title) for d in documents],
            on_progress=on_progress,
        ),
    )
    line = r"index: document 'x' is unreadable; the index stays as it is"
    with pytest.raises(DataError, match=line):
        Migration(index.path, wanted, model).run()
    assert index.fingerprint == FINGERPRINT
    index.delete(["x"])
    again = Stub(OTHER)
    assert Migration(index.path, wanted, again).run().resumed == 16
    assert len(again.seen) == 2


def test_a_chunk_with_the_id_of_another_document(index, stub, other, monkeypatch):
    monkeypatch.setattr(migrating, "BATCH", 4)
    index.upsert(stub([Document("d2#9", "abc")], on_progress=print))
    _, wanted = other
    with pytest.raises(MemoryIndexError, match=r"chunk of a document would have the id of docu"):
        Migration(index.path, wanted, Stub(OTHER, chunk=4)).run()
    assert index.fingerprint == FINGERPRINT
    index.delete(["d2#9"])
    assert Migration(index.path, wanted, Stub(OTHER, chunk=4)).run().changed


def test_two_at_once(index, other):
    stub, wanted = other
    with (
        folders.only_migration(index.path),
        pytest.raises(MemoryIndexError, match="another process is migrating it at this moment"),
    ):
        Migration(index.path, wanted, stub).run()
    assert Migration(index.path, wanted, stub).run().changed


def test_a_migration_to_another_model_begins_anew(index, other):
    stub, wanted = other
    half_done(index, "d" * 64)
    done = Migration(index.path, wanted, stub).run()
    assert (done.resumed, done.built.added) == (0, 18)
    assert MemoryIndex.open(index.path).fingerprint == OTHER


def test_a_half_done_migration_is_removed(index, stub, monkeypatch):
    folder = os.path.join(index.path, gate.FOLDER)
    size = index.info()["bytes"]
    half_done(index)
    assert MemoryIndex.open(index.path).info()["bytes"] == size  # it is no part of the index yet
    index.clean_up(keep_versions=1)
    assert os.path.exists(folder)  # it may be gone on with
    with folders.only_migration(index.path):
        index.clean_up(keep_versions=1, unfinished=True)
        assert os.path.exists(folder)  # somebody does
    assert index.clean_up(keep_versions=1, unfinished=True) > 0
    assert not os.path.exists(folder)
    half_done(index)
    monkeypatch.setattr(folders, "_WEEK", -1.0)
    index.clean_up(keep_versions=1)
    assert not os.path.exists(folder)
    half_done(index)
    present = arguments(fingerprint=FINGERPRINT, settings=index.settings)
    assert not Migration(index.path, present, stub).run().changed
    assert not os.path.exists(folder)


def test_a_lock_that_fails(index, monkeypatch):
    """Otherwise than where there are none: whether a process migrates the index is not known."""

    def refused(file, how):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    half_done(index)
    folder = os.path.join(index.path, gate.FOLDER)
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refused)
        index.clean_up(keep_versions=1, unfinished=True)
        assert os.path.exists(folder)
        wrong = "beginning the migration failed: .*Input/output error"
        with pytest.raises(MemoryIndexError, match=wrong), folders.only_migration(index.path):
            pass
    opened = (os.path.realpath(f"/proc/self/fd/{each}") for each in os.listdir("/proc/self/fd"))
    assert not [file for file in opened if file.startswith(folder)]
    index.clean_up(keep_versions=1, unfinished=True)
    assert not os.path.exists(folder)


def test_a_migration_that_begins_during_a_clean_up_is_left_alone(index, monkeypatch):
    folder = os.path.join(index.path, gate.FOLDER)
    begun = ExitStack()
    monkeypatch.setattr(
        MemoryIndex,
        "_remove_earlier_views",
        lambda *given: begun.enter_context(folders.only_migration(index.path)) and 0,
    )
    with begun:
        index.clean_up(keep_versions=1, unfinished=True)
        assert os.path.exists(folder)


def test_a_chunk_of_what_was_a_long_document(stub, tmp_path, monkeypatch):
    index = small(tmp_path / "index", stub)
    index.upsert(stub([Document("a", "long " * 30)], on_progress=print))
    half_done(index)
    later = [Document("a#1", "takes the free id"), Document("a", "short")]
    index.upsert(stub(later, on_progress=print))
    monkeypatch.setattr(migrating, "BATCH", 1)
    before = texts(index)
    assert Migration(index.path, arguments(), Stub(OTHER)).run().resumed == 6
    assert texts(MemoryIndex.open(index.path)) == before


def test_a_model_that_leaves_a_document_out(index, stub, tmp_path):
    class Leaving(Stub):
        def __call__(self, documents, *, on_progress):
            kept = [each for each in documents if each.id != "d3"]
            return super().__call__(kept, on_progress=on_progress)

    with pytest.raises(MemoryIndexError, match=r"compressed no 'd3'; the index stays as it is"):
        Migration(index.path, arguments(), Leaving(OTHER)).run()
    assert MemoryIndex.open(index.path).fingerprint == FINGERPRINT
    assert Migration(index.path, arguments(), Stub(OTHER)).run().changed


def test_a_new_index_with_other_documents_is_not_switched_to(index, other, monkeypatch):
    stub, wanted = other
    monkeypatch.setattr(migrating, "document_ids", lambda made: ["d1"])
    with pytest.raises(MemoryIndexError, match="does not hold the same documents in the same ord"):
        Migration(index.path, wanted, stub).run()
    monkeypatch.undo()
    assert MemoryIndex.open(index.path).fingerprint == FINGERPRINT
    assert Migration(index.path, wanted, stub).run().built.added == 0


def test_a_file_that_the_model_misses(index):
    class Missing(Stub):
        def __call__(self, documents, *, on_progress):
            raise FileNotFoundError(2, "No such file or directory", "/models/new")

    with pytest.raises(FileNotFoundError, match="/models/new"):
        Migration(index.path, arguments(), Missing(OTHER)).run()
