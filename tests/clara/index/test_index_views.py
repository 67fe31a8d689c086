"""Searches of a view find what searches in RAM find, bit for bit."""

import copy
import gc
import os
import pickle
import shutil
import weakref
from pathlib import Path

import pytest
import torch

from clara.index import MemoryIndex, MemoryIndexError, ranking
from clara.index.catalog import Catalog
from clara.index.folders import bytes_on_disk
from clara.index.snapshot import Snapshot
from tests.clara.index.made_views import COUNT, FEW, SHAPE, found, in_ram, memory, queries, views_of


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


def test_vectors_of_an_earlier_version_are_let_go(filled, make_documents):
    index = MemoryIndex.open(filled().path, views=False)
    index.search(queries(1), 3)
    corpus = weakref.ref(index._ranking.contents.corpus)
    MemoryIndex.open(index.path).add(make_documents(["new"]))
    assert len(index) == FEW + 1
    gc.collect()
    assert corpus() is None


def test_a_handle_of_this_version_reads_ids_when_they_are_asked_for(filled, monkeypatch):
    index = MemoryIndex.open(filled().path)
    scans, heads = [], Snapshot.heads

    def counted(*given, **more):
        scans.append(1)
        return heads(*given, **more)

    monkeypatch.setattr(Snapshot, "heads", counted)
    now = index.at_this_version()
    assert scans == []
    assert len(now.ids()) == FEW
    assert scans == [1]
