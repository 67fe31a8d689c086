"""Where sources lie is recorded beside the rows of an index."""

import os
from concurrent.futures import ThreadPoolExecutor

import lance

from clara.index import MemoryIndex
from clara.index.origins import read_origins, record_origins

HOSTILE = "bo\u202e'ok \"=\n"


def test_what_is_recorded_is_read_back(make_index, make_documents):
    index = make_index()
    assert read_origins(index.path) == {}
    record_origins(index.path, {HOSTILE: "{}", "b": "1"})
    index.add(make_documents(["a"]))
    record_origins(index.path, {"b": "2"})
    assert read_origins(index.path) == {HOSTILE: "{}", "b": "2"}
    assert MemoryIndex.open(index.path).ids() == index.ids() == ["a"]
    assert len(os.listdir(f"{index.path}/_checksums")) == len(index.versions())


def test_what_is_recorded_already_makes_no_version(make_index):
    index = make_index()
    record_origins(index.path, {"a": "1", "b": "2"})
    version = lance.dataset(index.path).version
    record_origins(index.path, {"b": "2"})
    assert lance.dataset(index.path).version == version


def test_it_outlives_compaction_and_removed_versions(make_index, make_documents):
    index = make_index()
    record_origins(index.path, {"a": "1"})
    for name in ("x", "y"):
        index.add(make_documents([name]))
    index.compact()
    index.clean_up(keep_versions=1)
    assert read_origins(index.path) == {"a": "1"}
    assert index.ids() == ["x", "y"]


def test_many_record_and_add_at_once(make_index, make_documents):
    index = make_index()

    def work(number):
        record_origins(index.path, {f"s{number}": str(number), "shared": "1"})
        MemoryIndex.open(index.path).add(make_documents([f"d{number}"]))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
    assert read_origins(index.path) == {"shared": "1", **{f"s{n}": str(n) for n in range(8)}}
    assert sorted(index.ids()) == [f"d{n}" for n in range(8)]
