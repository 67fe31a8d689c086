"""Replacing, deleting and listing documents."""

import dataclasses

import lance
import pytest
import torch

from clara.data.marks import Mark
from clara.index import Changed, Details, DuplicateIdError, MemoryIndex, MemoryIndexError
from clara.index.contents import Contents
from clara.index.layout import encode
from clara.index.snapshot import Snapshot
from clara.memory.documents import CompressedDocuments

HOSTILE = ["it's", 'a"b', "nul\0x", "back\\slash", "new\nline", "ü😀", "%_", "--x", "`q`", "'"]


def other(documents):
    """The same documents with other memory and texts."""
    return CompressedDocuments(
        memory=documents.memory + 1,
        ids=documents.ids,
        document_ids=documents.document_ids,
        token_counts=documents.token_counts,
        texts=[text + " Changed." for text in documents.texts],
        titles=documents.titles,
        fingerprint=documents.fingerprint,
        counts=documents.counts,
    )


@pytest.fixture
def both():
    """A handle that did the changes, and one that opens the index now."""
    return lambda index: (index, MemoryIndex.open(index.path))


def found(index, query):
    """Ids that a search finds, best first."""
    return [hit.id for hit in index.search(query, 20)[0]]


@pytest.mark.parametrize("storage", ["float32", "int4"])
def test_documents_are_replaced_with_all_of_their_rows(make_index, make_documents, both, storage):
    index = make_index(storage=storage)
    index.add(make_documents(["a#0", "a#1", "b", "c#0", "c#1", "c#2", "d"]))
    reader = MemoryIndex.open(index.path)
    before = reader.search(make_documents(["d"]).memory, 20)
    fewer = other(make_documents(["c#0", "e", "a#0", "a#1", "a#2"]))
    assert index.upsert(fewer) == Changed(added=1, replaced=2)
    names = ["b", "d", "c#0", "e", "a#0", "a#1", "a#2"]
    for each in (reader, *both(index)):
        assert each.ids() == names
        assert len(each) == 7
        assert (each.info()["count"], each.info()["documents"]) == (7, 5)
        assert each.contains(["c#1", "c#2", "a#2"]) == [False, False, True]
        assert each.get(["a#2", "c#0"]).texts == [fewer.texts[4], fewer.texts[0]]
        assert each.get_documents(["c", "a"]).ids == ["c#0", "a#0", "a#1", "a#2"]
        assert sorted(found(each, fewer.memory[0])) == sorted(names)
        assert found(each, fewer.memory[0])[0] == "c#0"
        (hit,) = each.search(make_documents(["d"]).memory, 1)[0]
        assert (hit.id, hit.row) == ("d", 1)
    assert before[0][0].row == 6


def test_a_whole_document_becomes_chunks_and_is_whole_again(make_index, make_documents, both):
    index = make_index()
    index.add(make_documents(["a", "b"]))
    assert index.upsert(make_documents(["a#0", "a#1"])) == (0, 1)
    for each in both(index):
        assert each.ids() == ["b", "a#0", "a#1"]
    assert index.upsert(make_documents(["a"])) == (0, 1)
    for each in both(index):
        assert each.ids() == ["b", "a"]


def test_what_was_not_there_is_added(make_index, make_documents, assert_same):
    index = make_index()
    documents = make_documents(["a", "b#0", "b#1"])
    assert index.upsert(documents) == (2, 0)
    assert_same(CompressedDocuments.concatenate(MemoryIndex.open(index.path)), documents)
    version = lance.dataset(index.path).version
    assert index.upsert(documents[:0]) == (0, 0)
    assert lance.dataset(index.path).version == version


def test_each_change_is_one_commit(make_index, make_documents):
    index = make_index()
    index.add(make_documents(["a#0", "a#1", "b", "c"]))
    version = lance.dataset(index.path).version
    index.upsert(make_documents(["a#0", "n"]))
    assert lance.dataset(index.path).version == version + 1
    index.delete(["a", "c"])
    assert lance.dataset(index.path).version == version + 2


