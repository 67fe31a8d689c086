"""No file comes into an index by two sources, and no folder takes the place of another."""

import pytest

from clara.corpus import list_sources
from clara.corpus.listing import Origin
from clara.data import DataError
from clara.sync.origins import as_text, check_origins, from_text


@pytest.fixture
def book(tmp_path):
    """A folder with a folder in it."""
    (tmp_path / "book" / "sub").mkdir(parents=True)
    for name in ("a.txt", "b.md", "sub/c.txt"):
        (tmp_path / "book" / name).write_text("text")
    return tmp_path / "book"


def refused(sources, recorded=None):
    with pytest.raises(DataError) as raised:
        check_origins(list_sources([str(each) for each in sources]), recorded or {})
    return str(raised.value)


def test_sources_without_a_common_file(book, tmp_path):
    recorded = {"other": Origin(str(tmp_path / "other")), "md": Origin(str(book), "*.md")}
    check_origins(list_sources([f"txt={book}/**/*.txt", f"md={book}/*.md"]), recorded)
    check_origins(list_sources([f"txt={book}/**/*.txt"]), recorded)
    check_origins(list_sources([str(book)]), {"book": Origin(str(book), "*.md")})


def test_a_file_in_two_sources(book):
    assert refused([book, book / "sub"]) == (
        f"{book}/sub/c.txt: is in two sources, 'sub' and 'book', and would be two documents; "
        "leave one of them out, or give patterns that have no file in common"
    )
    assert "'all' and 'txt'" in refused([f"txt={book}/*.txt", f"all={book}/*"])


def test_a_file_that_an_earlier_source_of_the_index_holds(book, tmp_path):
    recorded = {"book": Origin(str(book))}
    message = refused([book / "sub"], recorded)
    assert message.endswith(
        "build 'book' again in place of 'sub', or delete the documents of 'book' from the index "
        "first"
    )
    assert "'book' and 'a.txt'" in refused([book / "a.txt"], recorded)
    assert "'a.txt' and 'book'" in refused([book], {"a.txt": Origin(str(book / "a.txt"))})
    (tmp_path / "link").symlink_to(book / "sub")
    assert "'book' and 'link'" in refused([tmp_path / "link"], recorded)


def test_another_folder_of_the_same_name(book, tmp_path):
    (tmp_path / "x" / "book").mkdir(parents=True)
    (tmp_path / "x" / "book" / "a.txt").write_text("other")
    recorded = {"book": Origin(str(book))}
    assert refused([tmp_path / "x" / "book"], recorded) == (
        f"source 'book' is {book} in the index, not {tmp_path}/x/book; give it another name with "
        "NAME=PATH"
    )
    book.rename(tmp_path / "gone")
    check_origins(list_sources([str(tmp_path / "x" / "book")]), recorded)  # it was moved


def test_origins_as_text():
    origin = Origin('/a \u202e"b', "**/*.md")
    assert as_text(origin).isascii()
    assert from_text(as_text(origin)) == origin
    for text in ("", "{", "[]", "3", '{"path": 1, "pattern": ""}', '{"path": "/"}'):
        assert from_text(text) is None
