"""Migrations that find damage, links or something else in their folder, or cannot write there."""

import os
import shutil
from pathlib import Path

import pytest
from lance import LanceDataset

from clara.index import MemoryIndex, MemoryIndexError, gate
from clara.sync.journal import Journal
from clara.sync.migrating import Migration
from tests.clara.sync.migrations import (
    OTHER,
    arguments,
    half_done,
    put,
    text_of,
    texts,
)
from tests.clara.sync.stubs import FINGERPRINT, Stub


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
        patched.setattr(LanceDataset, "commit", staticmethod(ended_at(index.path)))
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


def ended_at(path):
    """A commit that ends where it is one to the index, and not to the folder of a migration."""
    real = LanceDataset.commit

    def commit(base, *arguments, **options):
        uri = base if isinstance(base, str) else base.uri
        if Path(uri).resolve() == Path(path).resolve():
            raise RuntimeError("killed")
        return real(base, *arguments, **options)

    return commit


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

    monkeypatch.setattr(os, "link", no_links)
    Migration(index.path, wanted, stub).run()
    assert texts(MemoryIndex.open(index.path)) == before
