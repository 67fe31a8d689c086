"""Files of views: nothing wrong, half-made or foreign is used."""

import os
import random
import re
import shutil
import stat
import subprocess
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from clara.index import MemoryIndex, MemoryIndexError, ranking
from clara.index.folders import bytes_on_disk
from clara.index.searching import nearest
from clara.index.views import ViewError, building
from clara.index.views.choice import source_of
from clara.index.views.layout import FORMAT, HEAD_BYTES
from clara.index.views.mapped import View
from tests.clara.index.made_views import SHAPE, found, in_ram, memory, queries, views_of


def test_every_flip_is_detected_and_named(filled):
    """Or, of a row that no search has read, by a check of the whole file."""
    index = filled(count=4_200, shape=(1, 8))
    wanted = queries(3, (1, 8)).flatten(1)
    made = index.build_view()
    contents = index._current()
    source = source_of(contents.snapshot, contents)
    expected = nearest(wanted, contents.corpus, 3, None)
    whole = Path(made.path).read_bytes()
    chance = random.Random(0)
    places = [*range(0, 40, 3), *range(HEAD_BYTES - 16, HEAD_BYTES + 8, 5), len(whole) - 1]
    places += [chance.randrange(len(whole)) for _ in range(400)]
    noticed = 0
    for number, place in enumerate(places):
        data = bytearray(whole)
        data[place] ^= 1 << chance.randrange(8)
        file = Path(f"{made.path}.{number}")  # what was mapped must not change
        file.write_bytes(data)
        with pytest.raises(ViewError) as caught:
            View.open(str(file), source).check()
        assert str(caught.value).startswith(f"{file}: ")
        assert "\n" not in str(caught.value)
        try:
            found = View.open(str(file), source).nearest(wanted, 3, None)
        except ViewError:
            noticed += 1
        else:
            assert all(map(torch.equal, found, expected))
        file.unlink()
    assert noticed > 200


def test_a_damaged_view_is_made_again(filled):
    index = filled()
    expected = found(in_ram(index), queries(), 3)
    file = Path(index.build_view().path)
    opened = MemoryIndex.open(index.path)
    data = bytearray(file.read_bytes())
    whole = bytes(data)
    data[len(data) // 2] ^= 1
    file.unlink()
    file.write_bytes(data)
    with pytest.warns(UserWarning, match=r"damaged, .* it is not used"):
        assert found(opened, queries(), 3) == expected
    assert file.read_bytes() == whole


def flipped_format(data):
    """As of a later release, with a head that is whole by its checksum."""
    import hashlib

    head = bytearray(data[:HEAD_BYTES])
    head[8] = FORMAT + 1
    head[-16:] = hashlib.blake2b(bytes(head[:-16]), digest_size=16).digest()
    return bytes(head) + data[HEAD_BYTES:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "should have"),
        (lambda data: data[:100], "not a view of an index, or truncated"),
        (lambda data: b"", "not a view of an index, or truncated"),
        (lambda data: data + b"0", "should have"),
        (lambda data: b"{}" * 20_000, "not a view of an index"),
        (flipped_format, "format 2 of views is not what this release reads"),
    ],
)
def test_what_is_no_view_is_replaced(filled, change, message):
    index = filled(count=50)
    expected = found(in_ram(index), queries(), 3)
    file = Path(index.build_view().path)
    whole = file.read_bytes()
    file.unlink()
    file.write_bytes(change(whole))
    with pytest.warns(UserWarning, match=message):
        assert found(MemoryIndex.open(index.path), queries(), 3) == expected
    assert file.read_bytes() == whole


def test_a_view_of_another_index_is_not_used(make_index, make_documents):
    """Also one of a copy of the index that has the same version number."""
    index = make_index()
    names = [f"d{number}" for number in range(30)]
    index.add(make_documents(names, memory=memory(30)))
    copied = Path(index.path).with_name("copied")
    shutil.copytree(index.path, copied)
    other = MemoryIndex.open(copied)
    other.add(make_documents(["there"], memory=queries(1)))
    index.add(make_documents(["here"], memory=queries(1)))
    theirs, own = other.build_view(), index.build_view()
    assert Path(theirs.path).name != Path(own.path).name
    shutil.copy(theirs.path, own.path + ".copy")
    os.replace(own.path + ".copy", own.path)
    with pytest.warns(UserWarning, match="a view of another index or version"):
        assert MemoryIndex.open(index.path).search(queries(1), 1)[0][0].id == "here"


