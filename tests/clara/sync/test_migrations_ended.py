"""Migrations that are killed, fail, or find something else in their folder."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clara.data import DataError, Document
from clara.index import MemoryIndex, MemoryIndexError, gate
from clara.index import migration as folders
from clara.sync import migrating
from clara.sync.journal import Journal
from clara.sync.migrating import Migration
from tests.clara.sync.conftest import FINGERPRINT, Stub
from tests.clara.sync.migrations import (
    OTHER,
    arguments,
    built_of,
    filled,
    put,
    same,
    small,
    text_of,
    texts,
)


@pytest.fixture
def index(stub, tmp_path):
    return filled(tmp_path / "index", stub)


@pytest.fixture
def other():
    """Another model, and the arguments of an index for its memory."""
    return Stub(OTHER), arguments()


MIGRATOR = """
import os, signal, sys
from clara.sync import migrating
from tests.clara.sync.conftest import Stub
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
def killed(warm, index):
    """Migrate in a process that kills itself with -9 before a call of its compressor."""

    def run(calls):
        command = [warm().python, "-c", MIGRATOR, index.path, str(calls)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
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


def half_done(index, fingerprint=OTHER):
    """A migration to a model that fails at the end."""
    model = Stub(fingerprint)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(migrating, "switch", lambda old, new: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Migration(index.path, arguments(fingerprint=fingerprint), model).run()


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


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "journal.jsonl").write_text('{"begun": 3}\n'),
        lambda folder: (folder / "journal.jsonl").write_text("[" * 100_000 + "\n"),
        lambda folder: (folder / "journal.jsonl").unlink(),
        lambda folder: next((folder / "index" / "_versions").iterdir()).write_bytes(b"x"),
        lambda folder: flipped(folder / "index", b"d8#0", b"d9#0"),
    ],
    ids=["another journal", "a deep one", "no journal", "no index", "names"],
)
def test_a_half_done_migration_that_is_damaged_is_done_again(index, other, damage):
    stub, wanted = other
    half_done(index)
    damage(Path(index.path, gate.FOLDER))
    done = Migration(index.path, wanted, stub).run()
    assert done.built.added == 18
    assert list(MemoryIndex.open(index.path).verify(apart=False)) == []


def flipped(index, before, after):
    """Change bytes in the only file of an index that has them."""
    (file,) = [each for each in (index / "data").iterdir() if before in each.read_bytes()]
    file.write_bytes(file.read_bytes().replace(before, after))


def test_a_damaged_text_in_a_half_done_migration_is_done_again(index, other):
    stub, wanted = other
    half_done(index)
    before, text = texts(index), text_of(8).encode()[:40]
    flipped(Path(index.path, gate.FOLDER, "index"), text, b"X" + text[1:])
    done = Migration(index.path, wanted, stub).run()
    order = [name for name, _, _ in before]
    assert done.resumed == order.index("d8")
    assert stub.seen == order[done.resumed :]
    migrated = MemoryIndex.open(index.path)
    assert texts(migrated) == before
    assert list(migrated.verify(apart=False)) == []


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


def test_its_folder_is_removed_meanwhile(index):
    class Removing(Stub):
        def __call__(self, documents, *, on_progress):
            shutil.rmtree(os.path.join(index.path, gate.FOLDER))
            return super().__call__(documents, on_progress=on_progress)

    with pytest.raises(MemoryIndexError, match=r"journal.jsonl: writing the journal failed"):
        Migration(index.path, arguments(), Removing(OTHER)).run()
    assert MemoryIndex.open(index.path).fingerprint == FINGERPRINT


def test_a_full_disk(index, other, monkeypatch):
    stub, wanted = other

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clara.sync.journal.os.fsync", full)
    with pytest.raises(MemoryIndexError, match=r"writing the journal failed.*No space left"):
        Migration(index.path, wanted, stub).run()
    monkeypatch.undo()
    assert Migration(index.path, wanted, stub).run().changed


def test_a_copy_of_the_folder_goes_on(index, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(folders.lance.LanceDataset, "commit", staticmethod(ended))
        with pytest.raises(MemoryIndexError, match="switching to the new files failed: killed"):
            Migration(index.path, arguments(), Stub(OTHER)).run()
    # As a process leaves it that is killed there, and as `cp -r` copies it, without hard links.
    data = Path(index.path, "data")
    for file in Path(index.path, gate.FOLDER, "index", "data").iterdir():
        shutil.copyfile(file, data / file.name)
    copy = shutil.copytree(index.path, tmp_path / "copy")
    before = texts(index)
    assert Migration(copy, arguments(), Stub(OTHER)).run().built.added == 0
    assert texts(MemoryIndex.open(copy)) == before


def ended(*arguments, **options):
    raise RuntimeError("killed")


def test_links_in_its_folder_are_not_followed(index, other, tmp_path):
    stub, wanted = other
    precious = tmp_path / "precious"
    elsewhere = MemoryIndex.create(tmp_path / "elsewhere", **wanted, columns=index.columns)
    put(elsewhere, Stub(OTHER), range(50, 55))
    put(elsewhere, Stub(OTHER), range(55, 60))
    left = texts(elsewhere), elsewhere.versions()
    half_done(index)
    folder = Path(index.path, gate.FOLDER)
    shutil.rmtree(folder / "index")
    (folder / "index").symlink_to(elsewhere.path)
    (folder / "journal.jsonl").unlink()
    (folder / "journal.jsonl").symlink_to(precious)
    precious.write_text("precious\n")
    assert Migration(index.path, wanted, stub).run().built.added == 18
    assert precious.read_text() == "precious\n"
    assert (texts(elsewhere), elsewhere.versions()) == left


def test_other_things_in_its_folder(index, other):
    stub, wanted = other
    half_done(index)
    folder = Path(index.path, gate.FOLDER)
    (folder / "journal.jsonl").unlink()
    (folder / "journal.jsonl").mkdir()
    (folder / "gate").unlink()
    os.mkfifo(folder / "gate")
    put(index, Stub(), [3], 9)  # which waits for no writer of the pipe
    assert Migration(index.path, wanted, stub).run().built.added == 18


def test_a_journal_that_is_a_link_is_not_written(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "journal").symlink_to(tmp_path / "precious")
    with pytest.raises(MemoryIndexError, match="reading the journal failed"):
        Journal(tmp_path / "journal")
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_journal_that_was_cut_off(index, other):
    stub, wanted = other
    half_done(index)
    journal = Path(index.path, gate.FOLDER, "journal.jsonl")
    with open(journal, "a") as file:
        file.write('{"begun": ["d1')
    assert Migration(index.path, wanted, stub).run().built.added == 0


def test_a_folder_that_is_a_link_is_not_followed(index, other, tmp_path):
    stub, wanted = other
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "index").write_text("precious")
    os.symlink(tmp_path / "elsewhere", os.path.join(index.path, gate.FOLDER))
    with pytest.raises(MemoryIndexError, match="beginning the migration failed"):
        Migration(index.path, wanted, stub).run()
    index.clean_up(keep_versions=1, unfinished=True)
    assert (tmp_path / "elsewhere" / "index").read_text() == "precious"


def test_a_file_system_without_links(index, other, monkeypatch):
    stub, wanted = other
    before = texts(index)

    def no_links(*paths):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(folders.os, "link", no_links)
    Migration(index.path, wanted, stub).run()
    assert texts(MemoryIndex.open(index.path)) == before
