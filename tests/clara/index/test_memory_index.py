import json
import os
import threading

import lance
import pyarrow as pa
import pytest
import torch

from clara.index import MemoryIndex, MemoryIndexError
from clara.memory.documents import CompressedDocuments

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (2, 8), (3, 129), (4, 1024)])
def test_documents_come_back_as_they_were_added(
    make_index, make_documents, assert_same, dtype, shape
):
    index = make_index(shape, dtype)
    parts = [make_documents(ids, shape, dtype) for ids in (["a#0", "a#1", "b"], ["c"], list("xyz"))]
    for part in parts:
        index.add(part)
    everything = CompressedDocuments.concatenate(parts)
    for reader in (index, MemoryIndex.open(index.path)):
        assert len(reader) == 7
        assert reader.ids() == everything.ids
        assert_same(CompressedDocuments.concatenate(reader), everything)
        assert_same(reader.get(["y", "a#1", "c", "y"]), everything[[5, 1, 3, 5]])


def test_more_documents_than_are_read_at_a_time(make_index, make_documents, assert_same):
    index = make_index()
    documents = make_documents([f"d{n}" for n in range(2500)])
    index.add(documents[:1500])
    index.add(documents[1500:])
    batches = list(index)
    assert len(batches) > 2
    assert_same(CompressedDocuments.concatenate(batches), documents)


def test_memory_keeps_every_bit(make_index, make_documents):
    index = make_index()
    memory = torch.tensor([-0.0, 1e-45, 3.4028235e38, -1.1754944e-38] * 4).view(1, 2, 8)
    index.add(make_documents(["a"], memory=memory))
    stored = MemoryIndex.open(index.path).get(["a"]).memory
    assert torch.equal(stored.view(torch.int32), memory.view(torch.int32))


def test_memory_is_converted_to_the_dtype_of_the_index(make_index, make_documents):
    index = make_index(dtype=torch.bfloat16)
    documents = make_documents(["a", "b"])
    documents.memory.requires_grad_()
    index.add(documents)
    assert torch.equal(index.get(["a", "b"]).memory, documents.memory.to(torch.bfloat16))
    assert not index.get(["a"]).memory.requires_grad


def test_memory_that_is_a_strided_view(make_index, make_documents):
    index = make_index()
    memory = torch.randn(8, 2, 6).permute(2, 1, 0)[::2]
    index.add(make_documents("abc", memory=memory))
    assert torch.equal(index.get(list("abc")).memory, memory)


def test_get_hands_out_memory_of_its_own(make_index, make_documents, assert_same):
    index = make_index()
    documents = make_documents("ab")
    index.add(documents)
    index.search(documents.memory, 1)[0][0].memory.zero_()
    index.get(["a"]).memory.zero_()
    assert_same(index.get(["a", "b"]), documents)
    assert index.search(documents.memory, 1)[0][0].score == pytest.approx(1)


def test_an_empty_index(make_index, make_documents, assert_same):
    index = make_index()
    assert len(index) == 0
    assert list(index) == []
    assert index.ids() == []
    assert index.contains(["a"]) == [False]
    assert_same(index.get([]), make_documents([]))
    assert index.search(torch.randn(3, 2, 8), 5) == [[], [], []]
    assert index.info()["effective_compression"] == 0
    index.add(make_documents([]))
    assert len(index) == 0


def test_what_is_stored_already_can_be_asked(make_index, make_documents):
    index = make_index()
    index.add(make_documents(["a", "b#0"]))
    assert index.contains(["b#0", "b", "a", "A", ""]) == [True, False, True, False, False]
    assert index.contains([]) == []


def test_info_counts(make_index, make_documents):
    index = make_index(dtype=torch.float16, rate=16)
    index.add(make_documents(["a#0", "a#1", "b"]))
    index.add(make_documents(["c"]))
    on_disk = sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(index.path)
        for name in names
    )
    strings = 8 + 4 + len("title of b") + 17 + 17 + 15 + 15  # ids, documents, titles, texts
    expected = {
        "path": index.path,
        "format_version": 3,
        "count": 4,
        "documents": 3,
        "vectors": 8,
        "memory_tokens": 2,
        "hidden_size": 8,
        "dtype": "float16",
        "storage": "float16",
        "fingerprint": "f" * 64,
        "bytes": on_disk,
        "bytes_per_document": on_disk / 3,
        "expected_bytes_per_document": (4 * 110 + 4 * 2 * 8 * 2 + strings) / 3,
        "tokens": 10 + 11 + 12 + 10,
        "effective_compression": 43 / 8,
        "duplicate_ids": [],
        "columns": None,
        "settings": {"rate": 16},
    }
    assert index.info() == expected
    assert json.loads(json.dumps(MemoryIndex.open(index.path).info())) == expected


