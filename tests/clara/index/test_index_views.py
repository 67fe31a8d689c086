"""Searches of a view find what searches in RAM find, bit for bit; nothing wrong is used."""

import copy
import os
import pickle
import random
import re
import shutil
import stat
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from clara.index import MemoryIndex, MemoryIndexError, ranking
from clara.index.catalog import Catalog
from clara.index.folders import bytes_on_disk
from clara.index.searching import nearest
from clara.index.views import ViewError, building
from clara.index.views.choice import source_of
from clara.index.views.layout import FORMAT, HEAD_BYTES
from clara.index.views.mapped import View

COUNT, SHAPE = 5_000, (2, 8)  # so many that codes are looked at first


FEW = 300


def queries(count=5, shape=SHAPE, seed=9):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def memory(count=COUNT, shape=SHAPE, seed=1):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)) + 0.5


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


def found(index, *given, **more):
    return [[(hit.id, hit.score) for hit in hits] for hits in index.search(*given, **more)]


def views_of(index):
    return sorted(Path(index.path, "_views").glob("*"))


def in_ram(index):
    return MemoryIndex.open(index.path, views=False)


@pytest.fixture
def no_ram(monkeypatch):
    """Vectors are not read into RAM."""
    monkeypatch.setattr(ranking, "nearest", None)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float16},
        {"storage": "int8"},
        {"storage": "int4", "dtype": torch.bfloat16},
        {"storage": "int8", "shape": (1, 16)},
        {"ranking": "mean"},
        {"ranking": "mean", "storage": "int8"},
    ],
    ids=str,
)
def test_answers_are_those_of_ram(filled, given, monkeypatch):
    index = filled(COUNT, **given)
    shape = given.get("shape", SHAPE)
    wanted = queries(shape=(1, 8) if given.get("ranking") == "mean" else shape)
    expected = [found(in_ram(index), wanted, k) for k in (1, 10, 700)]
    made = index.build_view()
    assert (made.rows, made.size) == (COUNT, os.path.getsize(made.path))
    monkeypatch.setattr(ranking, "nearest", None)
    again = MemoryIndex.open(index.path)
    assert [found(again, wanted, k) for k in (1, 10, 700)] == expected
    assert found(index, wanted, 10) == expected[1]
    assert again.check_view() == made


def test_filters_and_ids_are_exact_too(make_index, make_documents, no_ram):
    index = make_index(SHAPE, columns={})
    names = [f"d{number}" for number in range(COUNT)]
    index.add(make_documents(names, memory=memory()))
    index.build_view()
    for kept in (["d7"], names[::100], names[::2], names[1:]):
        hits = index.search(queries(), 6, ids=kept)
        places = torch.tensor([int(name[1:]) for name in kept])
        from clara_kernels import cosine_topk

        scores, rows = cosine_topk(queries().flatten(1), memory()[places].flatten(1), 6)
        assert [[hit.score for hit in each] for each in hits] == scores.tolist()
        assert [[hit.row for hit in each] for each in hits] == places[rows].tolist()
    few = index.search(queries(1), 3, "tokens < 12")
    assert sorted(hit.id for hit in few[0]) == ["d0", "d1"]
    assert index.search(queries(1), 3, "tokens < 0") == [[]]


def test_rows_that_lie_in_another_order(filled, make_documents, no_ram):
    """As after a delete and a replacement, and where ids are stored twice."""
    index = filled(COUNT)
    index.delete(["d3", "d2600"])
    index.upsert(make_documents(["d17", "d4"], memory=memory(2, seed=5)))
    index.compact()
    index.build_view()
    best = index.search(memory(2, seed=5), 1)
    assert [hits[0].id for hits in best] == ["d17", "d4"]
    assert [hits[0].row for hits in best] == [COUNT - 4, COUNT - 3]


def test_ids_that_are_stored_twice(make_older, make_documents, store_again, no_ram):
    index = make_older()
    names = [f"d{number}" for number in range(COUNT)]
    index.add(make_documents(names, memory=memory()))
    store_again(index, make_documents(names[:3], memory=memory(3, seed=4)))
    index.build_view()
    assert [hits[0].id for hits in index.search(memory()[:3], 1)] == names[:3]
    assert index.search(memory(3, seed=4), 1)[0][0].score < 0.999
    index.add(make_documents(["new"], memory=memory(1, seed=6)))
    index.build_view()
    alone = MemoryIndex.open(index.path)
    assert alone.search(memory(1, seed=6), 1)[0][0].id == "new"
    assert alone._alone[1].source.moved
    assert found(alone, queries(), 9) == found(index, queries(), 9)


def test_equal_scores_are_ordered_by_row(make_index, make_documents, no_ram):
    index = make_index()
    same = memory(3).repeat(2_000, 1, 1)[:COUNT]
    index.add(make_documents([f"d{number}" for number in range(COUNT)], memory=same))
    index.build_view()
    (hits,) = index.search(same[:1], 20)
    assert [hit.row for hit in hits] == list(range(0, 60, 3))


def test_a_large_index_makes_its_view_at_the_first_search(filled, monkeypatch):
    index = filled()
    expected = found(index, queries(), 4)
    assert views_of(index) == []
    monkeypatch.setattr(ranking, "VIEWS_FROM_BYTES", FEW * 16 * 4)
    monkeypatch.setattr(ranking, "nearest", None)
    again = MemoryIndex.open(index.path)
    assert found(again, queries(), 4) == expected
    (file,) = views_of(index)
    changed = file.stat().st_mtime_ns
    assert found(MemoryIndex.open(index.path), queries(), 4) == expected
    assert file.stat().st_mtime_ns == changed
    opened = MemoryIndex.open(index.path, views=False)
    with pytest.raises(TypeError):
        opened.search(queries(), 4)