def test_documents_are_deleted_with_all_of_their_rows(make_index, make_documents, both):
    index = make_index()
    index.add(make_documents(["a#0", "a#1", "b", "c"]))
    reader = MemoryIndex.open(index.path)
    assert "a#1" in found(reader, make_documents(["b"]).memory)
    assert index.delete(["a", "c", "a"]) == 2
    for each in (reader, *both(index)):
        assert each.ids() == ["b"]
        assert found(each, make_documents(["a#0"]).memory) == ["b"]
        assert each.contains_documents(["a", "b"]) == [False, True]
        with pytest.raises(MemoryIndexError, match="no document has the id 'a#0'"):
            each.get(["a#0"])
    index.add(make_documents(["a#0"]))
    assert MemoryIndex.open(index.path).ids() == ["b", "a#0"]
    assert index.delete(["a", "b"]) == 2
    for each in both(index):
        assert (len(each), list(each), found(each, torch.ones(2, 8))) == (0, [], [])
    index.add(make_documents(["b"]))
    assert [each.ids() for each in both(index)] == [["b"], ["b"]]


def test_unknown_documents_are_named_and_nothing_is_deleted(make_index, make_documents):
    index = make_index()
    index.add(make_documents(["a#0", "b"]))
    with pytest.raises(MemoryIndexError) as caught:
        index.delete(["b", *(f"no{n}" for n in range(12))])
    shown = ", ".join(f"'no{n}'" for n in range(10))
    assert str(caught.value) == f"{index.path}: no document has the id {shown} and 2 more"
    with pytest.raises(MemoryIndexError, match=r"no document has the id 'a#0'$"):
        index.delete(["a#0"])
    with pytest.raises(TypeError, match="got a single string"):
        index.delete("b")
    with pytest.raises(TypeError, match="one of them is 3"):
        index.delete([3])
    assert index.ids() == ["a#0", "b"]
    assert index.delete(["b", "no"], missing_ok=True) == 1
    assert index.delete(["b", "no"], missing_ok=True) == index.delete([]) == 0
    assert MemoryIndex.open(index.path).ids() == ["a#0"]


def test_ids_that_sql_could_read_otherwise(make_index, make_documents, both):
    index = make_index()
    rows = [f"{name}#{number}" for name in HOSTILE for number in range(2)]
    index.add(make_documents(rows))
    assert index.upsert(make_documents([f"{name}#0" for name in HOSTILE])) == (0, len(HOSTILE))
    for each in both(index):
        assert each.ids() == [f"{name}#0" for name in HOSTILE]
    for name in HOSTILE:
        assert index.delete([name]) == 1
    assert len(index) == 0


def test_many_documents_at_once(make_index, make_documents, both):
    index = make_index((1, 4))
    names = [f"country/section/{number}" for number in range(3000)]
    index.add(make_documents(names, (1, 4)))
    documents = other(make_documents(names[:2500], (1, 4)))
    assert index.upsert(documents) == (0, 2500)
    for each in both(index):
        assert each.ids() == names[2500:] + names[:2500]
        assert torch.equal(each.get(names[:2500]).memory, documents.memory)
    assert index.delete(names[100:]) == 2900
    assert MemoryIndex.open(index.path).ids() == names[:100]


def test_a_row_of_another_document_is_not_replaced(make_index, make_documents, both):
    index = make_index()
    index.add(make_documents(["a#0", "a#1"]))
    chunk = make_documents(["a#1"])
    whole = CompressedDocuments(chunk.memory, ["a#1"], ["a#1"], [1], ["x"], [None], "f" * 64)
    with pytest.raises(DuplicateIdError, match="'a#1' is in the index already"):
        index.upsert(whole)
    for each in both(index):
        assert each.get_documents(["a"]).ids == ["a#0", "a#1"]


@pytest.mark.parametrize("change", ["add", "upsert"])
def test_wrong_documents_are_refused(make_index, make_documents, change):
    index = make_index(columns={"year": int})
    for documents, details, reason in [
        (make_documents("a", fingerprint="e" * 64), None, "another model"),
        (make_documents("a", (3, 8)), None, r"\[N, 2, 8\], got \[1, 3, 8\]"),
        (make_documents("aa"), None, "holds 'a' twice"),
        (make_documents("a"), {"a": Details({"year": "x"})}, "column 'year'"),
        (make_documents("a"), {"b": Details()}, "details are given of 'b'"),
    ]:
        with pytest.raises(MemoryIndexError, match=reason):
            getattr(index, change)(documents, details)
    with pytest.raises(TypeError, match="must be CompressedDocuments"):
        getattr(index, change)([])
    assert len(index) == 0


