"""Builds from sources that hold a document several times, of which the last one counts."""

import pytest

from clara.sync import BuildError
from clara.sync import build as building
from tests.clara.sync.test_build import counts, jsonl, opened


@pytest.mark.parametrize("good_is_first", [True, False])
def test_a_copy_that_fails_replaces_nothing(build, tmp_path, good_is_first):
    """The survey counts it: it is refused only once the type of the column is known."""
    good = {"id": "k", "contents": "good"}
    bad = {"id": "k", "contents": "bad", "x": [1, 2]}
    others = {"id": "a", "contents": "text a"}, {"id": "z", "contents": "text z", "x": "s"}
    file = tmp_path / "a.jsonl"
    copies = (good, bad) if good_is_first else (bad, good)
    file.write_text(jsonl(others[0], *copies, others[1]))
    for total, expected in ((4, (3, 0, 0, 0, 1)), (3, (0, 0, 3, 0, 1))):
        steps = []
        built = build(file, on_duplicate="replace", on_error="skip", steps=steps, prune=True)
        assert counts(built) == expected
        assert built.not_deleted == 0
        assert (steps[0], sum(steps[1:])) == (total, 3)  # none for what cannot be read
        assert opened(tmp_path).texts(["k"])[0].text == "good"
        assert set(opened(tmp_path).digests()) == {"a", "k", "z"}


@pytest.mark.parametrize("record_is_first", [True, False])
def test_a_file_that_cannot_be_read_replaces_nothing(build, tmp_path, record_is_first):
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"\xff\xfe\xfd")
    (folder / "b.txt").write_text("other")
    record = tmp_path / "r.jsonl"
    record.write_text(jsonl({"id": "s/a.txt", "contents": "good"}))
    sources = (record, folder) if record_is_first else (folder, record)
    steps = []
    built = build(*sources, on_duplicate="replace", on_error="skip", steps=steps)
    assert counts(built) == (2, 0, 0, 0, 1)
    assert (steps[0], sum(steps[1:])) == (3, 2)
    assert opened(tmp_path).texts(["s/a.txt"])[0].text == "good"
    with pytest.raises(BuildError, match=r"a\.txt: "):
        build(*sources, on_duplicate="replace")
    assert set(opened(tmp_path).digests()) == {"s/a.txt", "s/b.txt"}


def test_of_many_copies_the_last_that_can_be_read_remains(build, tmp_path, stub, monkeypatch):
    monkeypatch.setattr(building, "BATCH", 2)
    file = tmp_path / "a.jsonl"
    texts = ["one", "two", "three"]
    records = [{"id": name, "contents": text} for text in texts for name in "kl"]
    tail = {"id": "k", "contents": "bad", "x": [1]}, {"id": "m", "contents": "last", "x": 1}
    file.write_text(jsonl(*records, *tail))
    steps = []
    built = build(file, on_duplicate="replace", on_error="skip", steps=steps)
    assert (built.added, built.replaced, built.duplicates) == (3, 0, 4)
    assert (steps[0], sum(steps[1:])) == (8, 7)
    assert [each.text for each in opened(tmp_path).texts(["k", "l", "m"])] == [
        "three",
        "three",
        "last",
    ]
    assert sorted(stub.seen) == ["k", "l", "m"]  # none is compressed twice