def test_a_search_by_a_view_reads_no_ids(filled, make_documents, monkeypatch):
    """Of all documents; whether or not Lance has rows in the order of the documents."""
    index = filled()
    for number in range(2):
        index.build_view()
        expected = found(index, queries(), 4)
        again = MemoryIndex.open(index.path)
        with monkeypatch.context() as patched:
            patched.setattr(Catalog, "extend", None)
            assert found(again, queries(), 4) == expected
            assert found(again, queries(0), 4) == []
        assert again.ids() == index.ids()
        assert found(again, queries(), 4) == expected
        index.delete([f"d{number}"])
        index.upsert(make_documents([f"d{number}" for number in range(40, 90)]))
    searched = MemoryIndex.open(index.path)
    index.build_view()
    searched.search(queries(), 4)
    index.add(make_documents(["new"], memory=queries(1)))
    assert searched.search(queries(1), 1)[0][0].id == "new"


def test_a_change_makes_a_new_view_and_removes_the_old_one(filled, make_documents, monkeypatch):
    monkeypatch.setattr(ranking, "VIEWS_FROM_BYTES", 1)
    index = filled()
    index.search(queries(1), 1)
    (before,) = views_of(index)
    other = MemoryIndex.open(index.path)
    earlier = other.at_this_version()
    expected = found(earlier, queries(), 3)
    index.add(make_documents(["new"], memory=queries(1)))
    assert index.search(queries(1), 1)[0][0].id == "new"
    (after,) = views_of(index)
    assert after.name != before.name
    assert found(earlier, queries(), 3) == expected  # of the file that is gone
    assert other.search(queries(1), 1)[0][0].id == "new"


def test_an_earlier_version_makes_no_view(filled, monkeypatch):
    monkeypatch.setattr(ranking, "VIEWS_FROM_BYTES", 1)
    index = filled()
    pinned = MemoryIndex.open(index.path, version=2)
    assert len(pinned.search(queries(1), 2)[0]) == 2
    assert views_of(index) == []


def test_upkeep_leaves_and_removes_views(filled, make_documents):
    index = filled()
    size = bytes_on_disk(index.path)
    made = index.build_view()
    assert bytes_on_disk(index.path) == index.info()["bytes"] == size
    assert list(index.verify(apart=False)) == []
    copied = Path(index.path).with_name("copied")
    shutil.copytree(index.path, copied)
    assert MemoryIndex.open(copied).check_view() is not None
    index.clean_up(keep_versions=1)
    assert [str(file) for file in views_of(index)] == [made.path]
    index.delete(["d1"])
    assert index.clean_up(keep_versions=1) >= made.size
    assert views_of(index) == []
    index.build_view()
    index.delete(["d2"])
    index.compact()
    assert views_of(index) == []
    made = index.build_view()
    index.clean_up(keep_versions=1, unfinished=True)
    assert index.check_view() == made
    assert index.remove_views() == made.size
    assert views_of(index) == []
    assert index.remove_views() == 0


def test_copies_keep_the_rule(filled, tmp_path):
    index = filled(count=20)
    elsewhere = MemoryIndex.open(index.path, views=tmp_path / "cache")
    for each in (copy.copy(elsewhere), pickle.loads(pickle.dumps(elsewhere))):
        assert Path(each.build_view().path).parent == tmp_path / "cache"
    without = pickle.loads(pickle.dumps(in_ram(index)))
    with pytest.raises(MemoryIndexError, match="opened without views"):
        without.build_view()
    assert views_of(index) == []


def test_a_folder_of_views_of_several_indexes(make_index, make_documents, tmp_path):
    made = []
    for name in ("one", "two"):
        index = make_index(name=name)
        index.add(make_documents([f"{name} {number}" for number in range(9)]))
        made.append(MemoryIndex.open(index.path, views=tmp_path / "cache"))
        made[-1].build_view()
    made[0].add(make_documents(["another"]))
    made[0].build_view()
    assert len(list((tmp_path / "cache").iterdir())) == 2
    made[0].remove_views()
    assert made[1].check_view() is not None
    assert made[0].check_view() is None


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
def test_a_killed_builder_leaves_nothing_that_is_used(filled):
    index = filled(count=50)
    step = "_write_checksums"
    done = subprocess.run([sys.executable, "-c", KILLED, index.path, step], check=False)
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
def test_a_read_only_folder_is_searched_in_ram_or_from_another_folder(filled, tmp_path):
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
    command = [sys.executable, "-c", NOBODY, index.path, str(tmp_path / "copy"), str(cache)]
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


def test_without_a_proof(filled):
    index = filled(COUNT)
    index.build_view()
    best = index.search(queries(), 5)
    near = index.search(queries(), 5, approximate=True)
    shared = [len({hit.id for hit in a} & {hit.id for hit in b}) for a, b in zip(best, near)]
    assert sum(shared) >= 24
    scores = {hit.id: hit.score for hit in index.search(queries()[:1], 2_048)[0]}
    assert all(scores[hit.id] == hit.score for hit in near[0])


def test_an_empty_index_has_a_view(make_index):
    index = make_index()
    assert index.build_view().rows == 0
    assert MemoryIndex.open(index.path).search(queries(2), 3) == [[], []]
    assert index.check_view() is not None
