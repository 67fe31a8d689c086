"""A folder that is built with one pattern and then with another."""

from clara.index import MemoryIndex
from clara.index.origins import read_origins
from clara.sync.origins import from_text
from tests.clara.sync.test_build import counts


def test_another_pattern_deletes_nothing_unasked(build, tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    for number in range(20):
        (docs / f"a{number:02}.txt").write_text(f"text {number}")

    def recorded():
        return from_text(read_origins(tmp_path / "index")["docs"]).pattern

    assert counts(build(docs)) == (20, 0, 0, 0, 0)
    narrow = docs / "a[01]*[0-8].txt"
    for options in ({"prune": True}, {}, {"prune": True}):
        built = build(narrow, **options)
        assert counts(built) == (0, 0, 18, 0, 0)
        assert recorded() == ""
    assert built.not_deleted == 2
    assert built.why_not_deleted == (
        "source 'docs' was a folder before, so it may be that they still exist"
    )
    assert len(MemoryIndex.open(tmp_path / "index")) == 20
    built = build(narrow, prune=True, confirm=lambda gone, documents: True)
    assert counts(built) == (0, 0, 18, 2, 0)
    assert recorded() == "a[01]*[0-8].txt"
    assert counts(build(docs / "*.txt")) == (2, 0, 18, 0, 0)
    assert recorded() == "*.txt"
    (docs / "a00.txt").unlink()
    assert counts(build(docs / "*.txt", prune=True)) == (0, 0, 19, 1, 0)
