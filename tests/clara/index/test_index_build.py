"""Writers at the same time, with and without locks, and what is stored twice."""

import errno
import fcntl
import os
import subprocess
import sys

import lance
import pyarrow as pa
import pytest
import torch

from clara.index import DuplicateIdError, MemoryIndex, MemoryIndexError
from clara.index.build import Writer
from clara.index.catalog import added_order
from clara.index.layout import encode
from clara.index.snapshot import Snapshot
from clara.memory.documents import CompressedDocuments
from tests.clara.index.rows import append_rows

# Adds, in each round that it is told to begin, documents that the other writer adds too, and one
# of its own. The locks of this process exclude nobody.
WRITER = """
import fcntl, sys
import torch
from clara.memory.documents import CompressedDocuments
from clara.index import DuplicateIdError, MemoryIndex

fcntl.flock = lambda file, how: None
me = sys.argv[1]
print("ready", flush=True)
for line in sys.stdin:
    path, trial = line.split()
    if trial == "0":
        index = MemoryIndex.open(path)
    ids = [f"{trial}-own-{me}", f"{trial}-shared"]
    ids = ids[::-1] if me == "1" else ids
    documents = CompressedDocuments(
        torch.randn(2, 2, 8), ids, ids, [1, 1], ids, [None, None], index.fingerprint
    )
    try:
        index.add(documents)
        print("added", flush=True)
    except DuplicateIdError as error:
        print("refused", error.ids == [f"{trial}-shared"], flush=True)
"""


def race(indexes, trials, python=sys.executable):
    """Two processes that add the same id at the same time, so often to each of the indexes.

    Returns how often each process won.
    """
    command = [python, "-c", WRITER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([*command, str(number)], **pipes) for number in range(2)]
    won = [0, 0]
    try:
        for writer in writers:
            assert writer.stdout.readline() == "ready\n"
        for path, trial in ((path, trial) for path in indexes for trial in range(trials)):
            for writer in writers:
                writer.stdin.write(f"{path} {trial}\n")
                writer.stdin.flush()
            outcomes = [writer.stdout.readline() for writer in writers]
            assert sorted(outcomes) == ["added\n", "refused True\n"]
            won[outcomes.index("added\n")] += 1
    finally:
        for writer in writers:
            writer.stdin.close()
            writer.stdout.close()
            writer.wait()
    return won


@pytest.mark.slow
def test_two_processes_without_a_lock_store_no_id_twice(warm, tmp_path):
    """More of it by hand: `python tests/clara/index/test_index_build.py 2000`."""
    indexes = [create(tmp_path / f"index{number}") for number in range(5)]
    won = race([index.path for index in indexes], 40, warm().python)
    assert sum(won) == 200
    for index in indexes:
        ids = lance.dataset(index.path).to_table(["id"]).column("id").to_pylist()
        assert len(set(ids)) == len(ids) == 80  # the loser's own document is not there
        assert index.ids() == ids
        assert index.info()["duplicate_ids"] == []


def create(path):
    return MemoryIndex.create(path, fingerprint="f" * 64, memory_tokens=2, hidden_size=8)


def test_an_addition_is_refused_as_a_whole(make_index, make_documents):
    one = make_index()
    two = MemoryIndex.open(one.path)
    one.add(make_documents("ab"))
    version = lance.dataset(one.path).version
    with pytest.raises(DuplicateIdError, match="document 'a' is in the index already") as caught:
        two.add(make_documents("xay"))
    assert caught.value.ids == ["a"]
    with pytest.raises(DuplicateIdError, match=r"'b' is in the index already \(and 1 more\)"):
        two.add(make_documents("xbay"))
    assert lance.dataset(one.path).version == version
    two.add(make_documents("xy"))
    assert one.ids() == ["a", "b", "x", "y"]


def test_an_id_added_between_the_check_and_the_commit_is_noticed(
    make_index, make_documents, monkeypatch, blind_locks
):
    one = make_index()
    two = MemoryIndex.open(one.path)
    real = Writer.commit

    def late(*arguments, **options):
        monkeypatch.setattr(Writer, "commit", real)
        two.add(make_documents("ab"))
        return real(*arguments, **options)

    monkeypatch.setattr(Writer, "commit", late)
    with pytest.raises(DuplicateIdError) as caught:
        one.add(make_documents("xb"))
    assert caught.value.ids == ["b"]
    assert one.ids() == ["a", "b"]


def test_the_order_of_rows_is_that_in_which_they_were_added():
    first, second = 7 << 32, 3 << 32
    assert added_order([first, first + 1, second, second + 1]) is None
    assert added_order([None, None, first, first + 1]) is None
    assert added_order([]) is None
    sequences = [first + 2, first, first + 1, second + 1, second, None, None, first + 1, first]
    assert added_order(sequences).tolist() == [1, 2, 0, 4, 3, 5, 6, 8, 7]