@pytest.mark.parametrize("kind", ["folder", "link", "linked folder", "pipe"])
def test_no_link_or_folder_is_followed(filled, tmp_path, kind):
    index = filled(count=50)
    expected = found(in_ram(index), queries(), 3)
    file = Path(index.build_view().path)
    outside = tmp_path / "outside"
    if kind == "linked folder":
        shutil.move(file.parent, outside)
        file.parent.symlink_to(outside)
    else:
        shutil.move(file, outside)
        if kind == "folder":
            file.mkdir()
        elif kind == "pipe":
            os.mkfifo(file)
        else:
            file.symlink_to(outside)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert found(MemoryIndex.open(index.path), queries(), 3) == expected
    first = str(said[0].message)
    assert re.search(r"_views.*(not a file|cannot be opened|a link)", first), first
    kept = outside / file.name if kind == "linked folder" else outside
    assert kept.is_file()
    if kind in ("link", "pipe"):
        assert file.is_file()
        assert not file.is_symlink()


def test_a_full_disk_leaves_the_index_as_it_was(filled, monkeypatch):
    index = filled()
    expected = found(index, queries(), 3)
    size = bytes_on_disk(index.path)
    monkeypatch.setattr(ranking, "VIEWS_FROM_BYTES", 1)
    monkeypatch.setattr(building.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(MemoryIndexError, match="building the view failed: No space left on device"):
        index.build_view()
    with pytest.warns(UserWarning, match=r"searched without a view, .*: No space left on device: "):
        assert found(MemoryIndex.open(index.path), queries(), 3) == expected
    assert bytes_on_disk(index.path) == size
    assert views_of(index) == []


def test_a_failure_half_way_leaves_nothing(filled, monkeypatch):
    index = filled()
    monkeypatch.setattr(ranking, "VIEWS_FROM_BYTES", 1)

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(building._Writer, "_write_codes", fails)
    with pytest.warns(UserWarning, match=r"searched without a view, .*: No space left"):
        assert len(MemoryIndex.open(index.path).search(queries(1), 2)[0]) == 2
    assert views_of(index) == []


def test_a_damaged_document_is_named(filled):
    index = filled(count=50)
    row = memory(50)[3].numpy().tobytes()
    for file in Path(index.path, "data").iterdir():
        content = bytearray(file.read_bytes())
        if (place := content.find(row)) >= 0:
            content[place] ^= 1
            file.write_bytes(content)
    with pytest.raises(MemoryIndexError, match=r"document 'd3' .* is damaged"):
        index.build_view()
    assert views_of(index) == []


KILLED = """
import os, sys
from clara.index import MemoryIndex
from clara.index.views import building
step = getattr(building._Writer, sys.argv[2])
def die(*given):
    step(*given)
    os.kill(os.getpid(), 9)
setattr(building._Writer, sys.argv[2], die)
MemoryIndex.open(sys.argv[1]).build_view()
"""


@pytest.mark.slow
def test_a_killed_builder_leaves_nothing_that_is_used(filled, warm):
    index = filled(count=50)
    step = "_write_checksums"
    done = subprocess.run([warm().python, "-c", KILLED, index.path, step], check=False)
    assert done.returncode == -9
    (left,) = views_of(index)
    assert left.name.startswith(".")
    assert index.check_view() is None
    index.build_view()
    assert left.exists()  # its builder may be at work still
    os.utime(left, (0, 0))
    made = index.build_view()
    assert [str(file) for file in views_of(index)] == [made.path]


NOBODY = """
import os, sys, warnings
import torch
from clara.index import MemoryIndex, MemoryIndexError, ranking
ranking.VIEWS_FROM_BYTES = 1

def use(path, folder):
    for views in (True, folder):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            index = MemoryIndex.open(path, views=views)
            hits = index.search(torch.ones(1, 2, 8), 3)[0]
            print([hit.id for hit in hits], [str(each.message) for each in said])
        try:
            index.build_view()
        except MemoryIndexError as error:
            print(error)

use(sys.argv[2], sys.argv[2] + " of views")  # imports what another user may not read
MemoryIndex.open(sys.argv[2], views=False).search(torch.ones(1, 2, 8), 3)
print("another user")
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
use(sys.argv[1], sys.argv[3])
"""


@pytest.mark.slow
def test_a_read_only_folder_is_searched_in_ram_or_from_another_folder(filled, warm, tmp_path):
    index = filled()
    expected = [hit.id for hit in index.search(torch.ones(1, *SHAPE), 3)[0]]
    shutil.copytree(index.path, tmp_path / "copy")
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
    for path in (tmp_path / "index", *(tmp_path / "index").rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    command = [warm().python, "-c", NOBODY, index.path, str(tmp_path / "copy"), str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    first, refused, second = lines[lines.index("another user") + 1 :]
    without = "searched without a view, vectors are read into RAM: Permission denied"
    assert first == f"{expected} {[f'{index.path}: {without}']}"
    assert refused == f"{index.path}: building the view failed: Permission denied"
    assert second == f"{expected} []"
    assert len(list(cache.iterdir())) == 1
    assert views_of(index) == []


def test_two_builders_at_once(filled):
    index = filled(count=600)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: MemoryIndex.open(index.path).build_view(), range(12)))
    assert {index.check_view()} == set(made)
    assert len(views_of(index)) == 1
