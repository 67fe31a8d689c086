"""Files of Lance that say which documents a version holds."""

import os
import random
import shutil
from pathlib import Path

import lance
import pytest
import torch

from clara.index import MemoryIndex, MemoryIndexError, seals
from clara.index.snapshot import Snapshot


def flip(file, position, mask=0x01):
    data = bytearray(file.read_bytes())
    data[position] ^= mask
    file.write_bytes(data)


@pytest.fixture
def made(make_index, make_documents):
    index = make_index((1, 4))
    index.add(make_documents([f"d{number}" for number in range(30)], (1, 4)))
    index.delete(["d3", "d17"])
    index.upsert(make_documents(["d5", "d6"], (1, 4)))
    return index


@pytest.mark.parametrize("folder", ["_versions", "_deletions"])
def test_no_flip_hides_a_document_or_brings_one_back(made, folder):
    """Such as one that makes another row the deleted one."""
    expected = made.ids()
    chance = random.Random(folder)
    files = sorted(Path(made.path, folder).glob("*.*[!n]"))
    noticed = []
    for _ in range(40):
        file = chance.choice(files)
        position = chance.randrange(file.stat().st_size)
        mask = chance.choice([0x01, 0x80, 0xFF])
        flip(file, position, mask)
        try:
            index = MemoryIndex.open(made.path)
            assert index.ids() == expected
        except MemoryIndexError as error:
            noticed.append((file.name, str(error)))
        flip(file, position, mask)
    assert len(noticed) > 5
    for name, message in noticed:
        assert name in message  # also where Lance could not read the file
        assert "\n" not in message
    assert MemoryIndex.open(made.path).ids() == expected


@pytest.mark.parametrize("position", [16, 300, -10])
def test_a_manifest_that_lance_cannot_read_is_named(made, position):
    last = min(Path(made.path, "_versions").glob("*.manifest"))
    flip(last, position, 0xFF)
    for read in (
        lambda: MemoryIndex.open(made.path),
        lambda: MemoryIndex.open(made.path, version=4),
        lambda: MemoryIndex.open(made.path, version=3).versions(),
    ):
        with pytest.raises(MemoryIndexError, match=f"_versions/{last.name} is damaged"):
            read()
    assert len(MemoryIndex.open(made.path, version=3)) == 28


def test_another_deleted_row_is_noticed_by_an_open_handle(made, make_documents):
    (file,) = [
        file for file in Path(made.path, "_deletions").iterdir() if file.stem.startswith("0-3-")
    ]
    place = file.read_bytes().find((17).to_bytes(4, "little"))
    flip(file, place)
    for read in (lambda: MemoryIndex.open(made.path), lambda: list(made.verify(apart=False))):
        with pytest.raises(MemoryIndexError, match=f"_deletions/{file.name} is damaged"):
            read()
    with pytest.raises(MemoryIndexError, match="is damaged"):
        made.add(make_documents(["new"], (1, 4)))
    before = MemoryIndex.open(made.path, version=3)
    before.restore(3)
    assert made.ids() == MemoryIndex.open(made.path).ids() == before.ids()
    made.add(make_documents(["new"], (1, 4)))
    flip(file, place)
    made.restore(4)
    assert made.ids()[-2:] == ["d5", "d6"]


def test_checksums_that_are_missing_are_written(made):
    """As of an index that an earlier release has written, or a process that was killed."""
    folder = Path(made.path, "_checksums")
    names = sorted(os.listdir(folder))
    assert len(names) == 4 + 2
    shutil.rmtree(folder)
    copied = shutil.copytree(made.path, Path(made.path).parent / "copy")
    MemoryIndex.open(copied)
    written = sorted(os.listdir(copied / "_checksums"))
    last = Snapshot.latest(made.path)
    assert set(written) < set(names)
    assert len(written) == 1 + sum(part.num_deletions > 0 for part in last.fragments)


def test_a_folder_that_can_only_be_read_is_read(made, monkeypatch):
    shutil.rmtree(Path(made.path, "_checksums"))
    copied = shutil.copytree(made.path, Path(made.path).parent / "copy")

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    assert MemoryIndex.open(copied).ids() == made.ids()
    assert list((copied / "_checksums").iterdir()) == []


def test_checksums_go_with_their_files(made):
    made.compact()
    made.clean_up(keep_versions=1)
    assert len(made.search(torch.ones(1, 4), 5)[0]) == 5
    assert len(os.listdir(Path(made.path, "_checksums"))) == 1


def test_an_empty_checksum_is_written_again(made, monkeypatch):
    """As a machine leaves it that lost power before its content was on the disk."""
    expected = made.ids()
    number = 2**64 - 1 - Snapshot.latest(made.path).version
    file = Path(made.path, "_checksums", f"{number}.manifest")
    digest = file.read_text()
    file.write_text("")
    monkeypatch.setattr(seals, "_known", {})  # of another process
    assert MemoryIndex.open(made.path).ids() == expected
    assert file.read_text() == digest


def test_who_compacts_writes_the_checksum(made):
    made.compact()
    last = max(int(version["version"]) for version in lance.dataset(made.path).versions())
    assert f"{2**64 - 1 - last}.manifest" in os.listdir(Path(made.path, "_checksums"))
