"""Building an index from sources, with a stub in the compressor's place."""

import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from clara.corpus import Reading
from clara.data import DataError
from clara.data.records import Document
from clara.index import Details, MemoryIndex, MemoryIndexError
from clara.memory.documents import CompressedDocuments
from clara.sync import Build, BuildError, Decision
from clara.sync import build as building
from tests.clara.sync.books import GUIDE, counts, jsonl, opened
from tests.clara.sync.stubs import Stub, new_index


def test_the_first_build(build, book, tmp_path, stub):
    built = build(book)
    assert counts(built) == (4, 0, 0, 0, 0)
    assert stub.calls == 1  # a commit for all of them
    index = opened(tmp_path)
    assert index.columns == {"since": int, "paid": bool}
    assert built.index == index.path
    entries = {entry.document_id: entry for entry in index.documents()}
    assert list(entries) == ["book/guide.md", "book/hours.txt", "s1", "s2"]
    assert entries["s1"].metadata == {"since": 2011, "paid": None}
    assert entries["s2"].metadata == {"since": None, "paid": True}
    assert {entry.source for entry in entries.values()} == {"book"}
    texts = {entry.document_id: index.texts(entry.rows) for entry in entries.values()}
    assert "".join(part.text for part in texts["book/guide.md"]) == GUIDE
    assert (built.rows, built.tokens) == (6, sum(entry.tokens for entry in entries.values()))
    assert built.memory_tokens == 12


def test_chunks_know_their_offset_and_place(build, book, tmp_path):
    build(book)
    index = opened(tmp_path)
    memory = index.get(["book/guide.md#2"]).memory
    ((hit,),) = index.search(memory, 1)
    assert (hit.id, hit.offset, hit.place) == ("book/guide.md#2", 80, "## Prices")
    assert hit.text == GUIDE[80:]
    (entry,) = index.documents("book/guide.md")
    assert entry.places == ["# Guide", "## Prices", "## Prices"]


def test_a_second_build_compresses_nothing(build, book, tmp_path, stub):
    build(book)
    versions, stub.seen = len(list((tmp_path / "index" / "_versions").iterdir())), []
    assert counts(build(book)) == (0, 0, 4, 0, 0)
    assert stub.seen == []
    assert (
        len(list((tmp_path / "index" / "_versions").iterdir())) == versions
    )  # nor is anything committed


def test_what_changed_is_replaced_whole(build, book, tmp_path, stub):
    build(book)
    stub.seen = []
    (book / "guide.md").write_text("# Guide\n\nClosed.\n")
    (book / "staff.jsonl").write_text(
        jsonl(
            {"id": "s1", "contents": "Anna is the master.", "since": 2012, "title": "Anna"},
            {"id": "s2", "contents": "Ben repairs engines.", "paid": True, "since": None},
            {"id": "s3", "contents": "Eve."},
        )
    )
    assert counts(build(book)) == (1, 2, 2, 0, 0)
    assert stub.seen == ["book/guide.md", "s1", "s3"]
    index = opened(tmp_path)
    assert sorted(index.ids()) == ["book/guide.md", "book/hours.txt", "s1", "s2", "s3"]
    (text,) = index.texts(["book/guide.md"])
    assert text.text == "# Guide\n\nClosed.\n"
    (entry,) = index.documents("s1")
    assert entry.metadata["since"] == 2012


