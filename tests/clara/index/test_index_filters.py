"""Searches among some of the documents, which are as exact as of an index without the others."""

import random
import subprocess

import lance
import pytest
import torch

from clara.index import Details, MemoryIndex, MemoryIndexError
from clara.index.filters import as_filter
from clara.index.storage import STORAGES
from clara.memory.documents import CompressedDocuments

COLUMNS = {"author": str, "year": int, "price (EUR)": float, "in.print": bool, "Year": int}
AUTHORS = ["it's", 'a "b"', "metadata_1", "ü", None]


def details(number):
    return Details(
        {
            "author": AUTHORS[number % 5],
            "year": 1900 + number,
            "price (EUR)": number / 4,
            "in.print": number % 3 == 0,
            "Year": -number,
        },
        source=f"source {number % 2}",
    )


def documents(count, seed=0, m=2, width=8):
    """Documents of which many have equal memory, some as two rows."""
    chance = torch.Generator().manual_seed(seed)
    names = [f"d{n // 2}#{n % 2}" if n < count // 2 else f"d{n}" for n in range(count)]
    memory = torch.randn(7, m, width, generator=chance)[
        torch.randint(7, (count,), generator=chance)
    ]
    return CompressedDocuments(
        memory=memory,
        ids=names,
        document_ids=[name.split("#")[0] for name in names],
        token_counts=[5 + n % 11 for n in range(count)],
        texts=[f"text {n}" for n in range(count)],
        titles=[None if n % 4 else f"Title {n}" for n in range(count)],
        fingerprint="f" * 64,
    )


def filled(index, given):
    names = dict.fromkeys(given.document_ids)
    index.add(given, {name: details(number) for number, name in enumerate(names)})
    return index


FILTERS = {
    "year >= 1903 AND year < 1910": lambda d, t, title, tokens: 3 <= d < 10,
    "`price (EUR)` * 4 = 5": lambda d, t, title, tokens: d == 5,
    '"Year" = -3 or Year = -4': lambda d, t, title, tokens: d in (3, 4),
    "author = 'it''s'": lambda d, t, title, tokens: d % 5 == 0,
    "author IN ('ü', 'metadata_1')": lambda d, t, title, tokens: d % 5 in (2, 3),
    "author is null": lambda d, t, title, tokens: d % 5 == 4,
    "NOT `in.print` and source = 'source 1'": lambda d, t, title, tokens: d % 3 and d % 2,
    "lower(author) LIKE 'a%'": lambda d, t, title, tokens: d % 5 == 1,
    "title IS NOT NULL AND tokens > 9": lambda d, t, title, tokens: title and tokens > 9,
    "document_id = 'd1'": lambda d, t, title, tokens: t == "d1",
    "CAST(year AS string) = '1902'": lambda d, t, title, tokens: d == 2,
    "year BETWEEN 1901 AND 1902": lambda d, t, title, tokens: d in (1, 2),
    "false": lambda d, t, title, tokens: False,
}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """An index of 400 rows, and what is in it."""
    given = documents(400)
    index = MemoryIndex.create(
        tmp_path_factory.mktemp("filters") / "index",
        fingerprint="f" * 64,
        memory_tokens=2,
        hidden_size=8,
        columns=COLUMNS,
    )
    return filled(index, given), given


@pytest.mark.parametrize("text", FILTERS)
def test_a_filter_keeps_what_it_says(large, text):
    index, given = large
    numbers = {name: number for number, name in enumerate(dict.fromkeys(given.document_ids))}
    expected = [
        row
        for row, name in enumerate(given.ids)
        if FILTERS[text](
            numbers[given.document_ids[row]],
            given.document_ids[row],
            given.titles[row],
            given.token_counts[row],
        )
    ]
    found = index.search(torch.ones(2, 8), 400, filter=text)[0]
    assert sorted(hit.row for hit in found) == expected


@pytest.mark.parametrize(
    ("storage", "ranking"),
    [*((name, "flattened") for name in STORAGES), ("float32", "mean"), ("int8", "mean")],
)
def test_the_answer_is_that_of_the_rows_alone(make_index, storage, ranking):
    """Equal scores, which many have, are in the order of the rows in both."""
    given = documents(300, seed=3)
    index = filled(make_index(storage=storage, columns=COLUMNS, ranking=ranking), given)
    chance = random.Random(5)
    queries = torch.randn(4, 1 if ranking == "mean" else 2, 8)
    for share, count in [(0.02, 0), (0.9, 1)]:
        names = [name for name in dict.fromkeys(given.document_ids) if chance.random() < share]
        rows = [row for row, name in enumerate(given.document_ids) if name in names]
        alone = make_index(storage=storage, ranking=ranking, name=f"alone {count}")
        alone.add(given[rows])
        quoted = ", ".join(f"'{name}'" for name in names)
        for k in (1, 7, 300):
            for asked in (queries, queries[0]):
                expected = alone.search(asked, k)
                for arguments in (
                    {"ids": names[::-1]},
                    {"filter": f"document_id IN ({quoted})"},
                    {"filter": f"document_id in ({quoted})", "ids": given.document_ids},
                ):
                    found = index.search(asked, k, **arguments)
                    assert [[(hit.id, hit.score) for hit in each] for each in found] == [
                        [(hit.id, hit.score) for hit in each] for each in expected
                    ]
                    assert all(hit.row == given.ids.index(hit.id) for each in found for hit in each)


def test_filter_and_ids_together(large):
    index, _ = large
    both = index.search(torch.ones(2, 8), 9, filter="year >= 1902", ids=["d1", "d2", "d3"])[0]
    assert sorted(hit.id for hit in both) == ["d2#0", "d2#1", "d3#0", "d3#1"]
    assert index.search(torch.ones(3, 2, 8), 9, ids=[]) == [[], [], []]
    assert index.search(torch.ones(2, 8), 9, filter="year = 0") == [[]]


def test_a_filter_sees_what_was_changed(make_index):
    index = filled(make_index(columns=COLUMNS), documents(20))
    reader = MemoryIndex.open(index.path)
    assert len(reader.search(torch.ones(2, 8), 20, filter="year = 1903")[0]) == 2
    index.upsert(index.get_documents(["d3"]), {"d3": Details({"year": 1902})})
    index.delete(["d1"])
    assert reader.search(torch.ones(2, 8), 20, filter="year = 1903") == [[]]
    found = reader.search(torch.ones(2, 8), 20, filter="year = 1902")[0]
    assert sorted(hit.id for hit in found) == ["d2#0", "d2#1", "d3#0", "d3#1"]
    with pytest.raises(MemoryIndexError, match="no document has the id 'd1'"):
        reader.search(torch.ones(2, 8), 1, ids=["d2", "d1"])
    with pytest.raises(TypeError, match="single string"):
        reader.search(torch.ones(2, 8), 1, ids="d2")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        ("yaer = 1", "has no column 'yaer'; it has 'document_id', 'title', 'tokens', 'source', 'a"),
        ("YEAR = 1", "has no column 'YEAR'"),
        ('author = "x"', "has no column 'x'; strings have single quotes; it has"),
        ("metadata_0 = 'x'", "has no column 'metadata_0'"),
        ("memory = 1", "has no column 'memory'"),
        ("year = ", "Expected: an expression, found: EOF"),
        ("year = 'x'", "'year'|Int64"),
        ("year", "[Bb]oolean"),
        ("year = nope(1)", "nope"),
        ("repeat(author, 2000000000) = 'x'", "no filter has the function repeat, but these: abs"),
        ("lpad (author, 2000000000) = 'x'", "no filter has the function lpad"),
        ("random() < 0.5", "no filter has the function random"),
        ("(year = 1", "Expected: \\)"),
        ("year = 1)", r"a \) without a \("),
        ("author = 'it's'", 'a quote without an end: "\'", character 15'),
        ("year = 1; DROP TABLE x", "what no filter has: ';', character 9"),
        ("year = 1 -- x", "a comment"),
        ("year = \0", "what no filter has"),
        ("year = 2x", "what no filter has: '2'"),
        ("year = 1" + "+1" * 60, "more than 50 operators in one expression"),
        ("year " + "IS NULL " * 60, "more than 50 operators"),
        (" OR ".join(["year = 1"] * 1002), "2003 operators, at most 2000"),
        ("(" * 2000 + "year = 1" + ")" * 2000, "recursion|nested|parsing"),
        ("x" * (1 << 21), "at most 1048576"),
    ],
)
def test_a_filter_that_cannot_be_read(large, text, reason):
    index, _ = large
    with pytest.raises(MemoryIndexError, match=reason) as caught:
        index.search(torch.ones(2, 8), 1, filter=text)
    message = str(caught.value)
    assert message.startswith(f"{index.path}: filter ")
    assert "\n" not in message
    assert len(message) < 1500
    assert "metadata_1" not in message
    with pytest.raises(TypeError, match="filter must be a string, got int"):
        index.search(torch.ones(2, 8), 1, filter=3)


