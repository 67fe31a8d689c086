import random
from pathlib import Path

import pytest
import torch

from clara.index import MemoryIndex, MemoryIndexError

FOOTER = 40  # bytes at the end of a data file; Lance allocates what they say, however much it is
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def flip(path, position, mask=0xFF):
    """Change one byte of a file in place; the same call again changes it back."""
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ mask]))


def find(folder, needle):
    """The only place in the data files of an index that holds these bytes."""
    places = [
        (path, path.read_bytes().find(needle))
        for path in Path(folder, "data").iterdir()
        if needle in path.read_bytes()
    ]
    assert len(places) == 1
    assert places[0][0].read_bytes().count(needle) == 1
    return places[0]


def stored(index, documents):
    """The folder of the index, after adding the documents."""
    index.add(documents)
    return index.path


def raw(memory):
    return memory.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 8), (4, 512)])
def test_a_flipped_byte_of_memory_names_the_document(make_index, make_documents, shape, dtype):
    documents = make_documents(["first", "second", "third"], shape, dtype)
    path = stored(make_index(shape, dtype), documents)
    size = len(raw(documents.memory[1]))
    file, start = find(path, raw(documents.memory[1]))
    for offset, mask in [(0, 1), (size // 2, 0x80), (size - 1, 0xFF)]:
        flip(file, start + offset, mask)
        index = MemoryIndex.open(path)
        for read in (
            lambda index=index: index.get(["second"]),
            lambda index=index: list(index),
            lambda index=index: index.search(documents.memory[0], 1),
        ):
            with pytest.raises(MemoryIndexError, match=r"document 'second' \(row 1\) is damaged"):
                read()
        assert index.get(["first", "third"]).ids == ["first", "third"]
        flip(file, start + offset, mask)
    assert [hit.id for hit in MemoryIndex.open(path).search(documents.memory[1], 1)[0]] == [
        "second"
    ]


@pytest.mark.parametrize("field", ["ids", "document_ids", "texts", "titles"])
@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])  # the last two are not UTF-8
def test_a_flipped_character_is_noticed(make_index, make_documents, field, mask):
    documents = make_documents(["first#0", "second#0", "third#0"])
    for name in ("document_ids", "texts", "titles"):
        getattr(documents, name)[1:2] = [f"{name} of row one"]
    documents.ids[1] = "id of row one"
    path = stored(make_index(), documents)
    file, start = find(path, getattr(documents, field)[1].encode())
    flip(file, start, mask)
    index = MemoryIndex.open(path)
    reads = [lambda: list(index), lambda: index.search(documents.memory[1], 1)]
    if field == "texts":
        reads.append(lambda: index.get(["id of row one"]))
    else:
        reads += [index.ids, index.info, lambda: index.contains(["third#0"])]
        reads.append(lambda: index.add(make_documents(["new"])))
    expected = r"document '[^']+ of row one' \(row 1\) is damaged"
    if mask != 0x01 and field != "texts":
        # The columns that would name the row cannot be read.
        expected = f"damaged|data/{file.name}: reading failed: .*invalid utf-8"
    for read in reads:
        with pytest.raises(MemoryIndexError, match=expected):
            read()
    flip(file, start, mask)
    assert MemoryIndex.open(path).get(["id of row one"]).texts == [documents.texts[1]]


def test_a_file_whose_names_cannot_be_read_is_named(make_index, make_documents):
    """Rows that were deleted from the files before it do not count."""
    index = make_index()
    index.add(make_documents(["first", "second", "third"]))
    index.delete(["second", "third"])
    path = stored(index, make_documents(["fourth#0", "fifth#0"]))
    file, start = find(path, b"fourth#0fifth#0")
    flip(file, start)
    with pytest.raises(MemoryIndexError, match=f"data/{file.name}: reading failed"):
        list(MemoryIndex.open(path))


def test_hits_are_checked_when_they_are_read(make_index, make_documents):
    documents = make_documents(["first", "second", "third"])
    index = make_index()
    path = stored(index, documents)
    assert index.search(documents.memory[1], 1)[0][0].id == "second"
    file, start = find(path, documents.texts[1].encode())
    flip(file, start)
    assert index.search(documents.memory[0], 1)[0][0].id == "first"
    with pytest.raises(MemoryIndexError, match="'second'"):
        index.search(documents.memory[1], 1)
    flip(file, start)
    file, start = find(path, raw(documents.memory[1]))
    flip(file, start)
    with pytest.raises(MemoryIndexError, match="'second'"):
        index.search(documents.memory[1], 1)


def test_rows_cannot_change_places(make_index, make_documents):
    documents = make_documents(["first", "second"])
    path = stored(make_index(), documents)
    one, two = (raw(memory) for memory in documents.memory)
    file, start = find(path, one + two)
    data = file.read_bytes()
    file.write_bytes(data[:start] + two + one + data[start + len(one + two) :])
    with pytest.raises(MemoryIndexError, match="'first'"):
        list(MemoryIndex.open(path))


@pytest.mark.parametrize("folder", ["data", "_versions"])
def test_no_flip_changes_what_is_read(make_index, make_documents, folder):
    """Anywhere in the files: the same documents are read, or an error of one line is raised."""
    documents = make_documents([f"document {n}" for n in range(9)])
    path = stored(make_index(note="of the index"), documents)
    queries = documents.memory[[2, 5]]

    def everything():
        index = MemoryIndex.open(path)
        batches = [
            (raw(d.memory), d.ids, d.document_ids, d.texts, d.titles, d.token_counts, d.fingerprint)
            for d in index
        ]
        taken = index.get(["document 7", "document 3"])
        return [
            batches,
            raw(taken.memory),
            taken.texts,
            index.ids(),
            index.info(),
            index.search(queries, 3),
        ]

    intact = everything()
    places = [
        (file, position)
        for file in sorted(Path(path, folder).iterdir())
        for position in range(file.stat().st_size - (FOOTER if folder == "data" else 0))
    ]
    chance = random.Random(0)
    noticed = 0
    least = 10 if folder == "data" else 0  # a manifest is mostly ids' hashes, for writers
    for file, position in chance.sample(places, 120):
        mask = chance.choice([0xFF, 0x01, 0x10, 0x80])
        flip(file, position, mask)
        try:
            assert everything() == intact
        except MemoryIndexError as error:
            noticed += 1
            message = str(error)
        else:
            message = f"{path}: "
        flip(file, position, mask)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
    assert noticed > least
    assert everything() == intact


@pytest.mark.parametrize("folder", ["data", "_versions"])
def test_missing_and_shortened_files_are_errors(make_index, make_documents, folder):
    documents = make_documents(["first", "second"])
    path = stored(make_index(), documents)
    file = max(Path(path, folder).glob("*.*[!n]"), key=lambda f: f.stat().st_mtime_ns)
    whole = file.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(MemoryIndexError):
            list(MemoryIndex.open(path))
    file.write_bytes(whole)
    assert MemoryIndex.open(path).ids() == ["first", "second"]
    if folder == "data":
        file.unlink()
        with pytest.raises(MemoryIndexError):
            list(MemoryIndex.open(path))
