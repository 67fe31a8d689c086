"""Metadata of records, as builds store them."""

from clara.corpus import FieldNames, write_corpus
from clara.index import MemoryIndex
from clara.sync.transfer import texts_of
from tests.clara.sync.test_build import counts, jsonl


def test_fields_that_metadata_cannot_have_do_not_cost_the_others(build, tmp_path):
    file = tmp_path / "a.jsonl"
    records = [{"id": f"d{n}", "contents": "x", "tags": ["a"], "year": n} for n in range(2)]
    file.write_text(jsonl(*records, {"id": "e", "contents": "x", "big": 2**64, "who": "Anna"}))
    built = build(file)
    assert counts(built) == (3, 0, 0, 0, 0)
    assert built.left_out == {"tags": f"{file}:1", "big": f"{file}:3"}
    assert MemoryIndex.open(tmp_path / "index").columns == {"year": int, "who": str}
    metadata = [dict(entry.metadata) for entry in MemoryIndex.open(tmp_path / "index").documents()]
    assert metadata == [*({"year": n, "who": None} for n in (0, 1)), {"year": None, "who": "Anna"}]
    assert counts(build(file)) == (0, 0, 3, 0, 0)


def test_no_column_hinders_an_export(build, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(
        jsonl({"id": "a", "body": "x", "contents": "y", "marks": "best", "who": "Anna"})
    )
    built = build(file, names=FieldNames(text="body"))
    assert list(built.left_out) == ["contents", "marks"]
    index = MemoryIndex.open(tmp_path / "index")
    assert write_corpus(tmp_path / "out.jsonl", texts_of(index, index.documents())) == 1
    assert (tmp_path / "out.jsonl").read_text() == '{"id": "a", "contents": "x", "who": "Anna"}\n'