def test_settings_are_kept_and_not_shared(tmp_path):
    given = {"rate": 16, "nested": {"list": [1, None, "ü"]}}
    index = MemoryIndex.create(
        tmp_path / "index", fingerprint="f", memory_tokens=1, hidden_size=2, settings=given
    )
    given["nested"]["list"].append(3)
    index.settings["nested"].clear()
    kept = {"rate": 16, "nested": {"list": [1, None, "ü"]}}
    assert index.settings == MemoryIndex.open(index.path).settings == kept


def damage(documents, **fields):
    """The documents with other fields."""
    names = ("memory", "ids", "document_ids", "token_counts", "texts", "titles", "fingerprint")
    return CompressedDocuments(**{name: getattr(documents, name) for name in names} | fields)


@pytest.mark.parametrize(
    ("fields", "error", "reason"),
    [
        ({"fingerprint": "e" * 64}, MemoryIndexError, "another model"),
        ({"memory": torch.zeros(2, 3, 8)}, MemoryIndexError, r"\[N, 2, 8\], got \[2, 3, 8\]"),
        ({"memory": torch.zeros(2, 2, 4)}, MemoryIndexError, r"\[N, 2, 8\], got \[2, 2, 4\]"),
        ({"memory": torch.zeros(2, 2, 8, dtype=torch.int32)}, TypeError, "floating point"),
        ({"memory": torch.full((2, 2, 8), torch.nan)}, MemoryIndexError, "'x': .* not finite"),
        ({"memory": torch.full((2, 2, 8), 7e4)}, MemoryIndexError, "not finite in float16"),
        ({"ids": ["x", "x"]}, MemoryIndexError, "holds 'x' twice"),
        ({"ids": ["x", "a"]}, MemoryIndexError, "'a' is in the index already"),
        ({"ids": ["x", ""]}, MemoryIndexError, "empty id"),
        ({"ids": ["x", "\ud800"]}, MemoryIndexError, "half a surrogate"),
        ({"texts": ["x", "\ud800"]}, MemoryIndexError, "'y': text holds half a surrogate"),
        ({"titles": ["\udfff", None]}, MemoryIndexError, "'x': title holds half a surrogate"),
        ({"token_counts": [1, -1]}, MemoryIndexError, "'y': token count -1"),
        ({"token_counts": [2**31, 1]}, MemoryIndexError, "'x': token count 2147483648"),
    ],
)
def test_refused_documents_leave_the_index_unchanged(
    make_index, make_documents, assert_same, fields, error, reason
):
    index = make_index(dtype=torch.float16)
    stored = make_documents("ab", dtype=torch.float16)
    index.add(stored)
    version = lance.dataset(index.path).version
    with pytest.raises(error, match=reason) as caught:
        index.add(damage(make_documents("xy"), **fields))
    assert "\n" not in str(caught.value)
    assert lance.dataset(index.path).version == version
    assert index.ids() == ["a", "b"]
    assert_same(CompressedDocuments.concatenate(index), stored)
    index.add(make_documents("xy"))
    assert index.ids() == ["a", "b", "x", "y"]


def test_another_type_is_refused(make_index):
    with pytest.raises(TypeError, match="compressed must be CompressedDocuments, got list"):
        make_index().add([torch.zeros(2, 8)])


def test_unknown_ids_are_named(make_index, make_documents):
    index = make_index()
    index.add(make_documents("ab"))
    with pytest.raises(MemoryIndexError, match="no document has the id 'nope'"):
        index.get(["a", "nope"])
    for method in (index.get, index.contains):
        with pytest.raises(TypeError, match="ids must be a list of ids, got a single string"):
            method("a")


def test_another_handle_sees_what_was_added(make_index, make_documents):
    writer = make_index()
    reader = MemoryIndex.open(writer.path)
    documents = make_documents("abcd")
    writer.add(documents[:2])
    assert reader.ids() == ["a", "b"]
    assert reader.search(documents.memory[3], 1)[0][0].id != "d"
    writer.add(documents[2:])
    assert reader.search(documents.memory[3], 1)[0][0].id == "d"
    assert reader.contains(["d"]) == [True]
    assert len(reader) == 4
    with pytest.raises(MemoryIndexError, match="'c' is in the index already"):
        reader.add(documents[2:])


def test_an_iteration_keeps_to_what_it_started_with(make_index, make_documents):
    index = make_index()
    index.add(make_documents("ab"))
    batches = iter(index)
    index.add(make_documents("cd"))
    assert [name for batch in batches for name in batch.ids] == ["a", "b"]


def test_of_writers_at_the_same_time_one_adds_an_id(make_index, make_documents):
    path = make_index().path
    outcomes = []

    def write(number):
        index = MemoryIndex.open(path)
        for name in ("shared0", "shared1", f"own{number}"):
            try:
                index.add(make_documents([name]))
                outcomes.append(name)
            except MemoryIndexError as error:
                outcomes.append(str(error))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    added = ["own0", "own1", "own2", "own3", "shared0", "shared1"]
    refused = [f"document 'shared{n}' is in the index already" for n in (0, 0, 0, 1, 1, 1)]
    assert sorted(outcomes) == refused + added
    assert sorted(MemoryIndex.open(path).ids()) == added