def test_many_documents_keep_their_order(make_index, assert_same):
    """Lance spreads more than 8,192 rows over threads and stores them as they come."""
    count = 20_000
    ids = [f"d{n}" for n in torch.randperm(count, generator=torch.Generator().manual_seed(0))]
    documents = CompressedDocuments(
        memory=torch.randn(count, 2, 8),
        ids=ids,
        document_ids=ids,
        token_counts=[1] * count,
        texts=[f"text of {name}" for name in ids],
        titles=[None] * count,
        fingerprint="f" * 64,
    )
    index = make_index()
    index.add(documents[:3])
    index.add(documents[3:])
    stored = lance.dataset(index.path).to_table(["id"]).column("id").to_pylist()
    assert sorted(stored) == sorted(ids)
    for reader in (index, MemoryIndex.open(index.path)):
        assert reader.ids() == ids
        assert_same(CompressedDocuments.concatenate(reader), documents)
        some = [19_999, 3, 0, 11_111]
        assert_same(reader.get([ids[row] for row in some]), documents[some])
        hits = reader.search(documents.memory[some], 1)
        assert [hit[0].row for hit in hits] == some
        assert [hit[0].id for hit in hits] == [ids[row] for row in some]


def test_rows_that_lie_otherwise_than_they_were_added(make_index, make_documents, assert_same):
    index = make_index()
    documents = make_documents([f"d{n}" for n in range(7)])
    index.add(documents[:2])
    snapshot = Snapshot.latest(index.path)
    append_rows(snapshot, encode_backwards(snapshot.header, documents[2:]))
    stored = lance.dataset(index.path).to_table(["id"]).column("id").to_pylist()
    assert stored == ["d0", "d1", "d6", "d5", "d4", "d3", "d2"]
    for reader in (index, MemoryIndex.open(index.path)):
        assert reader.ids() == documents.ids
        assert_same(CompressedDocuments.concatenate(reader), documents)
        assert_same(reader.get(["d5", "d0", "d2"]), documents[[5, 0, 2]])
        assert [row.text for row in reader.texts(["d5", "d0"])] == [
            documents.texts[5],
            documents.texts[0],
        ]
        hits = reader.search(documents.memory, 1)
        assert [hit[0].row for hit in hits] == list(range(7))
        assert [hit[0].text for hit in hits] == documents.texts


def encode_backwards(header, documents):
    """Rows as Lance may store them."""
    batch = encode(header, documents)
    return batch.take(pa.array(range(batch.num_rows - 1, -1, -1)))


# Format 1


@pytest.mark.parametrize(
    "code", [errno.EBADF, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL]
)
def test_a_file_system_without_locks(make_index, make_older, make_documents, monkeypatch, code):
    def refused(file, how):
        raise OSError(code, os.strerror(code))

    older, newer = make_older(), make_index()
    monkeypatch.setattr(fcntl, "flock", refused)
    newer.add(make_documents("ab"))
    with pytest.raises(MemoryIndexError, match="'clara index upgrade --model MODEL ") as caught:
        older.add(make_documents("ab"))
    assert older.path in str(caught.value)
    assert "\n" not in str(caught.value)
    assert older.ids() == []


def test_format_1_is_read_and_added_to(make_older, make_documents, assert_same):
    index = make_older(rate=16)
    documents = make_documents("abcd")
    index.add(documents[:2])
    index.add(documents[2:])
    assert_same(CompressedDocuments.concatenate(index), documents)
    assert index.info()["format_version"] == 1
    with pytest.raises(DuplicateIdError):
        index.add(make_documents("xa"))
    with pytest.raises(MemoryIndexError, match="'clara index upgrade --model MODEL "):
        index.add(make_documents("x", fingerprint="e" * 64))


def test_what_is_stored_twice_is_read_once(make_older, make_documents, store_again, assert_same):
    index = make_older()
    first, second = make_documents("abc"), make_documents("bdc", memory=torch.randn(3, 2, 8))
    index.add(first)
    index.search(first.memory, 1)
    store_again(index, second)
    expected = CompressedDocuments.concatenate([first, second[1]])
    for reader in (index, MemoryIndex.open(index.path)):
        assert len(reader) == 4
        assert reader.ids() == ["a", "b", "c", "d"]
        assert_same(CompressedDocuments.concatenate(reader), expected)
        assert_same(reader.get(["c", "d", "b"]), expected[[2, 3, 1]])
        found = reader.search(second.memory, 9)
        assert [sorted(hit.id for hit in hits) for hits in found] == [["a", "b", "c", "d"]] * 3
        assert [hit.row for hit in reader.search(expected.memory[3], 1)[0]] == [3]
        info = reader.info()
        assert (info["count"], info["duplicate_ids"]) == (4, ["b", "c"])
        assert info["tokens"] == sum(expected.token_counts)
        with pytest.raises(DuplicateIdError):
            reader.add(make_documents("b"))
    index.add(make_documents("e"))
    assert index.ids() == MemoryIndex.open(index.path).ids() == ["a", "b", "c", "d", "e"]


if __name__ == "__main__":
    import tempfile

    made = create(tempfile.mkdtemp() + "/index")
    print("won by each:", race([made.path], int(sys.argv[1])))
    print("duplicates:", made.info()["duplicate_ids"])
