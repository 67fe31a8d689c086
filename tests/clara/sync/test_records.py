"""What is kept of records that `clara compress --corpus` stores, for builds that come later."""

from clara.corpus import Reading
from clara.data.marks import Mark
from clara.data.records import read_records
from clara.index import MemoryIndex
from clara.index.origins import read_origins
from clara.sync.records import details_of_records
from tests.clara.sync.books import jsonl
from tests.clara.sync.stubs import new_index


def test_digests_are_those_of_a_build(tmp_path):
    """Of each record by itself, whatever others were asked of before."""
    file = tmp_path / "docs.jsonl"
    records = [
        {"id": "a", "contents": "A.", "title": ""},
        {"id": "b", "contents": "Bees.", "marks": [[0, "page 1"], [3, "page 2"]], "year": 3},
        {"id": "c", "contents": "C.", "marks": [[9, "behind its end"]]},
        {"id": "d", "contents": "Dogs.", "marks": [[1, "# D"]], "title": "D"},
    ]
    file.write_text(jsonl(*records))
    index = new_index(tmp_path / "index", {})
    reading = Reading([str(file)])
    reading.fix_columns({})
    expected = {each.id: each for each in reading}
    details = details_of_records(index, str(file))
    for document, fields in reversed(list(read_records(file))):
        found, wanted = details(document, fields), expected[document.id]
        assert (found.digest, found.source) == (wanted.digest, "docs.jsonl")
        assert found.marks == wanted.marks
    assert expected["b"].marks == (Mark(0, "page 1"), Mark(3, "page 2"))


def test_a_file_that_lies_in_another_source(build, book, stub, tmp_path):
    """It is no source beside that: no build would take a file that lies in two."""
    build(book)
    file = book / "staff.jsonl"
    file.write_text(file.read_text() + jsonl({"id": "s3", "contents": "Cleo paints."}))
    index = MemoryIndex.open(tmp_path / "index")
    *_, (document, fields) = read_records(file)
    found = details_of_records(index, str(file))(document, fields)
    assert found.source is None
    index.add(stub([document], on_progress=lambda rows: None), {"s3": found})
    assert list(read_origins(index.path)) == ["book"]
    built = build(book)
    assert (built.added, built.unchanged, built.replaced) == (0, 5, 0)