@pytest.mark.parametrize("name", ["sp ace", "ünï", "per%20cent", "h#sh", "q?uery", "a/b/c"])
def test_names_of_folders(tmp_path, monkeypatch, make_documents, name):
    monkeypatch.chdir(tmp_path)
    index = MemoryIndex.create(name, fingerprint="f" * 64, memory_tokens=2, hidden_size=8)
    index.add(make_documents("ab"))
    monkeypatch.chdir("/")
    index.add(make_documents("c"))
    assert MemoryIndex.open(tmp_path / name).ids() == ["a", "b", "c"]
    assert os.listdir(os.path.dirname(tmp_path / name)) == [os.path.basename(name)]


def test_an_index_can_be_moved(tmp_path, make_index, make_documents, assert_same):
    index = make_index()
    index.add(make_documents("ab"))
    moved = (tmp_path / "index").rename(tmp_path / "elsewhere")
    assert_same(MemoryIndex.open(moved).get(["a", "b"]), make_documents("ab"))
    with pytest.raises(MemoryIndexError):
        index.add(make_documents("c"))


def test_create_takes_an_empty_folder_and_nothing_else(tmp_path, make_documents):
    fields = {"fingerprint": "f" * 64, "memory_tokens": 2, "hidden_size": 8}
    (tmp_path / "empty").mkdir()
    MemoryIndex.create(tmp_path / "empty", **fields).add(make_documents("ab"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").touch()
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "file" / "nothing")
    for name in ("empty", "full", "file", "dangling"):
        with pytest.raises(MemoryIndexError, match=r"exists already|Not a directory|File exists"):
            MemoryIndex.create(tmp_path / name, **fields)
    assert MemoryIndex.open(tmp_path / "empty").ids() == ["a", "b"]
    assert sorted(os.listdir(tmp_path)) == ["dangling", "empty", "file", "full"]
    assert os.listdir(tmp_path / "full") == ["notes"]


@pytest.mark.parametrize(
    ("fields", "error", "reason"),
    [
        ({"fingerprint": ""}, ValueError, "fingerprint must be"),
        ({"fingerprint": None}, ValueError, "fingerprint must be"),
        ({"memory_tokens": 0}, ValueError, "memory_tokens must be a positive integer, got 0"),
        ({"memory_tokens": True}, ValueError, "memory_tokens must be a positive integer"),
        ({"hidden_size": 8.0}, ValueError, "hidden_size must be a positive integer, got 8.0"),
        ({"dtype": torch.float64}, ValueError, "float32, float16, bfloat16, got torch.float64"),
        ({"dtype": "float33"}, ValueError, "dtype must be one of"),
        ({"storage": "int2"}, ValueError, "storage must be one of"),
        ({"settings": [1]}, TypeError, "settings must be a dict, got list"),
        ({"settings": {"a": object()}}, ValueError, "cannot be written as JSON"),
        ({"settings": {"a": float("nan")}}, ValueError, "cannot be written as JSON"),
        ({"settings": {1: 2}}, ValueError, "string keys"),
        ({"settings": {"a": (1,)}}, ValueError, "no tuples"),
    ],
)
def test_create_refuses_bad_arguments(tmp_path, fields, error, reason):
    fields = {"fingerprint": "f", "memory_tokens": 2, "hidden_size": 8} | fields
    with pytest.raises(error, match=reason):
        MemoryIndex.create(tmp_path / "index", **fields)
    assert os.listdir(tmp_path) == []


def test_open_says_what_is_wrong_in_one_line(tmp_path, make_index):
    make_index()
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("{}")
    lance.write_dataset(pa.table({"id": ["a"]}), tmp_path / "theirs")
    (tmp_path / "half" / "_versions").mkdir(parents=True)
    for name, reason in {
        "nothing": "not found",
        "folder": "not an index: the folder holds no Lance dataset",
        "file": "is a file, not the folder of an index",
        "theirs": "a Lance dataset, but not an index of clara",
        "half": "opening the index failed: ",
        "index/data": "not found",
        "index/_versions": "not an index",
    }.items():
        with pytest.raises(MemoryIndexError) as caught:
            MemoryIndex.open(tmp_path / name)
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / name}: {reason}")
        assert "\n" not in message
        assert ".rs:" not in message


def test_an_index_replaced_by_another_model_s_is_noticed(tmp_path, make_index, make_documents):
    index = make_index()
    index.add(make_documents("ab"))
    (tmp_path / "index").rename(tmp_path / "old")
    MemoryIndex.create(index.path, fingerprint="e" * 64, memory_tokens=2, hidden_size=8)
    with pytest.raises(MemoryIndexError, match="was replaced by another index"):
        index.add(make_documents("cd"))
