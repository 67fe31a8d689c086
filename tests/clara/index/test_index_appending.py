"""Rows that are new are appended behind whatever others commit, and are there once all the same."""

import errno
import fcntl
import os
import shutil
import threading
import time

import lance
import pytest

from clara.index import DuplicateIdError, MemoryIndex, MemoryIndexError, build, doubles, locks
from clara.index.migration import only_migration
from clara.index.origins import record_origins
from clara.index.snapshot import Snapshot


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
    plain = build._committed

    def arrange(happen):
        def late(*arguments):
            monkeypatch.undo()
            happen()
            return plain(*arguments)

        monkeypatch.setattr(build, "_committed", late)

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


@pytest.fixture
def killed(monkeypatch):
    """Adds documents, and ends as if killed before it sees that others came first with some."""

    def leave(index, documents, theirs):
        with pytest.MonkeyPatch.context() as patched:
            decided, commit = doubles._decided, build._committed

            def late(*arguments):
                patched.setattr(build, "_committed", commit)
                MemoryIndex.open(index.path).add(theirs)
                return commit(*arguments)

            def ended(*arguments):
                patched.setattr(doubles, "_decided", decided)
                raise KeyboardInterrupt

            patched.setattr(build, "_committed", late)
            patched.setattr(doubles, "_decided", ended)
            with pytest.raises(KeyboardInterrupt):
                index.add(documents)

    return leave


def test_rows_that_are_there_twice_are_read_once(index, make_documents, killed, blind_locks):
    """A process that is killed before it has deleted its rows again leaves what others stored."""
    theirs, mine = make_documents("n"), make_documents("n")
    killed(index, mine, theirs)
    assert rows_of(index) == ["a", "b", "c", "n", "n"]
    for each in (index, MemoryIndex.open(index.path)):
        assert each.ids() == ["a", "b", "c", "n"]
        assert each.get(["n"]).memory.equal(theirs.memory)
        assert each.info()["duplicate_ids"] == ["n"]


@pytest.mark.parametrize("heal", ["upsert", "delete"])
def test_what_is_there_twice_is_once_when_it_is_changed(
    index, make_documents, assert_same, killed, blind_locks, heal
):
    """Lance replaces all rows of an id, each by the new one."""
    killed(index, make_documents("mn"), make_documents("nx"))
    assert rows_of(index) == ["a", "b", "c", "n", "x", "m", "n"]
    new = make_documents("bn")
    if heal == "upsert":
        assert index.upsert(new) == (0, 2)
        assert sorted(rows_of(index)) == ["a", "b", "c", "m", "n", "x"]
        assert_same(index.get(["b", "n"]), new)
    else:
        index.delete(["n"])
        assert rows_of(index) == ["a", "b", "c", "x", "m"]
    again = MemoryIndex.open(index.path)
    assert again.ids() == index.ids()
    assert again.info()["duplicate_ids"] == index.info()["duplicate_ids"] == []


def test_a_replacement_between_two_that_add(index, make_documents, monkeypatch, before_append):
    """It finds both rows, and leaves one."""
    plain = doubles._decided

    def late(*arguments):
        monkeypatch.undo()
        assert rows_of(index) == ["a", "b", "c", "n", "n"]
        MemoryIndex.open(index.path).upsert(make_documents("n"))
        return plain(*arguments)

    def others():
        MemoryIndex.open(index.path).add(make_documents("n"))
        monkeypatch.setattr(doubles, "_decided", late)

    before_append(others)
    with pytest.raises(DuplicateIdError):
        index.add(make_documents("n"))
    assert rows_of(index) == index.ids() == ["a", "b", "c", "n"]


@pytest.mark.parametrize("change", ["upsert", "delete"])
def test_what_others_have_changed_since_is_left_to_them(
    index, make_documents, assert_same, monkeypatch, before_append, change
):
    """Two add a document, and a third one replaces or deletes it before the second one looks."""
    plain, new = build.kept, make_documents("n")

    def late(*arguments):
        monkeypatch.undo()
        assert rows_of(index) == ["a", "b", "c", "n", "m", "n"]
        other = MemoryIndex.open(index.path)
        if change == "upsert":
            other.upsert(new)
        else:
            other.delete(["n"])
        return plain(*arguments)

    def others():
        MemoryIndex.open(index.path).add(make_documents("n"))
        monkeypatch.setattr(build, "kept", late)

    before_append(others)
    index.add(make_documents("mn"))
    expected = ["a", "b", "c", "m", *(["n"] if change == "upsert" else [])]
    assert sorted(rows_of(index)) == sorted(index.ids()) == expected
    if change == "upsert":
        assert_same(index.get(["n"]), new)


def test_files_that_are_too_late_are_removed(index, make_documents, monkeypatch, blind_locks):
    """Another process commits while they are written."""
    plain = build.written

    def slow(*arguments):
        monkeypatch.undo()
        files = plain(*arguments)
        MemoryIndex.open(index.path).add(make_documents("x"))
        return files

    monkeypatch.setattr(build, "written", slow)
    index.add(make_documents("n"))
    assert index.ids() == rows_of(index) == ["a", "b", "c", "x", "n"]
    fragments = lance.dataset(index.path).get_fragments()
    assert len(os.listdir(os.path.join(index.path, "data"))) == len(fragments)


