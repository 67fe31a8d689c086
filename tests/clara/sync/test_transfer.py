"""Documents out of an index and into another, without compressing."""

import json
from dataclasses import replace

import pytest
import torch

from clara.corpus import Mark, Reading, write_corpus
from clara.data import DataError, Document
from clara.index import Details, MemoryIndex, MemoryIndexError
from clara.index.build import write_empty
from clara.index.header import Header, new_header
from clara.memory.documents import CompressedDocuments
from clara.sync import transfer
from clara.sync.transfer import Imported, import_index, texts_of
from tests.clara.sync.stubs import FINGERPRINT, new_index

RECORDS = [
    {"id": "a", "contents": "One sentence of more than forty characters, and more.", "n": 1},
    {"id": "b\u202e'", "contents": "Short.", "title": "T\x1b", "since": 0.5},
]


@pytest.fixture
def index(build, tmp_path):
    """An index of two records and a page with headings."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in RECORDS))
    (tmp_path / "page.md").write_text("# Top\n\nSome text before the\n\n## Middle\n\nand the end.")
    build(tmp_path / "a.jsonl", tmp_path / "page.md")
    return MemoryIndex.open(tmp_path / "index")


def same(one, two):
    """Whether two indexes hold the same rows with the same memory."""
    left, right = CompressedDocuments.concatenate(one), CompressedDocuments.concatenate(two)
    assert left.ids == right.ids
    assert torch.equal(left.memory, right.memory)
    assert (left.texts, left.titles) == (right.texts, right.titles)
    assert list(one.documents()) == list(two.documents())


def test_what_is_exported_is_read_back(index, tmp_path):
    written = list(texts_of(index, index.documents()))
    assert [document.text for document in written[:2]] == [each["contents"] for each in RECORDS]
    assert written[1].title == "T\x1b"
    assert written[1].metadata == {"since": 0.5}
    assert written[2].marks == (Mark(0, "# Top"), Mark(29, "## Middle"))
    write_corpus(tmp_path / "out.jsonl", written)
    read = list(Reading([str(tmp_path / "out.jsonl")]))
    assert [(d.id, d.text, d.title, d.metadata, d.marks) for d in read] == [
        (d.id, d.text, d.title, d.metadata, d.marks) for d in written
    ]


def test_what_is_exported_is_unchanged_for_a_build(build, tmp_path):
    """Headings in the midst of chunks, values that are null, numbers of a column of floats."""
    records = [
        {"id": "a", "contents": "One sentence of more than forty characters, and more.", "w": 0.5},
        {"id": "b", "contents": "Short.", "w": 1.0, "who": None, "n": 2**60, "yes": False},
        {"id": "c", "contents": "Short. ", "title": "", "w": None, "who": "", "n": -1},
        {"id": "d", "contents": "Marked at its end.", "marks": [[0, "p"], [7, "q"], [18, "r"]]},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    book = tmp_path / "book"
    book.mkdir()
    heading = "# A\n\n## B\n\ntext\n\n## B\n\n"
    (book / "page.md").write_text(heading + "Many words before it. " * 9 + "\n\n# End\n")
    (book / "plain.txt").write_text("Many words. " * 9)
    sources = (tmp_path / "a.jsonl", book)
    assert build(*sources).added == 6
    assert build(*sources).unchanged == 6
    index = MemoryIndex.open(tmp_path / "index")
    (page,) = index.entries(["book/page.md"])
    assert page.marks[:3] == (Mark(0, "# A"), Mark(5, "## B"), Mark(17, "## B"))
    assert len(page.marks) == 4
    assert page.places[0] == "# A"
    assert set(page.places[1:]) == {"## B"}
    write_corpus(tmp_path / "out.jsonl", texts_of(index, index.documents()))
    again = build(tmp_path / "out.jsonl")
    assert (again.unchanged, again.added, again.replaced, again.duplicates) == (6, 0, 0, 0)


def test_an_index_that_does_not_know_all_marks(stub, tmp_path):
    header = replace(
        new_header(
            fingerprint=FINGERPRINT,
            memory_tokens=2,
            hidden_size=8,
            settings={"overflow": "chunk", "compression_rate": 16},
            columns=(),
        ),
        marks=False,
    )
    write_empty(header, str(tmp_path / "one"))
    one, two = MemoryIndex.open(tmp_path / "one"), new_index(tmp_path / "two", {})
    marks = (Mark(0, "# A"), Mark(50, "## B"), Mark(60, "## C"), Mark(130, "## D"))
    compressed = stub([Document("d", "x" * 130)], on_progress=print)
    for index in (one, two):
        index.add(compressed, {"d": Details(source="s", marks=marks)})
    (old,), (new,) = one.entries(["d"]), two.entries(["d"])
    assert old.places == new.places == ["# A", "# A", "## C", "## C"]
    assert old.marks == (Mark(0, "# A"), Mark(80, "## C"))
    assert new.marks == marks
    assert one.search(torch.ones(2, 8), 4) == two.search(torch.ones(2, 8), 4)
    import_index(one.path, two, on_duplicate="replace")
    assert one.entries(["d"]) == [old]
    assert list(one.verify(apart=False)) == list(two.verify(apart=False)) == []


def test_into_a_new_index_and_again(index, tmp_path):
    steps = []
    done = import_index(tmp_path / "new", index, advance=steps.append)
    assert done == Imported(str(tmp_path / "new"), added=3)
    assert sum(steps) == 3
    same(MemoryIndex.open(tmp_path / "new"), index)
    assert import_index(tmp_path / "new", index).unchanged == 3


@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_means_stay_those_of_the_memory_before_it_was_quantized(stub, tmp_path, storage):
    settings = {"ranking": "mean", "overflow": "chunk"}
    one = new_index(tmp_path / "one", {}, storage=storage, settings=settings)
    compressed = stub([Document(f"d{n}", f"text {n}") for n in range(20)], on_progress=print)
    one.add(compressed)
    import_index(tmp_path / "two", one)
    two = MemoryIndex.open(tmp_path / "two")
    query = torch.randn(3, 1, 8, generator=torch.Generator().manual_seed(0))
    assert one.search(query, 20) == two.search(query, 20)  # scores to the last bit
    means = one.get_means(["d3", "d1"])
    assert torch.equal(means, compressed.memory.mean(1)[[3, 1]].bfloat16())
    assert new_index(tmp_path / "three", {}).get_means([]) is None
    with pytest.raises(ValueError, match=r"means must be \[20, 8\], got \[2, 8\]"):
        two.upsert(compressed, means=means)


@pytest.mark.parametrize("storage", ["int8", "int4", "bfloat16"])
def test_memory_that_is_stored_in_fewer_bits_stays_the_same(stub, tmp_path, storage):
    index = new_index(tmp_path / "one", {}, storage=storage, dtype=torch.float32)
    documents = [Document(f"d{n}", f"text {n}") for n in range(20)]
    index.add(stub(documents, on_progress=print))
    import_index(tmp_path / "two", index)
    same(MemoryIndex.open(tmp_path / "two"), index)


def test_ids_that_are_there(index, stub, tmp_path):
    other = new_index(tmp_path / "other", index.columns)
    other.add(stub([Document("a", "new"), Document("c", "new")], on_progress=print))
    with pytest.raises(DataError, match=r"holds other documents with the ids 'a'; choose skip"):
        import_index(index.path, other)
    assert set(index.digests()) == {"a", "b\u202e'", "page.md"}
    assert import_index(index.path, other, on_duplicate="skip") == Imported(
        index.path, added=1, duplicates=1
    )
    assert index.texts(["a#0"])[0].text.startswith("One")
    done = import_index(index.path, other, on_duplicate="replace")
    assert (done.added, done.replaced) == (0, 2)
    assert index.texts(["a"])[0].text == "new"


def test_indexes_that_do_not_fit(index, tmp_path):
    def refused(other):
        with pytest.raises(MemoryIndexError) as raised:
            import_index(index.path, other)
        return str(raised.value)

    columns = index.columns
    assert "is the index to import from itself" in refused(MemoryIndex.open(index.path))
    other = MemoryIndex.create(
        tmp_path / "m2", fingerprint="e" * 64, memory_tokens=2, hidden_size=8, columns=columns
    )
    assert "was written by another model (eeeeeeeeeeee, that of" in refused(other)
    other = new_index(tmp_path / "rate", columns, settings={"overflow": "chunk"})
    assert "has the setting compression_rate None" in refused(other)
    other = new_index(tmp_path / "types", {"n": str})
    assert "has the column 'n' of type str, " in refused(other)
    assert "has int" in refused(other)
    other = new_index(tmp_path / "more", {"more": int})
    assert refused(other).endswith("has no such column")
    plain = new_index(tmp_path / "plain")
    with pytest.raises(MemoryIndexError, match="has no such column"):
        import_index(plain.path, index)
    other = new_index(tmp_path / "good", {"n": int})
    assert import_index(index.path, other).added == 0


def test_documents_without_columns(stub, tmp_path):
    one = new_index(tmp_path / "one")
    one.add(stub([Document("a", "text")], on_progress=print))
    import_index(tmp_path / "two", one)
    same(MemoryIndex.open(tmp_path / "two"), one)
    with pytest.raises(DataError, match="with the ids 'a'"):
        import_index(tmp_path / "two", one)


def test_details_are_kept(stub, tmp_path):
    one = new_index(tmp_path / "one", {"n": int})
    details = Details({"n": 3}, "source", "digest", (Mark(0, "page 1"),))
    one.add(stub([Document("a", "text")], on_progress=print), {"a": details})
    import_index(tmp_path / "two", one)
    (entry,) = MemoryIndex.open(tmp_path / "two").documents()
    assert (entry.source, entry.digest, entry.places) == ("source", "digest", ["page 1"])
    assert entry.metadata == {"n": 3}


def stored(stub, index, *names, text, digest):
    """Store documents, all with this text, in one commit."""
    memory = stub([Document(name, text) for name in names], on_progress=lambda rows: None)
    index.upsert(memory, {name: Details(digest=digest) for name in names})


def test_what_is_committed_to_the_source_meanwhile_is_not_taken_over(stub, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "_AT_ONCE", 2)
    one = new_index(tmp_path / "one", {})
    stored(stub, one, "a", "b", "c", "d", text="old", digest="of old")
    second = MemoryIndex.open(one.path)
    steps = []

    def advance(documents):
        steps.append(documents)
        if sum(steps) == 2:  # the first group is stored
            stored(stub, second, "c", text="new", digest="of new")
            second.delete(["d"])

    done = import_index(tmp_path / "two", one, advance=advance)
    assert (done.added, steps) == (4, [0, 2, 2])
    two = MemoryIndex.open(tmp_path / "two")
    assert [each.text for each in two.texts(["a", "b", "c", "d"])] == ["old"] * 4
    assert two.digests() == dict.fromkeys("abcd", (None, "of old"))
    same(two, MemoryIndex.open(one.path, version=2))
    assert one.digests()["c"] == (None, "of new")  # the source itself still sees commits
    done = import_index(two.path, one, on_duplicate="replace")
    assert (done.replaced, done.unchanged) == (1, 2)
    assert two.texts(["c"])[0].text == "new"


def test_an_earlier_version_is_taken_over(stub, tmp_path):
    one = new_index(tmp_path / "one", {})
    stored(stub, one, "a", text="old", digest="of old")
    stored(stub, one, "a", text="new", digest="of new")
    import_index(tmp_path / "two", MemoryIndex.open(one.path, version=2))
    assert MemoryIndex.open(tmp_path / "two").digests() == {"a": (None, "of old")}


@pytest.mark.parametrize("identity", [None, "identity"])
def test_earlier_formats_are_taken_over(stub, tmp_path, identity):
    settings = {"overflow": "chunk", "compression_rate": 16}
    header = Header(FINGERPRINT, 2, 8, torch.float32, settings, identity=identity)
    write_empty(header, str(tmp_path / "one"))
    one = MemoryIndex.open(tmp_path / "one")
    assert one.info()["format_version"] == (1 if identity is None else 2)
    one.add(stub([Document("a", "text"), Document("b", "more")], on_progress=print))
    assert import_index(tmp_path / "two", one).added == 2
    same(MemoryIndex.open(tmp_path / "two"), one)


def test_texts_are_read_few_rows_at_a_time(tmp_path, stub, monkeypatch):
    index = new_index(tmp_path / "index", {})
    lengths = [10, 200, 30, 300, 35, 20]  # of which a row holds 40
    documents = [Document(f"d{n}", "x" * length) for n, length in enumerate(lengths)]
    index.add(stub(documents, on_progress=print))
    real, read = MemoryIndex.texts, []

    def counted(self, ids):
        read.append(len(ids))
        return real(self, ids)

    monkeypatch.setattr(MemoryIndex, "texts", counted)
    monkeypatch.setattr(transfer, "_ROWS_AT_ONCE", 6)
    found = [each.text for each in texts_of(index, index.documents())]
    assert found == [each.text for each in documents]
    assert read == [6, 1, 8, 2]
