"""Building an index from a corpus, with a compressor that is no model."""

from dataclasses import dataclass

import pytest
import torch

from clara.data import records
from clara.data.records import Document, read_document_ids, write_jsonl
from clara.data.values import DataError
from clara.index import Details, MemoryIndex, MemoryIndexError, corpus
from clara.index.corpus import Work, make_plan
from clara.memory.documents import CompressedDocuments
from clara.text.passages import Passage

CHUNK = 10  # characters, which stand for tokens here


def passages(documents, overflow):
    found = []
    for document in documents:
        text = document.text
        if overflow == "error" and len(text) > CHUNK:
            raise ValueError(f"document {document.id!r} is too long")
        if overflow == "truncate":
            text = text[:CHUNK]
        parts = [text[i : i + CHUNK] for i in range(0, len(text), CHUNK)]
        for number, part in enumerate(parts):
            name = document.id if len(parts) == 1 else f"{document.id}#{number}"
            found.append(Passage(name, document.id, document.title, part, [0] * len(part)))
    return found


@dataclass
class Compressor:
    """Memory that says how long a text is; `before` is called with every group of documents."""

    overflow: str = "chunk"
    before: object = None

    def __call__(self, documents, on_progress):
        if self.before is not None:
            self.before(documents)
        rows = passages(documents, self.overflow)
        for _ in rows:
            on_progress(1)
        return CompressedDocuments(
            memory=torch.tensor([[[float(len(row.text))] * 8] * 2 for row in rows]),
            ids=[row.id for row in rows],
            document_ids=[row.document_id for row in rows],
            token_counts=[len(row.tokens) for row in rows],
            texts=[row.text for row in rows],
            titles=[row.title for row in rows],
            fingerprint="f" * 64,
        )


@pytest.fixture
def write(tmp_path):
    def go(name="corpus.jsonl", **texts):
        file = tmp_path / name
        write_jsonl(file, [Document(each, text) for each, text in texts.items()])
        return str(file)

    return go


def build(index, file, compressor=None, overflow="chunk"):
    """The work that was done, and what was told while it went on."""
    told = []
    compressor = compressor or Compressor(overflow)
    plan = make_plan(index, file, read_document_ids(file), overflow, passages)
    work = Work(index, file, plan, compressor)
    work.run(lambda documents, detail=None: told.append((documents, detail)))
    return work, told


def test_a_corpus_is_added_group_by_group(make_index, write, monkeypatch):
    monkeypatch.setattr(corpus, "GROUP", 2)
    index = make_index()
    work, told = build(index, write(a="short", b="a longer text", c="x" * 25))
    assert index.ids() == ["a", "b#0", "b#1", "c#0", "c#1", "c#2"]
    assert (work.documents, work.rows, work.tokens) == (3, 6, 5 + 13 + 25)
    assert (work.short_documents, work.added_by_others) == (0, 0)
    assert sum(documents for documents, _ in told) == 3
    assert told[-1][1] == f"{43 / 12:.1f}x compression"


def test_what_is_there_is_left_out(make_index, write):
    index = make_index()
    build(index, write(a="short", b="a longer text"))
    computed = []
    file = write(b="a longer text", c="1", a="short")
    work, told = build(index, file, Compressor(before=computed.extend))
    assert [document.id for document in computed] == ["c"]
    assert work.plan.stored == {"a", "b"}
    assert work.short_documents == 1
    assert sum(documents for documents, _ in told) == 1


