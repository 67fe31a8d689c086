"""What becomes of a document, and what pruning deletes: decisions without an index."""

import itertools

import pytest

from clara.sync.deciding import Decision, Pruning, Stored, decide, is_large, plan_pruning

HERE = Stored("book", "0a")


@pytest.mark.parametrize("on_duplicate", ["error", "skip", "replace"])
def test_a_document_of_its_own_source(on_duplicate):
    assert decide(None, "book", "0a", on_duplicate) is Decision.ADD
    assert decide(HERE, "book", "0a", on_duplicate) is Decision.KEEP
    assert decide(HERE, "book", "1b", on_duplicate) is Decision.REPLACE


@pytest.mark.parametrize("stored", [HERE, Stored(None, "0a"), Stored(None, None)])
@pytest.mark.parametrize(
    ("on_duplicate", "expected"),
    [("error", Decision.REFUSE), ("skip", Decision.KEEP), ("replace", Decision.REPLACE)],
)
def test_the_id_of_another_sources_document(stored, on_duplicate, expected):
    assert decide(stored, "news", "1b", on_duplicate) is expected


def test_what_is_not_known_is_like_nothing_else():
    unknown = Stored(None, None)
    assert decide(unknown, None, None, "error") is Decision.REFUSE
    assert decide(unknown, "book", None, "error") is Decision.REFUSE
    assert decide(Stored("book", None), "book", "0a", "error") is Decision.REPLACE


def test_the_same_document_in_two_sources_is_kept():
    assert decide(HERE, "news", "0a", "error") is Decision.KEEP


@pytest.mark.parametrize("on_duplicate", ["error", "skip"])
def test_two_sources_never_take_turns(on_duplicate):
    """However often two sources with one id are built, the document changes once at most."""
    index: dict[str, Stored] = {}
    changes = []
    for source, digest in itertools.islice(itertools.cycle([("a", "0a"), ("b", "1b")]), 8):
        decision = decide(index.get("x"), source, digest, on_duplicate)
        if decision in (Decision.ADD, Decision.REPLACE):
            index["x"] = Stored(source, digest)
            changes.append(decision)
    assert changes == [Decision.ADD]


def test_pruning_takes_only_what_is_gone_from_its_own_sources():
    stored = {
        "a": Stored("book", "0a"),
        "b": Stored("book", "0b"),
        "c": Stored("news", "0c"),
        "d": Stored(None, None),
    }
    assert plan_pruning(stored, {"book"}, {"b", "new"}) == Pruning(["a"], 2)
    assert plan_pruning(stored, {"book", "news"}, {"b"}) == Pruning(["a", "c"], 3)
    assert plan_pruning(stored, {"book"}, {"a", "b"}) == Pruning([], 2)
    assert plan_pruning(stored, set(), set()) == Pruning([], 0)


def test_more_than_a_tenth_is_large():
    assert [is_large(n, 30) for n in (0, 3, 4)] == [False, False, True]
    assert is_large(1, 1)
    assert not is_large(0, 0)
    assert Pruning(["a", "b"], 19).is_large
    assert not Pruning(["a", "b"], 20).is_large
