"""Rows that are new are appended behind whatever others commit, and are there once all the same."""

import errno
import fcntl
import os
import shutil
import threading
import time

import lance
import pytest

from clara.index import DuplicateIdError, MemoryIndex, MemoryIndexError, build, locks
from clara.index.origins import record_origins


def refuse(*_):
    raise AssertionError("the ids of all rows are compared")


def rows_of(index):
    return lance.dataset(index.path).to_table(columns=["id"])["id"].to_pylist()


def forget(index):
    """Have nothing of the commit that was just made but what it stored."""
    record_origins(index.path, {"source": str(time.time())})
    index.clean_up(keep_versions=1)


@pytest.fixture
def index(make_index, make_documents):
    made = make_index()
    made.add(make_documents("abc"))
    return made


@pytest.fixture
def before_append(monkeypatch, blind_locks):
    """Has something done once, just before rows are appended."""
    plain = build.Writer._appended

    def arrange(happen):
        def late(*arguments):
            monkeypatch.undo()
            happen()
            return plain(*arguments)

        monkeypatch.setattr(build.Writer, "_appended", late)

    return arrange


def test_new_rows_need_no_comparison(index, make_documents, assert_same, monkeypatch):
    monkeypatch.setattr(build, "_execute", refuse)
    index.add(make_documents("de"))
    index.upsert(make_documents(["f#0", "f#1"]))
    second = MemoryIndex.open(index.path)
    second.add(make_documents("g"))
    for each in (index, second, MemoryIndex.open(index.path)):
        assert each.ids() == rows_of(index) == ["a", "b", "c", "d", "e", "f#0", "f#1", "g"]
        assert_same(each.get(["d", "e"]), make_documents("de"))
        assert each.get(each.ids()).ids == each.ids()  # which compares checksums


def test_a_deleted_document_is_added_again(index, make_documents, monkeypatch):
    index.delete(["b"])
    monkeypatch.setattr(build, "_execute", refuse)
    index.add(make_documents("db"))
    assert index.ids() == MemoryIndex.open(index.path).ids() == ["a", "c", "d", "b"]


CHANGES = {
    "add": (lambda other, make: other.add(make("x")), "abcdxn"),
    "upsert": (lambda other, make: other.upsert(make("ax")), "bcdaxn"),
    "delete": (lambda other, make: other.delete(["b"]), "acdn"),
    "compact": (lambda other, make: other.compact(), "abcdn"),
    "restore": (lambda other, make: other.restore(2), "abcn"),
    "sources": (lambda other, make: record_origins(other.path, {"a": "b"}), "abcdn"),
}


@pytest.mark.parametrize("forgotten", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_no_commit_that_came_first_is_lost(index, make_documents, before_append, change, forgotten):
    """Lance no longer knows what a commit did whose version was cleaned up."""
    happen, expected = CHANGES[change]
    index.add(make_documents("d"))

    def others():
        other = MemoryIndex.open(index.path)
        happen(other, make_documents)
        if forgotten:
            forget(other)

    before_append(others)
    index.add(make_documents("n"))
    for each in (index, MemoryIndex.open(index.path)):
        assert "".join(each.ids()) == expected
        assert each.get(each.ids()).ids == each.ids()  # which compares checksums
    assert sorted(rows_of(index)) == sorted(expected)


@pytest.mark.parametrize("forgotten", [False, True])
@pytest.mark.parametrize(
    ("theirs", "mine"),
    [(["n"], ["m", "n"]), (["n"], ["n#0", "n#1"]), (["n#0", "n#1"], ["n"]), (["n"], ["n#1", "n"])],
)
def test_a_document_that_came_first_is_refused(
    index, make_documents, before_insertion, theirs, mine, forgotten
):
    def others():
        other = MemoryIndex.open(index.path)
        other.add(make_documents(theirs))
        if forgotten:
            forget(other)

    before_insertion(others)
    with pytest.raises(DuplicateIdError):
        index.add(make_documents(mine))
    assert index.ids() == MemoryIndex.open(index.path).ids() == ["a", "b", "c", *theirs]
    assert rows_of(index) == index.ids()


def test_rows_that_are_there_twice_are_read_once(index, make_documents, monkeypatch, blind_locks):
    """A process that is killed before it has deleted its rows again leaves what others stored."""
    theirs, mine = make_documents("n"), make_documents("n")
    plain = build._kept

    def killed(snapshot, dataset, *arguments):
        if dataset.version == snapshot.version + 1:
            return plain(snapshot, dataset, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "_kept", killed)
    append = build.Writer._appended

    def late(*arguments):
        monkeypatch.setattr(build.Writer, "_appended", append)
        MemoryIndex.open(index.path).add(theirs)
        return append(*arguments)

    monkeypatch.setattr(build.Writer, "_appended", late)
    with pytest.raises(KeyboardInterrupt):
        index.add(mine)
    monkeypatch.undo()
    assert rows_of(index) == ["a", "b", "c", "n", "n"]
    for each in (index, MemoryIndex.open(index.path)):
        assert each.ids() == ["a", "b", "c", "n"]
        assert each.get(["n"]).memory.equal(theirs.memory)
        assert each.info()["duplicate_ids"] == ["n"]


def test_columns_that_another_program_made_anew(index, make_documents, before_append):
    """Rows that were written before would be without them."""

    def others():
        dataset = lance.dataset(index.path)
        field = dataset.schema.field("tokens")
        dataset.drop_columns(["tokens"])
        dataset.add_columns({"tokens": "cast(1 as int)"})
        assert dataset.schema.field("tokens").type == field.type

    before_append(others)
    with pytest.raises(MemoryIndexError):
        index.add(make_documents("n"))
    assert rows_of(index) == ["a", "b", "c"]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_the_ids_are_compared(index, make_documents, monkeypatch, code):
    def refused(file, how):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refused)
    monkeypatch.setattr(build.Writer, "_appended", refuse)
    index.add(make_documents("d"))
    index.upsert(make_documents("e"))
    assert index.ids() == ["a", "b", "c", "d", "e"]


def test_writers_wait_for_one_another(index, make_documents):
    """What the other one stores meanwhile is compared."""
    other = MemoryIndex.open(index.path)
    with locks.only_writer(other._snapshot) as alone:
        assert alone
        writer = threading.Thread(target=index.add, args=(make_documents("d"),))
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        assert index.ids() == ["a", "b", "c"]  # a search of the same handle need not wait
    writer.join()
    assert other.ids() == ["a", "b", "c", "d"]


def test_a_writer_that_was_stopped_is_not_waited_for(index, make_documents, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.05)
    with locks.folder_lock(index.path), locks.only_writer(index._snapshot) as alone:
        assert not alone
        index.add(make_documents("d"))
    assert index.ids() == ["a", "b", "c", "d"]


def test_the_lock_is_that_of_the_folder_which_is_there_now(index, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(index.path, copy)
    plain = fcntl.flock

    def late(handle, kind):
        monkeypatch.undo()
        shutil.rmtree(index.path)
        copy.rename(index.path)
        plain(handle, kind)

    monkeypatch.setattr(fcntl, "flock", late)
    with locks.only_writer(index._snapshot) as alone:
        assert alone
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(locks, "PATIENCE", 0.05)
            with locks.only_writer(index._snapshot) as second:
                assert not second
    shutil.rmtree(index.path)
    with locks.only_writer(index._snapshot) as alone:
        assert not alone