def test_details_are_of_the_record_and_the_corpus_is_read_once_for_both(
    make_index, tmp_path, monkeypatch
):
    monkeypatch.setattr(corpus, "GROUP", 2)
    index, file = make_index(columns={}), str(tmp_path / "corpus.jsonl")
    write_jsonl(file, [{"id": name, "contents": "short", "from": name * 2} for name in "abcde"])
    index.add(Compressor()([Document("b", "short")], lambda rows: None))
    plan = make_plan(index, file, read_document_ids(file), "chunk", passages)
    asked, read, plain = [], [], records.identified

    def details(document, fields):
        asked.append(document.id)
        return Details(source=fields.values["from"])

    def other(documents):
        if documents[0].id == "c":
            MemoryIndex.open(index.path).add(Compressor()(documents[1:], lambda rows: None))

    def reading(*arguments):
        read.append(arguments[0])
        return plain(*arguments)

    monkeypatch.setattr(records, "identified", reading)
    work = Work(index, file, plan, Compressor(before=other), details)
    work.run(lambda documents, detail=None: None)
    assert read == [file]
    assert asked == ["a", "c", "d", "e"]
    found = {each.document_id: each.source for each in index.documents()}
    assert found == {"a": "aa", "b": None, "c": "cc", "d": None, "e": "ee"}


@pytest.mark.parametrize("text", ["another", "a longer tex", "a longer text, and more"])
def test_a_changed_text_is_refused_before_anything_is_computed(make_index, write, text):
    index = make_index()
    build(index, write(a="short", b="a longer text"))
    with pytest.raises(DataError, match=r"1 document has another title or text than in .*\('b'\)"):
        build(index, write(a="short", b=text), Compressor(before=pytest.fail))


def test_of_a_text_that_was_cut_the_end_may_change(make_index, write):
    index = make_index()
    build(index, write(a="0123456789 one"), overflow="truncate")
    work, _ = build(index, write(a="0123456789 two"), overflow="truncate")
    assert work.documents == 0
    with pytest.raises(DataError, match=r"\('a'\)"):
        build(index, write(a="012345678"), overflow="truncate")


def test_documents_of_another_process_are_left_out(make_index, write):
    index = make_index()
    file = write(a="short", b="a longer text")

    def other(documents):
        MemoryIndex.open(index.path).add(Compressor()(documents[1:], lambda rows: None))

    work, told = build(index, file, Compressor(before=other))
    assert (work.documents, work.added_by_others) == (1, 1)
    assert sorted(index.ids()) == ["a", "b#0", "b#1"]
    assert sum(documents for documents, _ in told) == 2


def test_another_text_of_another_process_is_refused(make_index, write):
    index = make_index()

    def other(documents):
        MemoryIndex.open(index.path).add(Compressor()([Document("a", "sh0rt")], lambda rows: None))

    with pytest.raises(DataError, match=r"another title or text than in .*\('a'\)"):
        build(index, write(a="short"), Compressor(before=other))


def test_rows_of_one_name_are_refused(make_index, write):
    chunked, named = {"a": "a longer text"}, {"a#1": "b"}
    with pytest.raises(DataError, match="a chunk of document 'a' would have the id of document"):
        build(make_index(), write(**chunked, **named))


def test_rows_of_one_name_in_the_index_are_refused(make_index, write):
    index = make_index()
    build(index, write(**{"a#1": "b"}))
    with pytest.raises(DataError, match="'a' would have the id of document 'a#1' in the index"):
        build(index, write(a="a longer text"))


def test_a_document_named_as_a_stored_chunk_is_refused(make_index, write):
    index = make_index()
    build(index, write(a="a longer text"))
    with pytest.raises(DataError, match="'a#1' has the id of a chunk of document 'a'"):
        build(index, write(**{"a#1": "b"}))


def test_a_long_document_is_refused_before_an_index_is_made(write):
    file = write(a="short", b="a longer text")
    with pytest.raises(ValueError, match="'b' is too long"):
        make_plan(None, file, read_document_ids(file), "error", passages)


def test_an_id_that_cannot_be_added_is_no_work_of_others(make_index, write):
    """It is that of another document's chunk, added after the plan was made."""
    index = make_index()

    def other(documents):
        MemoryIndex.open(index.path).add(
            Compressor()([Document("a", "a longer text")], lambda rows: None)
        )

    with pytest.raises(MemoryIndexError, match="'a#1' is in the index already"):
        build(index, write(**{"a#1": "b"}), Compressor(before=other))