def test_prune_deletes_what_is_gone_from_its_own_sources(build, book, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(jsonl(*({"id": f"o{n}", "contents": "text"} for n in range(3))))
    build(book, other)
    (book / "hours.txt").unlink()
    other.write_text(jsonl({"id": "o0", "contents": "text"}))
    assert counts(build(book)) == (0, 0, 3, 0, 0)  # nothing without prune
    asked = []

    def confirm(gone, documents):
        asked.append((gone, documents))
        return True

    assert counts(build(book, prune=True, confirm=confirm)) == (0, 0, 3, 1, 0)
    assert asked == [(1, 4)]
    assert set(opened(tmp_path).digests()) == {"book/guide.md", "s1", "s2", "o0", "o1", "o2"}
    assert counts(build(book, prune=True, confirm=None)) == (0, 0, 3, 0, 0)


def test_more_than_a_tenth_needs_a_yes(build, book, tmp_path):
    many = jsonl(*({"id": f"m{n}", "contents": "text"} for n in range(30)))
    (book / "many.jsonl").write_text(many)
    build(book)
    (book / "many.jsonl").write_text("".join(many.splitlines(True)[:26]))
    for confirm in (None, lambda gone, documents: False):
        built = build(book, prune=True, confirm=confirm)
        assert (built.deleted, built.not_deleted) == (0, 4)
        assert built.why_not_deleted == (
            "that is more than a tenth of the 34 documents of these sources"
        )
    (book / "many.jsonl").write_text("".join(many.splitlines(True)[:27]))
    built = build(book, prune=True)  # which adds the 27th back
    assert (built.added, built.deleted, built.not_deleted) == (0, 3, 0)
    assert opened(tmp_path).info()["documents"] == 31


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_nothing_is_deleted_after_a_failure(build, book, tmp_path, on_error):
    build(book)
    (book / "hours.txt").unlink()
    (book / "guide.md").write_bytes(b"\xff\xfe\xfd")
    (book / "new.txt").write_text("new")
    options = {"prune": True, "confirm": lambda *numbers: True, "on_error": on_error}
    if on_error == "fail":
        with pytest.raises(BuildError, match=r"guide\.md: ") as raised:
            build(book, **options)
        built = pickle.loads(pickle.dumps(raised.value)).built
    else:
        built = build(book, **options)
    assert counts(built) == (1, 0, 2, 0, 1)
    assert built.not_deleted == 2
    assert built.why_not_deleted == "1 failed, so it is not certain what is gone"
    assert opened(tmp_path).info()["documents"] == 5  # and what can be read is stored


def test_a_document_that_the_model_refuses_is_one_failure(build, book, tmp_path, stub):
    (book / "bad.txt").write_text("unreadable")
    failures = []
    with pytest.raises(BuildError, match=r"document .book/bad\.txt. is unreadable") as raised:
        build(book, on_failure=failures.append)
    assert counts(raised.value.built) == (4, 0, 0, 0, 1)
    assert [each.where for each in failures] == [f"{book}/bad.txt"]
    assert set(stub.seen) == set(opened(tmp_path).digests())


def test_no_index_is_made_of_nothing(build, tmp_path):
    (tmp_path / "bad.txt").write_text("unreadable")
    with pytest.raises(BuildError, match="no document could be stored, so no index was made"):
        build(tmp_path / "bad.txt", on_error="skip")
    with pytest.raises(BuildError, match=r"could not be read: .*unreadable"):
        build(tmp_path / "bad.txt")
    assert not (tmp_path / "index").exists()


def test_later_values_must_have_the_types_of_the_first_build(build, book, tmp_path, stub):
    build(book)
    (book / "staff.jsonl").write_text(
        jsonl(
            {"id": "s1", "contents": "Anna is the mistress.", "since": "2011"},
            {"id": "s4", "contents": "Dora.", "since": 7, "boat": "Pelican"},
        )
    )
    with pytest.raises(BuildError) as raised:
        build(book)
    assert f"{book}/staff.jsonl:1: field 'since' is a string; it is an integer" in str(raised.value)
    assert raised.value.built.left_out == {"boat": f"{book}/staff.jsonl:2"}
    entries = {entry.document_id: entry for entry in opened(tmp_path).documents()}
    assert entries["s1"].metadata["since"] == 2011
    assert entries["s4"].metadata == {"since": 7, "paid": None}
    stub.seen = []
    with pytest.raises(BuildError):
        build(book)
    assert stub.seen == []  # what is left out makes no document a changed one


def test_fields_named_as_columns_of_the_index_are_left_out(build, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(jsonl({"id": "a", "contents": "text", "source": "wiki", "place": 1, "n": 2}))
    built = build(file)
    assert built.left_out == {"source": f"{file}:1", "place": f"{file}:1"}
    assert opened(tmp_path).columns == {"n": int}
    assert counts(build(file)) == (0, 0, 1, 0, 0)


def test_sources_that_overlap_are_refused(build, book, tmp_path):
    build(book)
    (book / "sub").mkdir()
    (book / "sub" / "a.txt").write_text("text")
    with pytest.raises(DataError, match="is in two sources, 'book' and 'sub'"):
        build(book / "sub")
    namesake = tmp_path / "elsewhere" / "book"
    namesake.mkdir(parents=True)
    (namesake / "a.txt").write_text("text")
    with pytest.raises(DataError, match="give it another name with NAME=PATH"):
        build(namesake, prune=True)
    assert counts(build(f"other={namesake}")) == (1, 0, 0, 0, 0)
    book.rename(tmp_path / "moved")
    assert counts(build(f"book={tmp_path}/moved", prune=True)) == (1, 0, 4, 0, 0)


def test_only_adding_and_only_replacing(build, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(jsonl({"id": "a", "contents": "one"}))
    with pytest.raises(BuildError, match="'a' is not in the index, so there is nothing to repl"):
        build(file, allowed={Decision.REPLACE})
    build(file, allowed={Decision.ADD})
    file.write_text(jsonl({"id": "a", "contents": "two"}, {"id": "b", "contents": "new"}))
    with pytest.raises(BuildError, match="'a' is in the index with another content"):
        build(file, allowed={Decision.ADD})
    assert opened(tmp_path).texts(["a", "b"])[0].text == "one"
    file.write_text(jsonl({"id": "a", "contents": "two"}, {"id": "b", "contents": "new"}))
    assert counts(build(file, allowed={Decision.REPLACE})) == (0, 1, 1, 0, 0)


def test_many_documents_are_many_commits(build, tmp_path, stub, monkeypatch):
    monkeypatch.setattr(building, "BATCH", 4)
    monkeypatch.setattr(building, "PERIOD", 0.0)
    file = tmp_path / "a.jsonl"
    file.write_text(jsonl(*({"id": f"d{n}", "contents": f"text {n}"} for n in range(10))))
    with pytest.MonkeyPatch.context() as patched:
        real, calls = MemoryIndex.upsert, []

        def killed(self, *arguments):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return real(self, *arguments)

        patched.setattr(MemoryIndex, "upsert", killed)
        with pytest.raises(KeyboardInterrupt):
            build(file)
    assert len(opened(tmp_path)) == 8
    stub.seen = []
    assert counts(build(file)) == (2, 0, 8, 0, 0)
    assert stub.seen == ["d8", "d9"]


def test_what_is_compressed_does_not_wait_for_what_is_read(build, tmp_path, stub, monkeypatch):
    monkeypatch.setattr(building, "BATCH", 2)
    clock = [0.0]
    monkeypatch.setattr(building.time, "monotonic", lambda: clock[0])
    file = tmp_path / "a.jsonl"
    file.write_text(jsonl(*({"id": f"d{n}", "contents": f"text {n}"} for n in range(4))))
    plain, held = Build._put, []

    def slow(self, document):
        clock[0] += 0.6
        plain(self, document)
        held.append(0 if self.index is None else len(self.index))

    monkeypatch.setattr(Build, "_put", slow)
    assert counts(build(file)) == (4, 0, 0, 0, 0)
    assert held == [0, 0, 0, 2]
    assert len(opened(tmp_path)) == 4


@pytest.mark.parametrize("store_fails", [False, True])
def test_what_was_compressed_is_stored_when_compressing_fails(
    build, tmp_path, stub, monkeypatch, store_fails
):
    monkeypatch.setattr(building, "BATCH", 2)
    monkeypatch.setattr(building, "PERIOD", 60.0)
    file = tmp_path / "a.jsonl"
    file.write_text(jsonl(*({"id": f"d{n}", "contents": f"text {n}"} for n in range(6))))
    plain = Stub.__call__

    def failing(self, documents, **options):
        if self.calls == 2:
            raise RuntimeError("out of memory")
        return plain(self, documents, **options)

    def refused(*_):
        raise MemoryIndexError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(Stub, "__call__", failing)
        if store_fails:
            patched.setattr(MemoryIndex, "upsert", refused)
        with pytest.raises(RuntimeError, match="out of memory"):
            build(file)
    assert opened(tmp_path).ids() == ([] if store_fails else ["d0", "d1", "d2", "d3"])
    stub.seen = []
    assert counts(build(file))[0] == (6 if store_fails else 2)
    assert opened(tmp_path).ids() == [f"d{n}" for n in range(6)]


@pytest.mark.parametrize(("period", "bytes_", "commits"), [(60.0, 1 << 30, 1), (60.0, 1, 3)])
def test_batches_that_take_no_time_are_stored_together(
    build, tmp_path, monkeypatch, period, bytes_, commits
):
    monkeypatch.setattr(building, "BATCH", 4)
    monkeypatch.setattr(building, "PERIOD", period)
    monkeypatch.setattr(building, "_READY_BYTES", bytes_)
    file = tmp_path / "a.jsonl"
    file.write_text(jsonl(*({"id": f"d{n}", "contents": f"text {n}"} for n in range(10))))
    steps, calls, real = [], [], MemoryIndex.upsert

    def counted(self, *arguments):
        calls.append(1)
        return real(self, *arguments)

    monkeypatch.setattr(MemoryIndex, "upsert", counted)
    assert counts(build(file, steps=steps)) == (10, 0, 0, 0, 0)
    assert (len(calls), sum(steps[1:])) == (commits, 10)
    assert opened(tmp_path).ids() == [f"d{n}" for n in range(10)]


def test_a_long_document_would_make_others_as_long():
    """What is joined has as many memory tokens as the longest."""
    parts = [
        Stub(shape=shape)(
            [Document(f"{shape[0]} {n}", "a") for n in range(rows)], on_progress=print
        )
        for rows, shape in ((3, (2, 8)), (1, (64, 8)))
    ]
    joined = CompressedDocuments.concatenate(parts)
    assert building._joined_bytes(parts) == joined.memory.nbytes == 4 * 64 * 8 * 4
    assert building._joined_bytes([]) == 0


def test_an_id_that_comes_again_is_stored_in_another_commit(build, tmp_path, monkeypatch):
    """A file that changes while it is read may have it twice."""
    monkeypatch.setattr(building, "BATCH", 2)
    monkeypatch.setattr(building, "PERIOD", 60.0)
    file = tmp_path / "a.jsonl"
    file.write_text(jsonl(*({"id": f"d{n}", "contents": f"text {n}"} for n in range(3))))
    plain = Build._take

    def again(self, document):
        plain(self, document)
        if document.id == "d2":
            plain(self, replace(document, id="d0", text="changed"))

    monkeypatch.setattr(Build, "_take", again)
    assert counts(build(file))[:2] == (3, 1)
    index = opened(tmp_path)
    assert index.ids() == ["d1", "d2", "d0"]
    assert index.texts(["d0"])[0].text == "changed"


def test_long_texts_are_committed_sooner(build, tmp_path, stub, monkeypatch):
    monkeypatch.setattr(building, "_BATCH_CHARACTERS", 30)
    file = tmp_path / "a.jsonl"
    file.write_text(jsonl(*({"id": f"d{n}", "contents": "x" * 20} for n in range(4))))
    build(file)
    assert stub.calls == 2


def test_indexes_that_cannot_be_built(build, book, tmp_path):
    index = new_index(tmp_path / "index")
    with pytest.raises(MemoryIndexError, match="was made without columns for metadata"):
        build(book)
    assert len(index) == 0


def test_documents_added_otherwise_are_of_no_source(build, book, tmp_path, stub):
    from clara.data import Document

    index = new_index(tmp_path / "index", {"since": int, "paid": bool})
    plain = stub([Document("s1", "Anna is the master."), Document("z", "z")], on_progress=print)
    index.add(plain, {"z": Details({"since": 3})})
    with pytest.raises(BuildError, match="brought: 's1' \\(of no source\\)"):
        build(book, prune=True, confirm=lambda *numbers: True)
    built = build(book, on_duplicate="replace", prune=True, confirm=lambda *numbers: True)
    assert counts(built) == (0, 1, 3, 0, 0)
    assert "z" in opened(tmp_path).digests()


NOBODY = """
import os, sys
sys.path.insert(0, os.getcwd())
from clara.index import MemoryIndex, MemoryIndexError
from clara.corpus import Reading
from clara.model.building import opened_index
from clara.sync import Build
from tests.clara.sync.stubs import Stub
if os.geteuid() == 0:
    os.setuid(65534)
path, source = sys.argv[1:]
try:
    opened_index(path)
except MemoryIndexError as error:
    print(error)
stub = Stub()
for text in (None, "changed"):
    reading = Reading([source])
    try:
        print(Build(reading, MemoryIndex.open(path), None, stub).run().unchanged)
    except MemoryIndexError as error:
        print(str(error).partition(": ")[0], stub.seen)
    if text is None:
        print("now", flush=True)
        sys.stdin.readline()
sys.stdout.flush()
os._exit(0)  # a thread of a library that is still at work now and then aborts an ordinary end
"""


@pytest.mark.slow
def test_a_folder_that_may_only_be_read(stub):
    """As another user than root, who may write everything."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        base = Path(folder)
        (base / "a.txt").write_text("text")
        sources = [str(base / "a.txt")]
        Build(Reading(sources), None, lambda types: new_index(base / "i", types), stub).run()
        for each in (base, *base.rglob("*")):
            os.chmod(each, 0o555 if each.is_dir() else 0o444)
        with subprocess.Popen(
            [sys.executable, "-c", NOBODY, str(base / "i"), *sources],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as running:
            assert running.stdin is not None
            assert running.stdout is not None
            lines = [running.stdout.readline() for _ in range(3)]
            os.chmod(base / "a.txt", 0o644)
            (base / "a.txt").write_text("changed")
            running.stdin.write("go on\n")
            running.stdin.close()
            lines += running.stdout.readlines()
        texts = MemoryIndex.open(base / "i").texts(["a.txt"])
    assert running.returncode == 0
    assert lines == [
        f"{folder}/i: cannot be written: no permission\n",
        "1\n",  # what needs no change needs no right
        "now\n",
        f"{folder}/i ['a.txt']\n",
    ]
    assert texts[0].text == "text"