def test_an_index_of_format_1_says_what_to_do(make_older, make_second, make_documents):
    older = make_older()
    older.add(make_documents("ab"))
    for change in (lambda: older.upsert(make_documents("a")), lambda: older.delete(["a"])):
        with pytest.raises(MemoryIndexError, match="run 'clara index upgrade --model MODEL"):
            change()
    second = make_second()
    second.add(make_documents("ab"))
    assert second.upsert(make_documents("ac")) == (1, 1)
    assert second.delete(["b"]) == 1
    assert MemoryIndex.open(second.path).ids() == ["a", "c"]


def test_documents_are_listed(make_index, make_documents, both):
    index = make_index(columns={"year": int})
    texts = make_documents(["b", "a#0", "c", "a#1"])
    details = {"a": Details({"year": 7}, "books", "d" * 64, (Mark(0, "page 1"),))}
    index.add(texts, details)
    for each in both(index):
        listed = list(each.documents())
        origin, marks = ("books", "d" * 64), details["a"].marks
        assert listed == [
            ("b", None, ["b"], 10, 2, None, None, {"year": None}, [None], ()),
            ("a", "", ["a#0", "a#1"], 24, 4, *origin, {"year": 7}, 2 * ["page 1"], marks),
            ("c", "title of c", ["c"], 12, 2, None, None, {"year": None}, [None], ()),
        ]
        assert listed[1].tokens == 11 + 13
        assert [entry.document_id for entry in each.documents(prefix="a")] == ["a"]
        assert list(each.documents(prefix="nope")) == []
        assert each.digests() == {"b": (None, None), "a": ("books", "d" * 64), "c": (None, None)}
    listing = index.documents()
    next(listing)
    index.delete(["a"])
    assert [entry.document_id for entry in listing] == ["a", "c"]
    with pytest.raises(MemoryIndexError, match="no document has the id 'a'"):
        index.get_documents(["b", "a"])
    index.upsert(make_documents(["b"]), {"b": Details(digest="new")})
    assert MemoryIndex.open(index.path).digests() == {"c": (None, None), "b": (None, "new")}


def test_some_documents_are_listed(make_index, make_documents, both, monkeypatch):
    index = make_index(columns={"year": int})
    index.add(make_documents(["b", "a#0", "c", "a#1"]), {"a": Details({"year": 7}, digest="one")})
    for each in both(index):
        known = {entry.document_id: entry for entry in each.documents()}
        assert each.entries(["c", "a", "c"]) == [known["c"], known["a"], known["c"]]
        assert each.entries([]) == []
        with pytest.raises(
            MemoryIndexError, match=r"no document has the id 'x\\x1b', '0', '1', .* '8' and 3 more$"
        ):
            each.entries(["x\x1b", "a", *map(str, range(12))])
        with pytest.raises(TypeError, match="document_ids must be a list of ids"):
            each.entries("a")
    read = []
    take = Contents.take_entries

    def noted(contents, rows):
        read.append(list(rows))
        return take(contents, rows)

    monkeypatch.setattr(Contents, "take_entries", noted)
    index.entries(["a"])
    assert read == [[1, 3]]  # nothing of the others


def test_an_index_as_it_is_now_sees_no_later_commit(make_index, make_documents, make_older):
    for index in (make_index(columns={}), make_older()):
        index.add(make_documents("ab"))
        now = index.at_this_version()
        MemoryIndex.open(index.path).add(make_documents("c"))
        assert (now.ids(), now.contains(["c"]), len(now)) == (["a", "b"], [False], 2)
        assert now.get(["a"]).texts == make_documents("a").texts
        assert index.ids() == ["a", "b", "c"]
        with pytest.raises(MemoryIndexError, match="is open, which can only be read"):
            now.add(make_documents("d"))
        assert now.at_this_version().ids() == ["a", "b"]