@pytest.mark.parametrize("after", [False, True])
def test_a_commit_that_fails(index, make_documents, monkeypatch, after):
    """It may have failed after it was made: then the documents are stored."""
    plain = build._committed

    def failing(*arguments):
        if after:
            plain(*arguments)
        raise OSError("No space left on device")

    monkeypatch.setattr(build, "_committed", failing)
    if after:
        index.add(make_documents("n"))
    else:
        with pytest.raises(MemoryIndexError, match="writing failed: No space left on device"):
            index.add(make_documents("n"))
    monkeypatch.undo()
    expected = ["a", "b", "c", *(["n"] if after else [])]
    assert index.ids() == MemoryIndex.open(index.path).ids() == rows_of(index) == expected
    assert index.get(expected).ids == expected


@pytest.mark.parametrize("failures", [2, 1000])
def test_looking_at_what_others_stored_fails(
    index, make_documents, monkeypatch, before_append, failures
):
    """What was stored is not called a duplicate of itself."""
    plain, calls = doubles._decided, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) <= failures:
            raise OSError("Not found: a file. Retryable commit conflict")
        return plain(*arguments)

    def others():
        MemoryIndex.open(index.path).add(make_documents("x"))
        monkeypatch.setattr(doubles, "_decided", failing)
        monkeypatch.setattr(doubles, "_PAUSE", 0.0)

    before_append(others)
    if failures < 1000:
        index.add(make_documents("n"))
    else:
        with pytest.raises(doubles.UnseenError, match="were stored, but not whether"):
            index.add(make_documents("n"))
    assert rows_of(index) == ["a", "b", "c", "x", "n"]


def test_doubles_that_remain_are_reported(index, make_documents, store_again, monkeypatch):
    def failing(*_):
        raise OSError("Retryable commit conflict")

    store_again(index, make_documents("b"))
    monkeypatch.setattr(build, "remove_doubles", failing)
    monkeypatch.setattr(build, "_TRIES", 2)
    with pytest.raises(doubles.UnseenError, match="there twice remain") as caught:
        index.upsert(make_documents("b"))
    assert str(caught.value).startswith(f"{index.path}: the documents were replaced, but ")
    monkeypatch.undo()
    index.upsert(make_documents("b"))
    assert sorted(rows_of(index)) == ["a", "b", "c"]


def test_a_version_of_the_same_number_in_a_copy_is_read(make_index, make_documents, tmp_path):
    """A backup that was brought back has the same identity, and other commits of that number."""
    index = make_index()
    index.add(make_documents("abc"))
    shutil.copytree(index.path, tmp_path / "backup")
    index.add(make_documents("de"))
    kept = index._writer.appended
    shutil.rmtree(index.path)
    shutil.copytree(tmp_path / "backup", index.path)
    MemoryIndex.open(index.path).add(make_documents("dx"))
    assert kept.version == Snapshot.latest(index.path).version
    assert index.ids() == rows_of(index) == ["a", "b", "c", "d", "x"]


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
    monkeypatch.setattr(build, "_committed", refuse)
    index.add(make_documents("d"))
    index.upsert(make_documents("e"))
    assert index.ids() == ["a", "b", "c", "d", "e"]


def test_writers_wait_for_one_another(index, make_documents):
    """What the other one stores meanwhile is compared."""
    other = MemoryIndex.open(index.path)
    with locks.WriterLock().of(other._snapshot) as alone:
        assert alone
        writer = threading.Thread(target=index.add, args=(make_documents("d"),))
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        assert index.ids() == ["a", "b", "c"]  # a search of the same handle need not wait
    writer.join()
    assert other.ids() == ["a", "b", "c", "d"]


def test_a_writer_that_was_stopped_is_not_waited_for(index, make_documents, monkeypatch):
    """Long, and for each of the next commits only shortly."""
    monkeypatch.setattr(locks, "PATIENCE", 0.3)
    waited = []
    with locks.folder_lock(index.path):
        for name in "de":
            begin = time.monotonic()
            index.add(make_documents(name))
            waited.append(time.monotonic() - begin)
            assert index._writing.impatient
    assert waited[0] >= 0.3
    index.add(make_documents("f"))
    assert not index._writing.impatient
    assert index.ids() == ["a", "b", "c", "d", "e", "f"]


LOCKS = {
    "of a writer": lambda index: locks.WriterLock().of(index._snapshot),
    "of a folder": lambda index: locks.folder_lock(index.path),
    "of a migration": lambda index: only_migration(index.path),
}


@pytest.mark.parametrize("kind", LOCKS)
def test_a_forked_process_does_not_keep_the_lock(index, monkeypatch, kind):
    """It has the folder open, too, and may live long."""
    copies = []
    plain = os.open

    def opened(path, *arguments, **given):
        handle = plain(path, *arguments, **given)
        copies.append(os.dup(handle))  # which is what a fork does
        return handle

    monkeypatch.setattr(os, "open", opened)
    with LOCKS[kind](index):
        assert copies
    monkeypatch.undo()
    monkeypatch.setattr(locks, "PATIENCE", 0.05)
    # Who waits for a folder without an end would do so here, too.
    with LOCKS["of a writer" if kind == "of a folder" else kind](index) as had:
        assert had
    for each in copies:
        os.close(each)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_lock_that_cannot_be_had_is_not_waited_for(index, monkeypatch, code):
    def refused(file, how):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refused)
    begin = time.monotonic()
    with locks.WriterLock().of(index._snapshot) as alone:
        assert not alone
    assert time.monotonic() - begin < locks.PATIENCE / 2


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
    with locks.WriterLock().of(index._snapshot) as alone:
        assert alone
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(locks, "PATIENCE", 0.05)
            with locks.WriterLock().of(index._snapshot) as second:
                assert not second
    shutil.rmtree(index.path)
    with locks.WriterLock().of(index._snapshot) as alone:
        assert not alone