@pytest.mark.slow
def test_what_is_read_at_most_ends_no_process(large, warm):
    """On the small stack of a thread of Lance's."""
    index, _ = large
    longest = " OR ".join(["year = 1" + "+1" * 48] * 39 + ["year = 1"])
    nested = "year = " + "abs(" * 30 + "1" + "+1" * 49 + ")" * 30
    many = f"year IN ({', '.join(map(str, range(-20_000, 20_000)))})"
    code = "\n".join(
        [
            "import sys, torch",
            "from clara.index import MemoryIndex, MemoryIndexError",
            "index = MemoryIndex.open(sys.argv[1])",
            "for text in sys.stdin.read().splitlines():",
            "    try:",
            "        print(len(index.search(torch.ones(2, 8), 400, filter=text)[0]))",
            "    except MemoryIndexError as error:",
            "        print('refused')",
        ]
    )
    done = subprocess.run(
        [warm().python, "-c", code, index.path],
        input="\n".join([longest, " OR ".join(["year = 1"] * 1000), nested, many]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[::3] == ["0", "400"]


def test_an_index_without_columns_is_filtered(make_index, make_documents, make_older, store_again):
    index = make_index()
    index.add(make_documents(["a#0", "a#1", "b"]))
    (hits,) = index.search(torch.ones(2, 8), 9, filter="tokens > 10 AND document_id = 'a'")
    assert [hit.id for hit in hits] == ["a#1"]
    with pytest.raises(MemoryIndexError, match="no column 'source'; it has 'document_id', 'title'"):
        index.search(torch.ones(2, 8), 1, filter="source = 'x'")
    older = make_older()
    older.add(make_documents("ab"))
    assert older.search(torch.ones(2, 8), 9, filter="document_id = 'b'")[0][0].id == "b"
    store_again(older, make_documents("b"))
    with pytest.raises(MemoryIndexError, match="ids are stored twice"):
        older.search(torch.ones(2, 8), 9, filter="document_id = 'b'")


@pytest.mark.parametrize(("column", "value"), [("metadata_1", "1"), ("source", "'x'")])
def test_damaged_metadata_are_noticed_before_they_are_compared(make_index, column, value):
    """A row that is damaged could be left out in silence."""
    index = filled(make_index(columns=COLUMNS), documents(6))
    lance.dataset(index.path).update({column: value}, where="id = 'd4'")
    index = MemoryIndex.open(index.path)
    for text in ("year = 1904", "author IS NULL", "source = 'source 0'"):
        with pytest.raises(MemoryIndexError, match=r"document 'd4' .* is damaged"):
            index.search(torch.ones(2, 8), 1, filter=text)
    assert index.search(torch.ones(2, 8), 1, filter="document_id = 'd5'")[0][0].id == "d5"


def test_names_of_columns_are_found_word_by_word(large):
    index, _ = large
    header = index._header
    text = "year=1 and author != 'year author' or `Year` in (3)"
    assert as_filter(header, text, "x").sql == (
        "metadata_1=1 and metadata_0 != 'year author' or metadata_4 in (3)"
    )
    assert not as_filter(header, "tokens > 1", "x").of_details
    assert as_filter(header, "source = 'x'", "x").of_details