def test_an_index_without_columns_is_listed(make_index, make_documents):
    index = make_index()
    index.add(make_documents(["a#0", "a#1"]))
    assert list(index.documents()) == [
        ("a", None, ["a#0", "a#1"], 21, 4, None, None, {}, [None, None], ())
    ]
    assert index.digests() == {"a": (None, None)}


def test_more_documents_than_are_listed_at_a_time(make_index, make_documents):
    index = make_index((1, 4))
    names = [f"{number}" for number in range(2500)]
    index.add(make_documents(names, (1, 4)))
    index.upsert(make_documents(names[:7], (1, 4)))
    assert [entry.rows for entry in index.documents()] == [[n] for n in names[7:] + names[:7]]


@pytest.mark.parametrize(("mine", "theirs"), [(["n"], ["n#0", "n#1"]), (["n#0", "n#1"], ["n"])])
def test_a_document_that_others_insert_otherwise_is_there_once(
    make_index, make_documents, before_insertion, mine, theirs
):
    """Lance compares ids of rows, of which a whole document and its chunks share none."""
    index = make_index()
    index.add(make_documents(["a"]))
    before_insertion(lambda: MemoryIndex.open(index.path).upsert(make_documents([*theirs, "b"])))
    assert sum(index.upsert(make_documents(mine))) == 1
    assert index.ids() == MemoryIndex.open(index.path).ids() == ["a", "b", *mine]


def test_as_many_deletions_of_other_rows_are_noticed(make_index, make_documents):
    """A version that was restored may be followed by as many deletions in the same file."""
    index = make_index()
    index.add(make_documents("abc"))
    reader = MemoryIndex.open(index.path)
    index.delete(["a"])
    first = Snapshot.latest(index.path)
    assert (reader.ids(), found(reader, torch.ones(2, 8)).count("b")) == (["b", "c"], 1)
    lance.dataset(index.path, version=2).restore()
    index.delete(["b"])
    assert not Snapshot.latest(index.path).continues(first)
    assert reader.ids() == ["a", "c"]
    assert reader.get(["a"]).texts == make_documents("a").texts
    assert sorted(found(reader, torch.ones(2, 8))) == ["a", "c"]


def test_a_document_that_comes_while_another_is_stored_is_not_replaced(
    make_index, make_documents, monkeypatch, blind_locks
):
    index = make_index()
    index.add(make_documents(["z"]))
    second = MemoryIndex.open(index.path)
    own = dataclasses.replace(make_documents(["a#0"]), document_ids=["a#0"])
    store = index._writer.replace

    def overtaken(*arguments, **options):
        second.add(own)
        return store(*arguments, **options)

    monkeypatch.setattr(index._writer, "replace", overtaken)
    with pytest.raises(DuplicateIdError, match="document 'a#0' is in the index already"):
        index.upsert(make_documents(["a#0", "a#1"]))
    assert [entry.document_id for entry in index.documents()] == ["z", "a#0"]


def test_chunks_are_not_added_to_a_document_that_is_there(make_index, make_documents):
    index = make_index()
    index.add(make_documents(["a", "b#0", "b#1"]))
    for names in (["a#0", "a#1"], ["c", "b"], ["b#2"]):
        with pytest.raises(DuplicateIdError, match=f"document '{names[-1][0]}' is in the index"):
            index.add(make_documents(names))
    assert index.ids() == ["a", "b#0", "b#1"]


def test_a_document_of_rows_that_do_not_belong_together_has_no_digest(make_index, make_documents):
    index = make_index(columns={})
    index.add(make_documents(["a"]), {"a": Details(digest="one")})
    snapshot = Snapshot.latest(index.path)
    rows = encode(snapshot.header, make_documents(["a#0", "a#1"]), {"a": Details(digest="two")})
    assert index._writer.commit(snapshot, rows, alone=True)
    (entry,) = index.documents()
    assert (entry.rows, entry.digest) == (["a", "a#0", "a#1"], None)
    index.upsert(make_documents(["a#0"]), {"a": Details(digest="two")})
    assert index.digests() == {"a": (None, "two")}
